"""The page of all methods: its names exist, and its tables are whole."""

import re
from operator import attrgetter
from pathlib import Path

import pytest

import numpyro_diffusion as nd

PAGE = Path(__file__).parent.parent / "docs" / "methods.md"
TEXT = re.sub(r"<!--.*?-->", "", PAGE.read_text(), flags=re.DOTALL)
NAMES = sorted(set(re.findall(r"`nd\.([A-Za-z_]+(?:\.[A-Za-z_]+)*)", TEXT)))
ROWS = [line for line in TEXT.splitlines() if line.startswith("|") and "---" not in line]
HEAD = "| method | needs | target | exact as | bias measured | evaluations | reference | here |"


@pytest.mark.parametrize("name", NAMES)
def test_names_exist(name):
    assert callable(attrgetter(name)(nd))


def test_every_row_has_a_name_and_all_columns():
    rows = [row for row in ROWS if row != HEAD]
    assert len(ROWS) - len(rows) == TEXT.count(HEAD) >= 6 and len(rows) > 50
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 8, row
        assert cells[0] and re.search(r"`nd\.\w", cells[-1]), row
    shown = {cell.strip() for row in rows for cell in row.split("|")[7:8]}
    assert any(re.fullmatch(r"\d{4}\.\d{5}", cell) for cell in shown)


def test_methods_that_are_exported_are_there():
    """A scheme, twist or sampler that is public stands on the page."""
    schemes = {
        f"schemes.{name}"
        for name, entry in vars(nd.schemes).items()
        if isinstance(entry, type)
        and issubclass(entry, nd.schemes.AbstractProposal)
        and not name.startswith("Abstract")
    }
    assert len(schemes) == 5
    assert schemes | {"samplers.ensemble_kalman", "samplers.annealed_langevin"} <= set(NAMES)
