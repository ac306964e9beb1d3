"""The table of hostile cases: large enough, proven by tests that exist, and the page made of it."""

import importlib.util
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
SCRIPT = TESTS.parent / "scripts" / "hostile_page.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("hostile_page", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cases(script):
    return [case for kind in script.load().values() for case in kind]


def test_the_page_is_what_the_table_gives(script):
    assert script.PAGE.read_text() == script.page(script.load()), "run scripts/hostile_page.py"


def test_there_are_many_cases_and_no_two_alike(cases):
    assert len(cases) >= 60
    assert len({case.name for case in cases}) == len(cases)
    assert all(all(case) for case in cases)


def test_every_test_is_there(cases, request):
    """As pytest collects them; a test without a case in brackets stands for all of its cases."""
    there = set()
    for file in sorted({case.test.split("::")[0] for case in cases}):
        module = pytest.Module.from_parent(request.session, path=TESTS / file)
        for item in request.session.genitems(module):
            test = f"{file}::{item.name}"
            there |= {test, test.split("[")[0]}
    assert {case.test for case in cases} - there == set()
