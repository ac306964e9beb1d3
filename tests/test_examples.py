"""Every example runs from end to end in its tiny form."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


# A run prints its verdict, in full or below its summary.
RUN = r"run_smc\(|nd\.SMC\("
VERDICT = r"diagnostics\.verdict\(|\.print_summary\("


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_every_run_of_particles_prints_a_verdict(script):
    code = script.read_text()
    assert len(re.findall(VERDICT, code)) >= len(re.findall(RUN, code))


@pytest.mark.slow
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(script, pages, tmp_path):
    code, output = pages.run(script, "--tiny", folder=tmp_path)
    assert code == 0, f"{script.name} failed:\n{output}"
    assert "Traceback" not in output, output
    if script.stem == "without_data":  # 50 particles and 6 levels are far too few, and it says so
        assert "log evidence" in output and "Nothing to worry about" not in output, output
