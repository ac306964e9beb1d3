"""The ladder of replica exchange: initial states, levels, and one sweep of moves and swaps."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..._finite import NonFinite, non_finite
from ..._typing import Array, PRNGKey
from ...schemes.kernels import Kernels
from ...schemes.levels import Level
from ...schemes.particle import Particle
from ...smc import conditional_ess
from ...smc.batching import split_keys

__all__ = ["Exchanges", "Ladder", "advance", "rungs", "walk"]

_APART = 1.0  # spread of the log weight between neighbours at which half of the swaps are accepted


class Ladder(NamedTuple):
    """Replicas of all ladders; leaves lead with `(num_chains, num_replicas)`.

    Attributes:
        particles: What stands at each level.
        fresh: Whether that came from the distribution beyond the noisy end since it last was at the target.
        even: Whether the even pairs are to swap next, the first of them with the distribution beyond.
    """

    particles: Particle
    fresh: Array
    even: Array


class Exchanges(NamedTuple):
    r"""Record of one sweep of swaps; leaves lead with `(num_chains, num_replicas)`, one entry per pair.

    Pair 0 is the distribution beyond the noisy end with replica 0, pair $k$ is replica $k - 1$ with replica
    $k$.

    Attributes:
        even: Whether even pairs were tried, shape `()`.
        forward: Log weight of what came from the noisier side.
        backward: Of what came from the cleaner side; both mean nothing where a pair was not tried.
        log_accept: Log of the acceptance ratio.
        acceptance: Of the moves at each level.
        arrived: Whether a fresh state reached the target, shape `(num_chains,)`.
        non_finite: By site, whether what was proposed has a log density that is NaN or +inf.
    """

    even: Array
    forward: Array
    backward: Array
    log_accept: Array
    acceptance: Array
    arrived: Array
    non_finite: NonFinite


@eqx.filter_jit
def walk(kernels: Kernels, levels: Level, keys: PRNGKey, num_kept: int) -> tuple[Particle, Array]:
    """Walkers that pass all levels, with moves and without weights.

    Returns:
        What the first few of them were at each level, leading with `(num_kept, num_levels)`, and the share of
        the effective sample size that each step from level to level would keep.
    """
    key_start, key_walk = split_keys(keys, 2).swapaxes(0, 1)
    particles, _, _ = jax.vmap(kernels.init)(key_start)

    def one(carry, level):
        particles, i = carry
        keys = jax.vmap(lambda key: jax.random.fold_in(key, i))(key_walk)
        particles, _ = jax.vmap(kernels.rejuvenate, (0, 0, None))(keys, particles, level)
        here = jax.tree.map(lambda leaf: leaf[:num_kept], particles)
        particles, log_weights, _ = jax.vmap(kernels.advance, (0, 0, None))(keys, particles, level)
        return (particles, i + 1), (here, conditional_ess(jnp.zeros_like(log_weights), log_weights))

    _, (kept, shares) = jax.lax.scan(one, (particles, 0), levels)
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), kept), shares


def rungs(shares: np.ndarray, num_replicas: int | None, evidence_from: int = 0) -> np.ndarray:
    r"""Levels on which replicas stand, evenly far apart.

    A step that keeps the share $s$ of the effective sample size is about $\sqrt{-\log s}$ long, the spread of
    its log weight, and lengths add up. Swaps over a length $\ell$ are accepted with probability
    $2 \Phi(-\ell / \sqrt 2)$.

    Args:
        shares: By level, of the step from it to the next.
        num_replicas: Their number, or `None` for steps of length 1.
        evidence_from: A level that is among them in any case.
    """
    steps = np.sqrt(-np.log(np.clip(shares[:-1], 1e-6, 1.0)))
    place = np.concatenate([[0.0], np.cumsum(steps)])
    if num_replicas is None:
        num_replicas = 1 + max(1, math.ceil(place[-1] / _APART))
    if num_replicas >= len(place):
        return np.arange(len(place))
    wanted = np.linspace(0.0, place[-1], num_replicas)
    nearest = np.abs(place[:, None] - wanted).argmin(0)
    return np.unique(np.concatenate([nearest, [0, evidence_from, len(place) - 1]]))


def advance(kernels: Kernels, levels: Level, ladder: Ladder, key: PRNGKey):
    """Make one sweep of all ladders: moves at every level, then swaps of every other pair."""
    num_chains = ladder.fresh.shape[0]

    def one(key, particles, fresh):
        return _sweep(kernels, levels, key, particles, fresh, ladder.even)

    keys = jax.random.split(key, num_chains)
    particles, fresh, report = jax.vmap(one)(keys, ladder.particles, ladder.fresh)
    return Ladder(particles, fresh, ~ladder.even), Exchanges(ladder.even, *report)


def _sweep(kernels: Kernels, levels: Level, key: PRNGKey, particles: Particle, fresh, even):
    bridge, num = kernels.bridge, fresh.shape[0]
    key_move, key_base, key_accept = jax.random.split(key, 3)
    keys = jax.random.split(key_move, num)
    particles, (acceptance, _) = jax.vmap(kernels.rejuvenate)(keys, particles, levels)

    here = jnp.arange(num)
    partner = jnp.where((here % 2 == 0) == even, here - 1, here + 1)  # -1: the law beyond
    beyond, near = partner < 0, jnp.clip(partner, 0, num - 1)
    there = jax.tree.map(lambda leaf: leaf[near], particles.position)
    z, log_det = jax.vmap(bridge.carry)(there, levels.clock[near], levels.clock)
    base = (bridge.sample_prior if kernels.from_prior else bridge.sample_base)(key_base)
    z = jax.tree.map(lambda leaf, one: _where(beyond, one[None], leaf), z, base)
    new = jax.vmap(kernels.evaluate)(z, levels.clock, levels.power, levels.floor)
    met = non_finite({**new.seen.sites, **new.rest.sites})
    values = jnp.where(jnp.isfinite(new.log_density), new.log_density, -jnp.inf)
    new = kernels.remembered(new._replace(log_density=values))

    work = values - particles.log_density[near] + jnp.where(beyond, 0.0, log_det)
    first = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree)
    forward = work.at[0].set(jnp.where(even, _weight(kernels, first(new)), work[0]))
    back = jnp.where(even, -_weight(kernels, first(particles)), 0.0)
    backward = jnp.concatenate([back[None], work[:-1]])
    tried = (here % 2 == 0) == even  # pair k is (k - 1, k)
    log_accept = jnp.where(tried, forward + backward, -jnp.inf)
    log_accept = jnp.where(jnp.isnan(log_accept), -jnp.inf, log_accept)
    swapped = jnp.log(jax.random.uniform(key_accept, (num,))) < log_accept
    accept = jnp.append(swapped, False)[jnp.maximum(here, partner)]

    particles = jax.tree.map(lambda a, b: _where(accept, a, b), new, particles)
    fresh = jnp.where(accept, beyond | fresh[near], fresh)
    report = forward, backward, log_accept, acceptance, fresh[-1], met
    return particles, fresh.at[-1].set(False), report


def _weight(kernels: Kernels, particle: Particle) -> Any:
    """Log weight of a particle at the noisy end against the distribution that particles start from."""
    if kernels.from_prior:
        return jnp.zeros(())
    bridge, z = kernels.bridge, particle.position
    value = particle.log_density - bridge.log_base(z)
    if not bridge.other_sites:
        return value
    # The other sites come from their own prior given what they see.
    x_hat = {} if particle.seen is None else particle.seen.x_hat
    if (
        not x_hat
    ):  # all are sites on which energies depend: their prior does not look at diffusion sites
        x_hat = {name: z[name] for name in bridge.diffusion_sites}
    return value - bridge.rest(z, x_hat).log_prior


def _where(condition: Array, a: Array, b: Array) -> Array:
    return jnp.where(condition.reshape(-1, *(1,) * (b.ndim - 1)), a, b)
