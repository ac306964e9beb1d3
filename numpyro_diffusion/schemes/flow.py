r"""Probability-flow transport between levels, with its log-determinant."""

import jax
import jax.numpy as jnp

from .transport import AbstractTransport

__all__ = ["ProbabilityFlow"]


class ProbabilityFlow(AbstractTransport):
    r"""Transport by one step of the prior's probability flow; $\log R$ is its log-determinant.

    With noise levels $s_t > s_s$ and $\hat x = u + s_t^2 \nabla \log p_t(u)$, the step
    $T(u) = \hat x + (s_s / s_t)(u - \hat x)$ solves the flow as if $\hat x$ stood still. Its Jacobian
    $I + (1 - s_s/s_t)\, s_t^2 \nabla^2 \log p_t$ is positive definite for the energy of any noised
    distribution, so that the map is one to one. The determinant costs one evaluation a coordinate: for few
    coordinates. Where a learned energy makes the map fold over, a particle is lost and reported as not a
    number at the site `transport`.

    References:
        Song et al. (2021), Score-Based Generative Modeling through SDEs, ICLR, for the flow. Arbel,
        Matthews & Doucet (2021), Annealed Flow Transport Monte Carlo, ICML, for maps between levels.
    """

    def __call__(self, key, bridge, position, gradient, seen, level):
        del key, gradient, seen
        new, log_ratio = dict(position), jnp.zeros(())
        noisy, clean = bridge.noise(level.clock), bridge.noise(level.next_clock)
        for name in bridge.diffusion_sites:
            gain = (1 - clean[name] / noisy[name]) * noisy[name] ** 2
            shape = position[name].shape

            def mapped(flat, name=name, shape=shape, gain=gain):
                at = lambda u: bridge.see({**position, name: u}, level.clock).sites[name]
                return flat + gain * jax.grad(at)(flat.reshape(shape)).ravel()

            flat = position[name].ravel()
            jacobian = jax.jacfwd(mapped)(flat)  # symmetric, since the map is a gradient
            stretches = jnp.linalg.eigvalsh(0.5 * (jacobian + jacobian.T))
            new[name] = mapped(flat).reshape(shape)
            log_ratio = log_ratio + jnp.sum(jnp.log(jnp.where(stretches > 0, stretches, jnp.nan)))
        return new, log_ratio

    def evaluations(self, bridge):
        shapes = jax.eval_shape(bridge.sample_base, jax.random.key(0))
        return sum(shapes[name].size for name in bridge.diffusion_sites)
