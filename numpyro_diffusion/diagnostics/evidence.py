"""The standard error of a run's log evidence, and reasons not to trust it."""

from collections.abc import Iterator

import jax
import numpy as np

from ..smc import SMCResult
from ..smc.widening import skew_widening, skewness_of_sum, widening
from .families import beyond, weight_sums

__all__ = [
    "cloud_errors",
    "cloud_shares",
    "collapse",
    "evidence_skewness",
    "leaning",
    "log_evidence_error",
    "log_increment_error",
    "reservations",
]

# A posterior narrower than so many units in the last place of its location is not resolved.
_ULPS = 500
# Skewness of an estimate of the evidence above which it is said that it leans to one side.
_LEANS = 0.25
# Nats between neighbouring numbers of the float type, from which log densities are rounded.
_GRAIN = 0.1


def cloud_shares(result: SMCResult) -> np.ndarray:
    r"""$W_c \propto \hat Z_c$, what each cloud counts in means over all of them; alike without weights."""
    log_evidence = np.atleast_1d(np.asarray(result.log_evidence, float))
    if not result.weighted:
        return np.full(len(log_evidence), 1 / len(log_evidence))
    share = np.exp(log_evidence - log_evidence.max())
    return share / share.sum()


def cloud_errors(result: SMCResult) -> np.ndarray:
    r"""Standard errors of $\log \hat Z$ of each cloud, wider where few families are left.

    A genealogical variance $V$ is what $F = 1 / (V + 1/N)$ families of equal weight would have, so that it
    is known no better than a variance from as many numbers. The error is widened by $t / z$, the ratio
    of the 97.5 % quantiles of Student's distribution with $F - 1$ degrees of freedom and of the normal
    distribution: 1.05 for 20 families, 1.6 for 4, 6.5 for 2. From a single family nothing is known.
    """
    own = np.atleast_1d(np.asarray(result.log_evidence_error, float))
    families = 1 / (own**2 + 1 / np.shape(result.log_weights)[-1])
    return own * widening(families - 1)


def log_evidence_error(result: SMCResult) -> float:
    r"""Standard error of the log of the mean of the clouds' evidences, in nats.

    The larger of two estimates with $W_c \propto \hat Z_c$: from the clouds' genealogies,
    $\sqrt{\sum_c (W_c s_c)^2}$ with the errors $s_c$ of `cloud_errors`, and across $C \ge 2$ clouds
    $\mathrm{sd}(C W_c) / \sqrt C$. A few clouds say little about their own spread, and may agree by
    chance: the genealogies are a floor. A genealogy in turn knows nothing of a mode that was lost. Where one
    cloud counts for all ($1 / \sum_c W_c^2 < 3/2$) the spread is near 1 however far apart the clouds are, and
    $\mathrm{sd}(\log \hat Z_c) / \sqrt C$ stands for it: next to nothing is known then.

    The first is widened where families have uneven shares: without the rare large ones an evidence is low
    and its error small, both at once. The factor is $1 + 0.74 g$, with $g$ the skewness of the shares of the
    families of all clouds over the root of their number (`smc.widening.skew_widening`). The second is widened
    by Student's distribution with $C - 1$ degrees of freedom where clouds are further apart than their
    genealogies explain (F test at 1 %): the genealogies are refuted then, and $C$ numbers are all there is.

    Args:
        result: Result with an axis of clouds.
    """
    log_evidence = np.atleast_1d(np.asarray(result.log_evidence, float))
    share = cloud_shares(result)
    own = np.sqrt(np.sum((share * cloud_errors(result)) ** 2))
    error = float(own * skew_widening(max(evidence_skewness(result), 0.0)))
    count = len(share)
    if count < 2:
        return error
    spread = np.std(count * share, ddof=1)
    if np.sum(share**2) > 2 / 3:
        spread = max(spread, np.std(log_evidence, ddof=1))
    if _refuted(result, log_evidence):
        spread = spread * widening(count - 1)
    return float(max(error, spread / np.sqrt(count)))


