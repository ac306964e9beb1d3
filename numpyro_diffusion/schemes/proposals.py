"""Reverse-diffusion proposals and their incremental importance weights."""

import dataclasses
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from .._typing import Array, Position, Scalar
from ..bridge import Bridge
from ..energies import AbstractDenoiser
from .covariance import AbstractCovariance, Diagonal, Local
from .levels import Level
from .transport import AbstractTransport, Retrace

__all__ = ["Reverse", "Step", "shortened", "spread", "usable"]

_BEYOND = 2.0  # how far the noise in d coordinates may be longer than sqrt(d)


class Reverse(AbstractTransport):
    r"""A draw of the reverse diffusion, weighed against the noising that leads back.

    With $v = s_t^2 - s_s^2$ the noise between two levels, in units of the data, and $\gamma_t$ close to
    $\gamma_s$ noised by $v$, the distribution of $u_s$ given $u_t$ has mean $u_t + v \nabla \log
    \gamma_t(u_t)$ and covariance $v I + v^2 \nabla^2 \log \gamma_t(u_t)$ (Tweedie's formulas of first and
    second order). The draw uses an approximation $h$ of the second derivative,

    $$M(u_s \mid u_t) = \mathcal{N}(u_t + v f \nabla \log \gamma_t(u_t),\ \eta\,v (1 + v f h)), \qquad
    f = \frac{s_t^2}{s_s^2 + v \max(1, -s_t^2 h)}.$$

    $f$ is 1 for a noised distribution, which is no sharper than the noise, $-h \le s_t^{-2}$. A twisted
    distribution can be sharper; $f$ is then what leads to the distribution a level further, if that is as
    sharp in units of the noise. And $\log R = \log q(u_t \mid u_s) - \log M(u_s \mid u_t)$ with the noising
    $q = \mathcal{N}(u_s, v I)$ as backward kernel. The gradient may be older than the latest move of the
    other sites: such a draw is as valid, since the gradient is then part of what the particle remembers.

    The gradient of a noised distribution is the mean of the noise in $u_t$ over $-s_t$, so that its length
    is about $\sqrt d / s_t$ at most. A twisted likelihood knows no such bound, and where it is steep a draw
    would
    overshoot and a rare particle take over the cloud: one longer than $(\sqrt d + 2) / s_t$ is shortened.

    Attributes:
        covariance: What is known of $h$.
        inflation: $\eta \ge 1$; when steps are long, draws that are too narrow give rare huge weights.
        proposal: Of which distribution the draws follow the score, by site; `None` for the target's own.
        shortens: Whether steep gradients are shortened. Without weights, those few draws that a noised
            distribution itself pulls back from far away would stay there and be taken for its own.

    References:
        Del Moral, Doucet & Jasra (2006), Sequential Monte Carlo samplers, JRSS B, for backward kernels.
    """

    covariance: AbstractCovariance = eqx.field(default_factory=Diagonal)
    inflation: float = 1.0
    proposal: dict[str, AbstractDenoiser] | None = None
    shortens: bool = eqx.field(static=True, default=True)
    needs_gradient: ClassVar[bool] = True

    def steered(self, bridge: Bridge, position: Position, gradient: Position, level: Level):
        """The gradient with the score of another distribution in the place of the prior's own."""
        if self.proposal is None:
            return gradient
        times, new = bridge.times(level.clock), dict(gradient)
        for name, law in self.proposal.items():
            own = lambda u, name=name: bridge.see({**position, name: u}, level.clock).sites[name]
            u, t = position[name], jnp.clip(times[name], law.t_min, law.t_max)
            new[name] = gradient[name] + law.data_score(u, t) - jax.grad(own)(u)
        return new

    @property
    def needs_curvature(self) -> bool:
        return not isinstance(self.covariance, Local)

    def __call__(self, key, bridge, position, gradient, seen, level):
        del seen
        assert gradient is not None
        gradient = self.steered(bridge, position, gradient, level)
        new, log_ratio = dict(position), jnp.zeros(())
        keys = jax.random.split(key, len(bridge.diffusion_sites))
        for k, name in zip(keys, bridge.diffusion_sites, strict=True):
            u = position[name].ravel()
            step = self.step(bridge, position, gradient, level, name)
            noise = jax.random.normal(k, u.shape, u.dtype)
            drift = step.mean + step.deviation(noise)
            new[name] = (u + jnp.where(step.moves, drift, 0.0)).reshape(position[name].shape)
            log_ratio = log_ratio + step.log_ratio(drift, noise)
        return new, log_ratio

    def step(self, bridge, position, gradient, level, name: str) -> "Step":
        """The Gaussian of a draw at one site, given the steered gradient."""
        moves = level.next_clock < level.clock
        noisy, clean = bridge.noise(level.clock)[name], bridge.noise(level.next_clock)[name]
        h = self.covariance.second_derivative(
            level.curvature, bridge, position, name, level.clock, level.power
        )
        slope = usable(gradient[name]).ravel()
        if self.shortens:
            slope = shortened(slope, noisy)
        values, vectors = h if isinstance(h, tuple) else (h.ravel(), None)
        v, variance = spread(noisy, clean, moves, values)
        sharp = jnp.maximum(1.0, -(noisy**2) * values)
        f = jnp.where(moves, noisy**2 / (clean**2 + v * sharp), 1.0)
        damped = f * slope if vectors is None else vectors @ (f * (vectors.T @ slope))
        return Step(moves, v, v * damped, jnp.sqrt(self.inflation * variance), vectors)

    def measure(self, key, bridge, cloud, clock, power):
        return self.covariance.measure(key, bridge, cloud, clock, power)

    def evaluations(self, bridge):
        return self.covariance.evaluations(bridge) + 2 * (self.proposal is not None)

    def as_published(self):
        return dataclasses.replace(self, shortens=False)

    def retrace(self):
        return Retrace(self._log_ratio, _log_link, _back)

    def _log_ratio(self, bridge, particle, position, level):
        total, old = jnp.zeros(()), particle.position
        gradient = self.steered(bridge, old, particle.gradient, level)
        for name in bridge.diffusion_sites:
            step = self.step(bridge, old, gradient, level, name)
            drift = (position[name] - old[name]).ravel()
            total = total + step.log_ratio(drift, step.noise(drift - step.mean))
        return total


