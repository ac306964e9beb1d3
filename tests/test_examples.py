"""Every example runs from end to end in its tiny form."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(script, tmp_path):
    # A process of its own: a user has 32-bit floats and no state left by other tests.
    environment = {**os.environ, "MPLBACKEND": "agg", "JAX_ENABLE_X64": "0"}
    run = subprocess.run(
        [sys.executable, str(script), "--tiny"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, f"{script.name} failed:\n{run.stdout}\n{run.stderr}"
    assert "Traceback" not in run.stderr, run.stderr
