"""Some hundred damaged and hostile files for every reader; `scripts/fuzz_readers.py` makes more."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "fuzz_readers.py"
MUTANTS = {"prior": 200, "checkpoint": 300, "torch": 300, "equinox": 300, "safetensors": 300,
           "diffusers": 40}  # fmt: skip


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("fuzz_readers", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, module.readers()


@pytest.mark.parametrize("name", MUTANTS)
def test_no_mutant_gets_through(name, script):
    """Refused in our own words, or the numbers of the good file; nothing else, and nothing runs."""
    module, readers = script
    assert readers.keys() == MUTANTS.keys()
    found = module.fuzz(name, readers[name], MUTANTS[name], seconds=None)
    assert found.faults == []
    assert found.counts["refused"] > MUTANTS[name] // 2


def test_the_fuzzer_sees_what_it_looks_for(script, tmp_path):
    """A reader that reads all, one that raises another's error, and one that writes."""
    module, _ = script
    good = {"a": bytes(range(100))}
    readers = {
        "altered, sealed": lambda folder: (folder / "a").read_bytes(),
        "foreign KeyError": lambda folder: {bytes(range(100)): 1}[(folder / "a").read_bytes()],
        "ran open": lambda folder: (tmp_path / "b").write_text("x") and None,
    }
    for word, read in readers.items():
        found = module.fuzz("a", module.Reader(good, read, sealed=True), 20, seconds=None)
        assert found.faults and all(word in fault for fault in found.faults)
    with pytest.raises(module.TooSlow), module.limited(0.05):
        while True:
            pass
