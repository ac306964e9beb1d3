r"""Covariances of reverse-diffusion proposals from the Hessian of the log density.

Between two levels with noise $v = s_t^2 - s_s^2$ the distribution of $u_s$ given $u_t$ has covariance
$v I + v^2 \nabla^2 \log \gamma_t(u_t)$ (Tweedie's formula of second order). A covariance here puts $h$ in the
place of the second derivative: of one particle or averaged over a pilot cloud, a diagonal or a matrix. Any
choice is valid, since draws are weighed by the density that they were made with; a good one makes the
weights even.
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from .._arguments import check_counts, plain
from .._typing import Array, Position, PRNGKey, Scalar
from .._written import one_line
from ..bridge import Bridge, log_density

__all__ = ["AbstractCovariance", "AbstractMeasured", "Diagonal", "Full", "Local", "Isotropic"]


class AbstractCovariance(eqx.Module):
    """Approximation of the second derivative of the log density in reverse-diffusion proposals."""

    __repr__ = one_line

    @abc.abstractmethod
    def measure(
        self, key: PRNGKey, bridge: Bridge, cloud: Position, clock: Scalar, power: Scalar
    ) -> Any:
        """Estimate it at a level from a pilot cloud, with a leading axis of particles; or `None`."""

    @abc.abstractmethod
    def second_derivative(
        self, measured: Any, bridge: Bridge, z: Position, name: str, clock: Scalar, power: Scalar
    ) -> Array | tuple[Array, Array]:
        """$h$ of one site: values of its shape, or eigenvalues and eigenvectors of a matrix."""

    @abc.abstractmethod
    def evaluations(self, bridge: Bridge) -> int:
        """Network evaluations a draw."""


class AbstractMeasured(AbstractCovariance):
    """Second derivative that is estimated from the pilot cloud and frozen."""

    @abc.abstractmethod
    def mean(
        self, key: PRNGKey, gradient: Callable, noise: dict[str, Scalar], cloud: Position
    ) -> dict[str, Any]:
        r"""$h$ of each site, averaged over a cloud.

        Args:
            key: PRNG key.
            gradient: From a position to the gradient of its log density, by site.
            noise: Noise level of each site in units of the data.
            cloud: Positions, with a leading axis.
        """

    def evaluations(self, bridge):
        del bridge
        return 0


class _ByCoordinate(AbstractMeasured):
    """One whose values can be averaged over particles of like precision."""

    @abc.abstractmethod
    def each(self, key: PRNGKey, gradient: Callable, noise: dict, cloud: Position) -> dict:
        """$h$ of each site and particle."""

    def mean(self, key, gradient, noise, cloud):
        each = self.each(key, gradient, noise, cloud)
        return jax.tree.map(lambda leaf: jnp.mean(_finite(leaf), 0), each)

    def measure(self, key, bridge, cloud, clock, power):
        each = self.each(key, _gradient(bridge, clock, power), bridge.noise(clock), cloud)
        return jax.tree.map(lambda leaf: _line(bridge, cloud, clock, leaf), each)

    def second_derivative(self, measured, bridge, z, name, clock, power):
        del power
        return _at(measured[name], bridge, z, clock)


class Diagonal(_ByCoordinate):
    r"""The diagonal of $\nabla^2 \log \gamma_t$, averaged over a pilot cloud: the default.

    By differences of gradients along random signs, a quarter of the noise level to both sides: a secant at
    the scale of the next draw. Where other sites say how precise data are, as an unknown noise level does,
    the average is over particles of like precision: a line $a + b\,(1 - g(\theta))$ is fitted, with $g$ the
    power to which the bridge raises the likelihood, which for Gaussian data is what its second derivative
    follows.
    """

    def each(self, key, gradient, noise, cloud):
        return _secants(key, gradient, noise, cloud)


class Isotropic(_ByCoordinate):
    r"""Isotropic approximation: the trace of $\nabla^2 \log \gamma_t$ over the dimension, for all
    coordinates.

    References:
        Bao et al. (2022), Analytic-DPM, ICLR.
    """

    def each(self, key, gradient, noise, cloud):
        def flat(leaf):
            mean = jnp.mean(leaf, tuple(range(1, leaf.ndim)), keepdims=True)
            return jnp.broadcast_to(mean, leaf.shape)

        return jax.tree.map(flat, _secants(key, gradient, noise, cloud))


class Full(AbstractMeasured):
    r"""The matrix $\nabla^2 \log \gamma_t$ of a site, averaged over a pilot cloud.

    The pilot pays one evaluation a coordinate for `num_probes` of its particles, a draw nothing. Worth it
    where data tie coordinates together.

    Attributes:
        num_probes: Particles of the pilot cloud that are asked.
    """

    num_probes: int = eqx.field(static=True, converter=plain, default=64)

    def __check_init__(self):
        check_counts(self, num_probes=1)

    def mean(self, key, gradient, noise, cloud):
        del key
        few = jax.tree.map(lambda leaf: leaf[: self.num_probes], cloud)

        def mean(name):
            each = jax.vmap(lambda z: _hessian(gradient, z, name))(few)
            return jnp.linalg.eigh(jnp.mean(_finite(each), 0))

        return {name: tuple(mean(name)) for name in noise}

    def measure(self, key, bridge, cloud, clock, power):
        return self.mean(key, _gradient(bridge, clock, power), bridge.noise(clock), cloud)

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
        return tuple(jnp.linalg.eigh(_finite(_hessian(_gradient(bridge, clock, power), z, name))))

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


def _gradient(bridge: Bridge, clock: Scalar, power: Scalar) -> Callable:
    return jax.grad(lambda z: log_density(bridge, z, clock, power)[0])


def _secants(key: PRNGKey, gradient: Callable, noise: dict[str, Scalar], cloud: Position):
    """Diagonals of the second derivative, by site and particle, from two gradients of each."""
    count = jax.tree.leaves(cloud)[0].shape[0]

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


def _hessian(gradient: Callable, z: Position, name: str) -> Array:
    """Derivative of the gradient in one site, flattened to a symmetric matrix."""
    shape = z[name].shape

    def slope(flat):
        return gradient({**z, name: flat.reshape(shape)})[name].ravel()

    h = jax.jacfwd(slope)(z[name].ravel())
    return 0.5 * (h + h.T)
