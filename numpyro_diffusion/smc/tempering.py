"""Steps of BlackJAX's tempered SMC with moves of this package inside."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.smc import adaptive_tempered, resampling, solver
from jax.flatten_util import ravel_pytree

from .._typing import Array, Position, PRNGKey, Scalar
from .moves.base import Move
from .moves.placed import Place, made
from .preconditioner import Preconditioner

__all__ = ["InnerState", "adaptive_step", "inner_init", "inner_step", "started"]


class InnerState(NamedTuple):
    """State of a chain within a level, in the coordinates of the model, as BlackJAX's SMC reads it."""

    position: Position
    logdensity: Scalar
    gradient: Position | None


class InnerInfo(NamedTuple):
    """Acceptance probabilities: of the move, and of each of its parts."""

    acceptance_rate: Scalar
    parts: Array


def inner_init(move: Move) -> Callable:
    """`(position, logdensity_fn) -> state`, as BlackJAX calls its `mcmc_init_fn`."""

    def init(position, logdensity_fn):
        if not move.keeps_gradient:
            return InnerState(position, logdensity_fn(position), None)
        return InnerState(position, *jax.value_and_grad(logdensity_fn)(position))

    return init


def inner_step(move: Move) -> Callable:
    """`(key, state, logdensity_fn, step_size, scale) -> (state, info)`, as it calls its `mcmc_step_fn`.

    The mass is the inverse of the squared `scale`, a standard deviation for each coordinate of the flattened
    position.
    """

    def step(key, state, logdensity_fn, step_size, scale):
        unravel = ravel_pytree(state.position)[1]
        round_ = Preconditioner(unravel(scale.astype(ravel_pytree(state.position)[0].dtype)))
        steps = jnp.broadcast_to(step_size, (move.num_parts,))
        place, accepted, parts = made(move, key, Place(*state), logdensity_fn, steps, round_)
        return InnerState(*place), InnerInfo(accepted, parts)

    return step


def started(particles: Position) -> Any:
    """BlackJAX's state of a cloud of the prior."""
    state = adaptive_tempered.init(particles)
    zero = jnp.zeros((), state.weights.dtype)
    return state._replace(tempering_param=zero)


_SHORTEST = 1e-6


def _root(function: Callable, low: Any, high: Any) -> Array:
    """BlackJAX's bisection; a short step where data rule out more of the cloud than any step may lose.

    Its answer is then no step at all, and weights that are not numbers.
    """
    found = solver.dichotomy(function, low, high)
    return jnp.where(found > 0, found, _SHORTEST * high)


def adaptive_step(
    key: PRNGKey,
    state: Any,
    log_prior: Callable,
    log_likelihood: Callable,
    move: Move,
    parameters: dict[str, Array],
    *,
    num_steps: int,
    target_ess: Any,
) -> tuple[Any, Array]:
    """One step of `blackjax.adaptive_tempered_smc`, and the acceptance rate of each part of the move."""
    kernel = adaptive_tempered.build_kernel(
        log_prior,
        log_likelihood,
        inner_step(move),
        inner_init(move),
        resampling.systematic,
        target_ess,
        root_solver=_root,
    )
    shared = {name: value[None] for name, value in parameters.items()}
    state, info = kernel(key, state, num_steps, shared)
    return state, jnp.mean(info.update_info.parts, (0, 1))
