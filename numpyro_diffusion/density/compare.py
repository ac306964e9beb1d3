r"""Comparison of priors by held-out log density, in nats and bits, with paired errors."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from .. import _faq
from .._prng import lean
from .._records import record, record_page
from .._typing import PRNGKey
from ..energies import AbstractDenoiser
from .estimate import (
    EVALUATIONS_AT_ONCE,
    AbstractLogDensity,
    DensityEstimate,
    check_prior,
    estimates_at,
    report_nan,
)
from .formula import ScoreFormula
from .normalized import NormalizedEnergy
from .paired import Comparison, compared
from .paths import check_data

__all__ = ["BitsPerDim", "bits_per_dim", "compare_priors"]


def compare_priors(
    priors: Mapping[str, AbstractDenoiser],
    data,
    key: PRNGKey | None = None,
    *,
    estimator: AbstractLogDensity | None = None,
    batch_size: int = EVALUATIONS_AT_ONCE,
) -> Comparison:
    r"""Mean log density of held-out data under several priors, and paired differences.

    The log score of each prior, proper for whatever distribution the data have. All priors see the same data
    with the same noises, and the errors of the differences are over examples, so that what examples have in
    common with each other drops out. They hold the variance of the data and that of the noise.

    Print the result for a table. Normalised densities compare across architectures, schedules and
    training; energies need no normaliser for it with the score formula. Two priors that are read at
    different noise (`t_min`) are compared as what they are, two densities for the same data: the one with
    less noise can be sharper.

    Args:
        priors: Priors by name, over examples of the same shape and in the same units.
        data: Examples that trained none of them, of shape `(num, *shape)`.
        key: PRNG key; by default the same noises at every call. Examples have noises of their own.
        estimator: `ScoreFormula()` by default.
        batch_size: Evaluations of a network held in memory at once.

    Raises:
        TypeError: If a prior is not a denoiser.
        ValueError: If there are no priors, or shapes differ.
        FloatingPointError: If an estimate is NaN.

    Example:
        >>> import jax, numpyro_diffusion as nd
        >>> data = jax.random.normal(jax.random.key(0), (50, 2))
        >>> priors = {"right": nd.Gaussian([0.0, 0.0]), "shifted": nd.Gaussian([1.0, 0.0])}
        >>> found = nd.density.compare_priors(priors, data)
        >>> found.names[found.log_density.argmax()]
        'right'

    References:
        Gneiting & Raftery (2007), Strictly proper scoring rules, JASA. Vehtari, Gelman & Gabry (2017),
        Practical Bayesian model evaluation, Statistics and Computing, for the paired errors.
    """
    if not priors:
        raise ValueError(
            f"`compare_priors` expects priors by name, at least one; got none. {_faq.shapes}"
        )
    estimator = ScoreFormula() if estimator is None else estimator
    key, points, common = jax.random.key(0) if key is None else key, [], []
    for prior in priors.values():
        check_prior("compare_priors", prior)
        x = check_data(prior, data, batch_size=batch_size)
        keys = jax.random.split(lean(key), len(x))
        points.append(estimates_at(estimator, prior, x, keys, int(batch_size)))
        report_nan(estimator, points[-1].value, (len(x),))
        common.append(common_error(estimator, prior))
    return compared(tuple(priors), [estimator.law] * len(priors), points, common)


def common_error(estimator: AbstractLogDensity, prior: AbstractDenoiser) -> float:
    """Standard error of what all points share: that of the normaliser, where it is used."""
    used = isinstance(estimator, NormalizedEnergy)
    return float(getattr(prior, "log_normalizer_error", 0.0)) if used else 0.0


class BitsPerDim(NamedTuple):
    """Bits a dimension and their standard errors, of the shape of the estimate."""

    value: np.ndarray
    standard_error: np.ndarray

    __repr__ = record
    _repr_html_ = record_page


def bits_per_dim(estimate: DensityEstimate, dimension: int, bin_width: float) -> BitsPerDim:
    r"""Bits a dimension that data on a grid cost under a density.

    $$b = -\frac{\log p(x) + d \log \Delta}{d \log 2}$$

    $\Delta$ is the width of a bin in the units of the prior: 1/8 for the digits of this package (17 grey
    values from -1 to 1), 2/255 for bytes scaled to that range. What it means depends on $x$:

    * At $x$ plus uniform noise on $(-\Delta/2, \Delta/2)^d$ the mean is an upper bound on the cost of the
      bins, $-\log_2 \int_{\text{bin}} p$ a dimension, by Jensen's inequality. This is what papers print.
    * At the centre of its bin it is the midpoint rule for that integral: right if the density hardly varies
      in a bin, and no bound.

    Args:
        estimate: Log densities in nats, as estimators give them.
        dimension: $d$, numbers an example: `x[0].size`.
        bin_width: $\Delta$, in the units of the prior.

    Raises:
        ValueError: If a number is not positive.

    References:
        Theis, van den Oord & Bethge (2016), A note on the evaluation of generative models, ICLR.
    """
    if not (dimension >= 1 and bin_width > 0):
        raise ValueError(
            f"`bits_per_dim` expects positive `dimension` and `bin_width`; got {dimension} and "
            f"{bin_width}. {_faq.numbers}"
        )
    nats = np.asarray(estimate.value, float) + dimension * math.log(bin_width)
    unit = dimension * math.log(2)
    return BitsPerDim(-nats / unit, np.asarray(estimate.standard_error, float) / unit)
