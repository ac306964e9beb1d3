"""What is in the wheel: code, types, weights and the digits with their licence; nothing else."""

from pathlib import Path

import numpy as np
import pytest
from sklearn import datasets

from numpyro_diffusion.pretrained import digits_split, load_digits

ROOT = Path(__file__).parent.parent


def test_files_of_the_wheel():
    wheel = pytest.importorskip("hatchling.builders.wheel")
    builder = wheel.WheelBuilder(str(ROOT))
    files = {
        Path(file.distribution_path).as_posix(): Path(file.path).stat().st_size
        for file in builder.recurse_included_files()
    }
    assert {name.partition("/")[0] for name in files} == {"numpyro_diffusion"}
    modules = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "numpyro_diffusion").rglob("*.py")
    }
    others = {name for name in files if not name.endswith(".py")}
    assert modules == set(files) - others
    pretrained = "numpyro_diffusion/pretrained/"
    assert {"numpyro_diffusion/py.typed", f"{pretrained}optdigits.npz"} <= others
    assert f"{pretrained}optdigits.LICENSE.txt" in others
    assert f"{pretrained}digits-8x8.safetensors" in others
    assert {Path(name).suffix for name in others} <= {
        ".md",
        ".npz",
        ".png",
        ".safetensors",
        ".txt",
        ".bib",
        ".typed",
    }
    assert sum(files.values()) < 6e6  # uncompressed
    told = set(builder.metadata.core.license_files)
    assert told == {"LICENSE", f"{pretrained}optdigits.LICENSE.txt"}


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_shipped_digits_are_those_of_scikit_learn(part):
    images, labels = load_digits(part)
    rows = getattr(digits_split(), part)
    found = datasets.load_digits()
    assert images.dtype == np.float32 and labels.dtype == np.int64
    np.testing.assert_array_equal(8 * (images + 1), found.images[rows])
    np.testing.assert_array_equal(labels, found.target[rows])
