"""Adaptation by the pilot at one level: preconditioner, step sizes, number of moves, curvature."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .._typing import Array, Position, PRNGKey, Scalar
from ..smc.preconditioner import Preconditioner, principal_directions, standard_deviations
from .kernels import Kernels
from .levels import Level
from .moving import known_start
from .particle import Here, Particle

__all__ = ["PilotState", "adapt", "enough_moves"]

_FORGET = 0.3  # minus the log autocorrelation that the moves of one level are to leave
_MAX_MOVES = 20


class PilotState(NamedTuple):
    """The pilot cloud between two levels.

    Attributes:
        floor: Of the level at hand, by edge.
        means: What the next one is made of (see `floor`).
    """

    key: PRNGKey
    particles: Particle
    clock: Scalar
    power: Scalar
    log_step: Scalar
    other_log_step: Scalar
    floor: dict[str, Scalar] = {}
    means: dict[str, Scalar] = {}


def rounds_of(kernels: Kernels) -> int:
    """Rounds of moves with which a pilot adapts at each level."""
    num = kernels.moves.num
    return max(2 if num == "pilot" else num, kernels.moves.num_other)


def _gain(i):
    # Robbins-Monro with a gain that settles: large corrections first.
    return 2.0 / (1.0 + 0.5 * i) ** 0.6


def adapt(kernels: Kernels, pilot: PilotState, extra_rounds) -> tuple[PilotState, Level]:
    """Moves at the pilot's level that steer both step sizes to their target acceptance.

    Returns:
        The pilot cloud after the moves, and the level with all that was measured, but not yet where it
        leads to.
    """
    clock, power, rank = pilot.clock, pilot.power, kernels.moves.rank
    key, key_other, key_joint = jax.random.split(pilot.key, 3)
    cloud = pilot.particles.position
    scale = standard_deviations(cloud)
    joint = principal_directions(cloud, scale, rank) if rank else Preconditioner(scale)
    names = kernels.block if kernels.in_blocks else ()
    block = {name: cloud[name] for name in names}
    block_scale = {name: scale[name] for name in names}
    other = Preconditioner(block_scale)
    if rank and block:
        other = principal_directions(block, block_scale, rank)
    pilot = pilot._replace(key=key)
    one = jax.tree.map(lambda leaf: leaf[0], pilot.particles)
    here = kernels.here(clock, power, pilot.floor, one.position, one.seen)
    if kernels.in_blocks:
        pilot = _adapt_others(kernels, pilot, here, key_other, other, extra_rounds)
    num_moves = jnp.asarray(0)
    if kernels.has_joint_moves:
        pilot, num_moves = _adapt_joint(kernels, pilot, here, key_joint, joint, extra_rounds)
    steps = jnp.exp(pilot.log_step), jnp.exp(pilot.other_log_step)
    level = Level(clock, power, clock, power, *steps, num_moves, joint, other)
    return pilot, level._replace(floor=pilot.floor, next_floor=pilot.floor)


def _adapt_others(
    kernels: Kernels, pilot: PilotState, here: Here, key, preconditioner, extra_rounds
) -> PilotState:
    count = pilot.particles.log_density.shape[0]

    def one_round(i, carry):
        z, _, log_step = carry
        keys = jax.random.split(jax.random.fold_in(key, i), count)
        move = lambda key, particle, z: kernels.move_others(
            key,
            particle._replace(position=z),
            here.given,
            jnp.exp(log_step),
            preconditioner,
            by_part=True,
        )
        z, values, acceptance = jax.vmap(move)(keys, pilot.particles, z)
        error = jnp.mean(acceptance, 0) - kernels.moves.other.targets
        return z, values, log_step + _gain(i) * error

    particles = pilot.particles
    start = particles.position, particles.log_density, pilot.other_log_step
    rounds = rounds_of(kernels) + extra_rounds
    z, values, log_step = jax.lax.fori_loop(0, rounds, one_round, start)
    particles = particles._replace(position=z, log_density=values)
    return pilot._replace(particles=particles, other_log_step=log_step)


def _adapt_joint(
    kernels: Kernels, pilot: PilotState, here: Here, key, preconditioner, extra_rounds
):
    count = pilot.particles.log_density.shape[0]
    move, known = kernels.moves.joint, pilot.particles.gradient is not None
    blind = not known and move.leapfrog

    def start(particle):
        if known:
            return known_start(move, particle, preconditioner)
        if blind:
            return move.init_blind(particle.position, preconditioner)
        return move.init(particle.position, here.logdensity, preconditioner)

    def one_round(i, carry):
        states, log_step = carry
        keys = jax.random.split(jax.random.fold_in(key, i), count)
        first = i == 0 if blind else None
        step = lambda key, state: move.step_by_part(
            key, state, here.logdensity, jnp.exp(log_step), preconditioner, first
        )
        states, _, acceptance, _ = jax.vmap(step)(keys, states)
        change = _gain(i - blind) * (jnp.mean(acceptance, 0) - move.targets)
        return states, log_step + (change if first is None else jnp.where(first, 0.0, change))

    rounds = rounds_of(kernels) + extra_rounds
    before = jax.vmap(start)(pilot.particles)
    after, log_step = jax.lax.fori_loop(0, rounds + blind, one_round, (before, pilot.log_step))
    end = lambda particle, state: kernels.end_move(particle, state, preconditioner)
    particles = jax.vmap(end)(pilot.particles, after)
    if kernels.moves.num == "pilot":
        num_moves = enough_moves(before.position, after.position, rounds)
    else:
        num_moves = jnp.asarray(kernels.moves.num)
    return pilot._replace(particles=particles, log_step=log_step), num_moves


def enough_moves(before: Position, after: Position, rounds) -> Array:
    r"""Moves after which the autocorrelation of a coordinate, averaged over all, is below a bound.

    Of `rounds` moves the mean correlation of before and after is $\rho$; $m$ moves leave about
    $\rho^{m/\text{rounds}}$. One level need not forget where the particles were: between two resamplings
    there are many.
    """

    def correlation(a, b):
        a, b = a - jnp.mean(a, 0), b - jnp.mean(b, 0)
        return jnp.mean(a * b, 0) / jnp.sqrt(jnp.mean(a**2, 0) * jnp.mean(b**2, 0) + 1e-12)

    each = jax.tree.leaves(jax.tree.map(correlation, before, after))
    rho = jnp.mean(jnp.concatenate([leaf.ravel() for leaf in each]))
    rate = -jnp.log(jnp.clip(rho, 1e-3, 1 - 1e-6)) / rounds
    return jnp.clip(jnp.ceil(_FORGET / rate), 1, _MAX_MOVES).astype(int)
