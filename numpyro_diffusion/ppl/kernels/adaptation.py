"""Warm-up adaptation of step sizes and scales (NumPyro's schedule), for any kernel."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from numpyro.infer.hmc_util import HMCAdaptState, warmup_adapter

from ..._typing import Position, Scalar
from ...smc.preconditioner import Preconditioner

__all__ = ["Adaptation", "round_coordinates"]


class Adaptation(NamedTuple):
    """Dual averaging of the step size, and variances (or covariances) over windows of growing length.

    Attributes:
        num_warmup: Steps after which nothing changes any more.
        target: Acceptance probability to aim for.
        dense: Whether covariances are followed.
    """

    num_warmup: int
    target: float
    dense: bool

    def _adapter(self) -> tuple[Any, Any]:
        return warmup_adapter(
            self.num_warmup, dense_mass=self.dense, target_accept_prob=self.target
        )

    def start(self, z: Position, step_size: float) -> HMCAdaptState:
        """Before the first step."""
        size = ravel_pytree(z)[0].size
        state = self._adapter()[0]((z,), jax.random.key(0), step_size, mass_matrix_size=size)
        as_array = lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf))
        return jax.tree.map(as_array, state._replace(rng_key=None))

    def update(self, i: Scalar, acceptance: Scalar, z: Position, state: HMCAdaptState):
        """After step `i`; as it was once warm-up is over."""
        new = lambda state: self._adapter()[1](i, acceptance, (z,), state)
        return jax.lax.cond(i < self.num_warmup, new, lambda state: state, state)


def round_coordinates(state: HMCAdaptState, z: Position) -> Preconditioner:
    """The coordinates in which the chain has looked round so far."""
    covariance, (_, unravel) = state.inverse_mass_matrix, ravel_pytree(z)
    if covariance.ndim == 1:
        return Preconditioner(unravel(jnp.sqrt(covariance)))
    scale = jnp.sqrt(jnp.diag(covariance))
    values, vectors = jnp.linalg.eigh(covariance / jnp.outer(scale, scale))
    stretch = jnp.sqrt(jnp.maximum(values, 1e-6))
    return Preconditioner(unravel(scale), vectors.T, stretch)
