"""The oldest versions under test are the lower bounds of the package."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

TESTS = Path(__file__).parent
PROJECT = tomllib.loads((TESTS.parent / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
NEEDED = [*PROJECT["dependencies"], *EXTRAS["plots"], *EXTRAS["examples"]]


def lowest() -> dict[str, Version]:
    """The versions of `make test-lowest`."""
    lines = (TESTS / "lowest.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if "==" in line]
    return {name: Version(version) for name, version in pairs}


def bound(requirement: Requirement) -> Version:
    """The lower bound of a requirement: the one version after `>=`."""
    (version,) = [each.version for each in requirement.specifier if each.operator == ">="]
    return Version(version)


@pytest.mark.parametrize("line", sorted({*NEEDED, *EXTRAS["test"]}))
def test_lower_bounds_are_the_versions_under_test(line):
    requirement = Requirement(line)
    if requirement.name in ("hatchling", "import-linter", "pyright", "ruff"):
        assert line not in NEEDED and requirement.name not in lowest()
    else:
        assert lowest()[requirement.name] == bound(requirement)
