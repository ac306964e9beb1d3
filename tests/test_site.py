"""The site as a reader sees it: nothing swallowed, no dead link, no other host, formulas typeset."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import site_check
from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
LESSONS = sorted((DOCS / "course").glob("[0-9][0-9]-*.py"))

needs_browser = pytest.mark.skipif(
    site_check.BROWSER is None, reason="no Chromium; where there is one, pages are opened in it"
)


def build(config, site, *options, **settings):
    """Exit code and messages of a build, with further environment variables."""
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "-f",
        str(config),
        "-d",
        str(site),
        *options,
    ]
    environment = os.environ | settings
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    return done.returncode, done.stderr


def source_of(name):
    """The source of a built page, in Markdown or a lesson."""
    folder = name.removesuffix("index.html").rstrip("/")
    if (DOCS / f"{folder}.py") in LESSONS:
        return DOCS / f"{folder}.py"
    if (DOCS / folder / "index.md").exists():
        return DOCS / folder / "index.md"
    return DOCS / f"{folder}.md" if folder else DOCS / "index.md"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    # Lessons with few particles; `test_every_lesson_is_quiet_at_full_size` has the others.
    brief = {"COURSE_BRIEF": "1", "COURSE_KERNELS": "1"}
    code, said = build(ROOT / "mkdocs.yml", folder, "--strict", **brief)
    assert code == 0, f"the site does not build:\n{said}"
    return folder


@pytest.fixture(scope="module")
def seen(site):
    return site_check.look(site)


def test_pages_have_all_that_their_sources_have(site):
    """A fence that the renderer does not know swallows what follows, and no build complains."""
    pages = site_check.pages_of(site)
    assert {source_of(name) for name in pages} == {*DOCS.rglob("*.md"), *LESSONS}
    for name, path in pages.items():
        if (
            not name.startswith("api/") and source_of(name) not in LESSONS
        ):  # docstrings write the first
            wanted = site_check.source_counts(source_of(name).read_text())
            assert site_check.html_counts(path) == wanted, name


def test_there_are_ten_lessons():
    assert [path.name[:2] for path in LESSONS] == [f"{number:02}" for number in range(1, 11)]


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_is_executed_whole_and_can_be_downloaded(site, lesson):
    """Against the text of the source, whose cells are counted here, and the notebook that readers get."""
    text = lesson.read_text()
    marks = re.findall(r"^# %%(.*)$", text, re.MULTILINE)
    kinds = ["markdown" if "[markdown]" in mark else "code" for mark in marks]
    page = site / "course" / lesson.stem / "index.html"
    (link,) = (link for link in site_check.links_of(page) if link.endswith(".ipynb"))
    notebook = json.loads((page.parent / link).resolve().read_text())
    nbformat.validate(notebook)
    cells = notebook["cells"]
    assert [cell["cell_type"] for cell in cells] == kinds
    headings = len(re.findall(r"^# #{1,6} ", text, re.MULTILINE))
    pictures = [mark for mark in marks if "alt=" in mark]
    counts = site_check.lesson_counts(notebook)
    assert counts["headings"] == headings and pictures
    assert site_check.html_counts(page) == counts
    html = page.read_text()
    for mark in pictures:
        assert re.search(r'alt="([^"]*)"', mark).group(0) in html, mark
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["execution_count"]
            kinds = [output["output_type"] for output in cell["outputs"]]
            assert all(output.get("name") != "stderr" for output in cell["outputs"])
            assert ("stream", "stream") not in zip(kinds, kinds[1:], strict=False), (
                "printed at once"
            )
    following = {path.stem for path in LESSONS[LESSONS.index(lesson) + 1 :][:1]}
    links = set(re.findall(r"^# Next: \[[^\]]*\]\((.*?)\.md\)", text, re.MULTILINE))
    assert "## Exercises" in text and links == following


@pytest.mark.long
def test_every_lesson_is_quiet_at_full_size(tmp_path):
    """At the size of the site no cell of a lesson may warn; the build says where one does."""
    code, said = build(ROOT / "mkdocs.yml", tmp_path / "site", "--strict", COURSE_BRIEF="0")
    assert code == 0, said


BROKEN = {
    "raises": ("numbers = [1, 2]\nnumbers[2]", "IndexError"),
    "warns": ("import warnings\nwarnings.warn('odd')", "UserWarning: odd"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_lesson_that_fails_fails_the_build(fault, tmp_path):
    code, message = BROKEN[fault]
    lesson = f"# %% [markdown]\n# # Broken\n\n# %%\nprint('well')\n\n# %%\n{code}\n"
    folder = tmp_path / "docs" / "course"
    folder.mkdir(parents=True)
    (folder / "01-broken.py").write_text(lesson)
    (tmp_path / "docs" / "index.md").write_text("# Home\n")
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"site_name: x\nplugins: []\nhooks: [{ROOT / 'scripts' / 'course.py'}]\n")
    status, said = build(config, tmp_path / "site", COURSE_BRIEF="0", COURSE_KERNELS="1")
    assert status and "01-broken.py, cell 2" in said and message in said, said


def test_a_picture_without_words_is_refused():
    spec = importlib.util.spec_from_file_location("course", ROOT / "scripts" / "course.py")
    course = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(course)
    new = nbformat.v4
    output = new.new_output("display_data", {"image/png": "aGk=", "text/plain": "<Figure>"})
    title, cell = new.new_markdown_cell("# A"), new.new_code_cell("draw()", outputs=[output])
    notebook = new.new_notebook(cells=[title, cell])
    with pytest.raises(PluginError, match="say what the picture shows"):
        course.page(notebook, "01-a")
    cell.metadata["alt"] = "two dots"
    text, pictures = course.page(notebook, "01-a")
    assert "![two dots](01-a-1.png)" in text and pictures == {"01-a-1.png": b"hi"}


def test_links_lead_somewhere(site):
    assert not site_check.dead_links(site)


def test_no_other_host_is_asked(site):
    assert not site_check.other_hosts(site)


@needs_browser
def test_a_browser_sees_every_page_whole(site, seen):
    assert set(seen) == set(site_check.pages_of(site))
    assert sum(page["formulas"] for page in seen.values()) > 300
    for name, page in seen.items():
        written = site_check.html_counts(site / name)
        assert {kind: page[kind] for kind in written} == written, name
        assert page["typeset"] == page["formulas"], name
        for fault in ("missing", "refused", "raw", "said", "asked"):
            assert not page[fault], (name, fault, page[fault])
        assert not page["hidden"], f"{name} is wider than the window"


FAULTS = {
    "fence": "# Fence\n\n```python notest\na = 1\n```\n\n## Lost\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
    "```python\nb = 2\n```\n",
    "link": "# Link\n\nSee [nothing](index.md#nowhere) and [less](gone.md).\n",
    "script": '# Script\n\n<script src="https://cdn.example.org/x.js"></script>\n\nWords.\n',
    "formula": "# Formula\n\n$\\undefinedmacro{x$ and $\\frac{1}{$, then $\\nosuchmacro{x}$.\n",
    "picture": "# Picture\n\n![gone](images/gone.png)\n",
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """A small site with one fault a page."""
    root = tmp_path_factory.mktemp("faulty")
    docs = root / "docs"
    for part in ("assets/katex", "javascripts", "stylesheets"):
        (docs / part).parent.mkdir(parents=True, exist_ok=True)
        (docs / part).symlink_to(DOCS / part)
    docs.joinpath("index.md").write_text("# Home\n\nA formula $x^2$.\n")
    for name, text in FAULTS.items():
        docs.joinpath(f"{name}.md").write_text(text)
    settings = (ROOT / "mkdocs.yml").read_text()
    before, _, rest = settings.partition("\nnav:\n")
    after = rest.partition("\nmarkdown_extensions:")[2]
    extensions, _, scripts = after.partition("\nplugins:\n")
    scripts = "\nextra_javascript:" + scripts.partition("\nextra_javascript:")[2]
    scripts = scripts.partition("\nvalidation:")[0]
    root.joinpath("mkdocs.yml").write_text(
        f"{before}\nmarkdown_extensions:{extensions}\nplugins: [search]\n{scripts}\n"
    )
    code, said = build(root / "mkdocs.yml", root / "site")
    assert code == 0, said
    return root / "site"


def test_a_fence_that_swallows_is_found(faulty):
    wanted = site_check.source_counts(FAULTS["fence"])
    assert wanted == {"headings": 2, "code": 2, "tables": 1, "images": 0}
    assert site_check.html_counts(faulty / "fence" / "index.html") != wanted


def test_dead_links_and_other_hosts_are_found(faulty):
    dead = site_check.dead_links(faulty)
    assert {line.partition(":")[0] for line in dead} == {"link/index.html", "picture/index.html"}
    assert len(dead) == 3
    (asked,) = site_check.other_hosts(faulty)
    assert asked == "script/index.html: https://cdn.example.org/x.js"


@needs_browser
def test_a_browser_finds_what_is_not_shown(faulty):
    pages = site_check.look(faulty)
    assert pages["index.html"]["typeset"] == 1
    assert pages["formula/index.html"]["refused"]
    assert pages["picture/index.html"]["missing"]
    assert any("cdn.example.org" in line for line in pages["script/index.html"]["said"])
    assert pages["script/index.html"]["asked"] == ["https://cdn.example.org/x.js"]
    assert not pages["index.html"]["said"]
