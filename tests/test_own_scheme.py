"""A scheme and a transport of one's own, as docs/extending.md shows them."""

import re
from pathlib import Path
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from assertions import assert_near, by_cloud
from closed_form import two_dimensional
from numpyro.infer import MCMC
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.schemes import AbstractScheme, AbstractTransport, Retrace, TunedScheme

PAGE = Path(__file__).parent.parent / "docs" / "extending.md"
PROBLEM = two_dimensional(offset_scale=0.8, sigma=0.5)  # a site beside the diffusion site


def shown(name):
    """A class of the page."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (code,) = (block for block in blocks if f"class {name}(" in block)
    names = {"eqx": eqx, "jax": jax, "jnp": jnp, "nd": nd}
    exec(compile(code, f"{PAGE.name}: {name}", "exec"), names)
    return names[name]


Jarzynski, EulerMaruyama = shown("Jarzynski"), shown("EulerMaruyama")


class WithWayBack(EulerMaruyama):
    """The same for particle Gibbs."""

    def retrace(self):
        return Retrace(self.log_ratio, None, self.back)

    def log_ratio(self, bridge, particle, position, level):
        moves, v = self.noise_between(bridge, level)
        pull = position["x"] - particle.position["x"]
        xi = (pull - v * particle.gradient["x"]) / jnp.sqrt(v)
        return jnp.where(moves, 0.5 * jnp.sum(xi**2 - pull**2 / v), 0.0)

    def back(self, key, bridge, position, level):
        moves, v = self.noise_between(bridge, level)
        noise = jnp.sqrt(v) * jax.random.normal(key, position["x"].shape)
        return {"x": position["x"] + jnp.where(moves, noise, 0.0)}

    def noise_between(self, bridge, level):
        moves = level.next_clock < level.clock
        noisy, clean = bridge.noise(level.clock)["x"], bridge.noise(level.next_clock)["x"]
        return moves, jnp.where(moves, noisy**2 - clean**2, 1.0)


@pytest.fixture(scope="module")
def finished():
    smc = nd.SMC(PROBLEM.model, Jarzynski(80), num_particles=256, num_chains=16, progress_bar=False)
    return smc.run(jax.random.key(1), PROBLEM.operator, PROBLEM.data)


def test_evidence_and_posterior_of_a_scheme_with_no_more_than_a_call(finished):
    exact = PROBLEM.exact()
    error = finished.log_evidence_error
    assert error < 0.15
    assert abs(finished.log_evidence - exact.log_evidence) < 4 * error
    sd = np.sqrt(exact.variance)
    assert_near(by_cloud(finished, lambda s: s["x"]), exact.mean, 0.05 * sd)
    assert_near(
        by_cloud(finished, lambda s: s["offset"]), exact.offset_mean, 0.05 * exact.offset_sd
    )
    draws = finished.get_samples()
    # Some hundred of the draws are independent.
    np.testing.assert_allclose(draws["x"].mean(0), exact.mean, atol=0.3)
    np.testing.assert_allclose(draws["offset"].std(), exact.offset_sd, rtol=0.2)


def test_a_step_of_langevin_without_its_weight_would_not_do(finished):
    """The test above can fail: the last steps alone, without what they do against detailed balance."""
    scheme, bridge = finished.scheme, finished.bridge

    def careless(key, particle, level):
        new, log_weight, info = model.step(key, particle, level)
        z, log_det = bridge.carry(particle[0], level[0], level[1])
        clock = level[1]
        value = lambda z: nd.bridge.log_density(bridge, z, clock, 1 - clock)[0]
        return new, value(z) - particle[1] + log_det, info

    model = scheme(bridge)
    result = nd.run_smc(jax.random.key(1), model._replace(step=careless), 256, num_chains=16)
    spread = float(result.log_evidence.std()) / 4
    assert abs(float(result.log_evidence.mean()) - PROBLEM.exact().log_evidence) > 4 * spread


def test_what_a_scheme_does_not_say_is_called_unknown(finished, capsys):
    assert finished.network_evaluations is None
    finished.print_summary()
    printed = capsys.readouterr().out
    assert "80 levels, unknown number of network evaluations" in printed
    assert finished.bridge.target in printed and "offset" in printed


def test_arviz(finished):
    data = finished.to_arviz()
    posterior = data["posterior"]
    assert posterior["x"].shape == (16, 256, 2)
    assert posterior.attrs["log_evidence"] == finished.log_evidence
    assert posterior.attrs["scheme"].startswith("Jarzynski(num_levels=80")
    weights = np.exp(np.asarray(data["weighted_particles"]["log_weight"]))
    mean = np.einsum("cn,cnd->d", weights / weights.sum(), data["weighted_particles"]["x"])
    samples, shares = finished.get_weighted_samples()
    np.testing.assert_allclose(mean, np.einsum("cn,cnd->d", shares, samples["x"]), rtol=1e-6)
    assert data["smc_trace"]["ess"].shape == (16, 80)


def test_a_normaliser_by_it_is_right_and_its_cost_unknown():
    energy = nd.Gaussian([0.5, -1.0], [[1.0, 0.6], [0.6, 0.8]])
    found = nd.prior_normalizer(
        energy, jax.random.key(0), scheme=Jarzynski(40), num_particles=200, num_chains=8
    )
    assert found.evaluations is None
    assert found.standard_error < 0.15
    assert abs(found.value - energy.log_normalizer) < 4 * found.standard_error


def test_kernels_that_take_a_scheme_apart_refuse_it_by_name():
    for kernel in (nd.ParticleGibbs, nd.ParticleMarginal):
        with pytest.raises(
            TypeError, match=f"`{kernel.__name__}` takes.*`TunedScheme`; `Jarzynski`"
        ):
            kernel(PROBLEM.model, Jarzynski())
    bridge = nd.from_energy(PROBLEM.prior, lambda x: -0.5 * jnp.sum(x**2))
    with pytest.raises(TypeError, match=r"`replica_exchange` takes.*`Jarzynski`.*nd\.SMC"):
        nd.replica_exchange(jax.random.key(0), bridge, Jarzynski())


def test_functions_are_refused_with_the_remedy():
    def scheme(bridge, key=None, *, progress_bar=False):
        return Jarzynski()(bridge)

    class Plain:
        __call__ = staticmethod(scheme)

    remedy = r"`scheme` must be .*`AbstractScheme`.*got .*subclass of `nd.schemes.AbstractScheme`"
    for wrong in (scheme, Plain()):
        with pytest.raises(TypeError, match=remedy):
            nd.SMC(PROBLEM.model, wrong)
        with pytest.raises(TypeError, match=remedy):
            nd.ParticleGibbs(PROBLEM.model, wrong)
        with pytest.raises(TypeError, match=remedy):
            nd.prior_normalizer(PROBLEM.prior, jax.random.key(0), scheme=wrong)
    with pytest.raises(TypeError, match="`scheme` must be an instance") as error:
        nd.SMC(PROBLEM.model, "annealed")
    assert "subclass" not in str(error.value)  # a word is no function


def test_the_call_is_all_that_a_scheme_must_have():
    class Silent(AbstractScheme):
        pass

    for abstract in (AbstractScheme, Silent):
        with pytest.raises(TypeError, match="__call__"):
            abstract()
    with pytest.raises(TypeError, match="claims.*kernels"):
        TunedScheme()
    scheme = Jarzynski()
    assert scheme.twist == nd.Tweedie() and scheme.bridge_type is nd.bridge.DensityBridge
    assert scheme.evaluations_per_level(None) is None


def test_fields_stand_where_they_are_written():
    """Also those that take the place of a default of the base class."""

    class Own(Jarzynski):
        twist: nd.twists.AbstractTwist = nd.twists.Identity()
        bridge_type: type = nd.bridge.PathBridge

    density = nd.bridge.DensityBridge
    assert Own(3, 0.1, nd.Widened(), density) == Own(
        3, 0.1, bridge_type=density, twist=nd.Widened()
    )
    assert Own(3).twist == nd.twists.Identity() and Own().bridge_type is nd.bridge.PathBridge
    assert nd.Twisted(7).levels == 7 and nd.ScoreComposition(7).levels == 7
    assert nd.Annealed(3).moves == nd.Annealed().moves.but(3)
    assert nd.Annealed(nd.moves.mala()).moves == nd.Annealed().moves.but(
        nd.schemes.Moves(nd.moves.mala())
    )
    assert nd.LikelihoodTempered(3, pilot=8).moves.joint == nd.moves.hmc(4)
    assert nd.LikelihoodTempered(3, pilot=8).pilot == nd.schemes.Pilot(8, 0.5, 400)


def test_what_a_scheme_says_of_twist_and_bridge_is_heard():
    seen = []

    class Curious(Jarzynski):
        twist: ClassVar = nd.twists.Identity()

        def __call__(self, bridge, key=None, *, progress_bar=False):
            seen.append(bridge)
            return super().__call__(bridge, key)

    class OfSteps(Curious):
        bridge_type: ClassVar = nd.bridge.PathBridge

        def __call__(self, bridge, key=None, *, progress_bar=False):
            seen.append(bridge)
            raise StopIteration

    data = PROBLEM.operator, PROBLEM.data
    nd.SMC(PROBLEM.model, Curious(2), num_particles=8, progress_bar=False).run(
        jax.random.key(0), *data
    )
    with pytest.raises(StopIteration):
        nd.SMC(PROBLEM.model, OfSteps(2), progress_bar=False).run(jax.random.key(0), *data)
    position = {"x": jnp.array([3.0, -4.0]), "offset": jnp.zeros(())}
    # The identity shows the noisy value as it is.
    np.testing.assert_allclose(seen[0].see(position, 0.7).x_hat["x"], position["x"])
    assert [type(bridge).__name__ for bridge in seen] == ["DensityBridge", "PathBridge"]


# --- A transport ------------------------------------------------------------------------------------

PRIOR, SIGMA, DATUM = nd.Gaussian([0.3], [[1.0]]), 0.5, 1.2
CLEAN = float(PRIOR.schedule.noise_level(jnp.asarray(PRIOR.t_min)))
VARIANCE = 1.0 + CLEAN**2
FEW = {"levels": 12, "moves": 1, "pilot": 64}


def one_datum(y):
    x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
    numpyro.sample("y", dist.Normal(x, SIGMA).to_event(1), obs=y)


def test_a_transport_with_no_more_than_a_call(capsys):
    scheme = nd.Annealed(transport=EulerMaruyama(), **FEW)
    smc = nd.SMC(one_datum, scheme, num_particles=256, num_chains=16, progress_bar=False)
    smc.run(jax.random.key(0), jnp.array([DATUM]))
    truth = norm.logpdf(DATUM, 0.3, (VARIANCE + SIGMA**2) ** 0.5)
    assert smc.log_evidence_error < 0.05
    assert abs(smc.log_evidence - truth) < 4 * smc.log_evidence_error
    assert scheme.evaluations_per_level(smc.bridge, smc.result.levels) is None
    smc.print_summary()
    assert "unknown number of network evaluations" in capsys.readouterr().out


def test_the_call_is_all_that_a_transport_must_have():
    with pytest.raises(TypeError, match="__call__"):
        AbstractTransport()
    transport = nd.schemes.ProbabilityFlow()
    assert not transport.needs_gradient and not transport.needs_curvature
    assert transport.retrace() is None


def test_particle_gibbs_refuses_a_transport_without_a_way_back():
    scheme = nd.Annealed(transport=EulerMaruyama(), **FEW)
    kernel = nd.ParticleGibbs(one_datum, scheme)
    with pytest.raises(TypeError, match=r"`EulerMaruyama` cannot go back.*schemes\.Retrace"):
        kernel.init(jax.random.key(0), 1, None, (jnp.array([DATUM]),), {})


@pytest.mark.long
def test_particle_gibbs_along_a_transport_of_ones_own():
    """Nothing is registered: the transport says itself how to go back."""
    kernel = nd.ParticleGibbs(
        one_datum, nd.Annealed(transport=WithWayBack(), **FEW), num_particles=16
    )
    mcmc = MCMC(
        kernel,
        num_warmup=20,
        num_samples=250,
        num_chains=32,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(1), jnp.array([DATUM]))
    x = np.asarray(mcmc.get_samples(group_by_chain=True)["x"])[..., 0]
    precision = 1 / VARIANCE + 1 / SIGMA**2
    mean = (0.3 / VARIANCE + DATUM / SIGMA**2) / precision
    assert_near(x.mean(1), mean, 0.0)
    assert_near(((x - mean) ** 2).mean(1), 1 / precision, 0.0)
    assert x.std() < 0.6 < VARIANCE**0.5  # of the posterior, not of the prior
