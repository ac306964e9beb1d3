r"""Pointwise normalisers: the score-based log density against the energy at the same points.

$\log p(x) = -E(x, t_{\min}) - L(t_{\min})$, and the score formula knows $\log p(x)$ without the energy, so
that any one point gives the normaliser. No sampler is run, and labels are calibrated as easily as one
distribution.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._arguments import whole_or_none
from .._prng import lean
from .._records import record, record_page
from .._typing import Array, PRNGKey
from ..density.classify import by_label, check_conditional
from ..density.estimate import EVALUATIONS_AT_ONCE, AbstractLogDensity, estimates_at, report_nan
from ..density.formula import ScoreFormula
from ..density.paths import check_data, check_finite, noised_to_t_min
from ..energies import AbstractEnergy
from ..energies.check import check_has_density
from .thermodynamic import Normalizer, unnormalized

__all__ = ["LabelNormalizers", "label_normalizers", "pointwise_normalizer"]


class LabelNormalizers(NamedTuple):
    r"""Estimates of $L(t_{\min})$ under each label; arrays of shape `(num_labels,)`, in nats.

    `energy.with_label_normalizers(values, standard_errors)` takes them.

    Attributes:
        values: $L(t_{\min})$.
        standard_errors: Of `values`, over examples. They know of chance alone.
        spreads: Standard deviation over examples beyond the noise of the estimates: how far the energy is
            off against its own score, from point to point. 0 for an exact energy.
        counts: Examples of each label.
    """

    values: np.ndarray
    standard_errors: np.ndarray
    spreads: np.ndarray
    counts: np.ndarray

    __repr__ = record
    _repr_html_ = record_page


def pointwise_normalizer(
    energy: AbstractEnergy,
    data,
    key: PRNGKey,
    *,
    estimator: AbstractLogDensity | None = None,
    batch_size: int = EVALUATIONS_AT_ONCE,
) -> Normalizer:
    r"""Normaliser from the score formula at single points.

    $$L(t_{\min}) = -\mathbb{E}\big[\widehat{\log p}(u) + E(u, t_{\min})\big]$$

    at data noised to `t_min`. For an exact energy every point says the same, whatever its distribution, and
    for a learned one `spread` tells how far they disagree, here with the noise of the estimates taken off.
    With
    model error the mean over data is a compromise between energy and scores: the energy gets the mean log
    density that its scores have. `prior_normalizer` has no such error.

    Args:
        energy: The prior. A stored `log_normalizer` is not looked at.
        data: Clean examples of shape `(num, *shape)`, in the units of the prior.
        key: PRNG key.
        estimator: `ScoreFormula()` by default, 256 evaluations a point.
        batch_size: Evaluations of the network held in memory at once.

    Raises:
        TypeError: If `energy` is a denoiser alone.
        ValueError: If data or numbers cannot be used.
        FloatingPointError: If an estimate is NaN.

    References:
        Li & Yan (2024), arXiv 2408.16765.
    """
    check_has_density("pointwise_normalizer", energy)
    data = check_data(energy, data, batch_size=batch_size)
    estimator = ScoreFormula() if estimator is None else estimator
    key_noise, key_points = jax.random.split(lean(key))
    u = noised_to_t_min(energy, data, key_noise)
    keys = jax.random.split(key_points, len(u))
    found = estimates_at(estimator, energy, u, keys, int(batch_size))
    report_nan(estimator, found.value, (len(u),))
    labels = jnp.zeros(len(u))
    values = _unnormalized(energy, _as_it_is, u, labels) - found.value
    check_finite("pointwise_normalizer", np.asarray(values))
    mean, error, spread = _summary(values, found.variance)
    cost = int(np.sum(found.num_evaluations)) + len(u)
    return Normalizer(mean, error, f"score formula at {len(u)} points", cost, spread)


def label_normalizers(
    energy: AbstractEnergy,
    data,
    labels,
    key: PRNGKey,
    *,
    num_labels: int | None = None,
    estimator: AbstractLogDensity | None = None,
    batch_size: int = EVALUATIONS_AT_ONCE,
) -> LabelNormalizers:
    r"""Normaliser of each label of a conditional energy, from the score formula at its own examples.

    As `pointwise_normalizer`, for `energy.given(label)` at the examples of that label. Bayes' rule on
    energies needs them: a network may put any constant on any label.

        found = nd.normalizers.label_normalizers(energy, images, labels, key)
        energy = energy.with_label_normalizers(found.values, found.standard_errors)

    Args:
        energy: The prior under conditions, with `given(label)`. Stored normalisers are not looked at.
        data: Clean examples of shape `(num, *shape)`, in the units of the prior.
        labels: The label of each, integers of shape `(num,)`.
        key: PRNG key.
        num_labels: Number of labels; one more than the largest by default. Each needs two examples.
        estimator: `ScoreFormula()` by default, 256 evaluations a point.
        batch_size: Evaluations of the network held in memory at once.

    Raises:
        TypeError: If `energy` is a denoiser alone, or takes no condition.
        ValueError: If data or labels cannot be used.
        FloatingPointError: If an estimate is NaN.

    References:
        Li & Yan (2024), arXiv 2408.16765.
    """
    num_labels = whole_or_none("num_labels", num_labels, 1, "`None` takes those of the data.")
    check_has_density("label_normalizers", energy)
    if getattr(energy, "label_normalizers", None) is not None:
        energy = energy.with_label_normalizers(None)  # pyright: ignore[reportAttributeAccessIssue]
    data = check_data(energy, data, batch_size=batch_size)
    labels = _check_labels(labels, len(data), num_labels)
    counts = np.bincount(labels, minlength=num_labels or 0)
    check_conditional("label_normalizers", energy, jnp.arange(len(counts)))
    estimator = ScoreFormula() if estimator is None else estimator
    key_noise, key_points = jax.random.split(lean(key))
    u = noised_to_t_min(energy, data, key_noise)
    keys, told = jax.random.split(key_points, len(u)), jnp.asarray(labels)
    found = by_label(estimator, energy, u, told, keys, jnp.arange(len(u)), int(batch_size))
    report_nan(estimator, found.value, (len(u),))
    values = _unnormalized(energy, _given, u, told) - found.value
    check_finite("label_normalizers", np.asarray(values))
    groups = [np.flatnonzero(labels == label) for label in range(len(counts))]
    columns = [_summary(values[mine], found.variance[mine]) for mine in groups]
    value, error, spread = np.array(columns).T
    return LabelNormalizers(value, error, spread, counts)


def _as_it_is(energy, label):
    del label
    return energy


def _given(energy, label):
    return energy.given(label)


@eqx.filter_jit
def _unnormalized(energy, told, u: Array, labels: Array) -> Array:
    """Log densities at `t_min` as the energy alone has them, shape `(n,)`."""
    t = jnp.asarray(energy.t_min, u.dtype)
    one = lambda at: unnormalized(told(energy, at[1]), at[0], t)[0]
    return jax.lax.map(one, (u, labels), batch_size=256)


def _summary(values: Array, variances: Array) -> tuple[float, float, float]:
    """Mean, standard error, and spread beyond the noise of the estimates."""
    host, noise = np.asarray(values, float), np.asarray(variances, float)
    beyond = max(host.var(ddof=1) - noise.mean(), 0.0)
    return float(host.mean()), float(host.std(ddof=1) / len(host) ** 0.5), float(beyond**0.5)


def _check_labels(labels, num: int, num_labels: int | None) -> np.ndarray:
    labels = np.asarray(labels)
    fine = labels.shape == (num,) and np.issubdtype(labels.dtype, np.integer)
    if not fine or labels.min() < 0 or labels.max() >= (num_labels or np.inf):
        raise ValueError(
            f"`labels` must be one integer an example, shape ({num},), from 0 to the number of labels less "
            f"one; got shape {labels.shape} of {labels.dtype}. {_faq.shapes}"
        )
    few = np.flatnonzero(np.bincount(labels, minlength=num_labels or 0) < 2)
    if len(few):
        raise ValueError(
            f"each label needs at least 2 examples to tell its error; labels {few.tolist()} have fewer. Give "
            f"more data, or run `prior_normalizer(energy.given(label), key)`. {_faq.examples}"
        )
    return labels
