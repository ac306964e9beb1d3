r"""The pilot run: a small cloud that tunes levels, step sizes and scales before they are frozen.

It walks the same path as the sampler. At each level it measures the spread of every coordinate, adapts
the step sizes to the kernels' target acceptance while it moves, and then takes the largest step along
the path that keeps the wanted share of effective sample size. A path has two parts: on one the likelihood
fades in, on the other the noise falls. A model without diffusion sites has the first alone.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._arguments import whole_or_none
from .._prng import lean
from .._progress import progress
from .._staging import Done, brief_jit
from .._typing import PRNGKey
from ..smc import conditional_ess as share_left
from ..smc import resample_equal
from ..smc.interrupt import Deferred, Terminable
from .adapt import PilotState, adapt
from .floor import corrected, faded, first, floor_of, gone, ruled_out
from .kept import standing
from .kernels import Kernels
from .levels import Level
from .particle import Particle
from .path import Path, prior_first
from .settings import Pilot

__all__ = ["PilotError", "tune"]


class PilotError(RuntimeError):
    """The pilot cannot reach the posterior within the allowed number of levels."""


def tune(
    key: PRNGKey,
    kernels: Kernels,
    settings: Pilot,
    *,
    num_levels: int | None = None,
    path: Path,
    progress_bar: bool = False,
) -> Level:
    """Choose levels, step sizes and scales for some kernels, with a pilot cloud.

    Args:
        key: PRNG key.
        kernels: Moves and weights over a bridge.
        settings: Of the pilot cloud.
        num_levels: Equal steps in log-SNR instead of the pilot's own choice.
        path: `likelihood_first` or `prior_first`.
        progress_bar: Show how far along the path the pilot is.

    Returns:
        Frozen levels; the last one has the particles move at the target without a weight.

    Raises:
        PilotError: If `max_levels` do not suffice, or every pilot particle has weight 0.
        KeyboardInterrupt: Once the level at hand is done; within `KeptPilots` the next call goes on there.
    """
    # Where the likelihood comes last, at the clean end, supports are nested without a floor.
    num_levels = whole_or_none("num_levels", num_levels, 1, "`None` for the pilot's own.")
    floors = bool(kernels.bridge.diffusion_sites) and path is not prior_first
    fixed = None if num_levels is None else np.linspace(1.0, 0.0, num_levels + 1)

    def start(key, make=_start_pilot):
        return make(kernels, key, settings.num_particles, floors)

    def advance(pilot, count=0):
        next_clock = np.nan if fixed is None else fixed[min(count + 1, len(fixed) - 1)]
        rounds = 0 if count else 16
        target, numbers = settings.conditional_ess, (np.asarray(next_clock), np.asarray(rounds))
        return _advance(kernels, pilot, target, *numbers, path)

    bar = progress(
        total=100, enabled=progress_bar, desc="pilot", bar_format="{l_bar}{bar}| {postfix}",
        compiles="model and moves (once for a model)",
    )  # fmt: skip
    told = {"num_levels": num_levels, "pilot": str(settings.but(Pilot(max_levels=1)))}
    traced = partial(start, make=_start_pilot.__wrapped__)  # type: ignore[attr-defined]
    with bar, Terminable(), standing(traced, advance, key, told) as stand:
        found = stand.read()
        pilot, rows = (start(key), []) if found is None else found
        while not (rows and _ends(rows[-1])):
            with Deferred() as interrupt:
                pilot, row, alive = advance(pilot, len(rows))
                rows.append(jax.tree.map(np.asarray, row))
            if not bool(alive):
                raise PilotError(
                    f"every pilot particle has weight 0 at level {len(rows)} (clock "
                    f"{float(row.next_clock):.3f}, likelihood power {float(row.next_power):.3g})"
                    f"{_never_finite(pilot.particles)}. Look at the likelihood at draws from the prior: "
                    f"is it finite there?{_remedy(row)} {_faq.pilot_weights}"
                )
            bar.n = round(50 * (1 - float(pilot.clock)) + 50 * float(pilot.power))
            bar.set_postfix_str(f"{len(rows)} levels", refresh=True)
            impossible = ruled_out(row.floor, pilot.means, pilot.particles)
            if impossible:
                raise PilotError(
                    f"no pilot particle is possible under {impossible}: too little of the prior's mass is. "
                    "Try a larger `pilot`, or say what is possible by a smooth term beside the "
                    f"hard one. {_faq.pilot_impossible}"
                )
            ends = _ends(row)
            if stand.due or interrupt.pending or ends:
                stand.keep(pilot, rows)
            if interrupt.pending:
                error = KeyboardInterrupt()
                error.add_note(
                    f"{len(rows)} levels of the pilot are done, and no level of the run."
                )
                raise error
            if not ends and fixed is None and len(rows) > settings.max_levels:
                raise PilotError(
                    f"{settings.max_levels} levels did not suffice: the pilot stands at clock "
                    f"{float(pilot.clock):.3f} (1 is noise, 0 the posterior) and likelihood power "
                    f"{float(pilot.power):.3g}. The likelihood may be too sharp for the moves, or "
                    "a transport's weights uneven however close two levels are: take more `moves`, lower "
                    "`conditional_ess` of the `pilot`, or raise its "
                    f"`max_levels`. {_faq.pilot_levels}"
                )
    # Stacked on the host: another number of levels compiles nothing.
    return jax.tree.map(lambda *leaves: jax.device_put(np.stack(leaves)), *rows)


def _ends(row: Level) -> bool:
    """Whether a level is the last: at the posterior, with no floor."""
    return float(row.clock) <= 0 and float(row.power) >= 1 and gone(row.floor)


def _never_finite(particles: Particle) -> str:
    """Sites whose log density is finite for no particle, in words."""
    sites = {**particles.seen.sites, **particles.rest.sites}
    names = [f"`{n}`" for n, values in sites.items() if not np.isfinite(values).any()]
    return f"; no log density is finite at site {', '.join(names)}" if names else ""


def _remedy(row: Level) -> str:
    """A path on which a hard constraint meets clean values, where it did not."""
    if not float(row.next_clock) > 0:
        return ""
    return (
        " A likelihood that is 0 on a set may rule out the prior's mean, all that it sees of a noisy "
        "particle: `LikelihoodTempered()` shows it draws from the prior instead."
    )


@brief_jit
def _start_pilot(kernels: Kernels, key: PRNGKey, num_particles: int, floors: bool) -> PilotState:
    key, key_init, key_resample = jax.random.split(lean(key), 3)
    particles, log_weights, _ = jax.vmap(kernels.start)(jax.random.split(key_init, num_particles))
    log_weights = jnp.where(jnp.isfinite(log_weights), log_weights, -jnp.inf)
    index = resample_equal(key_resample, log_weights, num_particles)
    particles = jax.tree.map(lambda leaf: leaf[index], particles)
    one = jnp.ones(())
    clock = 0 * one if kernels.from_prior else one
    dimension = sum(leaf[0].size for leaf in jax.tree.leaves(particles.position))
    start = jnp.log(0.5 * dimension ** (-1 / 3) * one)
    # One step size for each part of a composed move.
    steps = jnp.full(np.shape(kernels.moves.joint.targets), start)
    other_steps = jnp.full(np.shape(kernels.moves.other.targets), start)
    if not floors:
        return PilotState(key, particles._replace(edges={}), clock, 0 * one, steps, other_steps)
    means = first(particles)
    floor = jax.tree.map(lambda leaf: jnp.full_like(leaf, -jnp.inf), means)  # silent at power 0
    return PilotState(key, particles, clock, 0 * one, steps, other_steps, floor, means)


@eqx.filter_jit
def _advance(kernels: Kernels, pilot: PilotState, target, next_clock, extra_rounds, path: Path):
    """Move the pilot cloud at its level, choose the next level, transport, weigh and resample."""
    bridge = kernels.bridge
    pilot, here = adapt(kernels, pilot, extra_rounds)
    count = pilot.particles.log_density.shape[0]
    key, key_resample, key_transport, key_probe = jax.random.split(pilot.key, 4)
    if kernels.transport.needs_curvature:
        cloud = pilot.particles.position
        at = bridge.at_floor(pilot.floor)
        measured = kernels.transport.measure(key_probe, at, cloud, pilot.clock, pilot.power)
        here = here._replace(curvature=measured)
    keys = jax.random.split(key_transport, count)  # the same noise for every stride that is tried
    before = pilot.particles
    one = jax.tree.map(lambda leaf: leaf[0], before)

    # At the clean end the floors go, last of all: supports are then nested.
    last = (pilot.clock <= 0) & (pilot.power >= 1)

    def transported(clock, power, stride):
        less = faded(pilot.floor, jnp.where(last, stride, 0.0))
        noisy = floor_of(pilot.means, before, bridge.open_share(clock))
        ahead = {name: jnp.where(last, less[name], f) for name, f in noisy.items()}
        row = here._replace(next_clock=clock, next_power=power, next_floor=ahead)
        done = Done()
        move = jax.vmap(kernels.transported(keys[0], one, row, done))
        z, log_ratio = move(keys, before.position, before.gradient, before.seen)
        return row, z, log_ratio, kernels.here(clock, power, ahead, one.position, done=done)

    zeros = jnp.zeros(count)
    goal = -jnp.log(target)
    fixed = jnp.isfinite(next_clock) & ~last

    def loss(stride):
        _, z, log_ratio, there = transported(
            *path(bridge, pilot.clock, pilot.power, stride), stride
        )
        values = jax.vmap(lambda z: there.density(z)[0])(z)
        share = share_left(zeros, values - before.log_density + log_ratio)
        return -jnp.log(jnp.maximum(share, 1e-6))

    def bisect(carry):
        # In log stride, all that remains first; the lower bound was always seen to keep the wanted share.
        i, low, high = carry
        stride = jnp.where(i == 0, 1.0, jnp.exp(0.5 * (jnp.log(low) + jnp.log(high))))
        good = loss(stride) <= goal
        return i + 1, jnp.where(good, stride, low), jnp.where(good, high, stride)

    def unsure(carry):
        i, low, _ = carry
        return ~fixed & (i < 11) & (low < 1)

    whole = jnp.ones(())
    _, low, _ = jax.lax.while_loop(unsure, bisect, (0, 1e-5 * whole, whole))
    clock, power = path(bridge, pilot.clock, pilot.power, jnp.where(fixed, whole, low))
    if bridge.diffusion_sites:  # on a grid the likelihood is there from the first level on
        clock, power = jnp.where(fixed, next_clock, clock), jnp.where(fixed, 1.0, power)
    else:
        clock, power = 0 * clock, jnp.where(fixed, 1 - next_clock, power)

    row, z, log_ratio, there = transported(clock, power, low)
    particles = jax.vmap(lambda z: kernels.evaluated(there, z))(z)
    log_weights = particles.log_density - before.log_density + log_ratio
    log_weights = jnp.where(jnp.isfinite(log_weights), log_weights, -jnp.inf)
    index = resample_equal(key_resample, log_weights, count)
    particles = jax.tree.map(lambda leaf: leaf[index], particles)
    new = pilot._replace(key=key, particles=particles, clock=clock, power=power)
    if pilot.floor:
        share = bridge.open_share(clock)
        means = corrected(pilot.means, row.next_floor, share, particles)
        new = new._replace(floor=row.next_floor, means=means)
    else:
        new = new._replace(particles=particles._replace(edges={}))
    return new, row, jnp.any(jnp.isfinite(log_weights))
