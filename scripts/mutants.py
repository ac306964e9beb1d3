r"""Small wrong changes of the mathematics, and whether the tests notice them.

    python scripts/mutants.py --check                  # every change still has its place
    python scripts/mutants.py --only carry draws-sum   # copy, change, run the tests that should see it
    python scripts/mutants.py --save mutants.md --listed-only

A mutant is killed if a test fails or takes too long. Tests named beside it run first; if it survives them,
so do all test files that mention what its module exports. The tree itself is never changed: each mutant has
a copy of package and tests. A full run takes hours on two cores.
"""

import argparse
import datetime
import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import NamedTuple

PACKAGE = "numpyro_diffusion"

# Beside this file: `name | file or folder of the package | what is wrong`, then lines with `-` for the old
# text, found once there, `+` for the new one, and `>` for each test below tests/ that should notice.
TABLE = Path(__file__).with_suffix(".txt")

HURRY_FLAGS = (
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)
# The last one has no dashes: XLA reads none after it.
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


class Mutant(NamedTuple):
    """A wrong change: `old` occurs once below `place`, a file or folder of the package."""

    name: str
    place: str
    what: str
    old: str
    new: str
    tests: list[str]


class Verdict(NamedTuple):
    """What became of a mutant, by which test, and after how long."""

    word: str
    test: str
    seconds: float


def read(table: str) -> list[Mutant]:
    """The mutants of a table."""
    mutants = []
    for block in re.split(r"\n(?=[\w-]+ \|)", table.strip()):
        head, old, new, *tests = block.splitlines()
        name, place, what = head.split(" | ")
        strip = [line[2:] for line in tests]
        mutants.append(Mutant(name, place, what, old[2:], new[2:], strip))
    return mutants


def places(mutant: Mutant, root: Path) -> list[tuple[Path, int]]:
    """Files that hold the old text, and how often."""
    base = root / PACKAGE / mutant.place
    files = sorted(base.rglob("*.py")) if base.is_dir() else [base] if base.exists() else []
    counts = ((path.relative_to(root), path.read_text().count(mutant.old)) for path in files)
    return [(path, count) for path, count in counts if count]


def mutated(mutant: Mutant, root: Path) -> tuple[Path, str]:
    """The file and its wrong text; a `ValueError` where that is not clear."""
    found = places(mutant, root)
    if sum(count for _, count in found) != 1:
        where = ", ".join(f"{count} in {path}" for path, count in found) or "nowhere"
        raise ValueError(
            f"{mutant.name}: {mutant.old!r} is {where}; expected once in {mutant.place}"
        )
    path, text = found[0][0], (root / found[0][0]).read_text().replace(mutant.old, mutant.new)
    compile(text, str(path), "exec")
    return path, text


def check(mutants: list[Mutant], root: Path) -> list[str]:
    """What is wrong with a list of mutants, all of it."""
    wrong = []
    for mutant in mutants:
        try:
            mutated(mutant, root)
        except (ValueError, SyntaxError) as error:
            wrong.append(str(error))
        files = [root / "tests" / test.split("::")[0] for test in mutant.tests]
        for test, file in zip(mutant.tests, files, strict=True):
            function = test.partition("::")[2].partition("[")[0]
            if not file.exists() or (function and f"def {function}(" not in file.read_text()):
                wrong.append(f"{mutant.name}: no test {test}")
    names = [mutant.name for mutant in mutants]
    return wrong + [f"{name}: twice" for name in sorted(set(names)) if names.count(name) > 1]


def related(mutant: Mutant, root: Path) -> list[str]:
    """Test files that mention the mutated module or what it exports."""
    path = places(mutant, root)[0][0]
    exports = re.search(r"__all__ = \[(.*?)\]", (root / path).read_text(), re.DOTALL)
    words = re.findall(r'"(\w+)"', exports.group(1)) if exports else []
    module = ".".join(path.with_suffix("").parts)
    pattern = re.compile("|".join([rf"\b{re.escape(word)}\b" for word in [module, *words]]))
    files = sorted((root / "tests").rglob("test_*.py"))
    found = [f for f in files if pattern.search(f.read_text())]
    return [str(f.relative_to(root / "tests")) for f in found]


@functools.cache
def known_flags() -> list[str]:
    """Flags of a compiler in a hurry that this XLA knows; it dies of one that it does not know."""

    def is_known(flag: str) -> bool:
        settings = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag}
        command = [sys.executable, "-c", "import jax; jax.devices()"]
        return subprocess.run(command, env=settings, capture_output=True).returncode == 0

    return [flag for flag in HURRY_FLAGS if is_known(flag)]


