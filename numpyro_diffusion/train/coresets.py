r"""Coresets: a share of the data with weights that stand for all of them, to train on less.

A prior trained on fewer examples should still be the prior. Each example that is kept comes with a weight,
how many of the data it stands for, which `fit(weights=...)` takes. Leaving the weights out is *pruning*: it
learns another distribution.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from .. import _faq
from .._records import record, record_page
from .._typing import PRNGKey

__all__ = ["Coreset", "coreset"]


class Coreset(NamedTuple):
    r"""Result of `coreset`.

    Attributes:
        indices: Which examples are kept, rising, shape `(num_kept,)`.
        weights: How many of the data each stands for, for `fit(weights=...)`, shape `(num_kept,)`.
        distance: Mean distance in features from an example of the data to the nearest that is kept: the
            Wasserstein-1 distance between data and coreset with the best weights there are.
        radius: The largest such distance.
        target: What the weighted coreset stands for, in words, and in which limit.
    """

    indices: np.ndarray
    weights: np.ndarray
    distance: float
    radius: float
    target: str

    __repr__ = record
    _repr_html_ = record_page


def coreset(key: PRNGKey, features, share: float, *, method: str = "sample") -> Coreset:
    r"""Choose a share of the data, and weights with which it stands for all.

    | method | keeps | weights | right |
    |---|---|---|---|
    | `"sample"` | at random, more often far from the mean | $1/\pi_i$ | unbiased for every mean |
    | `"kcenter"` | greedily, the farthest from those kept | examples nearest to each | within `distance` |
    | `"herding"` | greedily, so that means agree | equal | means of the features, error $O(1/m)$ |
    | `"density"` | the highest Gaussian density of features | examples nearest to each | no tails |

    *Sample.* Inclusion probabilities $\pi_i = \min(1, c\,(\tfrac{1}{n} + d_i^2 / \sum_j d_j^2))$, $d_i$ the
    distance to the mean, drawn systematically, so that exactly $m$ different examples are kept. The sum of
    $f(x_i)/\pi_i$ over them has the mean $\sum_i f(x_i)$ (Horvitz and Thompson).

    *k-center.* The radius is at most twice the least that $m$ examples can have (Gonzalez). The weighted
    coreset is at Wasserstein-1 distance `distance` from the data, so a mean of a function with Lipschitz
    constant $L$ is off by at most $L$ times that.

    *Density.* The pruning of the paper in its simplest form. What lies outside is gone, and no weights
    bring it back; without the weights the prior is narrower still.

    Args:
        key: PRNG key, of `"sample"` and of the first center.
        features: Finite numbers of shape `(num, ...)`, one row an example, in which distances mean something:
            the standardised data, or an embedding of them.
        share: Share of the data to keep, in (0, 1].
        method: One of the four.

    Raises:
        ValueError: If features are not finite, or there are none; if `share` or `method` is none of these.

    References:
        Li, Zhang, Liu & Lin (2024), Pruning then reweighting: towards data-efficient training of diffusion
        models, arXiv 2409.19128; their criterion beyond density is not published. Bachem, Lucic & Krause
        (2018), Scalable k-means clustering via lightweight coresets, KDD. Gonzalez (1985), Clustering to
        minimize the maximum intercluster distance. Welling (2009), Herding dynamical weights to learn, ICML.
    """
    rows = np.asarray(features, float)
    if rows.ndim == 0 or rows.size == 0 or not np.isfinite(rows).all():
        raise ValueError(
            "`features` must be finite numbers of shape (num, ...), one row an example; got shape "
            f"{rows.shape}{' with NaN or infinite entries' if rows.size else ''}. {_faq.finite}"
        )
    if not 0 < share <= 1:
        raise ValueError(
            f"`share` must be in (0, 1], a share of the examples; got {share}. {_faq.numbers}"
        )
    if method not in _METHODS:
        raise ValueError(
            f"`method` must be one of {', '.join(_METHODS)}; got {method!r}. {_faq.choices}"
        )
    rows = rows.reshape(len(rows), -1)
    choose, target = _METHODS[method]
    indices, weights = choose(key, rows, max(1, round(share * len(rows))))
    order = np.argsort(indices)
    indices, weights = indices[order], None if weights is None else weights[order]
    nearest, distances = _nearest(rows, rows[indices])
    if weights is None:
        weights = np.bincount(nearest, minlength=len(indices)).astype(float)
    return Coreset(indices, weights, float(distances.mean()), float(distances.max()), target)


def inclusion(rows: np.ndarray, num: int) -> np.ndarray:
    r"""Inclusion probabilities of `"sample"`, at most 1 and `num` in sum."""
    squares = np.sum((rows - rows.mean(0)) ** 2, 1)
    sizes = 1 / len(rows) + squares / max(squares.sum(), np.finfo(float).tiny)
    sure = np.zeros(len(rows), bool)
    while True:  # whoever is sure leaves more room to the others
        chances = np.where(sure, 1.0, sizes * (num - sure.sum()) / max(sizes[~sure].sum(), 1e-300))
        if not (over := (chances > 1) & ~sure).any():
            return chances
        sure |= over


def _sample(key, rows, num):
    chances = inclusion(rows, num)
    key_order, key_start = jax.random.split(key)
    order = np.asarray(jax.random.permutation(key_order, len(rows)))
    ends = np.cumsum(chances[order])
    marks = np.arange(num) + float(jax.random.uniform(key_start))
    # The end of the last cell is `num` up to rounding.
    chosen = order[np.minimum(np.searchsorted(ends, marks, side="right"), len(rows) - 1)]
    return chosen, 1 / chances[chosen]


def _kcenter(key, rows, num):
    chosen = [int(jax.random.randint(key, (), 0, len(rows)))]
    far = np.full(len(rows), np.inf)
    for _ in range(num - 1):
        far = np.minimum(far, np.sum((rows - rows[chosen[-1]]) ** 2, 1))
        far[chosen] = -1.0  # of equal examples each may be chosen once
        chosen.append(int(far.argmax()))
    return np.array(chosen), None


def _herding(key, rows, num):
    del key
    rows = rows - rows.mean(0)
    left, total = np.ones(len(rows), bool), np.zeros(rows.shape[1])
    for _ in range(num):
        sizes = np.where(left, np.sum((rows + total) ** 2, 1), np.inf)
        best = int(sizes.argmin())
        left[best], total = False, total + rows[best]
    return np.flatnonzero(~left), np.full(num, len(rows) / num)


def _density(key, rows, num):
    del key
    gap = rows - rows.mean(0)
    inverse = np.linalg.pinv(gap.T @ gap / len(rows), hermitian=True)
    return np.argsort(np.einsum("ni,ij,nj->n", gap, inverse, gap), kind="stable")[:num], None


_METHODS: dict[str, tuple[Callable[..., tuple[np.ndarray, Any]], str]] = {
    "sample": (_sample, "the data: every weighted sum is unbiased over keys, at any share"),
    "kcenter": (
        _kcenter,
        "the data moved to their nearest centers, by `distance` in the mean; exact as the share nears 1",
    ),
    "herding": (
        _herding,
        "the means of the features, exact as the share nears 1; nothing else of the data",
    ),
    "density": (
        _density,
        "a heuristic: the data without their sparsest examples, moved to the nearest that is kept",
    ),
}


def _nearest(rows: np.ndarray, centers: np.ndarray, block: int = 2**22):
    """The nearest center of each row, and how far it is; in blocks, to bound memory."""
    step = max(1, block // len(centers))
    found, distances = [], []
    for begin in range(0, len(rows), step):
        part = rows[begin : begin + step]
        squares = np.sum(part**2, 1)[:, None] - 2 * part @ centers.T + np.sum(centers**2, 1)
        found.append(squares.argmin(1))
        distances.append(np.linalg.norm(part - centers[found[-1]], axis=1))
    return np.concatenate(found), np.concatenate(distances)
