"""The site as a reader sees it: nothing swallowed, no dead link, no other host, formulas typeset."""

import subprocess
import sys
from pathlib import Path

import pytest
import site_check

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"

needs_browser = pytest.mark.skipif(
    site_check.BROWSER is None, reason="no Chromium; where there is one, pages are opened in it"
)


def build(config, site, *options):
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
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stderr


def source_of(name):
    """The Markdown of a built page."""
    folder = name.removesuffix("index.html").rstrip("/")
    return DOCS / f"{folder}.md" if folder else DOCS / "index.md"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    code, said = build(ROOT / "mkdocs.yml", folder, "--strict")
    assert code == 0, f"the site does not build:\n{said}"
    return folder


@pytest.fixture(scope="module")
def seen(site):
    return site_check.look(site)


def test_pages_have_all_that_their_sources_have(site):
    """A fence that the renderer does not know swallows what follows, and no build complains."""
    pages = site_check.pages_of(site)
    assert {source_of(name) for name in pages} == set(DOCS.rglob("*.md"))
    for name, path in pages.items():
        if not name.startswith("api/"):  # those are written by docstrings
            wanted = site_check.source_counts(source_of(name).read_text())
            assert site_check.html_counts(path) == wanted, name


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
    for part in ("assets/katex", "javascripts"):
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
