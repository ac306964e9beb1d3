"""Figures of a run: diagnostics by level, and posteriors of images."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _faq
from .._arguments import whole_number, whole_or_none
from ..smc import SMCResult
from .style import FAINT, INK, TRUTH, pyplot

__all__ = ["plot_density", "plot_genealogy", "plot_images", "plot_levels", "plot_restoration"]

_RATES = {
    "other_acceptance": "acceptance of the moves of the other sites",
    "acceptance": "acceptance of the moves",
}


def _draw_trace(ax: Any, result: SMCResult, values: Any, title: str) -> None:
    by_cloud = np.asarray(values, float).reshape(np.size(result.log_evidence), -1)
    level = np.arange(1, by_cloud.shape[1] + 1)
    ax.plot(level, by_cloud.T, color=INK, lw=1, alpha=0.7)
    ax.set_title(title, fontsize=9, loc="left")
    ax.margins(x=0.01)
    ax.spines[["top", "right"]].set_visible(False)


def plot_levels(result: SMCResult) -> Any:
    """Effective sample size, acceptance, ancestors and evidence by level, one line a cloud.

    Args:
        result: Result of `run_smc`.

    Returns:
        A Matplotlib figure.
    """
    plt = pyplot()
    trace = result.trace
    panels = [
        ("effective sample size, as a share of the particles", trace.ess, (0, 1.05)),
        ("starting particles with offspring", trace.unique_ancestors, (0, None)),
        ("log evidence gained [nats]", trace.log_evidence_increment, None),
    ]
    for name, label in _RATES.items():
        rates = getattr(trace.info, name, None)
        if rates is not None and np.any(np.asarray(rates) != 1):
            panels.insert(1, (label, rates, (0, 1.05)))
    size = (6.4, 1.5 * len(panels))
    figure, axes = plt.subplots(len(panels), 1, figsize=size, sharex=True, layout="constrained")
    for ax, (label, values, limits) in zip(axes, panels, strict=True):
        _draw_trace(ax, result, values, label)
        if limits is not None:
            ax.set_ylim(*limits)
    axes[-1].set_xlabel("level (noise to data)")
    return figure


def plot_genealogy(result: SMCResult, *, cloud: int = 0, num_particles: int = 60) -> Any:
    """Who descends from whom: lines from parents to children, those that lead to the end in ink.

    Where few lines in ink are left, all particles at the end share a few ancestors, and what was decided
    before cannot be told from chance.

    Args:
        result: Result of a run with `keep_genealogy=True`.
        cloud: Which cloud, where there are several.
        num_particles: Particles drawn, evenly spread over those of the cloud at the end.

    Returns:
        A Matplotlib figure.

    Raises:
        ValueError: If the run did not keep its genealogy.
    """
    cloud = whole_number("cloud", cloud, 0)
    num_particles = whole_number("num_particles", num_particles, 1)
    trace = result.trace
    if trace is None or trace.parents is None:
        raise ValueError(
            "the run kept no genealogy. Run again with `keep_genealogy=True` in `SMC` or "
            f"`run_smc`. {_faq.no_result}"
        )
    plt = pyplot()
    parents = np.asarray(trace.parents)
    parents = parents if parents.ndim == 2 else parents[cloud]
    levels, size = parents.shape
    kept = np.linspace(0, size - 1, min(num_particles, size)).round().astype(int)
    lines = np.empty((levels + 1, len(kept)), int)
    lines[-1] = kept
    for level in range(levels, 0, -1):
        lines[level - 1] = parents[level - 1, lines[level]]
    figure, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    shown = np.arange(0, size, max(1, size // 150))
    steps = np.stack([np.arange(levels), np.arange(1, levels + 1)])
    for level in range(levels):
        ax.plot(steps[:, level], [parents[level, shown], shown], color=FAINT, lw=0.3)
    ax.plot(np.arange(levels + 1), lines, color=INK, lw=0.8, alpha=0.8)
    ax.set(xlabel="level (noise to data)", ylabel="particle", xlim=(0, levels), ylim=(-1, size))
    left = len(np.unique(lines[0]))
    title = f"{len(kept)} particles at the end, {left} ancestors at the start"
    ax.set_title(title, fontsize=9, loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def plot_images(
    images: Sequence[Any],
    titles: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    limits: tuple[float, float] | None = None,
) -> Any:
    """Images in a grid with one colour scale; values that are not finite are hatched out.

    Args:
        images: Arrays of shape `(height, width)`.
        titles: One for each image.
        columns: Images a row; all in one row by default.
        limits: Values of the first and the last colour; by default the range of all images.

    Returns:
        A Matplotlib figure.
    """
    columns = whole_or_none("columns", columns, 1, "`None` takes one row.")
    plt = pyplot()
    images = [np.asarray(image, float) for image in images]
    titles = [""] * len(images) if titles is None else titles
    columns = len(images) if columns is None else columns
    rows = -(-len(images) // columns)
    size = (1.4 * columns + 0.6, 1.55 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    limits = _limits(images) if limits is None else limits
    shown = None
    for ax in axes.flat[len(images) :]:
        ax.axis("off")
    for ax, image, title in zip(axes.flat, images, titles, strict=False):
        shown = _draw_image(ax, image, title, limits)
    figure.colorbar(shown, ax=axes, shrink=0.8)
    return figure


def _limits(images: Sequence[np.ndarray]) -> tuple[float, float]:
    values = np.concatenate([image[np.isfinite(image)] for image in images])
    return float(values.min()), float(values.max())


def _draw_image(ax: Any, image: np.ndarray, title: str, limits: tuple, cmap: str = "gray") -> Any:
    ax.set_facecolor("0.93")
    ax.patch.set(hatch="////", edgecolor=FAINT)
    shown = ax.imshow(np.ma.masked_invalid(image), cmap=cmap, vmin=limits[0], vmax=limits[1])
    ax.set(xticks=[], yticks=[])
    ax.set_title(title, fontsize=9)
    return shown


def plot_density(ax: Any, draws: Any, label: str, truth: float | None = None) -> None:
    """Posterior of a scalar: a histogram of all draws, a smooth line a cloud, and the true value.

    Args:
        ax: Matplotlib axes.
        draws: Shape `(num_chains, num_draws)`.
        label: Title.
        truth: True value, if known.
    """
    draws = np.atleast_2d(np.asarray(draws, float))
    low, high = np.quantile(draws, [0.002, 0.998])
    ax.hist(draws.ravel(), 30, range=(low, high), density=True, color=INK, alpha=0.25)
    grid = np.linspace(low, high, 200)
    for cloud in draws[draws.std(1) > 0]:
        width = 0.9 * _scale(cloud) * cloud.size**-0.2  # Silverman's rule
        bells = np.exp(-0.5 * ((grid[:, None] - cloud) / width) ** 2)
        density = bells.mean(1) / (width * np.sqrt(2 * np.pi))
        ax.plot(grid, density, color=INK, lw=1, alpha=0.7)
    if truth is not None:
        ax.axvline(truth, color=TRUTH, lw=2, label=f"truth {truth:.3g}")
        ax.legend(frameon=False, fontsize=8)
    ax.set(yticks=[])
    ax.set_title(label, fontsize=9, loc="left")
    ax.spines[["left", "top", "right"]].set_visible(False)


def _scale(values: np.ndarray) -> float:
    """Standard deviation, or that of a normal distribution as high as the densest quarter: of one mode."""
    ordered = np.sort(values)
    quarter = max(1, len(ordered) // 4)
    narrow = np.min(ordered[quarter:] - ordered[:-quarter]) / 0.637
    return float(min(values.std(), narrow) if narrow > 0 and quarter >= 16 else values.std())


def plot_restoration(
    truth: Any,
    data: Any,
    images: Any,
    noise: Any,
    result: SMCResult,
    *,
    true_noise: float | None = None,
    num_draws: int = 5,
    noise_label: str = "posterior of the noise level",
) -> Any:
    """Figure of a restored image: truth, data, posterior mean and sd, draws, noise, run.

    Args:
        truth: The true image, shape `(height, width)`.
        data: What was measured, with NaN where nothing was.
        images: Posterior draws, shape `(num_chains, num_draws, height, width)`.
        noise: Posterior draws of the noise level, shape `(num_chains, num_draws)`.
        result: Result of the run.
        true_noise: True noise level.
        num_draws: Number of draws shown.
        noise_label: Title of the noise level's posterior.

    Returns:
        A Matplotlib figure.
    """
    num_draws = whole_number("num_draws", num_draws, 1)
    plt = pyplot()
    truth, images = np.asarray(truth, float), np.asarray(images, float)
    flat = images.reshape(-1, *images.shape[2:])
    spread = flat.std(0)
    draws = flat[np.linspace(0, len(flat) - 1, num_draws).round().astype(int)]
    limits = _limits([truth])

    figure = plt.figure(figsize=(8.2, 5.6), layout="constrained")
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=[1.25, 1.1, 1.2])
    axes = top.subplots(1, 4)
    panels = [("truth", truth), ("data", np.asarray(data, float)), ("posterior mean", flat.mean(0))]
    for ax, (title, image) in zip(axes, panels, strict=False):
        shown = _draw_image(ax, image, title, limits)
    top.colorbar(shown, ax=axes[:3], shrink=0.8)
    shown = _draw_image(axes[3], spread, "posterior sd", (0.0, float(spread.max())), "magma")
    top.colorbar(shown, ax=axes[3], shrink=0.8)

    for i, (ax, draw) in enumerate(zip(middle.subplots(1, num_draws), draws, strict=True)):
        _draw_image(ax, draw, "posterior draws" if i == num_draws // 2 else "", limits)

    left, right = bottom.subplots(1, 2)
    plot_density(left, noise, noise_label, true_noise)
    _draw_trace(
        right, result, result.trace.ess, "effective sample size, by level from noise to data"
    )
    right.set_ylim(0, 1.05)
    return figure