def _log_link(bridge, particle, position, level):
    total = jnp.zeros(())
    moves, noises = _noises(bridge, level)
    for name, v in noises.items():
        total = total - 0.5 * jnp.sum((particle.position[name] - position[name]) ** 2) / v
    return jnp.where(moves, total, -jnp.inf)


def _back(key, bridge, position, level):
    moves, noises = _noises(bridge, level)
    keys, new = jax.random.split(key, len(noises)), dict(position)
    for k, (name, v) in zip(keys, noises.items(), strict=True):
        noise = jnp.sqrt(v) * jax.random.normal(k, new[name].shape, new[name].dtype)
        new[name] = new[name] + jnp.where(moves, noise, 0.0)
    return new


def _noises(bridge: Bridge, level: Level):
    """Whether two levels differ, and the variance of the noise between them, by site."""
    moves = level.next_clock < level.clock
    noisy, clean = bridge.noise(level.clock), bridge.noise(level.next_clock)
    one = lambda n: jnp.where(moves, (noisy[n] - clean[n]) * (noisy[n] + clean[n]), 1.0)
    return moves, {name: one(name) for name in bridge.diffusion_sites}


class Step(NamedTuple):
    """A Gaussian step at one site, flattened.

    Attributes:
        moves: Whether there is one.
        v: Noise between the two levels.
        mean: Of the step.
        root: Of the eigenvalues of its covariance.
        vectors: Eigenvectors; `None` for a diagonal.
    """

    moves: Array
    v: Scalar
    mean: Array
    root: Array
    vectors: Array | None

    def deviation(self, noise: Array) -> Array:
        """Multiply standard noise by the root of the covariance."""
        scaled = self.root * noise
        return scaled if self.vectors is None else self.vectors @ scaled

    def noise(self, deviation: Array) -> Array:
        """The other way round."""
        return self.along(deviation) / self.root

    def times_covariance(self, gradient: Array) -> Array:
        """The covariance times a vector."""
        return self.deviation(self.root * self.along(gradient))

    def along(self, flat: Array) -> Array:
        """Components along the eigenvectors."""
        return flat if self.vectors is None else self.vectors.T @ flat

    def log_ratio(self, drift: Array, noise: Array) -> Scalar:
        r"""$\log q(u_t | u_s) - \log M(u_s | u_t)$ of a step made with this noise; 0 if there is none."""
        # -2 log q(u_t | u_s) and -2 log M(u_s | u_t), both less log 2 pi
        back = jnp.sum(drift**2) / self.v + drift.size * jnp.log(self.v)
        forth = jnp.sum(noise**2) + 2 * jnp.sum(jnp.log(self.root))
        return jnp.where(self.moves, 0.5 * (forth - back), 0.0)


def shortened(gradient: Array, noisy: Scalar) -> Array:
    r"""The gradient, no longer than $(\sqrt d + 2) / s_t$ (see `Reverse`)."""
    longest = (jnp.sqrt(gradient.size) + _BEYOND) / noisy
    length = jnp.sqrt(jnp.sum(gradient**2))
    return gradient * jnp.minimum(1.0, longest / jnp.maximum(length, longest))


def usable(gradient: Array) -> Array:
    """The gradient, 0 where it is not finite."""
    # Any drift is valid; one that is not a number would lose a particle whose density is in order.
    return jnp.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)


def spread(noisy: Scalar, clean: Scalar, moves: Array, curvature: Array) -> tuple[Scalar, Array]:
    r"""$v$ and the variance $v (1 + v f h)$ of a draw, $4 v$ at most; both 1 where nothing moves.

    Args:
        noisy: Noise level $s_t$ in units of the data.
        clean: Noise level $s_s$.
        moves: Whether the two are different levels. Rounding may tell two equal ones apart, differently
            wherever the compiler computes their difference.
        curvature: $h$, the diagonal or the eigenvalues of the second derivative of the log density.
    """
    v = jnp.where(moves, (noisy - clean) * (noisy + clean), 1.0)
    sharp = jnp.maximum(-(noisy**2) * curvature, 1.0)
    share = jnp.where(sharp > 1, clean**2 / (clean**2 + v * sharp), 1 + v * curvature)
    return v, jnp.where(moves, v * jnp.minimum(share, 4.0), 1.0)
