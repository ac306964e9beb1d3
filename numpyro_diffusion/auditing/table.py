"""An audit as a table: one row a noise level, then draws and memorisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .membership import STATISTICS

if TYPE_CHECKING:
    from .report import AuditReport

__all__ = ["number", "table"]


def table(report: AuditReport) -> str:
    """The table of a report, as text."""
    held_out = report.num_held_out
    judged = f"{held_out} held-out examples" if held_out else f"its {report.num_data} own examples"
    lines = [f"{report.prior} of shape {report.shape}, judged on {judged}", ""]
    denoising, offsets, gradient = report.denoising, report.offsets, report.gradient
    columns = {
        "noise": report.noise_levels,
        "residual": denoising.residual,
        "linear": denoising.linear,
        "expected": denoising.predicted,
        "curl": report.curl.ratio,
        "negative": report.spectrum.negative_share,
    }
    if gradient is not None:
        columns["gradient"] = gradient.discrepancy
    if offsets is not None:
        columns |= {"L": offsets.value, "spread": offsets.spread}
    columns = columns if report.membership is None else columns | {"SimA": report.membership.auc[0]}
    lines.append("".join(f"{head:>10}" for head in columns))
    for row in zip(*columns.values(), strict=True):
        lines.append("".join(f"{number(cell):>10}" for cell in row))
    draws = report.draws
    lines += [
        "",
        f"{draws.num_draws} draws ({report.draws_from}): mean off by {_off(draws.mean_shift, ' sd')} "
        f"(p {draws.mean_p:.3f}), sd {draws.scale:.3f} +- {draws.scale_error:.3f} of the data's, covariance "
        f"off by {_off(draws.covariance_shift)} (p {draws.covariance_p:.3f}), energy distance "
        f"{draws.energy_distance:.2g} (p {draws.energy_p:.3f})",
    ]
    if report.rest is not None:
        rest = report.rest
        lines.append(
            f"{rest.num_chains} chains from the data: energies fall by {rest.fall:.2f} +- "
            f"{rest.fall_error:.2f} nats over a way of {rest.distance:.1f} noise levels"
        )
    if report.membership is not None:
        found = report.membership
        lines += [
            f"members told from others by {name}: AUC {found.chosen_auc[i]:.3f} +- "
            f"{found.chosen_auc_error[i]:.3f}, {found.chosen_tpr[i]:.1%} of them at "
            f"{found.false_positive_rate:.0%} false alarms (noise "
            f"{number(found.noise_levels[found.level[i]])})"
            for i, name in enumerate(STATISTICS)
        ]
    return "\n".join(lines)


def number(value: float | np.ndarray) -> str:
    """Three digits, and a dash for what was not measured."""
    if np.isnan(value):
        return "-"
    return f"{value:.3g}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"


def _off(value: float, unit: str = "") -> str:
    """A shift from which chance is taken off, so that it can be 0."""
    return f"{value:.2g}{unit}" if value > 0 else "no more than chance"