def _refuted(result: SMCResult, log_evidence: np.ndarray) -> bool:
    """Whether log evidences of clouds are further apart than their genealogies explain."""
    own = np.atleast_1d(np.asarray(result.log_evidence_error, float))
    families = 1 / (own**2 + 1 / np.shape(result.log_weights)[-1])
    if not np.isfinite(log_evidence).all():
        return False
    between, within = np.var(log_evidence, ddof=1), np.mean(own**2)
    return bool(beyond(between, within, len(own), float(np.sum(families - 1))))


def evidence_skewness(result: SMCResult) -> float:
    r"""Skewness of the shares that families have of the evidence, over the root of their number.

    That of the estimate itself, to first order: above 0 it is more likely too low than too high, and its
    error more likely too small. 0 for waste-free clouds, whose errors are those of chains at all levels.
    """
    if result.chain_length is not None:
        return 0.0
    gained = weight_sums(result) - np.asarray(result.state.prior_family, float)
    return float(skewness_of_sum((gained * cloud_shares(result)[:, None]).ravel()))


def log_increment_error(before: SMCResult, after: SMCResult) -> float:
    r"""Standard error of the log evidence that clouds gained when they went on from an earlier run.

    With the clouds' shares $W_c$ before and after, and $W_{c,e}$ the weight within a cloud of the descendants
    of starting particle $e$ of the earlier run: the larger of
    $\sqrt{\frac{N}{N-1} \sum_{c,e} (W_c W_{c,e} - W^0_c W^0_{c,e})^2}$, the delta method for a ratio of
    evidences, widened as in `cloud_errors`, and of $\mathrm{sd}(C W_c - C W^0_c) / \sqrt C$. In waste-free
    clouds the chains' variances since then take the place of the families.

    Args:
        before: Result with an axis of clouds.
        after: Of the run that went on from it.
    """
    shares = cloud_shares(after), cloud_shares(before)
    own = np.asarray(after.log_evidence_error, float)
    wider = cloud_errors(after) / np.where(own > 0, own, 1.0)
    if after.chain_length is not None:
        earlier = np.asarray(before.log_evidence_error, float)
        each = np.sqrt(np.maximum(own**2 - earlier**2, 0.0)) * shares[0]
    else:
        pairs = zip((after, before), shares, strict=True)
        weights, old = (weight_sums(r) * share[:, None] for r, share in pairs)
        count = weights.shape[1]
        each = np.sqrt(np.sum((weights - old) ** 2, 1) * count / max(count - 1, 1))
        gain = (weights - old).ravel()
        wider = wider * skew_widening(max(float(skewness_of_sum(gain - gain.mean())), 0.0))
    error = float(np.sqrt(np.sum((each * wider) ** 2)))
    count = len(own)
    if count < 2:
        return error
    spread = np.std(count * (shares[0] - shares[1]), ddof=1)
    if np.sum(shares[0] ** 2) > 2 / 3:
        gain = np.asarray(after.log_evidence, float) - np.asarray(before.log_evidence, float)
        spread = max(spread, np.std(gain, ddof=1))
    return max(error, float(spread) * count**-0.5)


def reservations(result: SMCResult) -> list[str]:
    """Why the evidence of a run may be off by more than its error says; empty if nothing shows."""
    if result.trace is None or not result.weighted:
        return []
    found = [collapse(result), *_unresolved(result), _grain(result)]
    return [each for each in found if each]


def leaning(result: SMCResult) -> str:
    """Whether a few families hold much of the evidence, so that it leans to one side."""
    if not result.weighted or not result.completed:
        return ""
    lean = evidence_skewness(result)
    if lean <= _LEANS:
        return ""
    return (
        f"A few families hold much of the evidence (skewness {lean:.2f} of its estimate): it is more likely "
        "too low than too high, and its error is wider for that. Try more particles, or more moves."
    )


