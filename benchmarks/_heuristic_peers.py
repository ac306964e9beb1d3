"""How the peers of `heuristics.py` are called, where they can be imported: by public interfaces alone."""

import importlib.util

import numpy as np


def methods(covariance, operator, sigma, steps):
    """By name, functions as in `heuristics.methods`; and a note for what is missing here."""
    found, notes = {}, []
    if importlib.util.find_spec("azula") and importlib.util.find_spec("torch"):
        found |= by_azula(covariance, operator, sigma, steps)
    else:
        notes.append("azula 0.11.1 and torch are not installed here.")
    if importlib.util.find_spec("diffuse"):
        found |= by_diffuse(covariance, operator, sigma, steps)
    else:
        notes.append("diffuse-jax 0.1.0 is not installed here.")
    return found, notes


def _answer(x, count):
    return {"x": np.asarray(x)}, np.full(len(x), 1 / len(x)), np.nan, count, np.nan


def by_azula(covariance, operator, sigma, steps):
    import torch
    from azula.denoise import Denoiser, DiracPosterior
    from azula.guidance import DPSSampler, MMPSDenoiser, TDSSampler, TMPDenoiser
    from azula.linalg.covariance import IsotropicCovariance
    from azula.noise import VPSchedule
    from azula.sample import DDPMSampler

    torch.set_num_threads(1)
    values, basis = (torch.as_tensor(a, dtype=torch.float32) for a in np.linalg.eigh(covariance))
    seen = torch.as_tensor(operator, dtype=torch.float32)

    class Exact(Denoiser):
        def __init__(self):
            super().__init__()
            self.schedule = VPSchedule()

        def forward(self, x_t, t, **kwargs):
            alpha, noise = self.schedule(t)
            gain = alpha * values / (alpha**2 * values + noise**2)
            return DiracPosterior((x_t @ basis * gain) @ basis.T)

    forward = lambda x: x @ seen.T
    variance = IsotropicCovariance(sigma**2)

    def twist(y):
        # Given x_t a coordinate of variance 1 has the variance r^2 / (1 + r^2), as `Widened` has it.
        def log_density(x_hat, r):
            scale = sigma**2 + r**2 / (1 + r**2)
            return (-0.5 * (forward(x_hat) - y) ** 2 / scale - 0.5 * torch.log(scale)).sum(-1)

        return log_density

    def run(make, count):
        def one(key, case, size):
            torch.manual_seed(int(np.asarray(key_number(key))))
            sampler = make(torch.as_tensor(case.y, dtype=torch.float32), size)
            return _answer(sampler(sampler.init((size, len(covariance)))), count)

        return one

    # A score counts with one gradient through it; further derivatives count one each.
    common = {"steps": steps, "silent": True}
    guided = lambda denoiser: DDPMSampler(denoiser, **common)

    def mmps(iterations):
        return lambda y, size: guided(
            MMPSDenoiser(Exact(), y, forward, variance, iterations=iterations)
        )

    return {
        "azula DPS, zeta 1, one batch": run(
            lambda y, size: DPSSampler(Exact(), y, forward, zeta=1.0, **common), steps
        ),
        # It takes one norm over the batch: this is zeta 0.3 for a draw alone.
        "azula DPS, zeta 0.3 a draw": run(
            lambda y, size: DPSSampler(Exact(), y, forward, zeta=0.3 * size**0.5, **common),
            steps,
        ),
        "azula TMPD": run(
            lambda y, size: guided(TMPDenoiser(Exact(), y, forward, sigma**2)), 2 * steps
        ),
        "azula MMPS, 1 iteration": run(mmps(1), 2 * steps),
        "azula MMPS, 4 iterations": run(mmps(4), 5 * steps),
        "azula TDS": run(lambda y, size: TDSSampler(Exact(), twist(y), **common), steps),
    }


def key_number(key):
    import jax

    return jax.random.randint(key, (), 0, 2**31 - 1)


def by_diffuse(covariance, operator, sigma, steps):
    import jax
    import jax.numpy as jnp
    from diffuse.base_forward_model import MeasurementState
    from diffuse.denoisers.cond import DPSDenoiser, FPSDenoiser, TMPDenoiser
    from diffuse.diffusion.sde import SDE, LinearSchedule
    from diffuse.integrator.stochastic import EulerMaruyamaIntegrator
    from diffuse.predictor import Predictor
    from diffuse.timer.base import VpTimer

    process = SDE(LinearSchedule(b_min=0.02, b_max=20.0, t0=0.0, T=1.0))
    values, basis = np.linalg.eigh(covariance)

    def score(x, t):
        alpha, noise = process.signal_level(t), process.noise_level(t)
        return -basis @ ((basis.T @ x) / (alpha**2 * values + noise**2))

    class Seen:
        std = sigma

        def apply(self, x, state):
            return operator @ x

        def restore(self, y, state):
            return operator.T @ y

    integrator = EulerMaruyamaIntegrator(process, VpTimer(n_steps=steps, eps=1e-3, tf=1.0))
    predictor, shape = Predictor(process, score, "score"), (len(covariance),)

    def run(make, count, **settings):
        sampler = make(integrator, process, predictor, Seen(), shape, **settings)

        def draws(key, y, size):
            state, _ = sampler.generate(key, MeasurementState(y, jnp.ones(())), steps, size)
            return state.integrator_state.position

        draws = jax.jit(draws, static_argnums=2)
        return lambda key, case, size: _answer(draws(key, jnp.asarray(case.y), size), count)

    # The step and the guidance each evaluate the score.
    return {
        "diffuse-jax DPS, zeta 0.01": run(DPSDenoiser, 2 * steps),
        "diffuse-jax DPS, zeta 0.3": run(DPSDenoiser, 2 * steps, zeta=0.3),
        "diffuse-jax FPS": run(FPSDenoiser, steps),
        "diffuse-jax TMP": run(TMPDenoiser, 5 * steps),
    }
