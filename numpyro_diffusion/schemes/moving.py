"""Moves of one particle within a level: all sites together, the others alone, and choices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._staging import hoist
from .._typing import Position, Scalar
from ..smc.moves import Move
from .particle import Particle, finite
from .settings import Moves

__all__ = ["choose", "end_move", "known_start", "move_others", "run_moves"]


def _evaluated(state: Any, known: Scalar) -> Scalar:
    """The log density of a state; what was known before where no step could be made from there."""
    return jnp.where(jnp.isneginf(state.logdensity), known, state.logdensity)


def run_moves(
    move,
    key,
    z,
    logdensity_fn,
    step_size,
    preconditioner,
    num_moves,
    state=None,
    by_part: bool = False,
):
    """The state after some moves, and the sum of their acceptance probabilities, or of each part's.

    Where nothing is known at the first position, a loop of moves evaluates it too if it can.
    """
    blind = state is None and move.leapfrog
    if blind:
        state = move.init_blind(z, preconditioner)
    elif state is None:
        state = move.init(z, logdensity_fn, preconditioner)

    def one(i, carry):
        state, total = carry
        first = i == 0 if blind else None
        state, accepted, parts, _ = move.step_by_part(
            jax.random.fold_in(key, i), state, logdensity_fn, step_size, preconditioner, first
        )
        accepted = parts if by_part else accepted
        return state, total + (accepted if first is None else jnp.where(first, 0.0, accepted))

    start = state, jnp.zeros(np.shape(move.targets) if by_part else ())
    return jax.lax.fori_loop(0, num_moves + blind, one, start)


def known_start(move: Move, particle: Particle, preconditioner) -> Any:
    """The state of a move at a particle whose gradient is at hand."""
    assert particle.gradient is not None
    return move.init_known(
        particle.position, finite(particle.log_density), particle.gradient, preconditioner
    )


def end_move(move: Move, particle: Particle, state, preconditioner, wanted: bool) -> Particle:
    """The particle where a move has brought it, with the gradient there if it is known or wanted."""
    gradient = particle.gradient
    known = gradient is not None and hasattr(state, "logdensity_grad")
    if known or wanted:
        gradient = move.gradient(state, preconditioner)
    position = preconditioner.to_model(state.position)
    value = _evaluated(state, particle.log_density)
    return particle._replace(position=position, log_density=value, gradient=gradient)


def move_others(
    moves: Moves,
    names: tuple[str, ...],
    key,
    particle: Particle,
    given,
    step_size,
    preconditioner,
    by_part: bool = False,
):
    """Moves of some non-diffusion sites given what was seen: no network evaluation."""
    block = {name: particle.position[name] for name in names}
    # What depends on the diffusion sites alone, such as an operator's image of them, is computed once.
    value_of = hoist(lambda block: given({**particle.position, **block}, particle.seen), block)
    logdensity_fn = lambda block: finite(value_of(block))
    state, acceptance = run_moves(
        moves.other,
        key,
        block,
        logdensity_fn,
        step_size,
        preconditioner,
        moves.num_other,
        by_part=by_part,
    )
    moved = preconditioner.to_model(state.position)
    value = _evaluated(state, particle.log_density)
    return {**particle.position, **moved}, value, acceptance / moves.num_other


def choose(
    key, particle: Particle, evaluate: Callable[[Position], Particle], name: str
) -> Particle:
    """A uniform variable drawn anew, and accepted or not: gradients say nothing of a choice."""
    key_draw, key_accept = jax.random.split(key)
    old = particle.position[name]
    draw = jax.random.logistic(key_draw, jnp.shape(old), old.dtype)
    new = evaluate({**particle.position, name: draw})
    log_uniform = lambda z: -jax.nn.softplus(z) - jax.nn.softplus(-z)
    proposals = jnp.sum(log_uniform(old) - log_uniform(draw))
    log_ratio = finite(new.log_density) - particle.log_density + proposals
    accepts = jnp.log(jax.random.uniform(key_accept)) < log_ratio
    return jax.tree.map(lambda a, b: jnp.where(accepts, a, b), new, particle)
