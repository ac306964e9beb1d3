"""One particle under rising powers of a likelihood, from exact draws of the prior."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from .._records import record, record_page
from .._typing import Array, Position, PRNGKey, Scalar
from ..bridge import Bridge, Rest, Seen
from ..smc.moves import Move
from ..smc.tempering import inner_init, inner_step
from .particle import Info, finite

__all__ = ["PowerChain", "PowerLevel", "PowerParticle"]


class PowerLevel(NamedTuple):
    """Frozen levels; leaves have a leading axis of length `num_levels`.

    Attributes:
        power: Exponent of the likelihood under which particles move.
        next_power: The one that they are weighed for.
        step_size: Of the move; one for each part of a composed move.
        scale: Standard deviation of each coordinate of the flattened position.
    """

    power: Array
    next_power: Array
    step_size: Array
    scale: Array

    __repr__ = record
    _repr_html_ = record_page


class PowerParticle(NamedTuple):
    """A position and its log likelihood."""

    position: Position
    log_likelihood: Scalar


class PowerChain(eqx.Module):
    """What happens to one particle."""

    bridge: Bridge
    move: Move
    num_moves: int = eqx.field(static=True)

    def parts(self, z: Position) -> tuple[Seen, Rest]:
        names = self.bridge.diffusion_sites
        zero = jnp.zeros(())
        seen = self.bridge.see(z, zero) if names else Seen(zero, {}, {}, {})
        return seen, self.rest(z)

    def rest(self, z: Position) -> Rest:
        return self.bridge.rest(z, {name: z[name] for name in self.bridge.diffusion_sites})

    def log_prior(self, z: Position) -> Scalar:
        seen, rest = self.parts(z)
        return seen.log_density + rest.log_prior

    def log_likelihood(self, z: Position) -> Scalar:
        return self.rest(z).log_likelihood

    def tempered(self, power: Scalar):
        """The log density of a level: a power of 0 silences an infinite likelihood."""

        def log_density(z):
            seen, rest = self.parts(z)
            likelihood = jnp.where(power > 0, power * rest.log_likelihood, 0.0)
            return finite(seen.log_density + rest.log_prior + likelihood)

        return log_density

    def init(self, key: PRNGKey) -> tuple[PowerParticle, Scalar, Any]:
        z = self.bridge.sample_prior(key)
        seen, rest = self.parts(z)
        one, zero = jnp.ones(()), jnp.zeros(())
        info = Info.of({**seen.sites, **rest.sites}, one, one, True)
        return PowerParticle(z, rest.log_likelihood), zero, info

    def rejuvenate(self, key: PRNGKey, particle: PowerParticle, level: PowerLevel):
        """The moves of a level."""
        log_density, step = self.tempered(level.power), inner_step(self.move)
        state = inner_init(self.move)(particle.position, log_density)

        def one(i, carry):
            state, total = carry
            now = jax.random.fold_in(key, i)
            state, info = step(now, state, log_density, level.step_size, level.scale)
            return state, total + info.acceptance_rate

        start = state, jnp.zeros(())
        state, total = jax.lax.fori_loop(0, self.num_moves, one, start)
        new = PowerParticle(state.position, self.log_likelihood(state.position))
        return new, total / self.num_moves

    def advance(
        self, key: PRNGKey, particle: PowerParticle, level: PowerLevel, accepted: Any = None
    ):
        """The weight for the next power."""
        del key
        rest = self.rest(particle.position)
        delta = level.next_power - level.power
        one = jnp.ones(())
        log_weight = jnp.where(delta > 0, delta * particle.log_likelihood, 0.0)
        info = Info.of(rest.sites, one if accepted is None else accepted, one, True)
        return particle, log_weight, info

    def step(self, key: PRNGKey, particle: PowerParticle, level: PowerLevel):
        particle, accepted = self.rejuvenate(key, particle, level)
        return self.advance(key, particle, level, accepted)
