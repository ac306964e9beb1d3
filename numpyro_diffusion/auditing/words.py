r"""An audit in words: what is wrong, what is fine, and remedies.

What is measured and small is said to be fine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import _faq
from . import faults, second_order

if TYPE_CHECKING:
    from .report import AuditReport

__all__ = ["findings", "verdict"]

# Scatter of energies in nats from which it is said what it does to odds.
_FELT = 0.05


def findings(report: AuditReport) -> list[str]:
    """Problems found, each with a remedy; empty if there are none."""
    checks = (
        faults.untrained,
        faults.few_values,
        faults.gradient,
        faults.linear,
        second_order.calibration,
        faults.curl,
        second_order.covariance,
        faults.spread,
        faults.rest,
        faults.normalizer,
        faults.draws,
        faults.memorised,
    )
    found = [(check(report), _faq.audit[check.__name__]) for check in checks]
    return [f"{finding} {link}" for finding, link in found if finding]


def verdict(report: AuditReport) -> list[str]:
    """Findings, then what is fine, then what was not asked."""
    wrong = findings(report)
    remarks = (
        (check(report), _faq.audit[check.__name__]) for check in (faults.levels, second_order.faint)
    )
    notes = [f"{words} {link}" for words, link in remarks if words]
    return [*wrong, _fine(report, wrong), *notes, *report.skipped]


def _fine(report: AuditReport, wrong: list[str]) -> str:
    draws, found = report.draws, report.membership
    saving = report.denoising.linear - report.denoising.residual
    better = np.any(saving > faults.SURE * report.denoising.saving_error)
    linear = "it denoises no worse than a linear denoiser"
    parts = {
        faults.linear: linear if better else f"{linear}, and no better at any level",
        second_order.calibration: "the error it expects of itself is about the one it makes",
        faults.curl: f"its score is a gradient (curl at most {report.curl.ratio.max():.1g})",
        second_order.covariance: "its posterior covariances are positive",
    }
    fine = [words for check, words in parts.items() if not check(report)]
    if report.gradient is not None and not faults.gradient(report):
        fine.append("density and score agree")
    if report.offsets is not None and not faults.spread(report):
        spread = np.nanmax(report.offsets.spread)
        words = f"energies scatter by {spread:.2g} nats (standard deviation) about where scores put them"
        if spread > _FELT:
            words += f", so that the odds of two modes may be off by a factor of {np.exp(2 * spread):.2g}"
        fine.append(words)
    if report.rest is not None and not faults.rest(report):
        fine.append(
            f"chains stay with the data (energies fall by {report.rest.fall:.1f} +- "
            f"{report.rest.fall_error:.1f} nats)"
        )
    if not faults.draws(report):
        fine.append(
            f"draws cannot be told from data (sd {draws.scale:.2f} +- {draws.scale_error:.2f} of theirs; "
            f"{report.draws_from})"
        )
        if report.draws_from.startswith("the reverse process"):
            fine[-1] += ", which says nothing of the shares that its density gives to modes"
    if found is not None and not faults.memorised(report):
        fine.append(f"members cannot be told from others (AUC {found.chosen_auc.max():.2f})")
    start = "Fine otherwise: " if wrong else "Nothing to worry about: "
    return start + ", ".join(fine) + "." if fine else "Nothing was found to be fine."
