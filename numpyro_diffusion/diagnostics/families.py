"""Families of particles, each from one starting particle, and clouds that differ by more than these explain.

Families of a cloud are nearly independent, so their sums tell the error of a mean or of the evidence from one
cloud. They know nothing of what no family has found. Several clouds do: where clouds differ by more than
families explain, the families are refuted.
"""

from typing import Any

import numpy as np
from scipy import stats

from ..smc import SMCResult
from .names import real_parts

__all__ = ["beyond", "differ", "family_sums", "variances_of_means", "weight_sums"]

# Clouds count as further apart than their families explain below the first; below the second it is said.
_REFUTED, _SAID = 0.01, 0.001


def _members(result: SMCResult) -> np.ndarray:
    """Family of each particle, `(clouds, particles)`; of waste-free clouds the chain of the last level."""
    shape = np.atleast_2d(result.log_weights).shape
    if result.chain_length is None:
        return np.broadcast_to(np.asarray(result.state.ancestors), shape)
    return np.broadcast_to(np.arange(shape[1]) // result.chain_length, shape)


def family_sums(values: np.ndarray, families: np.ndarray) -> np.ndarray:
    """Sums over the members of each family that is there, of values `(members, ...)`."""
    order = np.argsort(families, kind="stable")
    first = np.flatnonzero(np.diff(families[order], prepend=-1))
    return np.add.reduceat(values[order], first, axis=0)


def weight_sums(result: SMCResult) -> np.ndarray:
    """Share of its cloud's weight that each starting particle's family has, 0 where there is none."""
    count = np.shape(result.log_weights)[-1] // (result.chain_length or 1)
    pairs = zip(_weights(result), _members(result), strict=True)
    return np.array([np.bincount(f, w, minlength=count) for w, f in pairs])


def _weights(result: SMCResult) -> np.ndarray:
    logs = np.atleast_2d(np.asarray(result.log_weights, float))
    best = logs.max(-1, keepdims=True)
    weights = np.exp(logs - np.where(np.isfinite(best), best, 0.0))
    total = weights.sum(-1, keepdims=True)
    return np.where(total > 0, weights / np.where(total > 0, total, 1.0), 0.0)


def _apart(between: Any, within: Any, clouds: int, families: float) -> np.ndarray:
    """Probability that clouds are so much further apart than families explain by chance: an F test.

    Args:
        between: Variance of a number across clouds.
        within: Mean over clouds of the variance by families.
        clouds: Their number.
        families: Degrees of freedom of `within`.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.asarray(between) / within
    known = (np.asarray(between) > 0) & ~np.isnan(ratio)
    return np.where(known, stats.f.sf(ratio, clouds - 1, max(families, 1.0)), 1.0)


def beyond(between: Any, within: Any, clouds: int, families: float) -> np.ndarray:
    """Whether clouds are further apart than their families explain."""
    return _apart(between, within, clouds, families) < _REFUTED


def variances_of_means(
    values: np.ndarray, weights: np.ndarray, families: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    r"""Of the clouds' means, across clouds and by families, of values `(clouds, members, scalars)`.

    Sums of families are taken about the mean that they make, which takes the share $\sum_e W_e^2$ of one
    family from their variance; it is given back. From a single family nothing is known: NaN.
    """
    means = np.einsum("cn,cnd->cd", weights, values)
    within = np.zeros_like(means)
    for c, (value, weight, family) in enumerate(zip(values, weights, families, strict=True)):
        sums = family_sums(weight[:, None] * (value - means[c]), family)
        lost = np.sum(family_sums(weight, family) ** 2)
        within[c] = np.sum(sums**2, 0) / (1 - lost) if lost < 1 - 1e-9 else np.nan
    within = within.mean(0)
    # Of a number that is the same everywhere rounding is left.
    between, rounding = np.var(means, 0, ddof=1), (1e-12 * np.abs(means).max(0)) ** 2
    return np.where(between > rounding, between, 0.0), within


def differ(result: SMCResult) -> str:
    """Say where clouds differ by more than their families explain; empty if nowhere."""
    own = np.atleast_1d(np.asarray(result.log_evidence_error, float))
    clouds = len(own)
    if clouds < 2 or not result.weighted or not result.completed:
        return ""
    weights, families = _weights(result), _members(result)
    shares = weight_sums(result)
    if not (shares.sum(1) > 0).all():
        return ""
    freedom = float(np.sum(1 / np.sum(shares**2, 1) - 1))
    # Chains of a last level know nothing of the levels before: means are further apart than they say.
    known = isinstance(result.positions, dict) and result.chain_length is None
    positions = result.positions if known else {}
    found, tests = [], 1
    for name, values in real_parts({n: np.asarray(v) for n, v in positions.items()}).items():
        values = np.asarray(values)
        if values.dtype.kind not in "fi" or values.shape[:2] != weights.shape:
            continue
        flat = values.reshape(*weights.shape, -1).astype(float)
        if not flat.size or not np.isfinite(flat).all():
            continue
        between, within = variances_of_means(flat, weights, families)
        chances = _apart(between, within, clouds, freedom)
        i = int(np.argmin(chances))
        index = np.unravel_index(i, values.shape[2:])
        place = f"the mean of `{name}{[*map(int, index)] if index else ''}`"
        found.append((chances[i], place, between[i], within[i]))
        tests += len(chances)
    logs = np.asarray(result.log_evidence)
    if np.isfinite(logs).all() and np.ptp(logs) > max(1e-4, 10 * np.spacing(np.abs(logs).max())):
        between, within = np.var(logs.astype(float), ddof=1), np.mean(own**2)
        chance = _apart(between, within, clouds, freedom)
        found.append((float(chance), "the log evidence", between, within))
    found = [each for each in found if each[0] * tests < _SAID]
    if not found:
        return ""
    _, place, between, within = min(found, key=lambda each: each[0])
    return (
        f"The clouds differ by more than their families explain, in {place}: its standard deviation across "
        f"clouds is {between**0.5:.2g}, where {within**0.5:.2g} is expected. Some have found what others "
        f"have not, and errors are known from {clouds} numbers only. Try more clouds (`num_chains`), more "
        "particles, or more moves."
    )
