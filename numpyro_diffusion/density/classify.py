r"""Diffusion classifier: posterior label probabilities from log densities.

$p(c \mid x) \propto p(c)\, p(x \mid c)$ with $\log p(x \mid c)$ from any estimator. The heuristics in use
compare plain means, or sums, of denoising losses over time instead: the mean is too unsure of everything, and
the sum too sure, as neither is a log likelihood.
"""

import functools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .. import _faq
from .._arguments import whole_number
from .._records import record, record_page
from .._typing import Array, PRNGKey
from ..energies import AbstractDenoiser
from .estimate import (
    EVALUATIONS_AT_ONCE,
    AbstractLogDensity,
    Point,
    check_points,
    check_prior,
    in_batches,
    report_nan,
)
from .formula import ScoreFormula
from .paired import errors_of

__all__ = ["Classification", "by_label", "check_conditional", "classify"]


class Classification(NamedTuple):
    r"""Probabilities of labels; arrays of shape `(*batch, num_labels)`, in nats.

    Attributes:
        log_probs: $\log p(c \mid x)$.
        standard_error: Standard errors of `log_probs`, from noises that all labels share. Times the
            probability it is the error of the probability.
        log_densities: $\log p(x \mid c)$.
        density_error: Standard errors of `log_densities`, each alone. Most of it is common to the labels.
        num_evaluations: Network evaluations of each, one a label and noised point.
        law: Which density of the model this is.
    """

    log_probs: Array
    standard_error: Array
    log_densities: Array
    density_error: Array
    num_evaluations: Array
    law: str

    __repr__ = record
    _repr_html_ = record_page


def classify(
    prior: AbstractDenoiser,
    x,
    labels,
    key: PRNGKey | None = None,
    *,
    prior_probs=None,
    estimator: AbstractLogDensity | None = None,
    batch_size: int = EVALUATIONS_AT_ONCE,
) -> Classification:
    r"""Probabilities of labels from the densities of a conditional prior, with error bars.

    $$p(c \mid x) = \frac{p(c)\, p(x \mid c)}{\sum_{c'} p(c')\, p(x \mid c')}$$

    All labels of a point share its noises, so that what is common to them drops out of the odds. The errors
    are by the delta method over independent replicates of the estimate. Noise in the odds biases
    probabilities too, by a term of second order: where `standard_error` of a likely label is above some 0.3,
    spend more.

    Args:
        prior: Denoiser or energy under conditions, with `given(label)`.
        x: Examples of shape `(*batch, *shape)`, in the units of the prior. The densities are those of the
            distribution at `t_min`; where its noise is not small, add it to clean data.
        labels: What `given` takes, stacked along the first axis: `jnp.arange(10)`.
        key: PRNG key; by default the same noises at every call.
        prior_probs: $p(c)$, one a label, positive; normalised to sum to 1. Equal by default.
        estimator: `ScoreFormula()` by default, 256 evaluations a label and point. `NormalizedEnergy()` takes
            one, for an energy that knows the normalisers of its labels. `UsualSum` is the heuristic.
        batch_size: Evaluations of the network held in memory at once.

    Raises:
        TypeError: If `prior` is not a denoiser, or takes no condition.
        ValueError: If shapes or probabilities do not fit.
        FloatingPointError: If an estimate is NaN.

    References:
        Li & Yan (2024), arXiv 2408.16765, section 4.3. Li et al. (2023), Your diffusion model is secretly a
        zero-shot classifier, ICCV. Clark & Jaini (2023), Text-to-image diffusion models are zero-shot
        classifiers, NeurIPS.
    """
    batch_size = whole_number("batch_size", batch_size, 1)
    estimator = ScoreFormula() if estimator is None else estimator
    labels = check_conditional("classify", prior, labels)
    x, batch = check_points(prior, x)
    log_prior = _log_prior(prior_probs, len(labels))
    keys = jax.random.split(jax.random.key(0) if key is None else key, len(x))
    rows = jnp.repeat(jnp.arange(len(x)), len(labels))
    told = jnp.tile(labels, (len(x), *(1 for _ in labels.shape[1:])))
    found = by_label(estimator, prior, x, told, keys, rows, int(batch_size))
    report_nan(estimator, found.value, (*batch, len(labels)))
    found = jax.tree.map(lambda part: part.reshape(len(x), len(labels), *part.shape[1:]), found)
    log_probs = jax.nn.log_softmax(found.value + log_prior.astype(x.dtype), -1)
    # Of a softmax: d log p_c / d l_k = 1{c = k} - p_k.
    jacobian = jnp.eye(len(labels), dtype=x.dtype) - jnp.exp(log_probs)[:, None]
    shaped = lambda part: part.reshape(*batch, len(labels))
    return Classification(
        shaped(log_probs),
        shaped(errors_of(found, jacobian)),
        shaped(found.value),
        shaped(jnp.sqrt(found.variance)),
        shaped(found.num_evaluations),
        estimator.law,
    )


@functools.partial(eqx.filter_jit, donate="none")
def by_label(estimator, prior, x, labels, keys, rows, at_once: int) -> Point:
    """Estimates at `x[rows[i]]` under `labels[i]`, with the noises of `keys[rows[i]]`."""

    def one(i):
        told, row = prior.given(labels[i]), rows[i]
        return estimator.point(told, estimator.prepare(told), x[row], keys[row], at_once)

    return in_batches(one, len(rows), max(1, at_once // estimator.size(prior)))


def check_conditional(name: str, prior, labels) -> Array:
    """Labels as an array, once the prior is found to take them."""
    check_prior(name, prior)
    if not hasattr(prior, "given"):
        raise TypeError(
            f"`{name}` expects a prior under conditions, with `given(label)`; got {type(prior).__name__}. "
            "See `nets.Labels`; priors of separate files are compared by "
            f"`compare_priors`. {_faq.kinds}"
        )
    labels = jnp.asarray(labels)
    if labels.ndim < 1 or not len(labels):
        raise ValueError(
            f"`labels` of `{name}` must be stacked along the first axis, at least one; got shape "
            f"{labels.shape}. Give all that are possible, such as `jnp.arange(10)`. {_faq.shapes}"
        )
    if not isinstance(labels, Tracer):
        for label in labels:
            prior.given(label)  # refuses a label that has no normaliser, which a traced one cannot
    return labels


def _log_prior(prior_probs, num: int) -> Array:
    if prior_probs is None:
        return jnp.zeros(num)
    probs = jnp.asarray(prior_probs, jnp.result_type(float))
    known = None if isinstance(probs, Tracer) else np.asarray(probs)
    if probs.shape != (num,) or (known is not None and not (known > 0).all()):
        raise ValueError(
            f"`prior_probs` must hold one positive probability a label, shape ({num},); got {prior_probs}. "
            f"Leave impossible labels out of `labels`. {_faq.shapes}"
        )
    return jnp.log(probs / jnp.sum(probs))
