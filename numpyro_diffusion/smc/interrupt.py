"""Deferred SIGINT and SIGTERM: an interrupt waits until the compiled chunk at hand has returned."""

import signal
import threading

__all__ = ["Deferred", "Terminable"]


def _raise(number, frame):
    del frame
    raise KeyboardInterrupt(f"signal {signal.Signals(number).name}")


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


class Terminable:
    """Within this context SIGTERM, which would end the process at once, is a `KeyboardInterrupt`.

    A handler that someone else has set stays.
    """

    def __init__(self):
        self.is_ours = False

    def __enter__(self):
        self.is_ours = _in_main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        if self.is_ours:
            signal.signal(signal.SIGTERM, _raise)
        return self

    def __exit__(self, kind, error, traceback):
        if self.is_ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Deferred:
    """An interrupt inside this context waits until it ends, so that a result is safe.

    Attributes:
        pending: Whether there was one.
    """

    def __init__(self):
        self.pending, self.before = False, {}

    def __enter__(self):
        if not _in_main_thread():
            return self
        self.before = {signal.SIGINT: signal.signal(signal.SIGINT, self.note)}
        if signal.getsignal(signal.SIGTERM) is _raise:
            self.before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self.note)
        return self

    def note(self, number, frame):
        del number, frame
        self.pending = True

    def __exit__(self, kind, error, traceback):
        for number, handler in self.before.items():
            signal.signal(number, handler)
