r"""Covariances of reverse-diffusion draws: how far the second derivative of the log density is followed.

Between two levels with noise $v = s_t^2 - s_s^2$ the law of $u_s$ given $u_t$ has covariance
$v I + v^2 \nabla^2 \log \gamma_t(u_t)$ (Tweedie's formula of second order). A covariance here puts $h$ in the
place of the second derivative: of one particle or averaged over a pilot cloud, a diagonal or a matrix. Any
choice is lawful, since draws are weighed by the density that they were made with; a good one makes the
weights even.
"""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from .._typing import Array, Position, PRNGKey, Scalar
from ..bridge import Bridge, log_density

__all__ = ["AbstractCovariance", "Diagonal", "Full", "Local", "Isotropic"]


class AbstractCovariance(eqx.Module):
    """What a reverse-diffusion draw knows of the second derivative."""

    @abc.abstractmethod
    def measure(
        self, key: PRNGKey, bridge: Bridge, cloud: Position, clock: Scalar, power: Scalar
    ) -> Any:
        """What a pilot cloud, with a leading axis of particles, says of a level; or `None`."""

    @abc.abstractmethod
    def second_derivative(
        self, measured: Any, bridge: Bridge, z: Position, name: str, clock: Scalar, power: Scalar
    ) -> Array | tuple[Array, Array]:
        """$h$ of one site: values of its shape, or eigenvalues and eigenvectors of a matrix."""

    @abc.abstractmethod
    def evaluations(self, bridge: Bridge) -> int:
        """Network evaluations a draw."""


class _Measured(AbstractCovariance):
    """One that a pilot measures and a draw looks up."""

    def second_derivative(self, measured, bridge, z, name, clock, power):
        del power
        return _at(measured[name], bridge, z, clock)

    def evaluations(self, bridge):
        del bridge
        return 0


class Diagonal(_Measured):
    r"""The diagonal of $\nabla^2 \log \gamma_t$, averaged over a pilot cloud: the default.

    By differences of gradients along random signs, a quarter of the noise level to both sides: a secant at
    the scale of the next draw. Where other sites say how precise data are, as an unknown noise level does,
    the average is over particles of like precision: a line $a + b\,(1 - g(\theta))$ is fitted, with $g$ the
    power to which the bridge raises the likelihood, which for Gaussian data is what its second derivative
    follows.
    """

    def measure(self, key, bridge, cloud, clock, power):
        each = _secants(key, bridge, cloud, clock, power)
        return jax.tree.map(lambda leaf: _line(bridge, cloud, clock, leaf), each)


class Isotropic(_Measured):
    r"""One number for all coordinates: the trace of $\nabla^2 \log \gamma_t$ over the dimension.

    References:
        Bao et al. (2022), Analytic-DPM, ICLR.
    """

    def measure(self, key, bridge, cloud, clock, power):
        each = _secants(key, bridge, cloud, clock, power)

        def flat(leaf):
            mean = jnp.mean(leaf, tuple(range(1, leaf.ndim)), keepdims=True)
            return _line(bridge, cloud, clock, jnp.broadcast_to(mean, leaf.shape))

        return jax.tree.map(flat, each)


class Full(_Measured):
    r"""The matrix $\nabla^2 \log \gamma_t$ of a site, averaged over a pilot cloud.

    The pilot pays one evaluation a coordinate for `num_probes` of its particles, a draw nothing. Worth it
    where data tie coordinates together.

    Attributes:
        num_probes: Particles of the pilot cloud that are asked.
    """

    num_probes: int = eqx.field(static=True, default=64)

    def measure(self, key, bridge, cloud, clock, power):
        del key
        few = jax.tree.map(lambda leaf: leaf[: self.num_probes], cloud)

        def mean(name):
            each = jax.vmap(lambda z: _hessian(bridge, z, name, clock, power))(few)
            return jnp.linalg.eigh(jnp.mean(_finite(each), 0))

        return {name: tuple(mean(name)) for name in bridge.diffusion_sites}

    def second_derivative(self, measured, bridge, z, name, clock, power):
        del bridge, z, clock, power
        return measured[name]


class Local(AbstractCovariance):
    r"""The matrix $\nabla^2 \log \gamma_t(u_t)$ of every particle: Tweedie's formula of second order itself.

    One evaluation a coordinate, for every draw: for a handful of coordinates, or an energy that costs
    nothing. Particles in different modes then have draws of different shapes.
    """

    def measure(self, key, bridge, cloud, clock, power):
        del key, bridge, cloud, clock, power

    def second_derivative(self, measured, bridge, z, name, clock, power):
        del measured
        return tuple(jnp.linalg.eigh(_finite(_hessian(bridge, z, name, clock, power))))

    def evaluations(self, bridge):
        shapes = jax.eval_shape(bridge.sample_base, jax.random.key(0))
        return sum(shapes[name].size for name in bridge.diffusion_sites)


class Line(NamedTuple):
    """Second derivatives by what other sites say of the precision of the data: a mean and a slope."""

    mean: Array
    slope: Array
    centre: Scalar


def _softness(bridge: Bridge, z: Position, clock: Scalar) -> Scalar:
    return 1 - bridge.exponent(z, clock)


def _line(bridge: Bridge, cloud: Position, clock: Scalar, values: Array) -> Line:
    """Least squares over a cloud; no slope where nothing varies."""
    r = jax.vmap(lambda z: _softness(bridge, z, clock))(cloud)
    values, centre = _finite(values), jnp.mean(r)
    r = r - centre
    slope = jnp.tensordot(r, values, 1) / jnp.maximum(jnp.sum(r**2), jnp.finfo(r.dtype).tiny)
    varies = jnp.max(jnp.abs(r)) > 100 * jnp.finfo(r.dtype).eps
    return Line(jnp.mean(values, 0), jnp.where(varies, slope, 0.0), centre)


def _at(line: Line, bridge: Bridge, z: Position, clock: Scalar) -> Array:
    return line.mean + line.slope * (_softness(bridge, z, clock) - line.centre)


def _secants(key: PRNGKey, bridge: Bridge, cloud: Position, clock: Scalar, power: Scalar):
    """Diagonals of the second derivative, by site and particle, from two gradients of each."""
    noise = bridge.noise(clock)
    count = jax.tree.leaves(cloud)[0].shape[0]
    gradient = jax.grad(lambda z: log_density(bridge, z, clock, power)[0])

    def one(key, z):
        keys = dict(zip(noise, jax.random.split(key, max(len(noise), 1)), strict=False))
        signs = {n: jax.random.rademacher(keys[n], z[n].shape, z[n].dtype) for n in noise}

        def at(sign):
            moved = {n: z[n] + sign * 0.25 * noise[n] * signs[n] for n in noise}
            return gradient({**z, **moved})

        above, below = at(1.0), at(-1.0)
        return {n: signs[n] * (above[n] - below[n]) / (0.5 * noise[n]) for n in noise}

    return jax.vmap(one)(jax.random.split(key, count), cloud)


def _finite(leaf: Array) -> Array:
    return jnp.nan_to_num(leaf, nan=0.0, posinf=0.0, neginf=0.0)


def _hessian(bridge: Bridge, z: Position, name: str, clock: Scalar, power: Scalar) -> Array:
    """Second derivative of the log density in one site, flattened to a symmetric matrix."""
    shape = z[name].shape

    def value(flat):
        return log_density(bridge, {**z, name: flat.reshape(shape)}, clock, power)[0]

    h = jax.hessian(value)(z[name].ravel())
    return 0.5 * (h + h.T)
