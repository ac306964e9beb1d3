r"""Checks of an audit: each returns a sentence if something is wrong, and nothing otherwise.

A finding needs a size that matters, named below, and three standard errors (or a p-value below 0.005).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .membership import STATISTICS
from .table import number

if TYPE_CHECKING:
    from .report import AuditReport

__all__ = [
    "at",
    "curl",
    "draws",
    "few_values",
    "gradient",
    "levels",
    "linear",
    "memorised",
    "normalizer",
    "rest",
    "spread",
    "surely",
    "untrained",
    "worst",
]

SURE = 3.0  # standard errors
P_VALUE = 0.005
MARGIN = 0.05  # by which a denoiser may be worse than a linear one
CURL = 0.02
SPREAD = 0.5  # nats
FALL = 2.0  # nats
SCALE = 0.02  # relative, of the standard deviation of draws
AUC = 0.6
MEMORISED = 0.9  # AUC from which on one may say so


def worst(report: AuditReport, bad: np.ndarray, size: np.ndarray) -> int | None:
    return int(np.argmax(np.where(bad, size, -np.inf))) if np.any(bad) else None


def surely(value: np.ndarray, bound, error: np.ndarray) -> np.ndarray:
    """Where values are above a bound, and above 0 by more than their errors say."""
    return (value > bound) & (value > SURE * error)


def at(report: AuditReport, level: int, bad: np.ndarray) -> str:
    """The worst level, and how many there are."""
    others = int(np.sum(bad)) - 1
    also = f" (and {others} other{'s'[: others != 1]})" if others else ""
    return f"At noise level {number(report.noise_levels[level])}{also}"


def gradient(report: AuditReport) -> str:
    found = report.gradient
    if found is None or not np.any(bad := found.violations > 0):
        return ""
    level = int(np.argmax(found.violations))
    return (
        f"{at(report, level, bad)} density and score disagree along {found.violations[level]:.0%} of short "
        f"segments, by {found.discrepancy[level]:.2g} nats where energies rise by {found.rise[level]:.2g}: "
        "Metropolis steps accept wrongly. Let `jax.grad` of the energy be the score; see `check_energy`."
    )


def untrained(report: AuditReport) -> str:
    if not report.untrained:
        return ""
    return (
        "The network has learned nothing: the denoiser is a straight line at every level, that of the "
        "Gaussian that training starts from. Look at `FitResult.verdict`; change `learning_rate`, `steps`, "
        "`weight_decay` or the network. If data are Gaussian, use `Gaussian`."
    )


def few_values(report: AuditReport) -> str:
    few = report.few_values
    if not few:
        return ""
    counts = ", ".join(f"column {index} ({few[index]})" for index in list(few)[:8])
    more = f" and {len(few) - 8} more" if len(few) > 8 else ""
    return (
        f"Few values, far apart beside the noise at t_min: {counts}{more}. The prior has a spike at each, "
        "between which NUTS and moves at t_min do not go. Make them the `condition` and not a column, raise "
        "`noise_min` to about a quarter of the gap, or sample with `SMC`, and compare its clouds."
    )


def linear(report: AuditReport) -> str:
    found = report.denoising
    gap = found.residual - found.linear
    bad = surely(gap, MARGIN * found.linear, found.saving_error)
    level = worst(report, bad, found.residual / found.linear)
    if level is None:
        return ""
    return (
        f"{at(report, level, bad)} the denoiser's squared error is {number(found.residual[level])} "
        f"a coordinate, that of a straight line through the data's moments {number(found.linear[level])}: it "
        "has learned too little there. Train longer, or check units and schedule."
    )


def curl(report: AuditReport) -> str:
    found = report.curl
    bad = surely(found.ratio, np.maximum(CURL, found.rounding), found.ratio_error)
    level = worst(report, bad, found.ratio)
    if level is None:
        return ""
    return (
        f"{at(report, level, bad)} the score is not a gradient: its curl ratio is {found.ratio[level]:.2g} "
        f"+- {found.ratio_error[level]:.1g}. Use it in path space only (`Twisted`), or `distill` an energy."
    )


def spread(report: AuditReport) -> str:
    found = report.offsets
    if found is None:
        return ""
    bad = surely(found.spread, SPREAD, found.spread_error)
    level = worst(report, bad, found.spread)
    if level is None:
        return ""
    return (
        f"{at(report, level, bad)} energies of different examples are off against each other: "
        f"they scatter by {found.spread[level]:.2g} +- {found.spread_error[level]:.1g} nats about where the "
        "scores put them, and so do the probabilities of modes. Train with `energy_loss` and anchors."
    )


def rest(report: AuditReport) -> str:
    found = report.rest
    if found is None or found.fall <= max(FALL, SURE * found.fall_error):  # NaN is a finding
        return ""
    return (
        f"Chains leave the data: energies fall by {found.fall:.3g} +- {found.fall_error:.2g} nats on the "
        "way. The energy is deeper elsewhere, and NUTS and moves at t_min end there. Use the score alone: "
        "`Twisted`, or `PnPDM` on a bridge in path space."
    )


def normalizer(report: AuditReport) -> str:
    found = report.offsets
    if found is None or np.isnan(report.log_normalizer) or report.times[0] != found.times[0]:
        return ""
    gap = found.value[0] - report.log_normalizer
    error = np.hypot(found.value_error[0], report.log_normalizer_error)
    # Scores that are off by the spread move the mean by about as much.
    if not abs(gap) > max(SURE * error, SPREAD + found.spread[0]):
        return ""
    return (
        f"The stored normaliser is {report.log_normalizer:.2f} nats, the scores say {found.value[0]:.2f} +- "
        f"{error:.2f}: evidences are off. Measure it again with `prior_normalizer`, and store it with "
        "`with_log_normalizer`."
    )


def levels(report: AuditReport) -> str:
    """No finding, since any function of time may be added to an energy."""
    found = report.offsets
    if found is None or np.isnan(found.value[0]):
        return ""
    drift = found.value - found.value[0]
    error = np.hypot(found.value_error, found.value_error[0])
    bad = np.abs(drift) > np.maximum(SURE * error, SPREAD + found.spread + found.spread[0])
    level = worst(report, bad, np.abs(drift))
    if level is None:
        return ""
    return (
        f"{at(report, level, bad)} energies are off by {-drift[level]:.2g} nats against those at t_min. "
        "Posteriors and their evidences do not feel it; what compares levels does, such as simulated "
        "tempering or a posterior of the noise level itself."
    )


def draws(report: AuditReport) -> str:
    found, words = report.draws, []
    if found.mean_p < P_VALUE:
        words.append(f"their mean is off by {found.mean_shift:.2g} sd")
    # The scale looks at all directions, the p-value at the leading ones.
    off = abs(found.scale - 1) > max(SCALE, SURE * found.scale_error)
    if found.covariance_p < P_VALUE or off:
        words.append(
            f"their covariance is off by {found.covariance_shift:.2g} (sd {found.scale:.2f} +- "
            f"{found.scale_error:.2f} of the data's)"
        )
    if found.energy_p < P_VALUE and not words:
        words.append(f"their energy distance to the data is {found.energy_distance:.2g}")
    if not words:
        return ""
    return (
        f"Draws ({report.draws_from}) differ from the data: " + "; ".join(words) + ". Look at "
        "`draws.mean_z` and `draws.variance_z`, and at draws; more steps tell a sampler's error from the "
        "prior's."
    )


def memorised(report: AuditReport) -> str:
    found = report.membership
    if found is None:
        return ""
    bad = (found.chosen_auc > AUC) & (found.chosen_auc - 0.5 > SURE * found.chosen_auc_error)
    if not bad.any():
        return ""
    best = int(np.argmax(np.where(bad, found.chosen_auc, 0)))
    kind = "has memorised them" if found.chosen_auc[best] > MEMORISED else "fits them too closely"
    return (
        f"Training examples can be told from others, so the prior {kind}: AUC {found.chosen_auc[best]:.2f} "
        f"+- {found.chosen_auc_error[best]:.2f} by {STATISTICS[best]} at noise level "
        f"{number(found.noise_levels[found.level[best]])}, {found.chosen_tpr[best]:.0%} of them at "
        f"{found.false_positive_rate:.0%} false alarms. Stop earlier, regularise, or train on more; do not "
        "publish it if the examples are private."
    )
