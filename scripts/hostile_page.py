"""Write `docs/hostile.md` from the table of hostile cases, `tests/hostile/table.py`.

Usage: `python scripts/hostile_page.py`. `page()` is the text, `load()` the table.
"""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "hostile.md"

INTRODUCTION = """\
# Hostile cases

Inputs on which a sampler may be wrong without a word, or fail in words that do not help. On each the package
is right, or refuses the input by name, or warns. The last column names the test that proves it, below
`tests/`; `x` is a site with a diffusion prior. *Right, within its error* means that log evidence and
posterior mean agree with numerical integration within a few of their own standard errors. Where nothing else
is said the scheme is the default, `Annealed`.

What a run says of itself is on the page [Diagnostics](diagnostics.md).
This page is made from `tests/hostile/table.py` by `scripts/hostile_page.py`.
"""


def load():
    """The table: cases by kind."""
    path = ROOT / "tests" / "hostile" / "table.py"
    spec = importlib.util.spec_from_file_location("hostile_table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TABLE


def page(table) -> str:
    """The text of the page."""
    lines = [INTRODUCTION]
    for kind, cases in table.items():
        lines += [
            f"## {kind}\n",
            "| Case | Input | Right | The package | Test |",
            "|---|---|---|---|---|",
        ]
        for case in cases:
            cells = (case.name, f"`{case.given}`", case.right, case.found, f"`{case.test}`")
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(load()))
