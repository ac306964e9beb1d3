"""A cloud (weighted particle population): its state between two steps, its weights and diagnostics."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .._records import record, record_page
from .._typing import Array, PRNGKey, PyTree, Scalar

__all__ = [
    "SMCState",
    "add",
    "clean",
    "conditional_ess",
    "effective_sample_size",
    "family_weights",
    "genealogy_error",
    "log_mean_exp",
    "within_reach",
]


_BLOCK = 1024  # 32-bit sums of so many terms keep all digits that matter


class SMCState(NamedTuple):
    """A cloud between two levels. With several clouds every leaf has a leading axis."""

    key: PRNGKey
    particles: PyTree
    log_weights: Array
    log_evidence: Scalar
    ancestors: Array  # index at the start of the run of each particle's oldest ancestor
    num_resampled: Scalar
    prior_log_evidence: Scalar  # that of the levels which made the prior's cloud
    prior_family: Array  # share of each starting particle's descendants when those levels were done
    chain_variance: Scalar  # of the log evidence, where particles are the states of chains
    lost: Scalar  # what rounding has taken from `log_evidence`

    __repr__ = record
    _repr_html_ = record_page


def clean(log_weights: Array) -> Array:
    """Log weights in which NaN and +inf count as weight 0; schemes report both, and callers speak up."""
    return jnp.where(jnp.isfinite(log_weights), log_weights, -jnp.inf)


def within_reach(log_weights: Array) -> Array:
    r"""Log weights along the last axis, those too far below the largest as $-\infty$.

    A gain could bring such a particle back only as a difference of two large numbers, of which rounding
    leaves less than a tenth of a nat: from 800,000 nats below in 32 bits. Resampling would not have kept it.
    """
    reach = 0.1 / jnp.finfo(log_weights.dtype).eps
    top = jnp.max(log_weights, -1, keepdims=True)
    return jnp.where(log_weights >= top - reach, log_weights, -jnp.inf)


def effective_sample_size(log_weights: Array) -> Scalar:
    r"""$(\sum w)^2 / \sum w^2$ over the last axis; 0 if every weight is 0."""
    top = jnp.max(log_weights, -1, keepdims=True)
    w = jnp.exp(log_weights - jnp.where(jnp.isfinite(top), top, 0.0))
    return jnp.sum(w, -1) ** 2 / jnp.maximum(jnp.sum(w**2, -1), jnp.finfo(w.dtype).tiny)


def conditional_ess(log_weights: Array, log_increments: Array) -> Scalar:
    r"""Share of particles left by new weights: $(\sum W w)^2 / \sum W w^2$ with old weights $W$.

    References:
        Zhou, Johansen & Aston (2016), Toward Automatic Model Comparison, JCGS.
    """
    old = jax.nn.log_softmax(log_weights)
    # Particles that no longer count are left out: a wild increment of theirs means nothing. NaN and
    # +inf are losses.
    counts = (old > jnp.max(old) - 30) & (log_increments < jnp.inf)
    finite = jnp.where(counts, log_increments, -jnp.inf)
    top = jnp.max(finite)
    w = finite - jnp.where(jnp.isfinite(top), top, 0.0)
    both = jax.nn.logsumexp(old + w)
    return jnp.where(
        jnp.isfinite(top), jnp.exp(2 * both - jax.nn.logsumexp(old + 2 * w)), jnp.zeros(())
    )


def log_mean_exp(values: Array) -> Array:
    """Log of the mean of exponentials over the last axis; summed in blocks, so that millions add up."""
    size = values.shape[-1]
    if size <= _BLOCK:
        return jax.nn.logsumexp(values, -1) - jnp.log(size)
    missing = -size % _BLOCK
    none = jnp.full((*values.shape[:-1], missing), -jnp.inf, values.dtype)
    blocks = jnp.concatenate([values, none], -1).reshape(*values.shape[:-1], -1, _BLOCK)
    return jax.nn.logsumexp(jax.nn.logsumexp(blocks, -1), -1) - jnp.log(size)


def add(total: Array, lost: Array, term: Array) -> tuple[Array, Array]:
    """A sum of many terms, and what rounding has taken from it so far.

    References:
        Neumaier (1974), Rundungsfehleranalyse einiger Verfahren zur Summation endlicher Summen, ZAMM.
    """
    new = total + term
    larger = jnp.abs(total) >= jnp.abs(term)
    slip = jnp.where(larger, (total - new) + term, (term - new) + total)
    return new, lost + jnp.where(jnp.isfinite(slip), slip, 0.0)


def genealogy_error(log_weights: Array, ancestors: Array, prior_family: Array | float) -> Scalar:
    r"""Standard error of $\log \hat Z$ of one cloud, from who descends from whom.

    $\hat V = \frac{N}{N-1} \sum_e (W_e - W_e^0)^2$ with $W_e$ the total weight of the descendants of
    starting particle $e$, and $W_e^0$ what it was where the evidence begins: $1/N$, or after the levels
    that made a cloud of the prior (the delta method for a ratio). Estimators for multinomial resampling
    subtract $1/N$ once more for each resampling; systematic resampling adds almost no noise, and that
    would halve the error.
    """
    n = log_weights.shape[0]
    gap = family_weights(log_weights, ancestors) - prior_family
    return jnp.sqrt(jnp.sum(gap**2) * n / (n - 1.0))


def family_weights(log_weights: Array, ancestors: Array) -> Array:
    """Share of the weight that the descendants of each starting particle hold."""
    n = log_weights.shape[0]
    return jnp.zeros(n, log_weights.dtype).at[ancestors].add(jax.nn.softmax(log_weights))
