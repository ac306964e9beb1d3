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
    transport: AbstractTransport
    num_moves: int = eqx.field(static=True)
    num_other_moves: int = eqx.field(static=True)
    from_prior: bool = eqx.field(static=True, default=False)

    @property
    def in_blocks(self) -> bool:
        """Whether there are both diffusion sites and other latent sites to move."""
        return bool(self.bridge.other_sites) and bool(self.bridge.diffusion_sites)

    @property
    def keeps_gradient(self) -> bool:
        """Whether something can start from the gradient that an evaluation at the end of a level gives.

        Moves of other sites outdate it for the joint move that follows them, but not for a transport.
        """
        return not self.in_blocks or (self.transport.needs_gradient and self.num_moves == 0)

    @property
    def keeps_denoised(self) -> bool:
        return self.in_blocks or self.num_moves == 0

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
            seen = seen._replace(x_hat={})
        return Particle(z, value, gradient, seen, rest)

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
        return {**particle.position, **moved}, state.logdensity, jnp.mean(acceptance)

    def start_move(self, particle: Particle, z: Position, logdensity_fn, scale):
        if particle.gradient is None:
            return self.move.init(z, logdensity_fn, scale)
        value = jnp.where(jnp.isfinite(particle.log_density), particle.log_density, -jnp.inf)
        return self.move.init_known(z, value, particle.gradient, scale)

    def init(self, key: PRNGKey) -> tuple[Particle, Scalar, Any]:
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

    def step(self, key: PRNGKey, particle: Particle, level: Level) -> tuple[Particle, Scalar, Any]:
        key_other, key_joint, key_transport = jax.random.split(key, 3)
        z, value, gradient = particle.position, particle.log_density, particle.gradient
        acceptance = other_acceptance = jnp.ones(())
        if self.in_blocks:
            z, value, other_acceptance = self.move_others(
                key_other, particle, level.clock, level.power, level.other_step_size, level.scale
            )
        if self.num_moves:
            logdensity_fn = self.logdensity(level.clock, level.power)
            state = self.start_move(particle, z, logdensity_fn, level.scale)

            def one(state, key):
                return self.move.step(key, state, logdensity_fn, level.step_size, level.scale)

            keys = jax.random.split(key_joint, self.num_moves)
            state, acceptance = jax.lax.scan(one, state, keys)
            z, value = self.move.position(state, level.scale), state.logdensity
            if self.transport.needs_gradient:
                gradient = self.move.gradient(state, level.scale)
        x_hat = particle.seen.x_hat
        z, log_ratio = self.transport(key_transport, self.bridge, z, gradient, x_hat, level)
        new = self.evaluate(z, level.next_clock, level.next_power)
        log_weight = new.log_density - value + log_ratio
        return new, log_weight, self.info(new, jnp.mean(acceptance), other_acceptance)
