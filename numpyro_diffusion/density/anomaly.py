r"""Anomaly scores: how untypical a point is of a prior, against reference data."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._records import record, record_page
from .._typing import PRNGKey
from ..energies import AbstractDenoiser
from .estimate import EVALUATIONS_AT_ONCE, AbstractLogDensity, DensityEstimate
from .formula import ScoreFormula

__all__ = ["Anomaly", "anomaly_score"]


class Anomaly(NamedTuple):
    r"""Anomaly scores of examples; arrays of the batch shape.

    Attributes:
        score: $-\log p(x)$ in nats: high is improbable.
        standard_error: Of the score.
        low_density: Share of the reference with a density no higher, the point itself counted in. If the
            point is a draw like the reference, it is below $\alpha$ with probability at most $\alpha$.
        typicality: Twice the smaller of `low_density` and its mirror image, the share with a density no
            lower; at most 1. It is small for densities that are too low AND for those that are too high.
        reference_error: Standard error of `low_density` as an estimate for endless reference data.
        typical_score: Median score of the reference.
    """

    score: np.ndarray
    standard_error: np.ndarray
    low_density: np.ndarray
    typicality: np.ndarray
    reference_error: np.ndarray
    typical_score: float

    __repr__ = record
    _repr_html_ = record_page


def anomaly_score(
    prior: AbstractDenoiser,
    x,
    reference,
    key: PRNGKey | None = None,
    *,
    estimator: AbstractLogDensity | None = None,
    batch_size: int = EVALUATIONS_AT_ONCE,
) -> Anomaly:
    r"""Anomaly score $-\log p(x)$ of examples, and its rank among that of reference data.

    Ranks against $n$ reference examples that are exchangeable with a typical point, with the point itself
    counted in, are exact p-values for any prior and estimator:

    $$P_{\text{low}} = \frac{1 + \#\{i : \log p(x_i) \le \log p(x)\}}{n + 1}, \qquad
      P_{\text{two}} = \min(1,\ 2 \min(P_{\text{low}}, P_{\text{high}})).$$

    What they can and cannot tell:

    * Right if `reference` was not used for training: on training data densities are higher than on new ones,
      and everything new then looks improbable.
    * A high density is no proof that a point is normal. In many dimensions draws never come near the mode:
      a blank image may have a density above that of every digit. `typicality` flags it too.
    * A point may have a typical density and still be of another kind. Learned priors are known to give other
      data sets their own data's density, or a higher one. A density is also a matter of coordinates. No
      value here rules an anomaly out.
    * With $n$ reference examples no p-value is below $1 / (n + 1)$. For many points correct for
      multiplicity.

    Args:
        prior: Denoiser or energy.
        x: Examples of shape `(*batch, *shape)`, in the units of the prior.
        reference: Typical examples, shape `(n, *shape)`, treated as `x` was; or a `DensityEstimate` of them
            by the same estimator, so that it is made once.
        key: PRNG key; by default the same noises at every call.
        estimator: `ScoreFormula()` by default.
        batch_size: Evaluations of the network held in memory at once.

    Raises:
        TypeError: If `prior` is not a denoiser.
        ValueError: If shapes do not fit, or there is no reference.
        FloatingPointError: If an estimate is NaN.

    References:
        Nalisnick et al. (2019), Detecting out-of-distribution inputs to deep generative models using
        typicality. Nalisnick et al. (2019), Do deep generative models know what they don't know?, ICLR.
        Le Lan & Dinh (2021), Perfect density models cannot guarantee anomaly detection, Entropy. Vovk,
        Gammerman & Shafer (2005), Algorithmic learning in a random world, for the ranks.
    """
    estimator = ScoreFormula() if estimator is None else estimator
    key_reference, key_x = jax.random.split(jax.random.key(0) if key is None else key)
    if not isinstance(reference, DensityEstimate):
        reference = estimator(prior, jnp.asarray(reference), key_reference, batch_size=batch_size)
    known = np.sort(np.asarray(reference.value, float).ravel())
    found = estimator(prior, x, key_x, batch_size=batch_size)
    value, num = np.asarray(found.value, float), len(known)
    below = (1 + np.searchsorted(known, value, side="right")) / (num + 1)
    above = (1 + num - np.searchsorted(known, value, side="left")) / (num + 1)
    return Anomaly(
        -value,
        np.asarray(found.standard_error, float),
        below,
        np.minimum(1.0, 2 * np.minimum(below, above)),
        np.sqrt(below * (1 - below) / num),
        -float(np.median(known)),
    )
