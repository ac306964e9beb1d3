r"""Guided steps of a reverse sampler that is the prior itself (twisted diffusion sampler, TDS)."""

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from .._typing import Array, Scalar
from ..bridge import Bridge, Seen
from .covariance import AbstractMeasured
from .levels import Level
from .proposals import Step, shortened, spread, usable
from .transport import AbstractTransport, Retrace

__all__ = ["Guided", "sampler_curvature"]


class Guided(AbstractTransport):
    r"""A draw of the reverse sampler steered by the likelihood, weighed against the sampler itself.

    The sampler's own step is $p(u_s \mid u_t) = \mathcal{N}(u_t + v\,s(u_t),\ \Sigma)$ with the score $s$
    from the denoised mean and $\Sigma = v + v^2 h$; $h$ is tabulated from the sampler alone, so that its
    distribution does not depend on data. The draw is from
    $M(u_s \mid u_t) = \mathcal{N}(u_t + v\,s + \Sigma \nabla \log \psi_t(u_t),\ \eta \Sigma)$, with
    $\psi_t$ the twisted likelihood, and $\log R = \log p(u_s \mid u_t) - \log M(u_s \mid u_t)$.

    A gradient longer than $(\sqrt d + 2) / s_t$, such as at the edge of what the data allow, is shortened as
    in `Reverse`: a draw would overshoot, and a particle that happens to stay would take over the cloud.
    Weights are right for any draw.

    Attributes:
        clocks: Where `curvature` is tabulated, falling.
        curvature: $h$ by site, with a leading axis along `clocks`: values of its shape, or eigenvalues and
            eigenvectors of a matrix.
        inflation: $\eta \ge 1$.
        shortens: Whether steep gradients are shortened; not where there are no weights, as published.

    References:
        Wu et al. (2023), Practical and Asymptotically Exact Conditional Sampling in Diffusion Models.
    """

    clocks: Array
    curvature: dict[str, Any]
    inflation: float = 1.0
    shortens: bool = eqx.field(static=True, default=True)
    needs_gradient: ClassVar[bool] = True

    def evaluations(self, bridge):
        del bridge
        return 0

    def retrace(self):
        return Retrace(self._log_ratio, self._log_link, None)

    def _pulls(self, bridge, particle, position, level):
        """The steps of the sampler itself, and how far the given one is off their means."""
        for n, step in self.steps(bridge, particle.seen, level).items():
            yield n, step, (position[n] - particle.position[n]).ravel() - step.mean

    def _log_ratio(self, bridge, particle, position, level):
        total, noisy = jnp.zeros(()), bridge.noise(level.clock)
        for n, step, pull in self._pulls(bridge, particle, position, level):
            gap = pull - self.guidance(step, particle.gradient[n], noisy[n])
            terms = step.noise(gap) ** 2 / self.inflation + jnp.log(self.inflation)
            terms = 0.5 * jnp.sum(terms - step.noise(pull) ** 2)
            total = total + jnp.where(step.moves, terms, 0.0)
        return total

    def _log_link(self, bridge, particle, position, level):
        total = jnp.zeros(())
        for _, step, pull in self._pulls(bridge, particle, position, level):
            total = total - 0.5 * jnp.sum(step.noise(pull) ** 2)
        return jnp.where(level.next_clock < level.clock, total, -jnp.inf)

    def __call__(self, key, bridge, position, gradient, seen, level):
        assert gradient is not None and seen is not None
        new, log_ratio = dict(position), jnp.zeros(())
        noisy = bridge.noise(level.clock)
        keys = jax.random.split(key, len(bridge.diffusion_sites))
        for k, (name, step) in zip(keys, self.steps(bridge, seen, level).items(), strict=True):
            u = position[name]
            noise = jax.random.normal(k, (u.size,), u.dtype)
            pull = self.guidance(step, gradient[name], noisy[name])
            pull = pull + jnp.sqrt(self.inflation) * step.deviation(noise)
            new[name] = u + jnp.where(step.moves, step.mean + pull, 0.0).reshape(u.shape)
            terms = noise**2 + jnp.log(self.inflation) - step.noise(pull) ** 2
            log_ratio = log_ratio + jnp.where(step.moves, 0.5 * jnp.sum(terms), 0.0)
        return new, log_ratio

    def guidance(self, step: Step, gradient: Array, noisy: Scalar) -> Array:
        """How far the likelihood moves the mean of a step."""
        slope = usable(gradient).ravel()
        return step.times_covariance(shortened(slope, noisy) if self.shortens else slope)

    def as_published(self):
        return dataclasses.replace(self, shortens=False)

    def steps(self, bridge: Bridge, seen: Seen, level: Level) -> dict[str, Step]:
        r"""$p(u_s \mid u_t) - u_t$ of each diffusion site, flattened."""
        moves = level.next_clock < level.clock
        noisy, clean = bridge.noise(level.clock), bridge.noise(level.next_clock)
        row = jnp.argmin(jnp.abs(self.clocks - level.clock))
        steps = {}
        for name in bridge.diffusion_sites:
            h = jax.tree.map(lambda leaf: leaf[row], self.curvature[name])
            steps[name] = _step(noisy[name], clean[name], moves, h, seen.scores[name])
        return steps


def _step(noisy, clean, moves, h: Array | tuple[Array, Array], score: Array) -> Step:
    values, vectors = h if isinstance(h, tuple) else (h.ravel(), None)
    v, variance = spread(noisy, clean, moves, values)
    return Step(moves, v, v * score.ravel(), jnp.sqrt(variance), vectors)


@eqx.filter_jit
def sampler_curvature(
    bridge: Bridge, clocks: Array, count: int, covariance: AbstractMeasured
) -> dict[str, Any]:
    r"""$h$ of each step, $\overline{\nabla^2 \log p}$, from a run of the sampler without data.

    The key is fixed, since this is part of the prior's definition.
    """
    key_base, key_steps = jax.random.split(jax.random.key(0))
    names = bridge.diffusion_sites
    cloud = jax.vmap(bridge.sample_base)(jax.random.split(key_base, count))
    cloud = {name: cloud[name] for name in names}

    def step(cloud, level):
        clock, following, key = level
        noisy, clean, moves = bridge.noise(clock), bridge.noise(following), following < clock
        see = lambda z: bridge.see(z, clock).scores
        curvature = covariance.mean(key, see, noisy, cloud)

        def one(key, z):
            scores, new = see(z), {}
            for k, n in zip(jax.random.split(key, len(names)), names, strict=True):
                own = _step(noisy[n], clean[n], moves, curvature[n], scores[n])
                noise = jax.random.normal(k, (z[n].size,), z[n].dtype)
                new[n] = z[n] + (own.mean + own.deviation(noise)).reshape(z[n].shape)
            return new

        keys = jax.random.split(jax.random.fold_in(key, 1), count)
        return jax.vmap(one)(keys, cloud), curvature

    keys = jax.random.split(key_steps, clocks.shape[0] - 1)
    return jax.lax.scan(step, cloud, (clocks[:-1], clocks[1:], keys))[1]
