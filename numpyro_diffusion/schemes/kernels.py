r"""The SMC step of one particle along a bridge: MCMC moves, transport and incremental weight.

It is moved by kernels that leave $\gamma_{c, \beta}$ invariant, transported to the next level, and
weighed there. The pilot and all schemes run these functions.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .._staging import Done, hoist
from .._typing import Position, PRNGKey, Scalar
from ..bridge import Bridge, Seen, combine, log_density, with_finite_gradients
from .levels import Level
from .moving import choose, end_move, known_start, move_others, run_moves
from .particle import Here, Info, Particle
from .settings import MOVES, Moves
from .transport import AbstractTransport

__all__ = ["CHOICE_MOVES", "Kernels"]


CHOICE_MOVES = 2  # a level


class Kernels(eqx.Module):
    """The functions of the Feynman-Kac model; a pytree, so that new data compile nothing.

    Attributes:
        bridge: The densities.
        moves: Within the levels.
        transport: From level to level.
        from_prior: Whether particles start from exact draws of the prior.
    """

    bridge: Bridge
    moves: Moves = eqx.field(converter=MOVES.but)
    transport: AbstractTransport
    from_prior: bool = eqx.field(static=True, default=False)

    @property
    def in_blocks(self) -> bool:
        """Whether there are both diffusion sites and other latent sites to move given what is seen."""
        return bool(self.block) and bool(self.bridge.diffusion_sites)

    @property
    def block(self) -> tuple[str, ...]:
        """Other latent sites that move without a network evaluation: no energy depends on them."""
        return tuple(n for n in self.bridge.other_sites if n not in self.bridge.drivers)

    @property
    def has_joint_moves(self) -> bool:
        return self.moves.num != 0

    @property
    def keeps_gradient(self) -> bool:
        """True if something can start from the gradient that an evaluation at the end of a level gives.

        Moves of other sites outdate it for the joint move that follows them, but not for a transport.
        """
        return not self.in_blocks or (self.transport.needs_gradient and not self.has_joint_moves)

    @property
    def keeps_denoised(self) -> bool:
        return self.in_blocks or not self.has_joint_moves

    def here(
        self,
        clock: Scalar,
        power: Scalar,
        floor: dict[str, Scalar],
        z: Position,
        seen: Seen | None = None,
        done: Done | None = None,
    ) -> Here:
        """The densities of a level.

        Args:
            clock: Of the level.
            power: Of the level.
            floor: Of the level.
            z: A position, or its shapes.
            seen: What was seen at a particle, or its shapes, where moves of other sites are to come.
            done: What was computed before in this scope.
        """
        bridge = self.bridge.at_floor(floor)
        # A gradient that is not a number, of an energy's too, would keep moves from where the density is one.
        value = lambda z: log_density(bridge, with_finite_gradients(z), clock, power)
        density = hoist(value, z, done=done)
        if seen is None or not self.in_blocks:
            return Here(density)

        def given(z, seen):
            return combine(bridge, z, clock, power, seen, bridge.rest(z, seen.x_hat))[0]

        return Here(density, hoist(given, z, seen, done=done))

    def evaluate(
        self,
        z: Position,
        clock: Scalar,
        power: Scalar,
        floor: dict[str, Scalar],
        done: Done | None = None,
    ) -> Particle:
        """Evaluate a particle with one network evaluation; with its gradient where the next move can start
        from it.
        """
        return self.evaluated(self.here(clock, power, floor, z, done=done), z)

    def evaluated(self, here: Here, z: Position) -> Particle:
        """`evaluate` where the densities of the level are at hand."""
        gradient = None
        if self.keeps_gradient:
            (value, parts), gradient = jax.value_and_grad(here.density, has_aux=True)(z)
        else:
            value, parts = here.density(z)
        seen, rest, edges = parts
        if not self.keeps_denoised:
            # Only moves of other sites look at `x_hat` again; kept, it could cost a gradient of its own.
            seen = seen._replace(x_hat={}, roots={}, scores={})
        return Particle(z, value, gradient, seen, rest, edges)

    def move_others(
        self, key, particle: Particle, given, step_size, preconditioner, by_part: bool = False
    ):
        """Moves of the non-diffusion sites given what was seen; see `moving.move_others`."""
        tuned = step_size, preconditioner
        return move_others(self.moves, self.block, key, particle, given, *tuned, by_part)

    def end_move(self, particle: Particle, state, preconditioner) -> Particle:
        """The particle where a move has brought it; what was seen there is not known yet."""
        wanted = self.transport.needs_gradient
        return end_move(self.moves.joint, particle, state, preconditioner, wanted)

    def remembered(self, particle: Particle) -> Particle:
        """Drop what the next level does not read of a particle, to save memory."""
        if not self.keeps_denoised or particle.seen is None:
            return particle._replace(seen=None, rest=None, edges={})
        return particle._replace(seen=particle.seen._replace(sites={}), rest=None, edges={})

    def init(self, key: PRNGKey) -> tuple[Particle, Scalar, Any]:
        """A particle at the first level, its weight, and an info."""
        particle, log_weight, info = self.start(key)
        return self.remembered(particle), log_weight, info

    def start(self, key: PRNGKey) -> tuple[Particle, Scalar, Any]:
        """`init` with all that was evaluated, for a pilot."""
        one, zero = jnp.ones(()), jnp.zeros(())
        if self.from_prior:
            particle, info = self.entered(self.bridge.sample_prior(key))
            return particle, zero, info
        z = self.bridge.sample_base(key)
        particle = self.evaluate(z, one, zero, {})
        # The initial weight against the base law; the other sites come from their own prior.
        log_weight = particle.log_density - particle.rest.log_prior - self.bridge.log_base(z)
        return particle, log_weight, self.info(particle, one, one)

    def entered(self, z: Position) -> tuple[Particle, Info]:
        """A particle at clock 0 and power 0 with all that was evaluated, and an info."""
        one, zero = jnp.ones(()), jnp.zeros(())
        particle = self.evaluate(z, zero, zero, {})
        return particle, self.info(particle, one, one)

    def enter(self, z: Position) -> tuple[Particle, Info]:
        """`entered` for a run that goes on from another one's cloud."""
        particle, info = self.entered(z)
        return self.remembered(particle), info

    def info(self, particle: Particle, acceptance, other_acceptance) -> Info:
        sites = {**particle.seen.sites, **particle.rest.sites}
        lost = jnp.isneginf(
            particle.log_density
        )  # not where a floor, or a power of 0, makes up for it
        return Info.of(sites, acceptance, other_acceptance, lost)

    def moved(self, key: PRNGKey, particle: Particle, level: Level, done: Done | None = None):
        """The particle after the moves of its level, and how many of them were accepted.

        Position, density and gradient are those after the moves, `seen` and `rest` as old as they were.
        """
        key_other, key_joint = jax.random.split(key)
        z, acceptance, other_acceptance = particle.position, jnp.ones(()), jnp.ones(())
        here = self.here(level.clock, level.power, level.floor, z, particle.seen, done)
        at = lambda z: self.remembered(self.evaluated(here, z))
        for i, name in enumerate(self.bridge.choices * CHOICE_MOVES):
            particle = choose(jax.random.fold_in(key_joint, 2**31 - 1 - i), particle, at, name)
            z = particle.position
        if self.in_blocks:
            tuned = level.other_step_size, level.other_preconditioner
            z, value, other_acceptance = self.move_others(key_other, particle, here.given, *tuned)
            particle = particle._replace(position=z, log_density=value)
        if not self.has_joint_moves:
            return particle, (acceptance, other_acceptance)
        move, units = self.moves.joint, level.preconditioner
        start = None if particle.gradient is None else known_start(move, particle, units)
        state, total = run_moves(
            move, key_joint, z, here.logdensity, level.step_size, units, level.num_moves, start
        )
        particle = self.end_move(particle, state, units)
        acceptance = jnp.where(level.num_moves > 0, total / jnp.maximum(level.num_moves, 1), 1.0)
        return particle, (acceptance, other_acceptance)

    def rejuvenate(self, key: PRNGKey, particle: Particle, level: Level) -> tuple[Particle, Any]:
        """The moves of a level alone, from which they can go on."""
        particle, acceptances = self.moved(key, particle, level)
        if self.in_blocks:  # the other sites look at what was seen
            particle = self.evaluate(particle.position, level.clock, level.power, level.floor)
        return self.remembered(particle), acceptances

    def advance(
        self,
        key: PRNGKey,
        particle: Particle,
        level: Level,
        acceptances: Any = None,
        done: Done | None = None,
    ) -> tuple[Particle, Scalar, Any]:
        """Transport a particle to the next level, without moves at this one, and weigh it there."""
        done = Done() if done is None else done
        transported = self.transported(key, particle, level, done)
        z, log_ratio = transported(key, particle.position, particle.gradient, particle.seen)
        new = self.evaluate(z, level.next_clock, level.next_power, level.next_floor, done)
        log_weight = new.log_density - particle.log_density + log_ratio
        info = self.info(new, *(acceptances or (jnp.ones(()), jnp.ones(()))))
        info.nan["transport"] = jnp.isnan(log_ratio)
        return self.remembered(new), log_weight, info

    def transported(self, key, particle: Particle, level: Level, done: Done | None = None):
        """The transport of a level as a function of a particle: `(key, position, gradient, seen) -> ...`."""

        def one(key, position, gradient, seen):
            bridge = self.bridge.at_floor(level.floor)
            return self.transport(key, bridge, position, gradient, seen, level)

        return hoist(one, key, particle.position, particle.gradient, particle.seen, done=done)

    def step(self, key: PRNGKey, particle: Particle, level: Level) -> tuple[Particle, Scalar, Any]:
        key_moves, key_transport = jax.random.split(key)
        if self.from_prior:  # exact draws need no moves
            level = level._replace(num_moves=jnp.where(level.power > 0, level.num_moves, 0))
        done = Done()
        particle, acceptances = self.moved(key_moves, particle, level, done)
        return self.advance(key_transport, particle, level, acceptances, done)
