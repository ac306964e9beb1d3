"""How azula is called by `levy_learned.py`, by its public interface: PyTorch asks the same network."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np


def methods(prior, size: int, steps: int):
    """By name, functions `(seed, prior, operator, y, sigma) -> draws of the increments`."""
    import torch
    from azula.denoise import Denoiser, DiracPosterior
    from azula.guidance import DiffPIRDenoiser, DPSSampler, MMPSDenoiser
    from azula.linalg.covariance import IsotropicCovariance
    from azula.noise import VPSchedule
    from azula.sample import DDPMSampler

    torch.set_num_threads(1)

    @eqx.filter_jit
    def denoise(v, s):
        """Denoised means of signal plus noise `s`; beyond its range the prior is asked at the end of it."""
        t = jnp.clip(prior.schedule.time(-2 * jnp.log(s)), prior.t_min, prior.t_max)
        alpha, _ = prior.schedule(t)
        return jax.vmap(lambda u: prior.denoise(alpha * u, t))(v)

    @eqx.filter_jit
    def pull(v, s, cotangent):
        return jax.vjp(lambda u: denoise(u, s), v)[1](cotangent)[0]

    class Ask(torch.autograd.Function):
        @staticmethod
        def forward(ctx, v, s):
            ctx.v, ctx.s = v.detach().numpy(), np.float32(s)
            return torch.from_numpy(np.array(denoise(ctx.v, ctx.s)))

        @staticmethod
        def backward(ctx, cotangent):
            return torch.from_numpy(np.array(pull(ctx.v, ctx.s, cotangent.numpy()))), None

    class Learned(Denoiser):
        def __init__(self):
            super().__init__()
            self.schedule = VPSchedule()

        def forward(self, x_t, t, **kwargs):
            alpha, noise = self.schedule(t)
            return DiracPosterior(Ask.apply(x_t / alpha, float(noise / alpha)))

    common = {"steps": steps, "silent": True}

    def run(make):
        def one(seed, _, operator, y, sigma):
            torch.manual_seed(seed)
            rows = torch.as_tensor(operator, dtype=torch.float32)
            forward = lambda u: torch.cumsum(u, -1) @ rows.T
            sampler = make(torch.as_tensor(y, dtype=torch.float32), forward, sigma**2)
            return sampler(sampler.init((size, len(operator)))).numpy()

        return one

    guided = lambda denoiser: DDPMSampler(denoiser, **common)
    # DPS takes one norm over the batch: the root makes the guidance independent of the batch's size.
    dps = lambda zeta: (
        lambda y, forward, variance: DPSSampler(
            Learned(), y, forward, zeta=zeta * size**0.5, **common
        )
    )
    mmps = lambda iterations: (
        lambda y, forward, variance: guided(
            MMPSDenoiser(
                Learned(), y, forward, IsotropicCovariance(variance), iterations=iterations
            )
        )
    )
    pir = lambda weight: (
        lambda y, forward, variance: guided(
            DiffPIRDenoiser(Learned(), y, forward, variance, lmbda=weight, iterations=10)
        )
    )
    found = {f"azula DPS, zeta {zeta}": run(dps(zeta)) for zeta in (0.01, 0.1)}
    found |= {f"azula DiffPIR, lambda {weight}": run(pir(weight)) for weight in (1.0, 10.0)}
    return found | {f"azula MMPS, {n} iterations": run(mmps(n)) for n in (1, 5)}
