"""Every example runs from end to end in its tiny form."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(script, pages, tmp_path):
    code, output = pages.run(script, "--tiny", folder=tmp_path)
    assert code == 0, f"{script.name} failed:\n{output}"
    assert "Traceback" not in output, output
