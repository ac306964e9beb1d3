"""The figure of an audit: six panels."""

from typing import Any

import numpy as np

from ..auditing import STATISTICS, AuditReport, roc_curve
from .style import INK, TRUTH, pyplot

__all__ = ["plot_audit"]


def plot_audit(report: AuditReport) -> Any:
    """Residual, curl, positivity and normaliser by level, moments of draws, and memorisation.

    What is measured is dark, with bars of two standard errors. Red is what it is to be compared with. A
    panel whose question was not asked says so.

    Args:
        report: Result of `audit`.

    Returns:
        A Matplotlib figure.
    """
    plt = pyplot()
    figure, axes = plt.subplots(2, 3, figsize=(9.6, 5.4), layout="constrained")
    panels = (_residual, _curl, _positivity, _normalizer, _moments, _memorisation)
    for ax, panel in zip(axes.flat, panels, strict=True):
        panel(ax, report)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    reach = report.noise_levels[0] / 1.3, report.noise_levels[-1] * 1.3
    for ax in axes.flat[:4]:
        if ax.lines:
            ax.set(xscale="log", xlabel="noise level", xlim=reach)
    return figure


def _title(ax: Any, words: str) -> None:
    ax.set_title(words, fontsize=8.5, loc="left")


def _not_asked(ax: Any, words: str) -> None:
    ax.text(
        0.5, 0.5, words, ha="center", va="center", transform=ax.transAxes, color="0.5", fontsize=9
    )
    ax.set(xticks=[], yticks=[])


def _line(ax: Any, x: np.ndarray, y: np.ndarray, error: np.ndarray, **options: Any) -> None:
    settings = {"color": INK, "marker": "o", "ms": 3.5, "lw": 1.2, "capsize": 2} | options
    ax.errorbar(x, y, 2 * error, **settings)


def _residual(ax: Any, report: AuditReport) -> None:
    found, levels = report.denoising, report.noise_levels
    ax.axhline(1.0, color=TRUTH, lw=1.2, label="best linear denoiser")
    expected = found.predicted / found.linear
    label = "what it expects itself"
    _line(
        ax,
        levels,
        expected,
        found.predicted_error / found.linear,
        color="0.6",
        ls="--",
        label=label,
    )
    label = "this denoiser"
    _line(ax, levels, found.residual / found.linear, found.saving_error / found.linear, label=label)
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize=7.5, loc="lower right")
    _title(ax, "squared error, relative to a linear denoiser")


def _curl(ax: Any, report: AuditReport) -> None:
    found = report.curl
    floor = float(np.finfo(np.float32).tiny)
    _line(ax, report.noise_levels, np.maximum(found.ratio, floor), found.ratio_error)
    ax.plot(report.noise_levels, found.rounding, color=TRUTH, lw=1.2, label="rounding")
    ax.set(yscale="log", ylim=(min(1e-9, 0.3 * max(found.ratio.min(), 1e-17)), 2.0))
    ax.legend(frameon=False, fontsize=7.5, loc="upper right")
    _title(ax, "curl of the score (0 for a gradient)")


def _positivity(ax: Any, report: AuditReport) -> None:
    found = report.spectrum
    ax.axhline(0.0, color=TRUTH, lw=1.2)
    _line(ax, report.noise_levels, 100 * found.negative_share, 100 * found.negative_share_error)
    ax.set_ylim(top=max(1.05 * ax.get_ylim()[1], 2.0))
    ax.yaxis.set_major_formatter("{x:g} %")
    _title(ax, "negative part of the posterior covariance")


def _normalizer(ax: Any, report: AuditReport) -> None:
    found = report.offsets
    _title(ax, "normaliser by the scores, its scatter [nats]")
    if found is None or np.isnan(found.value).all():
        _not_asked(
            ax, "a denoiser alone\nhas no density" if found is None else "no level far from t_max"
        )
        return
    known = ~np.isnan(found.value)
    levels, value, spread = (a[known] for a in (found.noise_levels, found.value, found.spread))
    band = ax.fill_between(levels, value - spread, value + spread, color=INK, alpha=0.18, lw=0)
    band.set_label("one sd over examples")
    _line(ax, levels, value, found.value_error[known])
    if not np.isnan(report.log_normalizer):
        stored = {"color": TRUTH, "marker": "D", "ms": 5, "ls": "", "label": "stored"}
        ax.plot([levels[0]], [report.log_normalizer], **stored)
    low, high = ax.get_ylim()
    if high - low < 1.0:  # hundredths of a nat are no news
        ax.set_ylim(0.5 * (low + high) - 0.5, 0.5 * (low + high) + 0.5)
    ax.legend(frameon=False, fontsize=7.5)


def _moments(ax: Any, report: AuditReport) -> None:
    found = report.draws
    z_scores = {"means": found.mean_z.ravel(), "variances": found.variance_z.ravel()}
    reach = max(4.0, *(float(np.abs(z).max()) for z in z_scores.values()))
    edges = np.linspace(-reach, reach, 25)
    grid = np.linspace(-reach, reach, 300)
    scale = len(z_scores["means"]) * (edges[1] - edges[0])
    ax.hist(z_scores["means"], edges, color=INK, alpha=0.35, label="means")
    ax.hist(z_scores["variances"], edges, color=INK, histtype="step", lw=1.4, label="variances")
    bell = scale * np.exp(-0.5 * grid**2) / np.sqrt(2 * np.pi)
    ax.plot(grid, bell, color=TRUTH, lw=1.2, label="chance alone")
    ax.set(yticks=[], xlabel="standard errors")
    ax.legend(frameon=False, fontsize=7.5, loc="upper right")
    _title(ax, "draws against data, by coordinate")


def _memorisation(ax: Any, report: AuditReport) -> None:
    found = report.membership
    _title(ax, "are training examples recognised?")
    if found is None:
        _not_asked(ax, "no held-out examples")
        return
    ax.plot([0, 1], [0, 1], color=TRUTH, lw=1.2, label="chance alone")
    for i, (name, style) in enumerate(zip(STATISTICS, ("-", "--", ":"), strict=True)):
        level = found.level[i]
        curve = roc_curve(found.member_scores[i, level], found.other_scores[i, level])
        label = f"{name}, AUC {found.chosen_auc[i]:.2f} ± {found.chosen_auc_error[i]:.2f}"
        ax.plot(*curve, color=INK if i == 0 else "0.45", ls=style, lw=1.3, label=label)
    ax.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1.01))
    ax.legend(frameon=False, fontsize=7.5, loc="lower right")
