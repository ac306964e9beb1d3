"""What a pilot cloud measures at a level: scales, step sizes, curvature."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .._typing import Array, Position, PRNGKey, Scalar
from ..bridge import combine, log_density
from .kernels import Kernels, Particle

__all__ = ["Pilot", "adapt", "mean_curvature", "scales"]


class Pilot(NamedTuple):
    """The pilot cloud between two levels."""

    key: PRNGKey
    particles: Particle
    clock: Scalar
    power: Scalar
    log_step: Scalar
    other_log_step: Scalar


def scales(position: Position) -> Position:
    """Standard deviation of each coordinate over the cloud, floored against duplicates."""

    def one(leaf: Array) -> Array:
        variance = jnp.var(leaf, 0)
        typical = jnp.mean(variance)
        return jnp.sqrt(variance + 1e-3 * typical + 1e-12)

    return jax.tree.map(one, position)


def adapt(kernels: Kernels, pilot: Pilot, scale: Position, extra_rounds) -> Pilot:
    """Moves at the pilot's level that steer both step sizes to their target acceptance."""
    count = pilot.particles.log_density.shape[0]
    clock, power = pilot.clock, pilot.power
    key, key_other, key_joint = jax.random.split(pilot.key, 3)
    particles, z, other_log_step = pilot.particles, pilot.particles.position, pilot.other_log_step
    rounds = max(kernels.num_moves, kernels.num_other_moves) + extra_rounds

    def gain(i):
        # Robbins-Monro with a gain that settles: large corrections first.
        return 2.0 / (1.0 + 0.5 * i) ** 0.6

    if kernels.in_blocks:

        def other_round(i, carry):
            z, log_step = carry
            keys = jax.random.split(jax.random.fold_in(key_other, i), count)
            z, _, acceptance = jax.vmap(
                lambda key, particle, z: kernels.move_others(
                    key, particle._replace(position=z), clock, power, jnp.exp(log_step), scale
                )
            )(keys, particles, z)
            error = jnp.mean(acceptance) - kernels.other_move.target_acceptance
            return z, log_step + gain(i) * error

        z, other_log_step = jax.lax.fori_loop(0, rounds, other_round, (z, other_log_step))

    pilot = pilot._replace(key=key, other_log_step=other_log_step)
    if not kernels.num_moves:
        value = lambda particle, z: combine(
            kernels.bridge,
            z,
            clock,
            power,
            particle.seen,
            kernels.bridge.rest(z, particle.seen.x_hat),
        )
        values = jax.vmap(value)(particles, z) if kernels.in_blocks else particles.log_density
        return pilot._replace(particles=particles._replace(position=z, log_density=values))
    logdensity_fn = kernels.logdensity(clock, power)
    start = lambda particle, z: kernels.start_move(particle, z, logdensity_fn, scale)

    def joint_round(i, carry):
        states, log_step = carry
        keys = jax.random.split(jax.random.fold_in(key_joint, i), count)
        states, acceptance = jax.vmap(
            lambda key, state: kernels.move.step(
                key, state, logdensity_fn, jnp.exp(log_step), scale
            )
        )(keys, states)
        error = jnp.mean(acceptance) - kernels.move.target_acceptance
        return states, log_step + gain(i) * error

    states, log_step = jax.lax.fori_loop(
        0, rounds, joint_round, (jax.vmap(start)(particles, z), pilot.log_step)
    )
    z = jax.vmap(lambda state: kernels.move.position(state, scale))(states)
    particles = particles._replace(position=z, log_density=states.logdensity)
    if kernels.transport.needs_gradient:
        gradient = jax.vmap(lambda state: kernels.move.gradient(state, scale))(states)
        particles = particles._replace(gradient=gradient)
    return pilot._replace(particles=particles, log_step=log_step)


def mean_curvature(kernels: Kernels, pilot: Pilot, key: PRNGKey) -> Position | None:
    """Mean diagonal second derivative of the log density, by differences of gradients."""
    if not kernels.transport.needs_curvature:
        return None
    bridge, count = kernels.bridge, pilot.particles.log_density.shape[0]
    noise = bridge.noise(pilot.clock)

    def one(key, particle):
        z = particle.position
        keys = dict(zip(noise, jax.random.split(key, max(len(noise), 1)), strict=False))
        signs = {n: jax.random.rademacher(keys[n], z[n].shape, z[n].dtype) for n in noise}
        gradient = jax.grad(lambda z: log_density(bridge, z, pilot.clock, pilot.power)[0])

        def at(sign):  # a quarter of the noise away: a secant at the scale of the next draw
            return gradient({**z, **{n: z[n] + sign * 0.25 * noise[n] * signs[n] for n in noise}})

        above, below = at(1.0), at(-1.0)
        return {n: signs[n] * (above[n] - below[n]) / (0.5 * noise[n]) for n in noise}

    each = jax.vmap(one)(jax.random.split(key, count), pilot.particles)
    return jax.tree.map(lambda leaf: jnp.mean(jnp.nan_to_num(leaf, posinf=0, neginf=0), 0), each)
