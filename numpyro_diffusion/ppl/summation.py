"""Sums over discrete sites: the marginal density of a model, and the distribution of labels given the
rest.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from .._typing import Array, PRNGKey
from ..bridge import Edge, LabelledData, LabelsGiven, Rest, Sums, less
from .runs import Enumeration, Key

__all__ = ["labels_given", "rest_of", "summed", "sums_of"]

_LATENT = ("prior", "volume")
_DATA = ("smooth", "edge")


def sums_of(terms: dict[Key, Array], kinds: tuple[str, ...], found: Enumeration) -> Sums:
    """Add up the terms of some kinds; they lead with `(num_shared, num_values)`."""
    sizes = list(zip(found.num_values, found.num_entries, strict=True))
    shared = jnp.zeros(found.num_shared)
    groups = [jnp.zeros((found.num_shared, *size)) for size in sizes]
    for key, owners in found.owners.items():
        if key[0] not in kinds:
            continue
        flat = terms[key].reshape(*terms[key].shape[:2], -1)
        free = (owners < 0).all(0)
        if free.any():
            shared = shared + jnp.sum(flat[:, 0, free], -1)
        for g, owner in enumerate(owners):
            own = owner >= 0
            if own.any():
                part = flat[:, : sizes[g][0], own]
                groups[g] = groups[g].at[..., owner[own]].add(part)
    return Sums(shared, tuple(groups))


def _draw(
    sums: Sums, key: PRNGKey, found: Enumeration
) -> tuple[dict[str, Array], Array, list[Array]]:
    """A joint draw of the discrete sites, its row, and the value of each entry of each group."""
    keys = jax.random.split(key, 1 + len(sums.groups))
    row = jax.random.categorical(keys[0], sums.by_shared)
    drawn = {name: jnp.asarray(values)[row] for name, values in found.shared.items()}
    indices = []
    for key, each, group in zip(keys[1:], sums.groups, found.groups, strict=True):
        index = jax.random.categorical(key, each[row], axis=0)
        indices.append(index)
        drawn |= {n: jnp.asarray(v)[index].reshape(found.shapes[n]) for n, v in group.items()}
    return drawn, row, indices


def _same(
    direct: dict[Key, Array],
    terms: dict[Key, Array],
    row: Array,
    indices: list[Array],
    found: Enumeration,
) -> Array:
    """Whether the terms of one run with drawn labels are those that were put together from all runs."""
    same = jnp.ones((), bool)
    for key, owners in found.owners.items():
        flat = terms[key][row].reshape(terms[key].shape[1], -1)
        value = jnp.zeros(flat.shape[1], int)
        for owner, index in zip(owners, indices, strict=True):
            value = jnp.where(owner >= 0, index[owner], value)
        together = flat[value, jnp.arange(flat.shape[1])]
        close = jnp.isclose(direct[key].ravel(), together, 1e-3, 1e-3, equal_nan=True)
        same = same & close.all()
    return same


def _probabilities(sums: Sums, found: Enumeration) -> dict[str, Array]:
    """Probabilities of the values of each entry, by site, with values as the last axis."""
    rows = jax.nn.softmax(sums.by_shared)
    known = {}
    for name, values in found.shared.items():
        known[name] = jnp.tensordot(rows, _is_value(values, found.supports[name], rows), 1)
    for each, group in zip(sums.groups, found.groups, strict=True):
        shares = jnp.einsum("c,cvi->iv", rows, jax.nn.softmax(each, 1))
        for name, values in group.items():
            by_value = shares @ _is_value(values, found.supports[name], shares)
            known[name] = by_value.reshape(*found.shapes[name], -1)
    return known


def _is_value(values, support, like: Array) -> Array:
    return jnp.asarray(values[..., None] == support, like.dtype)


def rest_of(terms: dict[Key, Array]) -> Rest:
    """The terms of a model in one run, added up."""
    of = lambda kind: {site: term for (found, site), term in terms.items() if found == kind}
    peaks, numbers, smooth = of("peak"), of("number"), of("smooth")
    prior, volumes = of("prior"), of("volume")
    add = lambda parts: sum(map(jnp.sum, parts), jnp.zeros(()))
    # A site's prior may depend on labels where its Jacobian does not.
    names = dict.fromkeys([*prior, *volumes])
    priors = {n: add(part[n] for part in (prior, volumes) if n in part) for n in names}
    edges = {n: Edge(term, peaks[n], numbers[n]) for n, term in of("edge").items()}
    return Rest(
        log_prior=add(priors.values()),
        smooth=add(smooth.values()) if smooth else None,
        log_peak=add(peaks[n] for n in smooth),
        num_data=add(numbers[n] for n in smooth),
        edges=edges,
        sites={**priors, **{n: jnp.sum(t) for n, t in {**smooth, **of("edge")}.items()}},
    )


def summed(terms: dict[Key, Array], found: Enumeration) -> Rest:
    r"""The terms of a model with its discrete sites $k$ summed out.

    The prior of the other sites is $\sum_k p(k)\, p(\theta \mid k)$, the likelihood what the joint density
    has beyond it, $\sum_k p(k \mid \theta)\, p(y \mid x, \theta, k)$.

    Args:
        terms: By key, leading with `(num_shared, num_values)`.
        found: What the runs were.
    """
    rest = rest_of({key: term[0, 0] for key, term in terms.items() if key not in found.owners})
    names = lambda kinds: [site for kind, site in found.owners if kind in kinds]
    prior = sums_of(terms, _LATENT, found)
    sites = {**rest.sites, ", ".join(dict.fromkeys(names(_LATENT))): prior.total}
    rest = rest._replace(log_prior=rest.log_prior + prior.total, sites=sites)
    data = names(_DATA)
    if not data:
        return rest
    if not names(("edge",)):
        parts = (_of_data(terms, kind, data, found) for kind in ("smooth", "peak", "number"))
        labelled = LabelledData(prior, *parts)
        sites = {**sites, ", ".join(data): labelled.log_likelihood}
        return rest._replace(labelled=labelled, sites=sites)
    joint = sums_of(terms, (*_LATENT, *_DATA), found)
    entries = likelihood = joint.beyond(prior)
    if found.num_shared == 1:
        entries = less(joint.by_entry, prior.by_entry)
    nothing, name = jnp.zeros_like(entries), ", ".join(data)
    edges = {**rest.edges, name: Edge(entries, nothing, nothing)}
    return rest._replace(edges=edges, sites={**sites, name: likelihood})


def _of_data(terms: dict[Key, Array], kind: str, data: list[str], found: Enumeration) -> Sums:
    """What is known of some data, whether it depends on labels or not."""
    sums = sums_of(terms, (kind,), found)
    fixed = [jnp.sum(terms[kind, n][0, 0]) for n in data if (kind, n) not in found.owners]
    return sums._replace(shared=sum(fixed, sums.shared))


def labels_given(
    run: Callable[[dict[str, Array]], dict[Key, Array]], found: Enumeration, key: PRNGKey
) -> LabelsGiven:
    """The discrete sites given all others.

    Args:
        run: Terms of the model at given discrete sites, and clean values of the others.
        found: What runs there are.
        key: PRNG key.
    """
    terms = found.each_run(run)
    sums = sums_of(terms, (*_LATENT, *_DATA), found)
    drawn, row, indices = _draw(sums, key, found)
    same = _same(run(drawn), terms, row, indices, found)
    return LabelsGiven(drawn, _probabilities(sums, found), same)
