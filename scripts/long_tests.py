"""The tests of `make test-long`, a file at a time, with the result written down.

    python scripts/long_tests.py --save benchmarks/results/test-long.md            # all of them: hours
    python scripts/long_tests.py --save benchmarks/results/test-long.md --resume   # those without a row

A row has the commit and the day of its run. A file whose tests fail is run again by `--resume`.
"""

import argparse
import datetime
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEAD = """# Long tests: more keys, larger clouds and further combinations.

`python scripts/long_tests.py --save benchmarks/results/test-long.md --resume`, two files at a time.

| file | tests | result | minutes | commit | day |
|---|---|---|---|---|---|
"""


def said(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout


def files() -> dict[str, int]:
    """Test files that have long tests, and how many."""
    told = said(sys.executable, "-m", "pytest", "--collect-only", "-qq", "-m", "long")
    return {name: int(count) for name, count in re.findall(r"^(tests/\S+\.py): (\d+)$", told, re.M)}


def run(name: str, count: int, limit: float) -> str:
    """The row of a file."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "long", name]
    commit = said("git", "rev-parse", "--short", "HEAD").strip()
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=limit, env={**os.environ}
        )
        last = done.stdout.strip().splitlines()[-1:] or ["no output"]
        result = re.sub(r" in [\d.]+s.*", "", last[0]).strip("= ")
        if done.returncode:
            print(done.stdout[-3000:], file=sys.stderr)
    except subprocess.TimeoutExpired:
        result = f"failed: longer than {limit / 60:.0f} minutes"
    minutes = (time.perf_counter() - started) / 60
    return f"| {name} | {count} | {result} | {minutes:.1f} | {commit} | {datetime.date.today()} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", type=Path, required=True, help="Markdown file of the rows")
    parser.add_argument("--resume", action="store_true", help="leave out files that have passed")
    parser.add_argument("--jobs", type=int, default=2, help="files at a time")
    parser.add_argument("--limit", type=float, default=3600, help="seconds that a file may take")
    parser.add_argument("only", nargs="*", help="files, all without")
    options = parser.parse_args()
    rows = {}
    if options.resume and options.save.exists():
        for line in options.save.read_text().splitlines():
            if line.startswith("| tests/") and "failed" not in line and "error" not in line:
                rows[line.split(" | ")[0].removeprefix("| ")] = line
    wanted = {name: count for name, count in files().items() if name not in rows}
    if options.only:
        wanted = {name: wanted[name] for name in options.only if name in wanted}

    def keep(name: str) -> None:
        rows[name] = run(name, wanted[name], options.limit)
        print(rows[name], flush=True)
        options.save.write_text(HEAD + "\n".join(rows[name] for name in sorted(rows)) + "\n")

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(keep, wanted))


if __name__ == "__main__":
    main()
