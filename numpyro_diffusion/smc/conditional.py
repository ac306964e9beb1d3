r"""Conditional sequential Monte Carlo (CSMC): a particle run that keeps one path, and proposes others.

A path with its weights has the distribution $\Gamma(x_{0:K}) = M_0(x_0)\, G_0(x_0) \prod_k M_k(x_k \mid
x_{k-1})\, G_k(x_{k-1}, x_k)$. A run of $N$ particles, one of which is led along a path with this
distribution, and of which one is chosen by the final weights, ends with a path of the same distribution, for
*any* $N$: a Markov kernel. With ancestor sampling the path that is kept may take the past of another
particle wherever particles are resampled, with probability proportional to $W^j M_k(x_k \mid x^j_{k-1})\,
G_k(x^j_{k-1}, x_k)$, so that a few particles renew a long path.

Without a path to keep it is the usual run, whose weights estimate the integral of $\Gamma$ without bias.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._arguments import whole_number
from .._finite import NonFinite, non_finite
from .._prng import lean
from .._typing import Array, PRNGKey, PyTree, Scalar
from .weights import clean, effective_sample_size, log_mean_exp

__all__ = ["Pass", "Path", "PathModel", "conditional_smc", "systematic"]


class PathModel(NamedTuple):
    r"""A Feynman-Kac model of ONE particle that also knows the weights of given paths.

    Attributes:
        init: `key -> (particle, log_weight)`: at the first level. A third output, an info with dictionaries
            `nan` and `infinite` of flags by site, is watched; so is that of `advance`.
        move: `(key, particle, level) -> particle`: leaves the level's distribution as it is, and is
            reversible.
        advance: `(key, particle, level) -> (particle, log_weight)`: to the next level.
        log_initial: `particle -> ()`: $\log G_0$ of a given particle.
        log_increment: `(particle, new, level) -> ()`: $\log G_k$ of a given step.
        log_link: `(particle, new, level) -> ()`: $\log M_k G_k$ of a given step, up to what does not depend
            on `particle`; $-\infty$ where the step has no density. `None` for no ancestor sampling.
        levels: Pytree whose leaves have a leading axis of length `num_levels`.
        keep: `particle -> ` what a path is to remember of it.
    """

    init: Callable[[PRNGKey], tuple[Any, ...]]
    move: Callable[[PRNGKey, PyTree, PyTree], PyTree]
    advance: Callable[[PRNGKey, PyTree, PyTree], tuple[Any, ...]]
    log_initial: Callable[[PyTree], Scalar]
    log_increment: Callable[[PyTree, PyTree, PyTree], Scalar]
    log_link: Callable[[PyTree, PyTree, PyTree], Scalar] | None
    levels: PyTree
    keep: Callable[[PyTree], PyTree]


class Path(NamedTuple):
    """The particles of a path.

    Attributes:
        start: At the first level, before its moves.
        moved: After the moves of each level, with a leading axis.
        arrived: Where each of them then went, with a leading axis.
    """

    start: PyTree
    moved: PyTree
    arrived: PyTree


class Pass(NamedTuple):
    """Result of one conditional SMC run.

    Attributes:
        particle: The end of the path that was chosen.
        trail: What is remembered of that path, leading with `num_levels + 1`.
        log_evidence: Log of the estimate of the integral; unbiased only without a path to keep.
        ess: Effective sample size of the final weights over the number of particles.
        moved: Whether the end is another than that of the path which was kept.
        non_finite: Flags by site, of shape `(num_levels + 1, num_particles)`.
    """

    particle: PyTree
    trail: PyTree
    log_evidence: Scalar
    ess: Scalar
    moved: Array
    non_finite: NonFinite


def conditional_smc(
    key: PRNGKey,
    model: PathModel,
    num_particles: int,
    path: Path | None = None,
    *,
    threshold: float = 0.5,
    stays: bool = False,
) -> Pass:
    r"""Conditional SMC (CSMC): one run of $N$ particles; with a path, a Markov kernel that leaves $\Gamma$
    invariant.

    Particles are resampled systematically, where the effective sample size falls below a share of $N$.
    That the path is kept is made up for: given the parent of the first particle, the one uniform number
    of the resampler is drawn from its conditional distribution. Everything is traceable by JAX.

    Args:
        key: PRNG key.
        model: What to run.
        num_particles: $N$, at least 2.
        path: The path to keep, as the first of the particles; `None` for a usual run.
        threshold: Resample below this share of the effective sample size; 1 for every level.
        stays: Whether the end of the path to keep is the one that is chosen, for its evidence alone.

    References:
        Andrieu, Doucet & Holenstein (2010), Particle Markov chain Monte Carlo methods, JRSS B. Lindsten,
        Jordan & Schon (2014), Particle Gibbs with ancestor sampling, JMLR. Chopin & Singh (2015), On
        particle Gibbs sampling, Bernoulli, for conditional systematic resampling.
    """
    num_particles = whole_number("num_particles", num_particles, 2)
    key_start, key_levels, key_choice = jax.random.split(lean(key), 3)
    begin = jax.vmap(model.init)(jax.random.split(key_start, num_particles))
    particles, log_weights, *info = begin
    if path is not None:
        particles = _first(path.start, particles)
        log_weights = log_weights.at[0].set(model.log_initial(path.start))
    flags_start = _watched(info, log_weights, path is not None)

    def one_level(carry, row):
        particles, log_weights, log_evidence = carry
        key, level, kept = row
        keys = jax.random.split(key, 2 * num_particles + 1)
        moved = jax.vmap(lambda k, p: model.move(k, p, level))(keys[:num_particles], particles)
        if kept is not None:
            moved = _first(kept.moved, moved)
        index = _parents(keys[-1], model, level, moved, log_weights, kept)
        below = effective_sample_size(log_weights) < threshold * num_particles
        index = jnp.where(below, index, jnp.arange(num_particles))
        log_evidence = log_evidence + jnp.where(below, log_mean_exp(log_weights), 0.0)
        log_weights = jnp.where(below, 0.0, log_weights)
        parents = jax.tree.map(lambda leaf: leaf[index], moved)
        step = lambda k, p: model.advance(k, p, level)
        particles, gains, *info = jax.vmap(step)(keys[num_particles:-1], parents)
        if kept is not None:
            parent = jax.tree.map(lambda leaf: leaf[0], parents)
            particles = _first(kept.arrived, particles)
            gains = gains.at[0].set(model.log_increment(parent, kept.arrived, level))
        flags = _watched(info, log_weights + gains, kept is not None)
        carry = particles, clean(log_weights + gains), log_evidence
        return carry, (index, jax.vmap(model.keep)(particles), flags)

    length = jax.tree.leaves(model.levels)[0].shape[0]
    rows = jax.random.split(key_levels, length), model.levels, path and path._replace(start=None)
    start = particles, clean(log_weights), jnp.zeros((), log_weights.dtype)
    (last, log_weights, log_evidence), rows = jax.lax.scan(one_level, start, rows)
    parents, kept, flags = rows
    chosen = jnp.zeros((), int) if stays else jax.random.categorical(key_choice, log_weights)
    first = jax.vmap(model.keep)(particles)
    return Pass(
        jax.tree.map(lambda leaf: leaf[chosen], last),
        _trail(chosen, parents, first, kept),
        log_evidence + log_mean_exp(log_weights),
        effective_sample_size(log_weights) / num_particles,
        chosen != 0,
        NonFinite(*map(_joined, flags_start, flags)),
    )


def _watched(info: list, log_weights: Array, keeps: bool) -> NonFinite:
    """Flags by site of all particles; what is wrong with a path that is kept has a site of its own."""
    flags = (
        NonFinite(info[0].nan, info[0].infinite) if info else non_finite({"weights": log_weights})
    )
    first = jnp.arange(len(log_weights)) == 0
    path = non_finite({"path that is kept": jnp.where(first & keeps, log_weights, 0.0)})
    others = jax.tree.map(lambda flag: flag & ~(first & keeps), flags)
    return NonFinite({**others.nan, **path.nan}, {**others.infinite, **path.infinite})


def _joined(start: dict[str, Array], later: dict[str, Array]) -> dict[str, Array]:
    """Flags at the start and by level; a site that is not there at the start has none."""
    return {
        name: jnp.concatenate([start.get(name, jnp.zeros_like(rows[0]))[None], rows])
        for name, rows in later.items()
    }


def _first(one: PyTree, particles: PyTree) -> PyTree:
    """The particles with another one in the first place."""
    return jax.tree.map(lambda leaf, value: leaf.at[0].set(value), particles, one)


def _parents(key, model: PathModel, level, particles, log_weights, kept) -> Array:
    """Indices of parents: systematic, given that of the first particle where a path is kept."""
    key_parent, key_uniform = jax.random.split(key)
    weights = jax.nn.softmax(log_weights)
    uniform = jax.random.uniform(key_uniform)
    if kept is None:
        return systematic(weights, uniform)
    parent = jnp.zeros((), int)
    link = model.log_link
    if link is not None:
        links = jax.vmap(lambda p: link(p, kept.arrived, level))(particles)
        # Where no other particle could have made the step, the path keeps its own past.
        links = clean(links).at[0].set(jnp.where(jnp.isfinite(links[0]), links[0], 0.0))
        parent = jax.random.categorical(key_parent, log_weights + links)
    return systematic(weights, uniform, parent)


def systematic(weights: Array, uniform: Scalar, parent: Array | None = None) -> Array:
    r"""Systematic resampling, if need be given the parent of the first offspring.

    Unconditionally, offspring are at $U, U + 1, \dots$ of the cumulated $N W$, and one of them, chosen at
    random, is the first. Its place is uniform on $(0, N)$, so that given its parent it is uniform on the
    parent's share.

    Args:
        weights: Sum to 1, shape `(N,)`.
        uniform: In $(0, 1)$.
        parent: Index of the parent of the first offspring.
    """
    count = weights.shape[0]
    bounds = count * jnp.cumsum(weights)
    if parent is None:
        places = uniform + jnp.arange(count)
    else:
        place = bounds[parent] - uniform * count * weights[parent]
        places = (place + jnp.arange(count)) % count
    index = jnp.clip(jnp.searchsorted(bounds, places), 0, count - 1)
    return index if parent is None else index.at[0].set(parent.astype(index.dtype))


def _trail(chosen: Array, parents: Array, first: PyTree, kept: PyTree) -> PyTree:
    """What is remembered of the path that ends in the chosen particle."""

    def back(index, row):
        parent, particles = row
        return parent[index], jax.tree.map(lambda leaf: leaf[index], particles)

    start, rest = jax.lax.scan(back, chosen, (parents, kept), reverse=True)
    join = lambda a, b: jnp.concatenate([a[start][None], b])
    return jax.tree.map(join, first, rest)
