r"""Ensemble Kalman steps: guidance by a regression over a cloud, without a gradient of model or network."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from .. import _faq
from .._typing import Array, Position, Scalar
from ..bridge import Bridge
from .guided import Guided
from .restoration import AbstractProposal
from .transport import AbstractTransport

__all__ = ["EnsembleKalman", "Kalman"]


class EnsembleKalman(AbstractProposal):
    r"""Ensemble Kalman guidance (EnKG) with weights: the operator is known by what it makes of a cloud.

    The gradient of a Gaussian log likelihood of the denoised mean, $J^\top \Gamma^{-1} (y - G(\hat x(u)))$,
    needs the derivative $J$ of $G \circ \hat x$. Here it is the regression of $G(\hat x)$ on $u$ over the
    pilot's cloud at each level, $J^\top = C_{uu}^{-1} C_{uG}$, and frozen; the rest is as in `Guided`. So a
    particle's draw does not depend on the others, it has a density, and the weights are those of any
    proposal. `G` is called and never differentiated: use `twist=twists.BlackBox()`, with which operators in
    other languages will do.

    With `schemes.unweighted` it is a heuristic with the cloud of the pilot;
    `samplers.ensemble_kalman` is the interacting ensemble as published.

    Attributes:
        ridge: Added to $C_{uu}$, as a share of its diagonal. The pilot should have several times as many
            particles as the diffusion variable has coordinates.

    References:
        Zheng, Chu, Wang, Kovachki, Baptista & Yue (2024), Ensemble Kalman Diffusion Guidance: A
        Derivative-free Method for Inverse Problems, arXiv 2409.20175, for the regression in the place of the
        derivative.
    """

    ridge: float = 1e-3

    def __check_init__(self):
        if not self.ridge > 0:
            raise ValueError(
                f"`ridge` of `EnsembleKalman` must be positive; got {self.ridge}. Try "
                f"1e-3. {_faq.numbers}"
            )

    def over(self, sampler, bridge):
        if bridge.laws({}) is None:
            raise ValueError(
                "`EnsembleKalman` reads predictions and noise off a NumPyro model; the bridge "
                "of `from_energy` has"
                " a log likelihood alone. Use `from_model`, or "
                f"`Twisted(twist=nd.twists.BlackBox())`. {_faq.operator}"
            )
        return Kalman(sampler, self.ridge)


class Kalman(AbstractTransport):
    """A draw of the reverse sampler steered by a regression, weighed against the sampler itself.

    Attributes:
        sampler: The steps, and what a gradient makes of them.
        ridge: Of the regression.
    """

    sampler: Guided
    ridge: float
    needs_curvature: ClassVar[bool] = True  # pyright: ignore[reportIncompatibleMethodOverride]

    def evaluations(self, bridge):
        del bridge
        return 0

    def as_published(self):
        return dataclasses.replace(self, sampler=self.sampler.as_published())

    def measure(self, key, bridge, cloud, clock, power):
        """$J^T$: rows by flattened coordinate of the diffusion sites, columns by datum."""
        del key, power

        def one(z):
            seen, observed = bridge.see(z, clock), bridge.laws(z)
            assert observed is not None
            own = {name: z[name] for name in bridge.diffusion_sites}
            return ravel_pytree(own)[0], ravel_pytree(observed(seen.x_hat).centre)[0]

        u, g = jax.vmap(one)(cloud)
        u, g = u - jnp.mean(u, 0), _known(g)
        g = g - jnp.mean(g, 0)
        square = u.T @ u
        square = square + self.ridge * jnp.diag(jnp.diag(square))
        square = square + jnp.finfo(u.dtype).tiny * jnp.eye(len(square), dtype=u.dtype)
        return _known(jnp.linalg.solve(square, u.T @ g))

    def __call__(self, key, bridge, position, gradient, seen, level):
        del gradient
        assert seen is not None
        slope = self.slope(bridge, position, seen.x_hat, level.curvature, level.clock)
        return self.sampler(key, bridge, position, slope, seen, level)

    def slope(
        self, bridge: Bridge, position: Position, x_hat: Position, back: Array, clock: Scalar
    ) -> Position:
        """The gradient that the regression says, by site, at the power of the level."""
        observed = bridge.laws(position)
        assert observed is not None
        _, information, residual = observed(x_hat)
        pulled = {name: _times(information[name], residual[name]) for name in residual}
        own = {name: position[name] for name in bridge.diffusion_sites}
        slope = bridge.exponent(position, clock) * (back @ ravel_pytree(pulled)[0])
        return ravel_pytree(own)[1](_known(slope).astype(back.dtype))


def _times(information: Array, residual: Array) -> Array:
    if information.shape == residual.shape:
        return information * residual
    return jnp.einsum("...ij,...j->...i", information, residual)


def _known(leaf: Array) -> Array:
    return jnp.nan_to_num(leaf, nan=0.0, posinf=0.0, neginf=0.0)
