"""The site's course: lessons are executed when the site is built. A hook of MkDocs.

A lesson is `docs/course/NN-name.py`, a notebook as text in jupytext's percent format, without outputs.
Jupytext reads it, nbclient executes it, and of what comes out three things go into the site: a page in
Markdown, which the site's own extensions render (formulas, headings, dark mode), the pictures, and the
executed notebook to be downloaded.

Plugins that do this (mkdocs-jupyter, mkdocs-nbconvert) put nbconvert's HTML into the page: it loads MathJax
and RequireJS from other hosts, and headings, formulas and blocks of code are not those of the site.

A lesson is executed again when its code, the package, a library or the compiler's settings have changed;
until then its outputs are taken from `.cache/course`, a folder for each of the compiler's settings. Where a
cell raises, or warns, the build fails and names lesson and cell.

Environment: `COURSE_KERNELS`, processes that share the lessons (2); `COURSE_BRIEF=1`, few particles and
steps, to see that all runs (in `make test`; warnings are then allowed).
"""

import ast
import base64
import hashlib
import os
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import jupytext
import nbformat
from jupyter_client.manager import KernelManager
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

ROOT = Path(__file__).parent.parent
LIBRARIES = ("jax", "numpyro", "blackjax", "arviz", "equinox", "optax", "matplotlib", "ipykernel")
SETTINGS = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_ENABLE_X64", "COURSE_BRIEF")

# Before the first cell: nothing is left of the lesson before, which ran in the same process.
# Tracing makes millions of small objects, through which Python need not look for cycles so often. Bars say
# what is compiled, which would stand among the results.
SETUP = """%reset -f
import gc
gc.set_threshold(100_000, 20, 20)
import matplotlib.pyplot as plt
plt.rcParams.update({"figure.dpi": 90, "font.size": 9, "figure.constrained_layout.use": True})
from numpyro_diffusion import _progress
_progress.SILENCE = 1e6
del gc, plt, _progress
"""
BRIEF = (ROOT / "scripts" / "course_brief.py").read_text()
BAR = re.compile(r"^[^\n]*\d+%\|[^\n]*$\n?", re.MULTILINE)
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def on_files(files, config):
    """Each lesson's page, pictures and notebook in the place of its source."""
    sources = [file for file in files if re.fullmatch(r"course/\d\d-[\w-]+\.py", file.src_uri)]
    sources = {Path(file.abs_src_path): file for file in sorted(sources, key=lambda f: f.src_uri)}
    settings = hashlib.sha256(repr([os.environ.get(name) for name in SETTINGS]).encode())
    cache = Path(config.config_file_path).parent / ".cache" / "course" / settings.hexdigest()[:8]
    notebooks = executed(list(sources), cache)
    for (path, file), notebook in zip(sources.items(), notebooks, strict=True):
        files.remove(file)
        text, pictures = page(notebook, path.stem)
        made = {f"{path.stem}.md": text, f"{path.stem}.ipynb": nbformat.writes(portable(notebook))}
        for name, content in (made | pictures).items():
            files.append(File.generated(config, f"course/{name}", content=content))
    return files


def executed(paths, cache):
    """Lessons with their outputs, from the cache where nothing has changed."""
    kept = [cache / f"{path.stem}-{fingerprint(path)}.ipynb" for path in paths]
    share = int(os.environ.get("COURSE_KERNELS", "2"))
    # Lesson by lesson the same process, so that each process finds its programs in its own folder.
    groups = [list(zip(paths, kept, strict=True))[i::share] for i in range(share)]
    groups = [[(path, to) for path, to in group if not to.exists()] for group in groups]
    cache.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(share) as pool:
        runs = [pool.submit(run, group, cache, i) for i, group in enumerate(groups) if group]
        for done in runs:
            done.result()
    return [
        with_outputs(path, nbformat.read(to, as_version=4))
        for path, to in zip(paths, kept, strict=True)
    ]


def codes(notebook):
    """The cells of code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def with_outputs(path, done):
    """A lesson as it is now, with the outputs of its code, which is that of `done`."""
    notebook = jupytext.read(path, fmt="py:percent")
    notebook.metadata = done.metadata
    for cell, before in zip(codes(notebook), codes(done), strict=True):
        cell.outputs, cell.execution_count = joined(before.outputs), before.execution_count
    return notebook


def joined(outputs):
    """Outputs where what was printed in one go is one, though progress bars were drawn in between."""
    kept = []
    for output in outputs:
        if output.output_type == "stream" and kept and kept[-1].output_type == "stream":
            kept[-1] = nbformat.v4.new_output(
                "stream", name="stdout", text=kept[-1].text + output.text
            )
        else:
            kept.append(output)
    return kept


def fingerprint(path):
    """Of everything that a lesson's outputs depend on."""
    code = [tree(cell.source) for cell in codes(jupytext.read(path, fmt="py:percent"))]
    seen = hashlib.sha256(repr(code).encode())
    for part in sorted((ROOT / "numpyro_diffusion").rglob("*")):
        if part.is_file() and "__pycache__" not in part.parts:
            seen.update(part.read_bytes())
    seen.update((SETUP + BRIEF).encode())
    seen.update(repr([version(name) for name in LIBRARIES]).encode())
    return seen.hexdigest()[:16]


