# Before the lessons where COURSE_BRIEF=1: small clouds and short trainings, to see that every cell runs.
import numpyro_diffusion as nd

if not hasattr(nd, "full_size"):  # once a process

    def _brief():
        smc, plates, fit, audit = nd.SMC, nd.ppl.PlateSMC, nd.fit, nd.audit
        chosen = nd.Annealed(moves=1, pilot=nd.schemes.Pilot(32, 0.6))

        def small_smc(model, scheme=None, *, num_particles=512, num_chains=4, **options):
            scheme = chosen if isinstance(scheme, nd.Annealed | None) else scheme
            del num_particles, num_chains  # all alike: runs of one model share their program
            return smc(model, scheme, num_particles=32, num_chains=2, **options)

        def small_plates(model, scheme=None, *, num_particles=512, **options):
            return plates(model, scheme, num_particles=min(num_particles, 32), **options)

        def small_fit(*arguments, steps=20, **options):
            return fit(*arguments, steps=min(steps, 20), **options)

        def small_audit(*arguments, **options):
            sizes = {"num_levels": 2, "num_examples": 20, "num_draws": 20, "num_steps": 10}
            return audit(*arguments, **options | sizes)

        nd.SMC, nd.ppl.PlateSMC, nd.fit, nd.audit = small_smc, small_plates, small_fit, small_audit
        nd.full_size = smc

    _brief()
