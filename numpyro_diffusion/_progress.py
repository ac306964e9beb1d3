"""Progress bars: drawn anew in a terminal or notebook, and at most one line a minute in a log.

Where standard error is neither, lines of all bars of the process share one clock, so that a run of
many short stages is as quiet as a long one, and a run of less than a minute prints nothing.

Not rich's bars, which say nothing before their end where there is no terminal.
"""

import sys
from time import monotonic
from typing import Any

import tqdm.auto

__all__ = ["INTERVAL", "progress"]

INTERVAL = 60.0  # seconds between two lines of a log


class LogBar(tqdm.auto.tqdm):
    """A bar whose states are lines of a log, when the last line is long ago."""

    _last: float | None = None  # of the process

    def display(self, msg: str | None = None, pos: int | None = None, **_: Any) -> None:  # type: ignore[override]
        """Write the bar as a line, if one is due."""
        del pos
        now = monotonic()
        since = now if LogBar._last is None else LogBar._last
        is_due = now - since >= INTERVAL
        LogBar._last = now if is_due else since
        if is_due:
            self.fp.write(f"{self if msg is None else msg}\n")
            self.fp.flush()

    def clear(self, nolock: bool = False) -> None:
        """Nothing: lines of a log stay."""

    def close(self) -> None:
        """Let go of the bar, without the empty line that would end a drawn one."""
        if not self.disable:
            self.disable = True
            type(self)._decr_instances(self)  # type: ignore[attr-defined]


def progress(*, enabled: bool, **options: Any) -> Any:
    """A bar of tqdm that suits where standard error goes.

    Args:
        enabled: Whether to show it.
        **options: Of tqdm, such as `total`, `initial` and `desc`.
    """
    drawn = _in_notebook() or sys.stderr is not None and sys.stderr.isatty()
    if drawn or not enabled:
        return tqdm.auto.tqdm(disable=not enabled, **options)
    return LogBar(ncols=100, **options)


def _in_notebook() -> bool:
    """Whether tqdm found a notebook, where standard error is no terminal."""
    return any(base.__module__ == "tqdm.notebook" for base in tqdm.auto.tqdm.__mro__)
