"""Deferred SIGINT: an interrupt waits until the compiled chunk at hand has returned."""

import signal
import threading

__all__ = ["Deferred"]


class Deferred:
    """An interrupt inside this context waits until it ends, so that a result is safe.

    Attributes:
        pending: Whether there was one.
    """

    def __init__(self):
        self.pending, self.before = False, None

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGINT, self.note)
        return self

    def note(self, number, frame):
        del number, frame
        self.pending = True

    def __exit__(self, kind, error, traceback):
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)
