"""Results of a benchmark that are kept in a file, one a line, so that a run that was cut off goes on."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path


class Kept:
    """What was computed before under a name; `file=None` keeps nothing."""

    def __init__(self, file: Path | None):
        self.file = file
        lines = file.read_text().splitlines() if file and file.exists() else []
        self.found = dict(json.loads(line) for line in lines)

    def __call__(self, name: str, compute: Callable[[], dict]) -> dict:
        """What the file has under a name, or what is computed now and then kept."""
        if name not in self.found:
            started = time.perf_counter()
            self.found[name] = compute()
            seconds = time.perf_counter() - started
            print(f"{name}: {self.found[name]} ({seconds:.1f} s)", file=sys.stderr, flush=True)
            if self.file:
                with self.file.open("a") as file:
                    file.write(json.dumps([name, self.found[name]]) + "\n")
        return self.found[name]
