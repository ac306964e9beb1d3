"""Shared settings: 64-bit floats, fixed seeds, no display."""

import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

import jax
import numpy as np
import psutil
import pytest

# ArviZ 0.23 warns once a day and notes the day in a file. Import it before pytest-xdist starts its
# workers, which would race to write that file.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    import arviz  # noqa: F401

# Tracing makes millions of small objects, and to look through them for cycles after every few hundred is a
# sixth of its time. Modules are left out of the search, which is made less often.
gc.freeze()
gc.set_threshold(100_000, 20, 20)

jax.config.update("jax_enable_x64", True)

# JAX writes its cache of compiled programs without locks: each worker has a folder of its own, and so have
# the processes that it starts.
_CACHE, _WORKER = "JAX_COMPILATION_CACHE_DIR", os.environ.get("PYTEST_XDIST_WORKER")
if _WORKER and os.environ.get(_CACHE):
    os.environ[_CACHE] = os.path.join(os.environ[_CACHE], _WORKER)
    jax.config.update("jax_compilation_cache_dir", os.environ[_CACHE])


_MOST_MEMORY = 5e9  # bytes of a worker: compiled programs are kept for later tests until then


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """Keep compiled programs from module to module, but not thousands of them in one process."""
    yield
    if psutil.Process().memory_info().rss > _MOST_MEMORY:
        jax.clear_caches()
        gc.collect()
        # What is free goes back to the system, or every later module would find too much in use.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


class Pages:
    """A process that runs scripts as a reader would: 32-bit floats, a folder of their own."""

    def __init__(self):
        environment = {**os.environ, "JAX_ENABLE_X64": "0"}
        command = [sys.executable, str(Path(__file__).parent / "page_server.py")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, **pipes)

    def run(self, script, *arguments, folder):
        """Exit code and output of a script."""
        asked = {"script": str(script), "arguments": list(arguments), "folder": str(folder)}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the process that runs {script} has died"
        answer = json.loads(answer)
        return answer["code"], answer["output"]


@pytest.fixture(scope="session")
def pages():
    """One process for all pages and examples of a worker."""
    server = Pages()
    yield server
    server.process.stdin.close()
    server.process.wait(timeout=60)
    server.process.stdout.close()


@pytest.fixture
def key():
    """A fixed PRNG key; split it where more than one is needed."""
    return jax.random.key(20240827)


@pytest.fixture
def rng():
    """A fixed NumPy generator, for test data."""
    return np.random.default_rng(20250217)


@pytest.fixture
def optimized():
    """Let the compiler do all it does for a user: for tests that count digits of 32-bit floats."""
    hurried = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", hurried)


@pytest.fixture
def float32():
    """Switch to 32-bit floats, the default outside the tests, for one test."""
    with jax.enable_x64(False):
        yield
