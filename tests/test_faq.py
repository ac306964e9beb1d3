"""Sections of the page of messages: references lead there, and quoted messages are said."""

import ast
import re
from pathlib import Path

import pytest

import numpyro_diffusion
from numpyro_diffusion.diagnostics import links

ROOT = Path(__file__).parent.parent
PACKAGE = Path(numpyro_diffusion.__file__).parent
DIAGNOSTICS, MODULES = PACKAGE / "diagnostics", ("words", "evidence", "exchange", "steps")
PAGE = (ROOT / "docs" / "faq.md").read_text()
HEADING = re.compile(r"^#{2,3} (?P<title>.*?)(?: \{ #(?P<anchor>[\w-]+) \})?$", re.MULTILINE)
ANCHORS = [match["anchor"] for match in HEADING.finditer(PAGE) if match["anchor"]]


def strings(path):
    """String constants of a module, with `{}` for what is filled in."""
    found, parts = [], set()
    for node in ast.walk(ast.parse(path.read_text())):  # a whole comes before its parts
        if isinstance(node, ast.JoinedStr):
            values = [
                part.value if isinstance(part, ast.Constant) else "{}" for part in node.values
            ]
            found.append("".join(map(str, values)))
            parts.update(map(id, node.values))
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts
        ):
            found.append(node.value)
    return found


def findings():
    """The sentences that judge a run: long strings of the modules that make verdicts, docstrings apart."""
    for name in MODULES:
        for text in strings(DIAGNOSTICS / f"{name}.py"):
            if len(text) > 100 and "\n" not in text:
                yield text


def test_anchors_are_there_once():
    assert len(ANCHORS) == len(set(ANCHORS)) > 40
    assert set(links._SECTIONS.values()) <= set(ANCHORS)


def test_every_finding_leads_to_a_section():
    sentences = list(findings())
    assert len(sentences) > 15
    for sentence in sentences:
        assert f"More: {links._PAGE}#" in links.more(sentence), sentence


def test_no_words_have_gone_out_of_use():
    said = "\n".join(text for name in MODULES for text in strings(DIAGNOSTICS / f"{name}.py"))
    for words in links._SECTIONS:
        assert re.sub(r"\+inf|NaN", "{}", words) in said, words


@pytest.mark.parametrize(
    ("sentence", "anchor"),
    [
        ("Cloud 2 collapsed at level 21: 3 of 512 starting particles", "collapse"),
        ("Log density NaN at site `y`. Log density +inf at site `x`.", "infinite-density"),
        ("Nothing to worry about, but 4 are few clouds: by chance.", "few-clouds"),
        ("Nothing to worry about in what the particles have seen", "nothing-to-worry-about"),
        ("The final effective sample size is 3.0% of a cloud", "uneven-weights"),
        ("Level 12 kept 8% of a cloud's effective sample size, where a", "steep-level"),
    ],
)
def test_a_sentence_finds_its_own_section(sentence, anchor):
    assert links.more(sentence) == f"{sentence} More: docs/faq.md#{anchor}"


def test_words_of_others_stay_as_they_are():
    assert links.more("Something else.") == "Something else."


def test_quoted_messages_are_said():
    """Titles quote messages in backticks; dots stand for what is filled in."""
    said = "\n".join(text for path in PACKAGE.rglob("*.py") for text in strings(path))
    quoted = [
        quote
        for match in HEADING.finditer(PAGE)
        if match["anchor"]
        for quote in re.findall(r"`([^`]+)`", match["title"])
    ]
    assert len(quoted) > 25
    for quote in quoted:
        for part in quote.removeprefix("PilotError: ").split("..."):
            assert part.strip() in said, f"{quote}: nobody says {part.strip()!r}"


def test_the_page_has_the_address_of_the_site():
    settings = (ROOT / "mkdocs.yml").read_text()
    address = re.search(r"^site_url: *(\S+)", settings, re.MULTILINE)
    assert address is None or links._PAGE.startswith(address[1])
