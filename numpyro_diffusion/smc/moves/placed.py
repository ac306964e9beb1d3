"""Moves that work in the coordinates of the model, and a step of any move there."""

import abc
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..._typing import Array, Position, PRNGKey, Scalar
from ..preconditioner import Preconditioner
from .base import Move

__all__ = ["Evaluated", "Known", "Place", "PlacedMove", "made"]


class Known(NamedTuple):
    """A position in round coordinates, and the log density there."""

    position: Array
    logdensity: Scalar


class Evaluated(NamedTuple):
    """The same with its gradient."""

    position: Array
    logdensity: Scalar
    logdensity_grad: Array


class Place(NamedTuple):
    """A position in the coordinates of the model and what is known there; no gradient where it is `None`."""

    z: Position
    value: Scalar
    gradient: Position | None

    def state(self, with_gradient: bool, preconditioner: Preconditioner) -> Known | Evaluated:
        """As the state of a move."""
        at = preconditioner.to_round(self.z)
        if not with_gradient:
            return Known(at, self.value)
        return Evaluated(at, self.value, preconditioner.gradient_to_round(self.gradient))  # type: ignore


class PlacedMove(Move):
    """A move that works in the coordinates of the model."""

    @abc.abstractmethod
    def walk(
        self,
        key: PRNGKey,
        place: Place,
        logdensity_fn: Callable,
        step_sizes: Array,
        preconditioner: Preconditioner,
    ) -> tuple[Place, Scalar, Array]:
        """The next place, the mean acceptance probability, and that of each part, `(num_parts,)`."""

    def init(self, position, logdensity_fn, preconditioner):
        """State at a position; evaluates the density."""
        if self.keeps_gradient:
            place = Place(position, *jax.value_and_grad(logdensity_fn)(position))
        else:
            place = Place(position, logdensity_fn(position), None)
        return place.state(self.keeps_gradient, preconditioner)

    def init_known(self, position, value, gradient, preconditioner):
        """State from an evaluation at hand."""
        return Place(position, value, gradient).state(self.keeps_gradient, preconditioner)

    def step_by_part(self, key, state, logdensity_fn, step_size, preconditioner, first=None):
        """One move of all parts."""
        del first
        gradient = self.gradient(state, preconditioner) if self.keeps_gradient else None
        place = Place(preconditioner.to_model(state.position), state.logdensity, gradient)
        steps = jnp.broadcast_to(step_size, (self.num_parts,))
        place, accepted, parts = self.walk(key, place, logdensity_fn, steps, preconditioner)
        new = place.state(self.keeps_gradient, preconditioner)
        return new, accepted, parts, new


def made(
    part: Move,
    key: PRNGKey,
    place: Place,
    logdensity_fn: Callable,
    step_sizes: Array,
    preconditioner: Preconditioner,
) -> tuple[Place, Scalar, Array]:
    """A step of a part; evaluates a gradient where the part needs one that is not at hand."""
    gradient = place.gradient
    if part.keeps_gradient and gradient is None:
        gradient = jax.grad(logdensity_fn)(place.z)
    given = jax.tree.map(jnp.zeros_like, place.z) if gradient is None else gradient
    state = part.init_known(place.z, place.value, given, preconditioner)
    steps = step_sizes if isinstance(part, PlacedMove) else step_sizes[0]
    state, accepted, parts, _ = part.step_by_part(key, state, logdensity_fn, steps, preconditioner)
    new = part.gradient(state, preconditioner) if part.keeps_gradient else None
    # A step that starts with a gradient of NaN ends where it began, with a density that is not known.
    value = jnp.where(jnp.isnan(state.logdensity), place.value, state.logdensity)
    z = preconditioner.to_model(state.position)
    return Place(z, value, new), accepted, jnp.reshape(parts, (part.num_parts,))
