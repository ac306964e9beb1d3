"""A small view of a result for notebooks: words by topic, text in columns, pictures; all is escaped."""

import html
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

__all__ = ["page", "picture", "sparkline"]


def page(title: str, facts: Mapping[str, str], text: str = "", pictures: Iterable[str] = ()) -> str:
    """HTML of a result.

    Args:
        title: The line above.
        facts: Words by topic, a row each.
        text: In a font of one width, as it is.
        pictures: HTML of pictures, such as `picture` and `sparkline` return; empty ones are left out.
    """
    style = 'style="text-align: left; vertical-align: top; padding: 1px 8px"'
    rows = "".join(
        f"<tr><th {style}>{html.escape(topic)}</th><td {style}>{html.escape(words)}</td></tr>"
        for topic, words in facts.items()
    )
    pre = f'<pre style="line-height: 1.25">{html.escape(text)}</pre>' if text else ""
    table = f"<table>{rows}</table>" if rows else ""
    return f"<div><b>{html.escape(title)}</b>{pre}{table}{''.join(pictures)}</div>"


def picture(base64: str, what: str) -> str:
    """A PNG in the page itself; nothing for an empty one."""
    if not base64:
        return ""
    return f'<img alt="{html.escape(what)}" src="data:image/png;base64,{base64}">'


def sparkline(values: Any, what: str, width: int = 320, height: int = 48) -> str:
    """A line a row of numbers in [0, 1], as an inline drawing.

    Args:
        values: Shape `(num_lines, num_points)`; at most 16 lines and 200 points a line are drawn.
        what: What they are.
        width: In pixels.
        height: In pixels.
    """
    values = np.asarray(values, float)
    values = values.reshape(-1, values.shape[-1])[:16]
    if values.shape[-1] < 2:
        return ""
    shown = np.unique(np.linspace(0, values.shape[-1] - 1, 200).astype(int))
    x = width * shown / (values.shape[-1] - 1)
    lines = []
    for row in values[:, shown]:
        y = height * (1 - np.clip(np.nan_to_num(row), 0, 1))
        points = " ".join(f"{a:.0f},{b:.1f}" for a, b in zip(x, y, strict=True))
        lines.append(f'<polyline points="{points}" fill="none" stroke="#30506d"/>')
    return (
        f'<div><svg width="{width}" height="{height}" style="border-bottom: 1px solid #bbb">'
        f"{''.join(lines)}</svg><br><small>{html.escape(what)}</small></div>"
    )
