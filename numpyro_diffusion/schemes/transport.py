r"""Transports of particles from level to level, with their incremental weights.

The weight of a level is $\log \gamma' (z') - \log \gamma(z) + \log R$, where $z'$ is what the transport
makes of $z$ and $\log R$ makes up for how it was made: the log-determinant of a map, or the log ratio of
backward to forward kernel of a draw. Whatever the transport does, the weighted particles follow
$\gamma'$; a good one makes the weights even.
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from .._arguments import check_counts, plain
from .._typing import Position, PRNGKey, Scalar
from .._written import one_line
from ..bridge import Bridge, Seen, log_density
from .levels import Level
from .particle import Particle

__all__ = ["AbstractTransport", "Carry", "Draws", "Retrace"]


class Retrace(NamedTuple):
    r"""A transport, for steps that are given: what particle Gibbs asks of it.

    Attributes:
        log_ratio: `(bridge, particle, position, level) -> ()`: $\log R$ of the step to `position`.
        log_link: `(bridge, particle, position, level) -> ()`: $\log M R$ of it, up to what does not depend
            on the particle; `None` for a map, which has no density.
        back: `(key, bridge, position, level) -> position`: a draw of the backward kernel; `None` where
            the path is to be remembered.
    """

    log_ratio: Callable[[Bridge, Particle, Position, Level], Scalar]
    log_link: Callable[[Bridge, Particle, Position, Level], Scalar] | None
    back: Callable[[PRNGKey, Bridge, Position, Level], Position] | None


class AbstractTransport(eqx.Module):
    """Transport of a particle from level to level. The call is all that a subclass must define.

    Attributes:
        needs_gradient: Whether it asks for the gradient of the log density at the particle.
    """

    needs_gradient = False
    __repr__ = one_line

    @property
    def needs_curvature(self) -> bool:
        """True if it uses `level.curvature`, the result of `measure` on the pilot cloud."""
        return False

    def measure(
        self, key: PRNGKey, bridge: Bridge, cloud: Position, clock: Scalar, power: Scalar
    ) -> Any:
        """Estimate what it needs to know of a level, from a pilot cloud."""
        del key, bridge, cloud, clock, power
        return None

    def evaluations(self, bridge: Bridge) -> int | None:
        """Network evaluations of one transport; `None`: not known."""
        del bridge
        return None

    def as_published(self) -> "AbstractTransport":
        """Return the transport without its guards against rare large weights, where nothing is resampled."""
        return self

    def unweighed(self) -> "AbstractTransport":
        """Return the transport as published where nothing is weighed either: its log ratio is not asked."""
        return self.as_published()

    def retrace(self) -> Retrace | None:
        """Densities of given steps; `None` if particle Gibbs cannot keep a path of it."""
        return None

    @abc.abstractmethod
    def __call__(
        self,
        key: PRNGKey,
        bridge: Bridge,
        position: Position,
        gradient: Position | None,
        seen: Seen | None,
        level: Level,
    ) -> tuple[Position, Scalar]:
        r"""New position and $\log R$, of shape `()`.

        Args:
            key: PRNG key.
            bridge: The densities.
            position: Of the particle: values by site, diffusion sites in units of the data.
            gradient: Of the log density of the level there; `None` unless `needs_gradient`.
            seen: What was seen at the particle, as far as it is kept (see `Kernels.keeps_denoised`).
            level: From `level.clock` to `level.next_clock`, which may be the same: then nothing moves.
        """


class Carry(AbstractTransport):
    r"""The linear map between the Gaussian approximations of the two distributions; $\log R$ its
    log-determinant.
    """

    def __call__(self, key, bridge, position, gradient, seen, level):
        del key, gradient, seen
        return bridge.carry(position, level.clock, level.next_clock)

    def evaluations(self, bridge):
        del bridge
        return 0

    def retrace(self):
        return Retrace(self._log_ratio, None, self._back)

    def _log_ratio(self, bridge, particle, position, level):
        del position
        return bridge.carry(particle.position, level.clock, level.next_clock)[1]

    def _back(self, key, bridge, position, level):
        del key
        return bridge.carry(position, level.next_clock, level.clock)[0]


class Draws(Carry):
    r"""The best of several draws of the prior, at the level where particles are draws of it.

    There a particle $z_1$ follows the prior. It is put beside $K - 1$ new draws, one of the $K$ is chosen
    with probability proportional to $w_k = p(y \mid z_k)^{\beta'}$, and its weight is their mean,
    $\frac1K \sum_k w_k$, whatever is chosen. A draw costs one likelihood and no evaluation of the prior (the
    choice, two), so that the likelihood may begin much further up. From there on as `Carry`.

    Attributes:
        num_draws: $K$.
    """

    num_draws: int = eqx.field(static=True, converter=plain, default=16)

    def __check_init__(self):
        check_counts(self, num_draws=1)

    def __call__(self, key, bridge, position, gradient, seen, level):
        del gradient, seen

        def choose(_):
            return self.choose(key, bridge, position, level.next_power)

        def stay(_):
            return position, jnp.zeros(())

        return jax.lax.cond(level.power > 0, stay, choose, None)

    def retrace(self):
        return None  # the draws that were not chosen are gone

    def choose(self, key: PRNGKey, bridge: Bridge, first: Position, power: Scalar):
        """Choose one of several draws; its weight is their mean."""

        def weight(z):
            value = bridge.rest(
                z, {name: z[name] for name in bridge.diffusion_sites}
            ).log_likelihood
            return jnp.where(jnp.isfinite(value), power * value, -jnp.inf)

        def one(i, carry):
            # One at a time: a new draw takes the place of the old one with the share of the weight it holds.
            z, chosen, total = carry
            key_draw, key_take = jax.random.split(jax.random.fold_in(key, i))
            new = bridge.sample_prior(key_draw)
            value = weight(new)
            total = jnp.logaddexp(total, value)
            take = jnp.log(jax.random.uniform(key_take)) < value - total
            keep = lambda a, b: jnp.where(take, a, b)
            return jax.tree.map(keep, new, z), keep(value, chosen), total

        value = weight(first)
        z, chosen, total = jax.lax.fori_loop(1, self.num_draws, one, (first, value, value))
        zero = jnp.zeros(())
        before, after = (log_density(bridge, at, zero, zero)[0] for at in (first, z))
        # No draw counts: no weight, rather than the difference of two infinities.
        ratio = total - jnp.log(self.num_draws) - chosen + before - after
        return z, jnp.where(jnp.isfinite(total), ratio, -jnp.inf)
