r"""Moves and weights along a bridge: what one particle does at one level.

It is moved by kernels that leave $\gamma_{c, \beta}$ invariant, transported to the next level, and
weighed there. The pilot and all schemes run these functions.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from .._typing import Position, PRNGKey, Scalar
from ..bridge import Bridge, Rest, Seen, combine, log_density
from ..moves import Move
from .levels import Level
from .transport import AbstractTransport

__all__ = ["Info", "Kernels", "Level", "Particle"]


class Particle(NamedTuple):
    """A position with what was evaluated there, so that nothing is evaluated twice.

    Between two levels it holds no more than the next one reads: `seen` and `rest` may then be `None`.
    """

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
    """The functions of the Feynman-Kac model; a pytree, so that new data compile nothing.

    Attributes:
        bridge: The densities.
        move: Joint move of all sites.
        other_move: Move of the non-diffusion sites given what they see.
        transport: From level to level.
        num_moves: Joint moves a level; `None` for the pilot's choice at each level.
        num_other_moves: Moves of the other sites a level.
        from_prior: Whether particles start from exact draws of the prior.
        rank: Directions beside the diagonal in the preconditioners.
    """

    bridge: Bridge
    move: Move
    other_move: Move
    transport: AbstractTransport
    num_moves: int | None = eqx.field(static=True)
    num_other_moves: int = eqx.field(static=True)
    from_prior: bool = eqx.field(static=True, default=False)
    rank: int = eqx.field(static=True, default=0)

    @property
    def in_blocks(self) -> bool:
        """Whether there are both diffusion sites and other latent sites to move."""
        return bool(self.bridge.other_sites) and bool(self.bridge.diffusion_sites)

    @property
    def has_joint_moves(self) -> bool:
        return self.num_moves != 0

    @property
    def keeps_gradient(self) -> bool:
        """Whether something can start from the gradient that an evaluation at the end of a level gives.

        Moves of other sites outdate it for the joint move that follows them, but not for a transport.
        """
        return not self.in_blocks or (self.transport.needs_gradient and not self.has_joint_moves)

    @property
    def keeps_denoised(self) -> bool:
        return self.in_blocks or not self.has_joint_moves

    def evaluate(self, z: Position, clock: Scalar, power: Scalar) -> Particle:
        """One network evaluation; with its gradient where the next move can start from it."""

        def density(z):
            return log_density(self.bridge, z, clock, power)

        gradient = None
        if self.keeps_gradient:
            (value, (seen, rest)), gradient = jax.value_and_grad(density, has_aux=True)(z)
        else:
            value, (seen, rest) = density(z)
        if not self.keeps_denoised:
            # Only moves of other sites look at `x_hat` again; kept, it could cost a gradient of its own.
            seen = seen._replace(x_hat={}, roots={}, scores={})
        return Particle(z, value, gradient, seen, rest)

    def logdensity(self, clock: Scalar, power: Scalar):
        def logdensity_fn(z):
            value, _ = log_density(self.bridge, z, clock, power)
            return jnp.where(jnp.isfinite(value), value, -jnp.inf)

        return logdensity_fn

    def move_others(self, key, particle: Particle, clock, power, step_size, preconditioner):
        """Moves of the non-diffusion sites given what was seen: no network evaluation."""
        block = {name: particle.position[name] for name in self.bridge.other_sites}

        def logdensity_fn(block):
            z = {**particle.position, **block}
            rest = self.bridge.rest(z, particle.seen.x_hat)
            value = combine(self.bridge, z, clock, power, particle.seen, rest)
            return jnp.where(jnp.isfinite(value), value, -jnp.inf)

        state = self.other_move.init(block, logdensity_fn, preconditioner)

        def one(state, key):
            return self.other_move.step(key, state, logdensity_fn, step_size, preconditioner)

        keys = jax.random.split(key, self.num_other_moves)
        state, acceptance = jax.lax.scan(one, state, keys)
        moved = preconditioner.to_model(state.position)
        return {**particle.position, **moved}, state.logdensity, jnp.mean(acceptance)

    def start_move(self, particle: Particle, z: Position, logdensity_fn, preconditioner):
        if particle.gradient is None:
            return self.move.init(z, logdensity_fn, preconditioner)
        value = jnp.where(jnp.isfinite(particle.log_density), particle.log_density, -jnp.inf)
        return self.move.init_known(z, value, particle.gradient, preconditioner)

    def end_move(self, particle: Particle, state, preconditioner) -> Particle:
        """The particle where a move has brought it; what was seen there is not known yet."""
        gradient = particle.gradient
        known = gradient is not None and hasattr(state, "logdensity_grad")
        if known or self.transport.needs_gradient:
            gradient = self.move.gradient(state, preconditioner)
        position = preconditioner.to_model(state.position)
        return particle._replace(position=position, log_density=state.logdensity, gradient=gradient)

    def remembered(self, particle: Particle) -> Particle:
        """What the next level reads of a particle: the rest is memory."""
        if not self.keeps_denoised or particle.seen is None:
            return particle._replace(seen=None, rest=None)
        return particle._replace(seen=particle.seen._replace(sites={}), rest=None)

    def init(self, key: PRNGKey) -> tuple[Particle, Scalar, Any]:
        """A particle at the first level, its weight, and an info."""
        particle, log_weight, info = self.start(key)
        return self.remembered(particle), log_weight, info

    def start(self, key: PRNGKey) -> tuple[Particle, Scalar, Any]:
        """`init` with all that was evaluated, for a pilot."""
        one, zero = jnp.ones(()), jnp.zeros(())
        if self.from_prior:
            particle = self.evaluate(self.bridge.sample_prior(key), zero, zero)
            log_weight = zero
        else:
            z = self.bridge.sample_base(key)
            particle = self.evaluate(z, one, zero)
            # The initial weight against the base law; the other sites come from their own prior.
            log_weight = particle.log_density - particle.rest.log_prior - self.bridge.log_base(z)
        return particle, log_weight, self.info(particle, one, one)

    def info(self, particle: Particle, acceptance, other_acceptance) -> Info:
        sites = {**particle.seen.sites, **particle.rest.sites}
        return Info(
            acceptance,
            other_acceptance,
            jax.tree.map(jnp.isnan, sites),
            jax.tree.map(jnp.isposinf, sites),
        )

    def moved(self, key: PRNGKey, particle: Particle, level: Level):
        """The particle after the moves of its level, and how many of them were accepted.

        Position, density and gradient are those after the moves, `seen` and `rest` as old as they were.
        """
        key_other, key_joint = jax.random.split(key)
        z, acceptance, other_acceptance = particle.position, jnp.ones(()), jnp.ones(())
        if self.in_blocks:
            z, value, other_acceptance = self.move_others(
                key_other,
                particle,
                level.clock,
                level.power,
                level.other_step_size,
                level.other_preconditioner,
            )
            particle = particle._replace(position=z, log_density=value)
        if not self.has_joint_moves:
            return particle, (acceptance, other_acceptance)
        logdensity_fn = self.logdensity(level.clock, level.power)
        state = self.start_move(particle, z, logdensity_fn, level.preconditioner)

        def one(i, carry):
            state, total = carry
            state, accepted = self.move.step(
                jax.random.fold_in(key_joint, i),
                state,
                logdensity_fn,
                level.step_size,
                level.preconditioner,
            )
            return state, total + accepted

        state, total = jax.lax.fori_loop(0, level.num_moves, one, (state, 0 * acceptance))
        particle = self.end_move(particle, state, level.preconditioner)
        acceptance = jnp.where(level.num_moves > 0, total / jnp.maximum(level.num_moves, 1), 1.0)
        return particle, (acceptance, other_acceptance)

    def rejuvenate(self, key: PRNGKey, particle: Particle, level: Level) -> tuple[Particle, Any]:
        """The moves of a level alone, from which they can go on."""
        particle, acceptances = self.moved(key, particle, level)
        if self.in_blocks:  # the other sites look at what was seen
            particle = self.evaluate(particle.position, level.clock, level.power)
        return self.remembered(particle), acceptances

    def advance(
        self, key: PRNGKey, particle: Particle, level: Level, acceptances: Any = None
    ) -> tuple[Particle, Scalar, Any]:
        """To the next level, without moves at this one, and the weight there."""
        z, log_ratio = self.transport(
            key, self.bridge, particle.position, particle.gradient, particle.seen, level
        )
        new = self.evaluate(z, level.next_clock, level.next_power)
        log_weight = new.log_density - particle.log_density + log_ratio
        info = self.info(new, *(acceptances or (jnp.ones(()), jnp.ones(()))))
        info.nan["transport"] = jnp.isnan(log_ratio)
        return self.remembered(new), log_weight, info

    def step(self, key: PRNGKey, particle: Particle, level: Level) -> tuple[Particle, Scalar, Any]:
        key_moves, key_transport = jax.random.split(key)
        if self.from_prior:  # exact draws need no moves
            level = level._replace(num_moves=jnp.where(level.power > 0, level.num_moves, 0))
        particle, acceptances = self.moved(key_moves, particle, level)
        return self.advance(key_transport, particle, level, acceptances)
