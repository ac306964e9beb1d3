r"""The next reference of the shared sites: population Monte Carlo on what clouds under the last one say.

From $h_0 = g$, draws of $h_k$ are weighed by $(\hat\pi / h_k)^\beta$ with
$\hat\pi(\phi) = p(\phi) \prod_i \hat Z_i(\phi)$ and the largest power $\beta \le 1$ that leaves a share of
the effective sample size, and $h_{k + 1}$ is fitted to them and widened. No network is evaluated.

References:
    Cappe, Guillin, Marin & Robert (2004), Population Monte Carlo, JCGS. Cornuet, Marin, Mira & Robert (2012),
    Adaptive multiple importance sampling, Scandinavian Journal of Statistics, arXiv 0907.1254.
"""

from collections.abc import Callable

import numpy as np

from ... import _faq
from ..._typing import Array, PRNGKey
from .reference import Reference

__all__ = ["next_reference"]

SHARE = 0.1  # of the draws that a step of the power leaves
MOST_STEPS = 40


def next_reference(
    key: Callable[[], PRNGKey],
    reference: Reference,
    log_target: Callable[[Array], np.ndarray],
    first: tuple[Array, np.ndarray],
    num: int,
) -> Reference:
    r"""A reference fitted to $\hat\pi$ and widened.

    Args:
        key: Gives another key at each call.
        reference: The last one.
        log_target: Of values of the shared sites, shape `(num, size)`, the log of $\hat\pi$.
        first: Draws of the last reference, and their log targets.
        num: Number of draws a step.

    Raises:
        FloatingPointError: If no draw has a density above 0.
    """
    phis, values = first
    for _ in range(MOST_STEPS):
        log_weights = np.asarray(values, np.float64) - np.asarray(
            reference.distribution.log_prob(phis)
        )
        if not np.isfinite(log_weights).any():
            raise FloatingPointError(
                "no draw of the shared sites near their prior has a posterior density above 0. Look at the "
                "likelihood at draws of the prior: is it finite there for all "
                f"objects? {_faq.dead_cloud}"
            )
        power, weights = _tempered(log_weights, max(SHARE * len(phis), 4.0 * (phis.shape[1] + 1)))
        reference = Reference.fitted(np.asarray(phis), weights)
        if power == 1:
            return reference
        phis = reference.sample(key(), num)
        values = log_target(phis)
    return reference


def _tempered(log_weights: np.ndarray, least: float) -> tuple[float, np.ndarray]:
    """The largest power up to 1 whose weights have an effective sample size of at least so much."""
    log_weights = np.where(np.isnan(log_weights), -np.inf, log_weights)
    centred = log_weights - log_weights.max()

    def weights(power):
        w = np.exp(power * np.where(np.isfinite(centred), centred, -np.inf))
        return w / w.sum()

    enough = lambda power: 1 / np.sum(weights(power) ** 2) >= least
    if enough(1.0):
        return 1.0, weights(1.0)
    low, high = -20.0, 0.0  # log2 of the power
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if enough(2.0**middle) else (low, middle)
    return 2.0**low, weights(2.0**low)