def tree(source):
    """Code without comments and layout; as it stands where it is not Python alone."""
    try:
        return ast.unparse(ast.parse(source))
    except SyntaxError:
        return source


def run(group, cache, number):
    """Execute some lessons one after the other in one process, and keep them."""
    programs = os.environ.get(
        "JAX_COMPILATION_CACHE_DIR", str(cache / "programs")
    )  # compiled by JAX
    one_thread = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    defaults = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": one_thread,  # processes share the cores
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    with tempfile.TemporaryDirectory() as folder:
        own = {
            "JAX_COMPILATION_CACHE_DIR": os.path.join(programs, f"course-{number}"),
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "IPYTHONDIR": folder,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            # Tqdm would like widgets, which a page cannot have.
            "PYTHONWARNINGS": "ignore:IProgress not found",
        }
        own_sockets = {"transport": "ipc", "connection_file": os.path.join(folder, "kernel.json")}
        manager = KernelManager(kernel_name="python3", **own_sockets)
        manager.start_kernel(env=defaults | os.environ | own, cwd=folder)
        try:
            for path, to in group:
                notebook = execute(path, manager)
                to.write_text(nbformat.writes(notebook))
                for old in cache.glob(f"{path.stem}-*.ipynb"):
                    if old != to:
                        old.unlink()
        finally:
            manager.shutdown_kernel(now=True)


def execute(path, manager):
    """A lesson's notebook with outputs.

    Raises:
        PluginError: If a cell raises, its process dies, or it writes to standard error.
    """
    notebook = jupytext.read(path, fmt="py:percent")
    is_brief = os.environ.get("COURSE_BRIEF") == "1"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(SETUP + BRIEF * is_brief))
    client = NotebookClient(notebook, km=manager, timeout=None)
    try:
        client.execute()
    except (CellExecutionError, DeadKernelError) as error:
        said = BAR.sub("", ESCAPES.sub("", str(error)))
        raise PluginError(f"{path}, {place(notebook)}: {said}") from error
    notebook.cells.pop(0)
    for number, cell in enumerate(codes(notebook), 1):
        cell.execution_count = number
        said = "".join(o.text for o in cell.outputs if o.get("name") == "stderr")
        said = BAR.sub("", said).strip()
        if said and not is_brief:
            raise PluginError(f"{path}, cell {number} writes to standard error:\n{said}")
        cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = number
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
    }
    return notebook


def place(notebook):
    """The cell that an execution ended in."""
    cells = codes(notebook)
    last = max(
        (number for number, cell in enumerate(cells) if cell.get("execution_count")), default=0
    )
    line = next(iter(cells[last].source.splitlines()), "")
    return f"cell {last} ({line})" if last else "before the first cell"


def page(notebook, name):
    """A lesson in Markdown, and its pictures by file name."""
    parts, pictures = [], {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            if len(parts) == 1:
                parts.append(
                    f'[Download this lesson as a notebook]({name}.ipynb){{ download="{name}.ipynb" }}'
                )
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                file = f"{name}-{len(pictures) + 1}.png"
                pictures[file] = base64.b64decode(data["image/png"])
                if not (words := cell.metadata.get("alt")):
                    raise PluginError(
                        f'{name}: say what the picture shows, `# %% alt="..."`, above\n{cell.source}'
                    )
                parts.append(f"![{words}]({file})")
            elif "text/html" in data:
                parts.append(f'<div class="lesson-view">{plain_html(data["text/html"])}</div>')
            else:
                text = output.get("text") or data.get("text/plain", "")
                if text.strip():
                    parts.append(f"````{{ .text .lesson-output .no-copy }}\n{text.rstrip()}\n````")
    # Code and summaries want the width of the list of headings.
    return "---\nhide: [toc]\n---\n\n" + "\n\n".join(parts) + "\n", pictures


def plain_html(text):
    """HTML of an output in the site's own style, as one block of Markdown."""
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = text.replace(' border="1" class="dataframe"', "").replace(
        ' style="text-align: right;"', ""
    )
    return re.sub(r"\n\s*\n", "\n", text)


def portable(notebook):
    """The notebook away from the site: links to other pages are their words alone."""
    notebook = nbformat.from_dict(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"(?<!!)\[([^\]]+)\]\((?!https?:)[^)]*\)", r"*\1*", cell.source)
    return notebook
