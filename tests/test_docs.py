"""Documentation that runs, and that is complete.

The Python blocks of the README and of the documentation run as they are printed: the blocks of one
page in order, as one script with 32-bit floats, since that is what a reader has (see `page_server.py`). A
block whose fence reads ```` ```{ .python .notest } ```` is rendered and not run. A hidden comment
`<!-- setup: ... -->`
holds code that runs in its place without being shown: data that the page takes for granted.
"""

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import page_server
import pytest

import numpyro_diffusion

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"^(?P<indent>[ ]*)```python(?P<info>[^\n]*)\n(?P<code>.*?)^(?P=indent)```[ ]*$"
    r"|<!-- setup:(?P<setup>.*?)-->",
    re.MULTILINE | re.DOTALL,
)


def as_script(text: str) -> str:
    """The code of a page on the lines where the page has it, so that tracebacks point there."""
    script = ""
    for match in BLOCK.finditer(text):
        if match["setup"] is not None:
            start, code = match.start("setup"), textwrap.dedent(match["setup"]).strip(" ")
        else:
            start, code = match.start("code"), textwrap.dedent(match["code"])
        script += "\n" * (text.count("\n", 0, start) - script.count("\n")) + code
    return script


MODULES = [
    info.name
    for info in pkgutil.walk_packages(numpyro_diffusion.__path__, "numpyro_diffusion.")
    if not any(part.startswith("_") for part in info.name.split("."))
]
SCRIPTS = {str(page.relative_to(ROOT)): as_script(page.read_text()) for page in PAGES}


# Pages that compile for a minute or more run in `make test-long`.
LONG = {
    f"docs/{name}.md"
    for name in (
        "amortised",
        "audit",
        "classifying-and-comparing",
        "coming-from",
        "composition",
        "conditions",
        "densities",
        "extending",
        "forecasting",
        "heuristics",
        "hierarchies",
        "hyperparameters",
        "inside-mcmc",
        "many-latents",
        "normalizers-and-horizons",
        "parents",
        "populations-and-couplings",
        "probability-flow",
        "rewards-and-ratios",
        "tables",
        "training",
        "without-data",
    )
}


def marked(page: str):
    """A page with the stage of the tests that runs it."""
    return pytest.param(page, marks=pytest.mark.long if page in LONG else pytest.mark.slow, id=page)


@pytest.mark.parametrize(
    "page", [marked(page) for page, script in SCRIPTS.items() if script.strip()]
)
def test_blocks_run(page, pages, tmp_path):
    script = tmp_path / "page.py"
    script.write_text(SCRIPTS[page])
    code, output = pages.run(script, folder=tmp_path)
    assert code == 0, f"the code of {page} failed:\n{output}"


def test_long_pages_are_pages():
    assert LONG <= set(SCRIPTS)


def test_a_page_leaves_the_package_as_it_was(tmp_path):
    """The README's hidden setup makes runs smaller; the pages after it must not see that."""
    script = tmp_path / "page.py"
    script.write_text("import numpyro_diffusion as nd\nnd.SMC = nd.no_such_name = None\n")
    before = numpyro_diffusion.SMC
    assert page_server.run(str(script), [], str(tmp_path))["code"] == 0
    assert numpyro_diffusion.SMC is before
    assert not hasattr(numpyro_diffusion, "no_such_name")


def test_fences_are_ones_that_the_site_renders():
    """A fence headed `python notest` is no code to the renderer, and its end swallows prose."""
    for page in PAGES:
        heads = re.findall(r"^ *```+(.*\S)", page.read_text(), re.MULTILINE)
        assert all(re.fullmatch(r"\w+|\{.*\}", head.strip()) for head in heads), (page.name, heads)


def test_blocks_keep_their_lines():
    text = (
        "<!-- setup: a = 1 -->\n```python\nb = a + 1\n```\n```{ .python .notest }\nfail\n```\n"
        "- item\n\n    ```python\n    c = b\n    ```\n```bash\nls\n```\n"
    )
    lines = as_script(text).splitlines()
    assert [line.strip() for line in lines if line.strip()] == ["a = 1", "b = a + 1", "c = b"]
    assert lines.index("c = b") == text.splitlines().index("    c = b")


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    """Examples that import what they use are run; the others are sketches."""
    module = importlib.import_module(name)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        if any(example.source.startswith("import ") for example in test.examples):
            assert doctest.DocTestRunner().run(test).failed == 0, test.name


def test_every_module_has_an_api_page():
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    documented = set(re.findall(r"^::: ([\w.]+)$", pages, re.MULTILINE))
    packages = {name.rpartition(".")[0] for name in MODULES}
    missing, stale = set(MODULES) - packages - documented, documented - set(MODULES)
    assert not missing and not stale, f"missing: {sorted(missing)}; stale: {sorted(stale)}"


def test_api_pages_say_in_their_source_what_is_in_the_code():
    command = [sys.executable, str(ROOT / "scripts" / "api_pages.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (ROOT / "docs" / "api" / "ppl.md").read_text()
    run = (
        "    - `.run(key, *args, **kwargs)`: Sample the posterior of the model at these arguments."
    )
    assert run in page.splitlines()
    [smc] = [line for line in page.splitlines() if line.startswith("- `class SMC(")]
    called = smc.partition("`class SMC(")[2].partition(")`")[0]
    named = [part.partition("=")[0].strip() for part in called.split(", ") if part != "*"]
    assert named == list(inspect.signature(numpyro_diffusion.SMC).parameters)


def test_the_site_does_not_say_it_twice():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        pages = importlib.import_module("api_pages")
    finally:
        sys.path.pop(0)
    for path in (ROOT / "docs" / "api").glob("*.md"):
        page = SimpleNamespace(file=SimpleNamespace(src_uri=f"api/{path.name}"))
        shown = pages.on_page_markdown(path.read_text(), page=page)
        assert "<!-- names -->" not in shown and "- `" not in shown
        assert pages.with_names(shown) == path.read_text()  # and nothing else was taken out
