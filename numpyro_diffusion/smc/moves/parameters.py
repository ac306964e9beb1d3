"""What BlackJAX's kernels are told: a step size, and a mass of one."""

import jax
import jax.numpy as jnp

from ..._typing import Array, Position

__all__ = ["dimension", "ones", "step_size_alone", "with_mass"]


def dimension(position: Position) -> int:
    """Number of coordinates of a position."""
    return sum(leaf.size for leaf in jax.tree.leaves(position))


def ones(position: Position) -> Array:
    """A one for each coordinate of a position."""
    return jnp.ones(dimension(position), jnp.result_type(*jax.tree.leaves(position)))


def step_size_alone(step_size, position):
    """Parameters of a kernel without a mass."""
    del position
    return {"step_size": step_size}


def with_mass(step_size, position):
    """Parameters of a kernel with a mass; positions come preconditioned, so that it is one."""
    return {"step_size": step_size, "inverse_mass_matrix": ones(position)}
