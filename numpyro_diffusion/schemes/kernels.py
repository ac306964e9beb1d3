r"""Moves and weights along a bridge: what one particle does at one level.

It is moved by kernels that leave $\gamma_{c, \beta}$ invariant, carried to the next level, and weighed
there. Both the pilot and the annealed sampler run these functions.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from .._typing import Array, Position, PRNGKey, Scalar
from ..bridge import Bridge, Rest, Seen, combine, log_density
from ..moves import Move

__all__ = ["Info", "Kernels", "Level", "Particle", "check_fit", "check_levels"]


class Level(NamedTuple):
    """Frozen parameters of the levels; leaves have a leading axis of length `num_levels`.

    Attributes:
        clock: Where the particles are when the level begins.
        power: Exponent of the likelihood there.
        next_clock: Where they are carried to.
        next_power: Exponent of the likelihood there.
        step_size: Step of the joint move at `clock`.
        other_step_size: Step of the move on the non-diffusion sites.
        scale: Standard deviation of each coordinate: the diagonal preconditioner of both moves.
    """

    clock: Array
    power: Array
    next_clock: Array
    next_power: Array
    step_size: Array
    other_step_size: Array
    scale: Position


class Particle(NamedTuple):
    """A position with what was evaluated there, so that nothing is evaluated twice."""

    position: Position
    log_density: Scalar
    gradient: Position | None
    seen: Seen
    rest: Rest


class Info(NamedTuple):
    """Reported at each level; the engine averages over particles.

    Attributes:
        acceptance: Acceptance probability of the joint move.
        other_acceptance: The same for the move on the non-diffusion sites.
        nan: By site, share of particles whose log density is NaN after the carry.
        infinite: By site, share of particles whose log density is +inf after the carry.
    """

    acceptance: Scalar
    other_acceptance: Scalar
    nan: dict[str, Scalar]
    infinite: dict[str, Scalar]


class Kernels(eqx.Module):
    """The functions of the Feynman-Kac model; a pytree, so that new data compile nothing."""

    bridge: Bridge
    move: Move
    other_move: Move
    num_moves: int = eqx.field(static=True)
    num_other_moves: int = eqx.field(static=True)

    @property
    def in_blocks(self) -> bool:
        """Whether there are both diffusion sites and other latent sites to move."""
        return bool(self.bridge.other_sites) and bool(self.bridge.diffusion_sites)

    def evaluate(self, z: Position, clock: Scalar, power: Scalar) -> Particle:
        """One network evaluation; with its gradient where the next move can start from it."""

        def density(z):
            return log_density(self.bridge, z, clock, power)

        if self.in_blocks:  # the move on the other sites outdates the gradient before it is used
            value, (seen, rest) = density(z)
            return Particle(z, value, None, seen, rest)
        (value, (seen, rest)), gradient = jax.value_and_grad(density, has_aux=True)(z)
        # Only moves of other sites look at `x_hat` again; kept, it could cost a gradient of its own.
        return Particle(z, value, gradient, seen._replace(x_hat={}), rest)

    def logdensity(self, clock: Scalar, power: Scalar):
        def logdensity_fn(z):
            value, _ = log_density(self.bridge, z, clock, power)
            return jnp.where(jnp.isfinite(value), value, -jnp.inf)

        return logdensity_fn

    def move_others(self, key, particle: Particle, clock, power, step_size, scale):
        """Moves of the non-diffusion sites given what was seen: no network evaluation."""
        names = self.bridge.other_sites
        block = {name: particle.position[name] for name in names}
        block_scale = {name: scale[name] for name in names}

        def logdensity_fn(block):
            z = {**particle.position, **block}
            rest = self.bridge.rest(z, particle.seen.x_hat)
            value = combine(self.bridge, z, clock, power, particle.seen, rest)
            return jnp.where(jnp.isfinite(value), value, -jnp.inf)

        state = self.other_move.init(block, logdensity_fn, block_scale)

        def one(state, key):
            return self.other_move.step(key, state, logdensity_fn, step_size, block_scale)

        keys = jax.random.split(key, self.num_other_moves)
        state, acceptance = jax.lax.scan(one, state, keys)
        moved = self.other_move.position(state, block_scale)
        return {**particle.position, **moved}, jnp.mean(acceptance)

    def start_move(self, particle: Particle, z: Position, logdensity_fn, scale):
        if particle.gradient is None:
            return self.move.init(z, logdensity_fn, scale)
        value = jnp.where(jnp.isfinite(particle.log_density), particle.log_density, -jnp.inf)
        return self.move.init_known(z, value, particle.gradient, scale)

    def init(self, key: PRNGKey) -> tuple[Particle, Scalar, Any]:
        z = self.bridge.sample_base(key)
        one, zero = jnp.ones(()), jnp.zeros(())
        particle = self.evaluate(z, one, zero)
        # The initial weight against the base law; the other sites come from their own prior.
        log_weight = particle.log_density - particle.rest.log_prior - self.bridge.log_base(z)
        return particle, log_weight, self.info(particle, jnp.ones(()), jnp.ones(()))

    def info(self, particle: Particle, acceptance, other_acceptance) -> Info:
        sites = {**particle.seen.sites, **particle.rest.sites}
        return Info(
            acceptance,
            other_acceptance,
            jax.tree.map(jnp.isnan, sites),
            jax.tree.map(jnp.isposinf, sites),
        )

    def step(self, key: PRNGKey, particle: Particle, level: Level) -> tuple[Particle, Scalar, Any]:
        key_other, key_joint = jax.random.split(key)
        z, other_acceptance = particle.position, jnp.ones(())
        if self.in_blocks:
            z, other_acceptance = self.move_others(
                key_other, particle, level.clock, level.power, level.other_step_size, level.scale
            )
        logdensity_fn = self.logdensity(level.clock, level.power)
        state = self.start_move(particle, z, logdensity_fn, level.scale)

        def one(state, key):
            return self.move.step(key, state, logdensity_fn, level.step_size, level.scale)

        state, acceptance = jax.lax.scan(one, state, jax.random.split(key_joint, self.num_moves))
        z = self.move.position(state, level.scale)

        carried, log_det = self.bridge.carry(z, level.clock, level.next_clock)
        new = self.evaluate(carried, level.next_clock, level.next_power)
        log_weight = new.log_density - state.logdensity + log_det
        return new, log_weight, self.info(new, jnp.mean(acceptance), other_acceptance)


def check_fit(levels: Level, bridge: Bridge) -> None:
    """Refuse levels that were tuned for a model with other sites."""
    shapes = jax.eval_shape(lambda key: bridge.sample_base(key), jax.random.key(0))
    expected = {name: leaf.shape for name, leaf in shapes.items()}
    got = {name: jnp.shape(leaf)[1:] for name, leaf in levels.scale.items()}
    if got != expected:
        raise ValueError(
            f"the frozen levels hold scales of shapes {got}, but the sites of this model are {expected}, "
            "in unconstrained space. Levels are for one model: let a pilot choose new ones."
        )


def check_levels(levels: Level) -> None:
    """Refuse levels that do not run from noise to data without gaps."""
    clock, following = jnp.asarray(levels.clock), jnp.asarray(levels.next_clock)
    if clock.ndim != 1 or bool(jnp.any(following > clock)):
        raise ValueError(
            "`levels` must run from noise (clock 1) to data (clock 0), one entry a level; got clocks "
            f"{clock} -> {following}. Did you pass them in data-to-noise order?"
        )
    if clock[0] != 1 or following[-1] != 0 or bool(jnp.any(clock[1:] != following[:-1])):
        raise ValueError(
            "`levels` must begin at clock 1, end at clock 0 and leave no gap; got "
            f"{clock} -> {following}."
        )
    power, next_power = jnp.asarray(levels.power), jnp.asarray(levels.next_power)
    gaps = bool(jnp.any(power[1:] != next_power[:-1]))
    if gaps or bool(power[0] != 0) or bool(next_power[-1] != 1):
        raise ValueError(
            "the likelihood's power must pass without gaps from 0 at the first level, where particles "
            f"come from the prior, to 1 at the last; got {power} -> {next_power}."
        )