def collapse(result: SMCResult) -> str:
    """Test whether hardly any starting particle of a cloud has descendants at the end."""
    ancestors = np.asarray(result.trace.unique_ancestors)
    ancestors = ancestors.reshape(-1, ancestors.shape[-1])
    # In a waste-free cloud one state of a chain is there at the start of a level, and can have offspring.
    num_particles = np.shape(result.log_weights)[-1] // (result.chain_length or 1)
    few = max(2, min(10, num_particles // 20))
    cloud = int(np.argmin(ancestors[:, -1]))
    left = int(ancestors[cloud, -1])
    if left > few:
        return ""
    level = int(np.argmax(ancestors[cloud] <= few)) + 1
    told = f"{left} of {num_particles} starting particles have offspring at the end"
    if num_particles <= few:
        told = f"it has no more than {num_particles} particles"
    return (
        f"Cloud {cloud} collapsed at level {level}: {told}, so modes may be lost and errors are too small. "
        "Try more particles, more moves a level, or more levels (a higher `conditional_ess`)."
    )


def _unresolved(result: SMCResult) -> Iterator[str]:
    """Sites whose posterior is as narrow as the spacing of floating-point numbers where it is."""
    positions = result.positions
    if not isinstance(positions, dict) or not result.completed:
        return
    weights = jax.nn.softmax(np.atleast_2d(np.asarray(result.log_weights)), axis=-1)
    weights, shape = np.asarray(weights, float), np.shape(result.log_weights)
    # All clouds as one: a cloud that has collapsed onto one particle is narrow for another reason.
    weights = weights.reshape(1, -1) / len(weights)
    for name, leaf in positions.items():
        values = np.asarray(leaf)
        if values.dtype.kind != "f" or values.shape[: len(shape)] != shape:
            continue
        cloud = values.reshape(*weights.shape, -1).astype(float)
        mean = np.einsum("cn,cnd->cd", weights, cloud)[:, None]
        sd = np.sqrt(np.einsum("cn,cnd->cd", weights, (cloud - mean) ** 2))
        spacing = np.spacing(np.abs(mean[:, 0]).astype(values.dtype)).astype(float)
        # A place that is exactly 0 is resolved to any width.
        ratio = float(np.where(mean[:, 0] == 0, np.inf, sd / spacing).min(initial=np.inf))
        if ratio < _ULPS:
            yield (
                f"The posterior of site `{name}` is {ratio:.0f} units in the last place of its location "
                f"wide, in {values.dtype}: densities there are rounded, and the evidence may be off by nats. "
                "Use 64 bits (`jax.config.update('jax_enable_x64', True)`), or model the difference to a "
                "value near by."
            )


def _typical(values: np.ndarray, log_weights: np.ndarray) -> float:
    """Weighted median of the size of finite values: one particle far out says nothing of the others."""
    shape = np.broadcast_shapes(values.shape, log_weights.shape)
    size = np.abs(np.broadcast_to(values, shape)).ravel().astype(float)
    weights = np.exp(log_weights - np.max(log_weights, -1, keepdims=True))
    weights = np.where(np.isfinite(size), np.broadcast_to(weights, shape).ravel(), 0.0)
    order = np.argsort(size)
    below = np.cumsum(weights[order])
    return float(size[order][np.searchsorted(below, below[-1] / 2)]) if below[-1] > 0 else 0.0


def _grain(result: SMCResult) -> str:
    """Whether log densities are so large that neighbouring numbers are far apart."""
    log_evidence = np.asarray(result.log_evidence)
    known = getattr(result.state.particles, "log_density", None)
    largest = float(np.abs(log_evidence[np.isfinite(log_evidence)]).max(initial=0.0))
    if known is not None:
        largest = max(largest, _typical(np.asarray(known), np.asarray(result.log_weights)))
    spacing = float(np.spacing(np.asarray(largest, log_evidence.dtype)))
    if spacing < _GRAIN:
        return ""
    return (
        f"Log densities are as large as {largest:.3g}, where neighbouring numbers in {log_evidence.dtype} "
        f"are {spacing:.2g} nats apart: the evidence is rounded, and small differences of the likelihood "
        "are lost. Leave constants out of factors, or use 64 bits "
        "(`jax.config.update('jax_enable_x64', True)`)."
    )
