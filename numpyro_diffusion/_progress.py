"""Progress bars: drawn anew in a terminal or notebook, and at most one line a minute in a log.

Where standard error is neither, lines of all bars of the process share one clock, so that a run of
many short stages is as quiet as a long one, and a run of less than a minute prints no states.

Until something is done a bar says what is compiled, which a first run spends most of its time on: in a
terminal at once, and in a log after two seconds, so that what is compiled already says nothing.

Not rich's bars, which say nothing before their end where there is no terminal.
"""

import sys
from threading import Timer
from time import monotonic
from typing import Any

import tqdm.auto

__all__ = ["INTERVAL", "SILENCE", "progress"]

INTERVAL = 60.0  # seconds between two lines of a log
SILENCE = 2.0  # seconds after which a log is told that something is compiled


class Bar(tqdm.auto.tqdm):
    """A bar that says what it waits for until something is done.

    Args:
        waits: What it says.
        **options: Of tqdm.
    """

    _waits = ""  # while the bar is made, which draws it

    def __init__(self, waits: str = "", **options: Any):
        super().__init__(**options)
        if not self.disable:
            self._waits = waits
            self._wait()

    @property
    def is_waiting(self) -> bool:
        """Whether nothing is done, and nothing else was said."""
        return bool(self._waits) and self.postfix == self._waits

    def _wait(self) -> None:
        self.set_postfix_str(self._waits)

    def update(self, n: float | None = 1) -> bool | None:
        """Count on."""
        if self.is_waiting:
            self.set_postfix_str("", refresh=False)
        return super().update(n)


class LogBar(Bar):
    """A bar whose states are lines of a log, when the last line is long ago."""

    _last: float | None = None  # of the process
    _timer: Timer | None = None

    def _wait(self) -> None:
        self.set_postfix_str(self._waits, refresh=False)
        self._timer = Timer(SILENCE, self._tell)
        self._timer.daemon = True
        self._timer.start()

    def _tell(self) -> None:
        if self.is_waiting and not self.disable:
            LogBar._last = monotonic()
            self.fp.write(f"{self.desc}: {self._waits}\n")
            self.fp.flush()

    def display(self, msg: str | None = None, pos: int | None = None, **_: Any) -> None:  # type: ignore[override]
        """Write the bar as a line, if one is due."""
        del pos
        now = monotonic()
        since = now if LogBar._last is None else LogBar._last
        is_empty = self.n == self.initial and not self.is_waiting  # a bar that was just made
        is_due = now - since >= INTERVAL and not is_empty
        LogBar._last = now if is_due else since
        if is_due:
            self.fp.write(f"{self if msg is None else msg}\n")
            self.fp.flush()

    def clear(self, nolock: bool = False) -> None:
        """Nothing: lines of a log stay."""

    def close(self) -> None:
        """Let go of the bar, without the empty line that would end a drawn one."""
        if self._timer is not None:
            self._timer.cancel()
        if not self.disable:
            self.disable = True
            type(self)._decr_instances(self)  # type: ignore[attr-defined]


def progress(*, enabled: bool, compiles: str, **options: Any) -> Any:
    """A bar of tqdm that suits where standard error goes.

    Args:
        enabled: Whether to show it.
        compiles: What is compiled before anything is done, and how often, in words.
        **options: Of tqdm, such as `total`, `initial` and `desc`.
    """
    waits = f"compiling {compiles}"
    drawn = _in_notebook() or sys.stderr is not None and sys.stderr.isatty()
    if drawn or not enabled:
        return Bar(waits, disable=not enabled, **options)
    return LogBar(waits, ncols=100, **options)


def _in_notebook() -> bool:
    """Whether tqdm found a notebook, where standard error is no terminal."""
    return any(base.__module__ == "tqdm.notebook" for base in tqdm.auto.tqdm.__mro__)
