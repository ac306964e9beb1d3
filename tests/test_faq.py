"""Sections of the page of messages: references lead there, and quoted messages are said."""

import ast
import re
from pathlib import Path

import pytest

import numpyro_diffusion
from numpyro_diffusion import _faq
from numpyro_diffusion.auditing import faults, second_order
from numpyro_diffusion.diagnostics import links

ROOT = Path(__file__).parent.parent
PACKAGE = Path(numpyro_diffusion.__file__).parent
DIAGNOSTICS, MODULES = (
    PACKAGE / "diagnostics",
    ("words", "evidence", "families", "exchange", "steps"),
)
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
        assert f"More: {_faq.PAGE}#" in links.more(sentence), sentence


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
    assert address is None or _faq.PAGE.startswith(address[1])


# Halves of sentences, which another error, with a link, takes in: "... cannot be read: {error}."
HALVES = {
    "_safetensors.py",
    "io/files.py",
    "io/labels.py",
    "io/trees.py",
    "smc/checkpoint.py",
    "teachers/arrays.py",
    "teachers/diffusers.py",
    "teachers/files.py",
    "teachers/torch_archive.py",
    "teachers/torch_pickle.py",
    "teachers/unet.py",
    "train/checkpoint.py",
}
# Warnings that quote a verdict, which has its link.
SAID_ELSEWHERE = {"more(reason)", "words", "verdict"}
# Signals and protocols of Python, which nobody reads as a message.
SILENT = {"KeyboardInterrupt", "NotImplementedError", "AssertionError"}


def messages(path):
    """Where an exception is made or a warning given: its line, its class, and the message."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name):
            yield node.lineno, node.exc.id, None
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if re.fullmatch(r"([\w.]+\.)?[A-Z]\w*Error|TrainingDiverged|warnings\.warn", name):
                yield node.lineno, name, node.args[0] if node.args else None


def last_part(message):
    """What a message ends with: text, or the expression that is filled in."""
    if isinstance(message, ast.BinOp):
        return last_part(message.right)
    if isinstance(message, ast.JoinedStr):
        return last_part(message.values[-1])
    if isinstance(message, ast.FormattedValue):
        return ast.unparse(message.value)
    return message.value if isinstance(message, ast.Constant) else ast.unparse(message)


def section_of(end):
    """The anchor that a message ends with, if it is one of the links."""
    name = end.removeprefix("_faq.")
    link = getattr(_faq, name, None) if name != end and name.isidentifier() else None
    return re.fullmatch(rf"More: {_faq.PAGE}#([\w-]+)", link) if isinstance(link, str) else None


def test_every_error_and_warning_ends_with_a_link_to_a_section():
    linked, halves = set(), set()
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).as_posix()
        for line, name, message in messages(path):
            if message is None:  # raised by its name: built above, or a protocol of Python
                assert name in {*SILENT, "error"}, f"{module}:{line} raises {name} without a word"
                continue
            end = last_part(message)
            section = section_of(end)
            if section:
                linked.add(section[1])
            elif not end.endswith((".", "?")) and module in HALVES:
                halves.add(module)
            else:
                assert end in SAID_ELSEWHERE, f"{module}:{line} ends with {end!r}, which is no link"
    assert linked <= set(ANCHORS), linked - set(ANCHORS)
    assert halves == HALVES
    links_of_errors = {found[1] for name in vars(_faq) if (found := section_of(f"_faq.{name}"))}
    assert links_of_errors - linked <= {"nothing-learned"}, "a section of errors that none leads to"


def test_every_finding_of_an_audit_leads_to_a_section():
    helpers = {"at", "surely", "worst"}
    checks = {*faults.__all__, *second_order.__all__} - helpers
    assert set(_faq.audit) == checks
    assert {link.partition("#")[2] for link in _faq.audit.values()} <= set(ANCHORS)


def test_a_quoted_error_leaves_its_link_out():
    with pytest.raises(ValueError) as caught:
        numpyro_diffusion.energies.Mixture([])
    assert str(caught.value).endswith(f"got none. {_faq.shapes}")
    assert _faq.bare(caught.value) == "`Mixture` expects at least one energy; got none."
    assert _faq.bare("Nothing more: to say") == "Nothing more: to say"
