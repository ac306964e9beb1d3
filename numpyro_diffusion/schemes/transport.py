r"""Transports: how a particle gets from one level to the next, and what that does to its weight.

The weight of a level is $\log \gamma' (z') - \log \gamma(z) + \log R$, where $z'$ is what the transport
makes of $z$ and $\log R$ makes up for how it was made: the log-determinant of a map, or the log ratio of
backward to forward kernel of a draw. Whatever the transport does, the weighted particles follow
$\gamma'$; a good one makes the weights even.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from .._typing import Array, Position, PRNGKey, Scalar
from ..bridge import Bridge
from .covariance import AbstractCovariance, Diagonal, Local
from .levels import Level

__all__ = ["AbstractTransport", "Carry", "Guided", "Reverse", "spread"]


class AbstractTransport(eqx.Module):
    """From level to level.

    Attributes:
        needs_gradient: Whether it asks for the gradient of the log density at the particle.
    """

    needs_gradient: eqx.AbstractClassVar[bool]

    @property
    @abc.abstractmethod
    def needs_curvature(self) -> bool:
        """Whether it asks for what a pilot measured."""

    def measure(
        self, key: PRNGKey, bridge: Bridge, cloud: Position, clock: Scalar, power: Scalar
    ) -> Any:
        """What it wants to know of a level, from a pilot cloud."""
        del key, bridge, cloud, clock, power
        return None

    @abc.abstractmethod
    def evaluations(self, bridge: Bridge) -> int:
        """Network evaluations of one transport."""

    @abc.abstractmethod
    def __call__(
        self,
        key: PRNGKey,
        bridge: Bridge,
        position: Position,
        gradient: Position | None,
        x_hat: dict[str, Array],
        level: Level,
    ) -> tuple[Position, Scalar]:
        r"""New position and $\log R$, of shape `()`."""


class Carry(AbstractTransport):
    r"""The linear map between the Gaussian approximations of the two laws; $\log R$ its log-determinant."""

    needs_gradient: ClassVar[bool] = False

    @property
    def needs_curvature(self) -> bool:
        return False

    def __call__(self, key, bridge, position, gradient, x_hat, level):
        del key, gradient, x_hat
        return bridge.carry(position, level.clock, level.next_clock)

    def evaluations(self, bridge):
        del bridge
        return 0


class Reverse(AbstractTransport):
    r"""A draw of the reverse diffusion, weighed against the noising that leads back.

    With $v = s_t^2 - s_s^2$ the noise between two levels, in units of the data, and $\gamma_t$ close to
    $\gamma_s$ noised by $v$, the law of $u_s$ given $u_t$ has mean $u_t + v \nabla \log \gamma_t(u_t)$
    and covariance $v I + v^2 \nabla^2 \log \gamma_t(u_t)$ (Tweedie's formulas of first and second order).
    The draw uses that mean and an approximation $h$ of the second derivative,

    $$M(u_s \mid u_t) = \mathcal{N}(u_t + v \nabla \log \gamma_t(u_t),\ \eta\,(v I + v^2 h)),$$

    and $\log R = \log q(u_t \mid u_s) - \log M(u_s \mid u_t)$ with the noising $q = \mathcal{N}(u_s, v I)$
    as backward kernel. The gradient may be older than the latest move of the other sites: such a draw
    is as lawful, since the gradient is then part of what the particle remembers.

    Attributes:
        covariance: What is known of $h$.
        inflation: $\eta \ge 1$; when steps are long, draws that are too narrow give rare huge weights.

    References:
        Del Moral, Doucet & Jasra (2006), Sequential Monte Carlo samplers, JRSS B, for backward kernels.
    """

    covariance: AbstractCovariance = eqx.field(default_factory=Diagonal)
    inflation: float = 1.0
    needs_gradient: ClassVar[bool] = True

    @property
    def needs_curvature(self) -> bool:
        return not isinstance(self.covariance, Local)

    def __call__(self, key, bridge, position, gradient, x_hat, level):
        del x_hat
        assert gradient is not None
        new, log_ratio = dict(position), jnp.zeros(())
        noisy, clean = bridge.noise(level.clock), bridge.noise(level.next_clock)
        keys = jax.random.split(key, len(bridge.diffusion_sites))
        for k, name in zip(keys, bridge.diffusion_sites, strict=True):
            h = self.covariance.second_derivative(
                level.curvature, bridge, position, name, level.clock, level.power
            )
            u = position[name].ravel()
            noise = jax.random.normal(k, u.shape, u.dtype)
            v, moves, deviation, log_det = _draw(noisy[name], clean[name], h, noise, self.inflation)
            drift = v * _usable(gradient[name]).ravel() + deviation
            # -2 log q(u_t | u_s) and -2 log M(u_s | u_t), both less log 2 pi
            back = jnp.sum(drift**2) / v + u.size * jnp.log(v)
            forth = jnp.sum(noise**2) + log_det
            new[name] = (u + jnp.where(moves, drift, 0.0)).reshape(position[name].shape)
            log_ratio = log_ratio + jnp.where(moves, 0.5 * (forth - back), 0.0)
        return new, log_ratio

    def measure(self, key, bridge, cloud, clock, power):
        return self.covariance.measure(key, bridge, cloud, clock, power)

    def evaluations(self, bridge):
        return self.covariance.evaluations(bridge)


def _draw(noisy, clean, h, noise: Array, inflation):
    """$v$, whether it is positive, a deviation with the wanted covariance, and its log-determinant."""
    if isinstance(h, tuple):
        values, vectors = h
        v, moves, variance = spread(noisy, clean, values)
        variance = inflation * variance
        return v, moves, vectors @ (jnp.sqrt(variance) * noise), jnp.sum(jnp.log(variance))
    v, moves, variance = spread(noisy, clean, h.ravel())
    variance = inflation * variance
    return v, moves, jnp.sqrt(variance) * noise, jnp.sum(jnp.log(variance))


def _usable(gradient: Array) -> Array:
    # Any drift is lawful; one that is not a number would lose a particle whose density is in order.
    return jnp.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)


def spread(noisy: Scalar, clean: Scalar, curvature: Array) -> tuple[Scalar, Array, Array]:
    r"""$v$, whether it is positive, and $v + v^2 h$, no smaller than if the data were known.

    Args:
        noisy: Noise level $s_t$ in units of the data.
        clean: Noise level $s_s$.
        curvature: $h$, the diagonal or the eigenvalues of the second derivative of the log density.
    """
    v = noisy**2 - clean**2
    moves = v > 0
    v = jnp.where(moves, v, 1.0)
    share = jnp.clip(1 + v * curvature, (clean / noisy) ** 2, 4.0)
    return v, moves, jnp.where(moves, v * share, 1.0)


class Guided(AbstractTransport):
    r"""A draw of the reverse sampler steered by the likelihood, weighed against the sampler itself.

    The sampler's own step is $p(u_s \mid u_t) = \mathcal{N}(u_t + v\,s(u_t),\ \Sigma)$ with the score $s$
    from the denoised mean and $\Sigma = v + v^2 h$; $h$ is tabulated from the sampler alone, so that its
    law does not depend on data. The draw is from
    $M(u_s \mid u_t) = \mathcal{N}(u_t + v\,s + \Sigma \nabla \log \psi_t(u_t),\ \eta \Sigma)$, with
    $\psi_t$ the twisted likelihood, and $\log R = \log p(u_s \mid u_t) - \log M(u_s \mid u_t)$.

    Attributes:
        clocks: Where `curvature` is tabulated, falling.
        curvature: $h$ by site, with a leading axis along `clocks`.
        inflation: $\eta \ge 1$.

    References:
        Wu et al. (2023), Practical and Asymptotically Exact Conditional Sampling in Diffusion Models.
    """

    clocks: Array
    curvature: dict[str, Array]
    inflation: float = 1.0
    needs_gradient: ClassVar[bool] = True

    @property
    def needs_curvature(self) -> bool:
        return False

    def evaluations(self, bridge):
        del bridge
        return 0

    def __call__(self, key, bridge, position, gradient, x_hat, level):
        assert gradient is not None
        new, log_ratio = dict(position), jnp.zeros(())
        noisy, clean = bridge.noise(level.clock), bridge.noise(level.next_clock)
        end = bridge.noise(jnp.zeros(()))
        keys = jax.random.split(key, len(bridge.diffusion_sites))
        for k, name in zip(keys, bridge.diffusion_sites, strict=True):
            v, moves, variance = spread(noisy[name], clean[name], self.at(level.clock, name))
            u = position[name]
            open_variance = jnp.where(moves, noisy[name] ** 2 - end[name] ** 2, 1.0)
            drift = v * (x_hat[name] - u) / open_variance
            noise = jax.random.normal(k, u.shape, u.dtype)
            pull = variance * _usable(gradient[name]) + jnp.sqrt(self.inflation * variance) * noise
            new[name] = u + jnp.where(moves, drift + pull, 0.0)
            terms = noise**2 + jnp.log(self.inflation) - pull**2 / variance
            log_ratio = log_ratio + jnp.where(moves, 0.5 * jnp.sum(terms), 0.0)
        return new, log_ratio

    def at(self, clock: Scalar, name: str) -> Array:
        """The tabulated curvature of the level that begins at `clock`."""
        return self.curvature[name][jnp.argmin(jnp.abs(self.clocks - clock))]