def environment(root: Path, cache: Path) -> dict[str, str]:
    """One thread, no display, little optimisation, and programs that are compiled once for all runs."""
    defaults = {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    return {
        **defaults,
        **os.environ,
        "PYTHONPATH": str(root),
        "PYTHONDONTWRITEBYTECODE": "1",
        "JAX_PLATFORMS": "cpu",
        "MPLBACKEND": "agg",
        "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": " ".join([*known_flags(), ONE_THREAD]),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def copy(source: Path, target: Path) -> None:
    """Package, tests and settings, afresh."""
    shutil.rmtree(target, ignore_errors=True)
    ignore = shutil.ignore_patterns("__pycache__", ".pytest_cache")
    for part in (PACKAGE, "tests"):
        shutil.copytree(source / part, target / part, ignore=ignore)
    shutil.copy(source / "pyproject.toml", target)


def run(tests: list[str], root: Path, cache: Path, timeout: float, extra: list[str]) -> Verdict:
    """Run some tests in a tree."""
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *extra]
    command = [sys.executable, "-m", "pytest", *options, *(f"tests/{test}" for test in tests)]
    start, settings = time.monotonic(), environment(root, cache)
    try:
        done = subprocess.run(
            command, cwd=root, env=settings, timeout=timeout, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired:
        return Verdict("killed", "time-out", time.monotonic() - start)
    seconds, out = time.monotonic() - start, done.stdout
    failed = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(.*)$", out, re.MULTILINE)
    if done.returncode == 0:
        return Verdict("survived", "", seconds)
    if failed and done.returncode in (1, 2):
        return Verdict("killed", failed.group(1).split(" - ")[0], seconds)
    last = (out + done.stderr).strip().splitlines()[-1:]
    return Verdict("error", f"pytest {done.returncode}: {' '.join(last)}"[:150], seconds)


def judge(mutant: Mutant, root: Path, slot: Path, options: argparse.Namespace) -> Verdict:
    """Copy, change, and run the tests: the listed ones, then all that are related."""
    copy(root, slot)
    path, text = mutated(mutant, slot)
    (slot / path).write_text(text)
    extra, cache = shlex.split(options.pytest_args), slot.parent / "cache"
    verdict = run(mutant.tests, slot, cache, options.timeout, extra)
    if verdict.word != "survived" or options.listed_only:
        return verdict
    more = related(mutant, slot)
    if not more:
        return verdict
    again = run(more, slot, cache, options.timeout, extra)
    test = again.test + " (not listed)" if again.word == "killed" else again.test
    return Verdict(again.word, test, verdict.seconds + again.seconds)


def write(path: Path, verdicts: dict[str, Verdict], mutants: list[Mutant], commit: str) -> None:
    """What is known so far as a Markdown table."""
    words = [verdict.word for verdict in verdicts.values()]
    counts = ", ".join(f"{words.count(word)} {word}" for word in sorted(set(words)))
    lines = [
        f"{datetime.date.today()}, commit `{commit}`: {counts}.\n",
        f"    {shlex.join(['scripts/mutants.py', *sys.argv[1:]])}\n",
        "| mutant | what is wrong | verdict | by | seconds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for m in mutants:
        if m.name in verdicts:
            v = verdicts[m.name]
            by = v.test.replace("|", "\\|")
            lines.append(f"| {m.name} | {m.what} | {v.word} | {by} | {v.seconds:.0f} |")
    path.write_text("\n".join(lines) + "\n")


def kept(table: str, names: set[str]) -> dict[str, Verdict]:
    """The rows of a saved table whose mutants died, of an earlier commit it may be."""
    rows = [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in table.splitlines()]
    rows = [row for row in rows if len(row) == 5 and row[0] in names and row[2] == "killed"]
    return {row[0]: Verdict(row[2], row[3].replace("\\|", "|"), float(row[4])) for row in rows}


def main() -> int:
    """Parse the options, check all mutants, run those that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these mutants alone")
    parser.add_argument("--list", action="store_true", help="names and descriptions, no run")
    parser.add_argument("--check", action="store_true", help="whether every change has its place")
    parser.add_argument(
        "--control", action="store_true", help="first the same tests without change"
    )
    parser.add_argument("--listed-only", action="store_true", help="no tests but the listed ones")
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).parents[1], help="tree to mutate"
    )
    parser.add_argument("--save", type=Path, metavar="FILE", help="Markdown table of the verdicts")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at once")
    parser.add_argument(
        "--timeout", type=float, default=900.0, help="seconds a run of tests may take"
    )
    parser.add_argument("--pytest-args", default="", help="more options, such as '-m \"not slow\"'")
    parser.add_argument(
        "--resume", action="store_true", help="keep the rows of the saved table, run the others"
    )
    options = parser.parse_args()
    root, mutants = options.root.resolve(), read(TABLE.read_text())
    unknown = set(options.only or ()) - {mutant.name for mutant in mutants}
    if unknown:
        parser.error(f"no mutants {sorted(unknown)}; see --list")
    chosen = [m for m in mutants if options.only is None or m.name in options.only]
    if options.list:
        print("\n".join(f"{m.name:24} {m.place:28} {m.what}" for m in chosen))
        return 0
    wrong = check(chosen, root)
    print("\n".join([*wrong, f"{len(chosen)} mutants, {len(wrong)} faults"]))
    if wrong or options.check:
        return int(bool(wrong))

    ask = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(ask, capture_output=True, text=True).stdout.strip() or "unknown"
    verdicts: dict[str, Verdict] = {}
    if options.resume and options.save and options.save.exists():
        verdicts = kept(options.save.read_text(), {mutant.name for mutant in chosen})
        chosen = [mutant for mutant in chosen if mutant.name not in verdicts]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        slots: Queue[Path] = Queue()
        for i in range(options.jobs):
            slots.put(Path(folder) / f"tree-{i}")
        if options.control:
            slot = Path(folder) / "tree-0"
            copy(root, slot)
            tests = list(dict.fromkeys(test for mutant in chosen for test in mutant.tests))
            extra = shlex.split(options.pytest_args)
            found = run(tests, slot, slot.parent / "cache", 10 * options.timeout, extra)
            print(f"without change: {found.word} {found.test} {found.seconds:.0f} s", flush=True)
            if found.word != "survived":
                return 1

        def one(mutant: Mutant) -> None:
            slot = slots.get()
            verdict = judge(mutant, root, slot, options)
            slots.put(slot)
            verdicts[mutant.name] = verdict
            print(
                f"{mutant.name}: {verdict.word} {verdict.test} {verdict.seconds:.0f} s", flush=True
            )
            if options.save:
                write(options.save, dict(verdicts), mutants, commit)

        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(one, chosen))
    survivors = [name for name, verdict in verdicts.items() if verdict.word != "killed"]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} killed; not killed: {survivors}")
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
