"""Run scripts one after the other in one process: `python page_server.py`, a JSON line each on stdin.

A line holds `script`, `arguments` and `folder`; the answer is a line with `code` and `output`. What a reader
has is kept: 32-bit floats, a folder of its own, no display; what scripts share is the compiler's work.
"""

import contextlib
import io
import json
import os
import runpy
import sys
import traceback
import types

import numpyro_diffusion


def run(script: str, arguments: list[str], folder: str) -> dict:
    """Run one script as `__main__`."""
    out, code, before = io.StringIO(), 0, os.getcwd()
    before_it = {name: dict(vars(module)) for name, module in _modules().items()}
    argv = sys.argv
    sys.argv = [script, *arguments]
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        code = int(end.code or 0) if not isinstance(end.code, str) else 1
    except BaseException:
        code = 1
        out.write(traceback.format_exc())
    finally:
        os.chdir(before)
        sys.argv = argv
        _restore(before_it)
    return {"code": code, "output": out.getvalue()}


def _modules() -> dict[str, types.ModuleType]:
    """The package and its public parts, such as `nd.ppl`."""
    found = vars(numpyro_diffusion).items()
    parts = {name: part for name, part in found if isinstance(part, types.ModuleType)}
    return {"": numpyro_diffusion} | {n: p for n, p in parts.items() if not n.startswith("_")}


def _restore(before: dict[str, dict]) -> None:
    """A page may replace a name for itself, such as a sampler by a smaller one; modules stay imported."""
    for where, module in _modules().items():
        now, names = vars(module), before.get(where, {})
        if names:
            for name in set(now) - set(names):
                if not isinstance(now[name], types.ModuleType):
                    del now[name]
            now.update(names)


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        answers.write(json.dumps(run(**json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
