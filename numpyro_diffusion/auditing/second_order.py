r"""Checks of a denoiser's derivative, which says how wide posteriors are, where it is of any size.

Where noise drowns the data, nothing is left of a posterior but the prior. A derivative of the denoiser is
then small, as $d^2 / s^2$, and a network that denoises as well as can be may be off by all of it. What that
costs is to be held against the noise's variance: a score whose derivative is off by a share $\delta$ of it
costs $\delta^2 / 4$ nats a coordinate, 2.5e-5 at 1 %. So there is a finding above that share alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .faults import at, surely, worst
from .table import number

if TYPE_CHECKING:
    from .report import AuditReport

__all__ = ["calibration", "covariance", "faint"]

CALIBRATION = 0.2  # relative, between the residual and what the denoiser expects of itself
NEGATIVE = 0.01  # of the trace of a covariance
OF_NOISE = 0.01  # of the noise's variance


def _miscalibrated(report: AuditReport) -> np.ndarray:
    found = report.denoising
    gap = np.abs(found.residual - found.predicted)
    return surely(gap, CALIBRATION * np.abs(found.predicted), found.excess_error)


def _indefinite(report: AuditReport) -> np.ndarray:
    found = report.spectrum
    return surely(found.negative_share, NEGATIVE, found.negative_share_error)


def _gap_matters(report: AuditReport) -> np.ndarray:
    found = report.denoising
    return np.abs(found.residual - found.predicted) > OF_NOISE * found.noise_levels**2


def _sign_matters(report: AuditReport) -> np.ndarray:
    return report.spectrum.negative_size > OF_NOISE


def calibration(report: AuditReport) -> str:
    found = report.denoising
    gap = found.residual - found.predicted
    bad = _miscalibrated(report) & _gap_matters(report)
    ratio = found.residual / found.predicted
    level = worst(report, bad, np.abs(gap) / found.excess_error)
    if level is None:
        return ""
    kind = "surer than it should be" if gap[level] > 0 else "less sure than it could be"
    return (
        f"{at(report, level, bad)} the denoiser is {kind}: its squared error is {ratio[level]:.2f} of "
        "what its own derivative expects, so that posteriors at this noise have the wrong width. Train on "
        "more examples, or regularise."
    )


def covariance(report: AuditReport) -> str:
    found = report.spectrum
    bad = _indefinite(report) & _sign_matters(report)
    level = worst(report, bad, found.negative_share)
    if level is None:
        return ""
    return (
        f"{at(report, level, bad)} {found.negative_share[level]:.1%} of the implied posterior covariance is "
        f"negative (smallest eigenvalue {found.smallest[level]:.2g} of the noise's variance): it is no "
        "covariance. Prefer `Widened` or `Tweedie` twists and `Isotropic` proposals there."
    )


def faint(report: AuditReport) -> str:
    """No finding: a derivative that is off where it is next to nothing."""
    denoising, spectrum = report.denoising, report.spectrum
    gap = np.abs(denoising.residual - denoising.predicted) / denoising.noise_levels**2
    off = _miscalibrated(report) & ~_gap_matters(report)
    negative = _indefinite(report) & ~_sign_matters(report)
    where = [*denoising.noise_levels[off], *spectrum.noise_levels[negative]]
    sizes = [*gap[off], *spectrum.negative_size[negative]]
    if not where:
        return ""
    return (
        f"From noise level {number(min(where))} on, where noise drowns the data, the denoiser's derivative "
        f"is off by much of itself, which is at most {max(sizes):.1g} of the noise's variance: no posterior "
        "feels that."
    )
