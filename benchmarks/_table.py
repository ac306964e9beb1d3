"""Print a Markdown table and keep it under `results/`."""

import argparse
import platform
import sys
from pathlib import Path

import jax
import numpyro

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # the problems with a closed form live with the tests


def parser(doc: str) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    options = argparse.ArgumentParser(description=doc.splitlines()[0])
    options.add_argument("--seeds", type=int, default=5, help="number of independent runs")
    options.add_argument("--save", action="store_true", help="write the table to results/")
    options.add_argument("--tiny", action="store_true", help="a check that everything runs")
    return options


def emit(
    name: str, doc: str, columns: list[str], rows: list[list], save: bool, notes: tuple = ()
) -> None:
    """Print the table and notes; with `save`, write it with the command and versions that made it."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    lines += [line for note in notes for line in ("", note)]
    print("\n".join(lines))
    if save:
        command = f"python benchmarks/{Path(sys.argv[0]).name} " + " ".join(sys.argv[1:])
        versions = (
            f"Python {platform.python_version()}, JAX {jax.__version__}, "
            f"NumPyro {numpyro.__version__}, {jax.devices()[0].platform}"
        )
        text = [f"# {doc.splitlines()[0]}", "", f"`{command.strip()}` ({versions})", "", *lines, ""]
        path = ROOT / "benchmarks" / "results" / f"{name}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(text))
