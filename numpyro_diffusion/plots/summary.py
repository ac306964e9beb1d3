"""The pictures of a run in one figure: how the cloud fared by level, and the posterior of every site."""

import base64
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from .._arguments import whole_number
from ..smc import SMCResult
from .run import _draw_image, _draw_trace, plot_density
from .style import INK, pyplot

__all__ = ["as_png", "plot_run"]

_LEAST = 8  # pixels on a side of an image
_COLUMNS = 4
_LABELS = {"other_acceptance": "acceptance, other sites", "acceptance": "acceptance"}
_MOST = 12  # panels of sites
_VIOLINS = 20  # components


def plot_run(result: SMCResult, draws: Mapping[str, Any] | None = None) -> Any:
    """What happened at each level, and the posterior of each site.

    Numbers, and components of sites with up to four of them, have a histogram with a line a cloud; up to
    twenty components have a violin each, more the median with a band of 90 %. What is at least 8 by 8, beside
    axes of length 1, is an image with mean, standard deviation and two draws. A site with the values of an
    earlier one, such as `x_base` without a transformation, is left out.

    Args:
        result: Result of `run_smc`.
        draws: Real values by site, leading with `(num_chains, num_draws)`; the first 12 panels are drawn.

    Returns:
        A Matplotlib figure.
    """
    plt = pyplot()
    rows: list[list[Callable[[Any], None]]] = []
    if result.trace is not None:
        rows.append(_levels(result))
    small: list[Callable[[Any], None]] = []
    sites = dict(_different(draws or {}))
    sizes = [int(np.prod(values.shape[2:])) for values in sites.values()]
    each = (
        sum(size for size in sizes if size <= _COLUMNS) <= _MOST
    )  # else a panel for a whole vector
    for name, values in sites.items():
        shape = tuple(n for n in values.shape[2:] if n > 1)
        if len(shape) == 2 and min(shape) >= _LEAST:
            rows.append(_images(name, values.reshape(-1, *shape)))
        elif not shape or each and np.prod(shape) <= _COLUMNS:
            small += _densities(name, values)
        else:
            small.append(_band(name, values.reshape(-1, int(np.prod(shape)))))
    small = small[:_MOST]
    rows += [small[i : i + _COLUMNS] for i in range(0, len(small), _COLUMNS)]
    rows = rows[: 1 + _MOST]
    figure = plt.figure(figsize=(9.0, 1.9 * max(1, len(rows))), layout="constrained")
    parts = np.atleast_1d(figure.subfigures(max(1, len(rows)), 1))
    for part, panels in zip(parts, rows, strict=False):
        axes = np.atleast_1d(part.subplots(1, _COLUMNS))
        for ax in axes[len(panels) :]:
            ax.axis("off")
        for ax, draw in zip(axes, panels, strict=False):
            draw(ax)
    return figure


def as_png(figure: Any, most: int = 120_000) -> str:
    """A figure as the base64 text of a PNG of at most so many bytes; empty if it cannot be so small.

    The figure is closed, so that a notebook does not show it once more.
    """
    most = whole_number("most", most, 1)
    text = ""
    for dots in (80, 56, 40):
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=dots)
        if len(file.getvalue()) <= most:
            text = base64.b64encode(file.getvalue()).decode()
            break
    pyplot().close(figure)
    return text


def _levels(result: SMCResult) -> list[Callable[[Any], None]]:
    trace = result.trace
    panels = [
        ("effective sample size", trace.ess),
        ("log evidence gained [nats]", trace.log_evidence_increment),
        ("starting particles with offspring", trace.unique_ancestors),
    ]
    for name, label in _LABELS.items():
        rates = getattr(trace.info, name, None)
        if rates is not None and np.any(np.asarray(rates) != 1):
            panels.insert(1, (label, rates))

    def drawn(label, values):
        def draw(ax):
            _draw_trace(ax, result, values, label)
            ax.set_title(label, fontsize=8, loc="left")
            ax.set_xlabel("level", fontsize=8)
            ax.tick_params(labelsize=7)

        return draw

    return [drawn(*panel) for panel in panels[:_COLUMNS]]


def _different(draws: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Sites as floats, without those that repeat an earlier one."""
    seen: list[np.ndarray] = []
    for name, leaf in draws.items():
        values = np.asarray(leaf).astype(float)
        if not any(np.array_equal(values, other, equal_nan=True) for other in seen):
            seen.append(values)
            yield name, values


def _densities(name: str, values: np.ndarray) -> list[Callable[[Any], None]]:
    """A panel for each component of a site."""
    panels, event = [], values.shape[2:]
    for index in np.ndindex(event):
        label = f"{name}[{', '.join(map(str, index))}]" if np.prod(event) > 1 else name
        panels.append(_density(label, values[(..., *index)]))
    return panels


def _density(name: str, values: np.ndarray) -> Callable[[Any], None]:
    def draw(ax):
        if np.ptp(values) > 0 and np.isfinite(values).all():
            plot_density(ax, values, name)
        else:
            ax.axis("off")
            ax.set_title(f"{name} = {values.flat[0]:.4g}", fontsize=9, loc="left")

    return draw


def _band(name: str, values: np.ndarray) -> Callable[[Any], None]:
    def draw(ax):
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95], axis=0)
        index = np.arange(values.shape[1])
        violins = len(index) <= _VIOLINS and np.isfinite(values).all()
        if violins:
            bodies = ax.violinplot([*values.T], index, widths=0.9, showextrema=False)["bodies"]
            for body in bodies:
                body.set(facecolor=INK, alpha=0.3)
            ax.plot(index, middle, "o", color=INK, ms=2)
        else:
            ax.fill_between(index, low, high, color=INK, alpha=0.25, lw=0)
            ax.plot(index, middle, color=INK, lw=1)
        ax.set_title(f"{name}, by component", fontsize=9, loc="left")
        ax.tick_params(labelsize=7)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.spines[["top", "right"]].set_visible(False)

    return draw


def _images(name: str, values: np.ndarray) -> list[Callable[[Any], None]]:
    mean, spread = values.mean(0), values.std(0)
    limits = float(mean.min()), float(mean.max())
    panels = [
        (mean, f"{name}: mean", limits, "gray"),
        (spread, "sd", (0.0, float(spread.max())), "magma"),
        (values[0], "a draw", limits, "gray"),
        (values[len(values) // 2], "a draw", limits, "gray"),
    ]
    return [lambda ax, panel=panel: _draw_image(ax, *panel) for panel in panels]
