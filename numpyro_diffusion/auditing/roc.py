r"""ROC curves: area under the curve with its error, and true positives at small false positive rates.

Not scikit-learn's `roc_auc_score`, which has no standard error.
"""

import numpy as np

__all__ = ["auc_and_error", "roc_curve", "true_positive_rate"]


def auc_and_error(members: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    r"""Area under the ROC curve, $P(A_{member} < A_{other})$ with ties by half, and its standard error.

    0.5 says that scores tell nothing; 1 that every member has a lower score than any other. The error is
    DeLong's: $\sqrt{\mathrm{var}(V_{10}) / m + \mathrm{var}(V_{01}) / n}$, with $V$ the share of the other
    lot that each score is ordered rightly against.

    Args:
        members: Scores of shape `(m,)`, low where membership is likely.
        others: Scores of shape `(n,)`.

    References:
        DeLong, DeLong & Clarke-Pearson (1988), Comparing the areas under two or more correlated ROC curves,
        Biometrics.
    """
    members, others = np.sort(members), np.sort(others)
    place = lambda a, b: 0.5 * (np.searchsorted(b, a, "left") + np.searchsorted(b, a, "right"))
    above = 1 - place(members, others) / len(others)
    below = place(others, members) / len(members)
    variance = above.var(ddof=1) / len(members) + below.var(ddof=1) / len(others)
    return float(above.mean()), float(np.sqrt(variance))


def true_positive_rate(members: np.ndarray, others: np.ndarray, rate: float = 0.01) -> float:
    """Share of the members that are named when at most a share `rate` of the others is named wrongly.

    Args:
        members: Scores of shape `(m,)`, low where membership is likely.
        others: Scores of shape `(n,)`; fewer than `1 / rate` of them allow no false alarm.
        rate: The false positive rate.
    """
    allowed = int(np.floor(rate * len(others) + 1e-9))
    return float(np.mean(np.asarray(members) < np.sort(others)[allowed]))


def roc_curve(members: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates as the threshold rises, from (0, 0) to (1, 1)."""
    thresholds = np.unique(np.concatenate([members, others]))
    rates = [np.searchsorted(np.sort(a), thresholds, "right") / len(a) for a in (others, members)]
    false, true = (np.concatenate([[0.0], rate]) for rate in rates)
    return false, true
