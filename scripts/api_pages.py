"""Names, signatures and first lines in the sources of the API pages. A hook of MkDocs.

A page of `docs/api` is a list of modules, `::: module`, whose docstrings the site writes out. Who reads the
Markdown itself, on GitHub or as text, would see nothing but those lines, so each is followed by what the
module is and what is in it. This script writes that between two comments, from the source code alone,

    python scripts/api_pages.py           # writes it anew
    python scripts/api_pages.py --check   # fails where it is not as the code is

and as a hook it takes it out of the site, which has the docstrings whole.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "api"
DIRECTIVE = re.compile(r"^::: (?P<module>[\w.]+)\n(?P<options>(?:[ ]+\S.*\n)*)", re.MULTILINE)
LISTED = re.compile(r"\n<!-- names -->\n.*?<!-- end of names -->\n", re.DOTALL)
MEMBERS = re.compile(r"members: \[(.*)\]")


def on_page_markdown(markdown: str, page, **_) -> str:
    """The page without the lists, for MkDocs."""
    return LISTED.sub("", markdown) if page.file.src_uri.startswith("api/") else markdown


def first_line(node: ast.AST) -> str:
    """The first paragraph of a docstring, on one line."""
    text = ast.get_docstring(node) or ""  # type: ignore[arg-type]
    return " ".join(text.split("\n\n")[0].split())


def arguments(of: ast.arguments, skipped: int) -> str:
    """Arguments as they are written, without annotations and without the first, such as `self`."""
    bare = ast.parse(f"def f({ast.unparse(of)}): pass").body[0].args  # type: ignore[attr-defined]
    for one in (*bare.posonlyargs, *bare.args, *bare.kwonlyargs, bare.vararg, bare.kwarg):
        if one is not None:
            one.annotation = None
    bare.args = bare.args[skipped:]
    return ast.unparse(bare)


def fields(node: ast.ClassDef) -> str:
    """Fields of a class without `__init__`, as its arguments."""
    written = []
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or "Var[" in ast.unparse(item.annotation):
            continue
        name, value = ast.unparse(item.target), item.value
        if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("field"):
            defaults = [k.value for k in value.keywords if k.arg == "default"]
            value = defaults[0] if defaults else None
        if not name.startswith("_"):
            written.append(name if value is None else f"{name}={ast.unparse(value)}")
    return ", ".join(written)


def signature(node: ast.AST) -> str:
    """A definition as one would call it."""
    if isinstance(node, ast.FunctionDef):
        return f"{node.name}({arguments(node.args, 0)})"
    assert isinstance(node, ast.ClassDef)
    methods = {s.name: s for s in node.body if isinstance(s, ast.FunctionDef)}
    if "__init__" in methods:
        return f"class {node.name}({arguments(methods['__init__'].args, 1)})"
    return f"class {node.name}({fields(node)})"


def names(path: Path, chosen: set[str]) -> Iterator[str]:
    """A line for each public definition of a module, and for each public method of its classes."""
    tree = ast.parse(path.read_text())
    yield f"`{path.relative_to(ROOT)}`: {first_line(tree)}"
    yield ""
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if chosen and node.name not in chosen:
            continue
        yield f"- `{signature(node)}`: {first_line(node)}"
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if not isinstance(inner, ast.FunctionDef) or inner.name.startswith("_"):
                    continue
                marks = {ast.unparse(mark).rpartition(".")[2] for mark in inner.decorator_list}
                skipped = "staticmethod" not in marks
                is_property = any(mark.endswith("property") for mark in marks)
                called = "" if is_property else f"({arguments(inner.args, int(skipped))})"
                if first_line(inner):
                    yield f"    - `.{inner.name}{called}`: {first_line(inner)}"


def path_of(module: str) -> Path:
    """The file of a module or of a package."""
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def with_names(page: str) -> str:
    """The text of a page with its lists as the code has them."""

    def listed(match: re.Match) -> str:
        members = MEMBERS.search(match["options"])
        chosen = {name.strip() for name in members[1].split(",")} if members else set()
        lines = "\n".join(names(path_of(match["module"]), chosen)).rstrip()
        return f"{match[0]}\n<!-- names -->\n{lines}\n<!-- end of names -->\n"

    return DIRECTIVE.sub(listed, LISTED.sub("", page))


def main() -> int:
    """Write the pages, or say which are not as the code is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    stale = []
    for path in sorted(PAGES.glob("*.md")):
        old = path.read_text()
        new = with_names(old)
        if new != old:
            stale.append(path.name)
            if not check:
                path.write_text(new)
    words = "not as the code is, run `python scripts/api_pages.py`" if check else "written"
    print(
        f"{len(stale)} pages {words}: {', '.join(stale)}"
        if stale
        else "all pages are as the code is"
    )
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
