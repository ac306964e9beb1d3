r"""Memorisation: membership inference of training against held-out examples."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._arguments import whole_number, whole_or_none
from .._records import record, record_page
from .._typing import PRNGKey
from ..density.paths import check_data
from ..energies import AbstractDenoiser
from .levels import by_level, check_times, noise_levels
from .roc import auc_and_error, true_positive_rate

__all__ = ["STATISTICS", "Membership", "membership_audit"]

STATISTICS = ("SimA", "SimA-MC", "loss")


class Membership(NamedTuple):
    r"""Membership-inference results: accuracy of three statistics at telling training examples from others.

    Attributes:
        times: The levels.
        noise_levels: $\sigma_t / \alpha_t$, in the units of the data.
        auc: Area under the ROC curve over all examples, shape `(3, num_levels)`; 0.5 if nothing is known.
        auc_error: Its standard error.
        tpr: True positive rate at the false positive rate `false_positive_rate`, shape `(3, num_levels)`.
        level: Index of the level with the largest area on one half of the examples, shape `(3,)`.
        chosen_auc: Area at that level on the other half, shape `(3,)`.
        chosen_auc_error: Its standard error.
        chosen_tpr: True positive rate at that level on the other half.
        false_positive_rate: The rate that `tpr` is at.
        member_scores: Shape `(3, num_levels, num_members)`; low where membership is likely.
        other_scores: Shape `(3, num_levels, num_held_out)`.
    """

    times: np.ndarray
    noise_levels: np.ndarray
    auc: np.ndarray
    auc_error: np.ndarray
    tpr: np.ndarray
    level: np.ndarray
    chosen_auc: np.ndarray
    chosen_auc_error: np.ndarray
    chosen_tpr: np.ndarray
    false_positive_rate: float
    member_scores: np.ndarray
    other_scores: np.ndarray

    __repr__ = record
    _repr_html_ = record_page


def membership_audit(
    prior: AbstractDenoiser,
    members,
    held_out,
    key: PRNGKey,
    times=None,
    *,
    power: float = 4.0,
    num_noises: int = 8,
    false_positive_rate: float = 0.01,
    batch_size: int | None = 4096,
) -> Membership:
    r"""Membership inference on a prior: can its training examples be told from others of the same
    distribution?

    With $\hat\epsilon(x, t) = (x - \alpha_t \hat x_0(x, t)) / \sigma_t$ the statistics are

    - *SimA*, $\lVert \hat\epsilon(x, t) \rVert_p^p$ at the clean example, no noise added;
    - *SimA-MC*, the same at the noised example, averaged over noises;
    - *loss*, $|\hat x_0(x_t) - x_0|^2$, averaged over the same noises.

    A score fitted to the empirical distribution alone has $\hat\epsilon \to \tfrac12 \sigma_t x$ at a member
    as $t \to 0$, and much more elsewhere. The best of many levels looks good by chance, so that the level is
    chosen on one half of the examples and judged on the other.

    Members and held-out examples must be draws of one distribution. What else sets them apart, such as
    another instrument or another year, is found too.

    Args:
        prior: An energy or a denoiser.
        members: Training examples of shape `(num_members, *shape)`.
        held_out: Examples that training never saw, of shape `(num_held_out, *shape)`; at least 4 of each.
        key: PRNG key.
        times: Levels; eight in equal steps of log noise by default.
        power: $p$.
        num_noises: Noises an example and level.
        false_positive_rate: Rate at which true positive rates are given.
        batch_size: Bound on the evaluations at once; none if `None`.

    Raises:
        ValueError: If examples, times or numbers cannot be used.

    References:
        Rao et al. (2025), Score-based Membership Inference on Diffusion Models, arXiv 2509.25003.
    """
    num_noises = whole_number("num_noises", num_noises, 1)
    batch_size = whole_or_none("batch_size", batch_size, 1, "`None` takes all.")
    lots = [check_data(prior, lot, num_noises=num_noises) for lot in (members, held_out)]
    if min(map(len, lots)) < 4:
        raise ValueError(
            "`membership_audit` expects at least 4 members and 4 held-out examples, to choose on one half "
            f"and judge on the other; got {len(lots[0])} and {len(lots[1])}. Hold out "
            f"more. {_faq.examples}"
        )
    times = check_times(prior, times)
    key_halves, key_noise = jax.random.split(key)
    at, sizes = jnp.asarray(times, lots[0].dtype), (power, num_noises)
    both = _scores(prior, jnp.concatenate(lots), key_noise, at, sizes, batch_size)
    scores = np.split(np.moveaxis(np.asarray(both, float), 0, -1), [len(lots[0])], axis=-1)
    rng = np.random.default_rng(np.asarray(jax.random.bits(key_halves, (4,))))
    orders = [rng.permutation(len(lot)) for lot in lots]
    choosing, judging = (
        [s[..., order[half::2]] for s, order in zip(scores, orders, strict=True)] for half in (0, 1)
    )
    auc, auc_error, tpr = _rates(scores, false_positive_rate)
    level = _rates(choosing, false_positive_rate)[0].argmax(1)
    judged = _rates(judging, false_positive_rate)
    chosen_auc, chosen_auc_error, chosen_tpr = judged[:, range(len(level)), level]
    return Membership(
        times,
        noise_levels(prior, times),
        auc,
        auc_error,
        tpr,
        level,
        chosen_auc,
        chosen_auc_error,
        chosen_tpr,
        false_positive_rate,
        scores[0],
        scores[1],
    )


def _rates(scores: list[np.ndarray], rate: float) -> np.ndarray:
    """Area, its error and the true positive rate, shape `(3, num_statistics, num_levels)`."""
    rows = [
        [(*auc_and_error(a, b), true_positive_rate(a, b, rate)) for a, b in zip(m, o, strict=True)]
        for m, o in zip(*scores, strict=True)
    ]
    return np.moveaxis(np.array(rows), -1, 0)


@eqx.filter_jit
def _scores(prior, data, key, times, sizes, batch_size):
    """The three statistics of each example at each level, shape `(num, 3, num_levels)`."""
    power, num_noises = sizes

    def one(x0, key, t):
        alpha_t, sigma_t = prior.schedule(t)

        def norm_and_loss(x):
            x_hat = prior.denoise(x, t)
            noise = (x - alpha_t * x_hat) / sigma_t
            return jnp.sum(jnp.abs(noise) ** power), jnp.sum((x_hat - x0) ** 2)

        noises = jax.random.normal(key, (num_noises, *x0.shape), x0.dtype)
        noised, losses = jax.vmap(norm_and_loss)(alpha_t * x0 + sigma_t * noises)
        return jnp.stack([norm_and_loss(x0)[0], jnp.mean(noised), jnp.mean(losses)])

    return jnp.moveaxis(by_level(one, data, key, times, batch_size, num_noises + 1), -1, 1)
