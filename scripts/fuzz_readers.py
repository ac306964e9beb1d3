r"""Damaged and hostile files for every reader, and what becomes of them.

    python scripts/fuzz_readers.py --mutants 10000 --save
    python scripts/fuzz_readers.py --only torch --mutants 500

A mutant is a good file with flipped bits, other bytes, spans that are gone, doubled or foreign, or a setting
that is something else. The same number gives the same mutant. A reader may refuse it in its own words, or
accept it with the numbers of the good file. Altered numbers are a fault wherever a digest or a checksum can
tell; in the rest (`resealed` mutants, whose checksums were made good, and formats without any) they are
counted. Everything runs in one process under limits of CPU time and memory: a crash ends it.
"""

import argparse
import contextlib
import hashlib
import io
import json
import platform
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors.numpy import save as safetensors_bytes

import numpyro_diffusion as nd
from numpyro_diffusion import _safetensors, teachers
from numpyro_diffusion.io import read_card
from numpyro_diffusion.io.trees import encode
from numpyro_diffusion.train.checkpoint import Progress, read_progress, write_progress

ROOT = Path(__file__).parent.parent
DATA = ROOT / "tests" / "data"
SECONDS, MEMORY = (
    2.0,
    2**30,
)  # CPU time a mutant, and memory beyond what the process has at the start
OWN_WORDS = ValueError, FileNotFoundError  # exactly these; a subclass comes from somewhere else
HOSTILE = (None, True, False, -1, 0, 1, 2**31, 2**63, 10**400, 1.5, -0.0, 1e999, float("nan"), "", "x", "1",
           "\0", "../x", "a" * 5000, [], {}, [[]], [1], {"a": 1}, [None] * 100)  # fmt: skip
TEXTS = (
    b"NaN",
    b"Infinity",
    b"1e999",
    b"9" * 5000,
    b"[" * 3000,
    b'{"a":' * 3000,
    b"null",
    b"\xff\xfe",
)
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "socket.",
             "ctypes.", "pickle.find_class", "os.remove", "os.rename", "os.mkdir", "shutil.")  # fmt: skip


class Reader(NamedTuple):
    """A way in: good files, how to read them, and which mutants its checksums can tell.

    `read` takes a folder; `reseal(generator, files)` makes mutants whose checksums hold, if there are any.
    """

    files: dict[str, bytes]
    read: Callable[[Path], Any]
    sealed: bool
    reseal: Callable[[np.random.Generator, dict[str, bytes]], dict[str, bytes]] | None = None


class Faults(NamedTuple):
    """What became of the mutants of a reader."""

    counts: Counter
    faults: list[str]
    slowest: float


class TooSlow(BaseException):
    """The limit of CPU time; not an `Exception`, so that no reader can catch it."""


def damage(generator: np.random.Generator, data: bytes) -> bytes:
    """A few accidents in a row of bytes."""
    raw = bytearray(data)
    for _ in range(generator.choice([1, 1, 1, 2, 3])):
        # Headers and directories stand at the ends; half of the accidents happen there.
        near = generator.integers(0, min(len(raw), 2048) + 1)
        at = int(
            generator.choice([near, max(0, len(raw) - near), generator.integers(0, len(raw) + 1)])
        )
        size = int(2 ** generator.uniform(0, 8))
        match generator.integers(0, 10):
            case 0 | 1 | 8 | 9 if at < len(raw):
                raw[at] ^= 1 << int(generator.integers(0, 8))
            case 2:
                raw[at : at + 4] = generator.bytes(len(raw[at : at + 4]))
            case 3:
                del raw[at:]
            case 4:
                del raw[at : at + size]
            case 5:
                raw[at:at] = raw[at : at + size]
            case 6:
                raw[at:at] = TEXTS[generator.integers(0, len(TEXTS))]
            case _:
                wide = struct.pack(
                    "<Q", int(generator.choice([0, 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1]))
                )
                raw[at : at + 8] = wide[: len(raw[at : at + 8])]
    return bytes(raw)


def other_json(generator: np.random.Generator, text: str | bytes) -> str:
    """JSON with one of its values something else, doubled, renamed or gone."""
    content = json.loads(text)
    places: list[tuple[Any, Any]] = []

    def walk(node):
        keys = node.keys() if isinstance(node, dict) else range(len(node))
        for key in keys:
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(content)
    node, key = places[generator.integers(0, len(places))]
    match generator.integers(0, 6):
        case 0:
            del node[key]
        case 1 if isinstance(node, dict):
            node[f"{key}x"] = node.pop(key)
        case 2:
            other, name = places[generator.integers(0, len(places))]
            node[key] = json.loads(json.dumps(other[name]))
        case 3 if isinstance(node[key], int | float):
            node[key] *= float(generator.choice([-1.0, 2.0, 1e-9, 1e9]))
        case _:
            node[key] = HOSTILE[generator.integers(0, len(HOSTILE))]
    return json.dumps(content)


def unpack(data: bytes) -> tuple[dict, bytes]:
    """Header and numbers of a safetensors file."""
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def resealed(*texts: str) -> Callable:
    """Mutants of our own files with a digest that holds: of the JSON in the metadata, or of a number."""

    def reseal(generator, files):
        ((name, data),) = files.items()
        header, body = unpack(data)
        metadata = header["__metadata__"]
        if generator.random() < 0.8:
            text = str(generator.choice(texts))
            metadata[text] = other_json(generator, metadata[text])
            if generator.random() < 0.2:
                metadata[text] = damage(generator, metadata[text].encode()).decode(
                    "utf8", "replace"
                )
        else:
            at = int(generator.integers(0, len(body) - 8))
            body = body[:at] + b"\xff\xff\xff\xff" + body[at + 4 :]
        metadata.pop("sha256")
        _, arrays = _safetensors.parse(data)
        _, arrays = _safetensors.parse(pack(header, body))
        metadata["sha256"] = _safetensors._digest(metadata, arrays)
        return {name: pack(header, body)}

    return reseal


def pack(header: dict, body: bytes) -> bytes:
    """A safetensors file of its parts."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def other_records(generator, files):
    """A PyTorch archive with a damaged pickle or storage, and checksums that hold."""
    ((name, data),) = files.items()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = {n: archive.read(n) for n in archive.namelist()}
    chosen = [n for n in records if n.endswith("data.pkl")] * 6 + list(records)
    which = chosen[generator.integers(0, len(chosen))]
    records[which] = damage(generator, records[which])
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for path, raw in records.items():
            archive.writestr(path, raw)
    return {name: file.getvalue()}


def other_setting(generator, files):
    """A folder with one setting of a `.json` something else."""
    names = [name for name in files if name.endswith(".json")]
    which = names[generator.integers(0, len(names))]
    return files | {which: other_json(generator, files[which]).encode()}


def readers() -> dict[str, Reader]:
    """All of them, with small good files."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "prior")
        net = nd.nets.ResidualMLP(jax.random.key(0), (2,), width=2, depth=1)
        prior = nd.ProperEnergy(net, log_normalizer=-1.5)
        nd.save(path, prior, {"licence": "CC0", "range": [-1.0, 1.0]})
        saved = path.read_bytes()
        history = {"step": [0, 5], "train_loss": [float("nan"), 2.0], "validation_loss": [3.0, 1.5]}
        array = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
        run = Progress((array, array + 1), array + 2, 1.5, 5, 5, 0, history)
        settings = {"steps": 20, "trainable": [".net"]}
        write_progress(path, run, settings)
        checkpoint = path.read_bytes()
        blocks = io.BytesIO()
        for leaf in (
            array,
            np.asfortranarray(array),
            np.float64(10.0),
            np.zeros((0, 4)),
            array > 0,
        ):
            np.save(blocks, leaf)
    unet = {
        file.name: file.read_bytes()
        for file in sorted((DATA / "unet_one").iterdir())
        if file.suffix in (".json", ".safetensors")
    }
    physical = {"units": "grey", "data_range": (0.0, 1.0), "transform": teachers.Identity()}
    tensors = safetensors_bytes({"a": array, "b.c": np.arange(3, dtype=np.int8)})
    both = lambda folder: (nd.load(folder / "prior"), read_card(folder / "prior"))
    own = lambda *texts: resealed(*texts)
    return {
        "prior": Reader({"prior": saved}, both, True, own("tree", "card")),
        "checkpoint": Reader(
            {"run": checkpoint},
            lambda folder: tuple(read_progress(folder / "run", run, settings)),
            True,
            own("progress", "settings"),
        ),
        "torch": Reader(
            {"state.pt": (DATA / "torch_state.pt").read_bytes()},
            lambda folder: teachers.read_torch(folder / "state.pt"),
            True,
            other_records,
        ),
        "equinox": Reader(
            {"net.eqx": b'{"width": 8}\n' + blocks.getvalue()},
            lambda folder: teachers.read_equinox_leaves(folder / "net.eqx"),
            False,
        ),
        "safetensors": Reader(
            {"a": tensors}, lambda folder: teachers.read_safetensors(folder / "a"), False
        ),
        "diffusers": Reader(
            unet, lambda folder: teachers.diffusers_unet(folder, **physical), False, other_setting
        ),
    }


def content(value) -> str:
    """A digest of all numbers and names in what a reader gave."""
    arrays: dict[str, np.ndarray] = {}

    def plain(node):
        if isinstance(node, nd.energies.AbstractDenoiser):
            return encode(node, f"tree{len(arrays)}", arrays)
        if isinstance(node, dict):
            return ["dict", *sorted(([repr(k), plain(v)] for k, v in node.items()), key=repr)]
        if isinstance(node, list | tuple):
            return [type(node).__name__, *map(plain, node)]
        if isinstance(node, np.ndarray | jax.Array):
            array = np.asarray(node)
            told = [str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()]
            return ["array", *told]
        return repr(node)

    tree = plain(value)
    return json.dumps([tree, plain(arrays)], sort_keys=True, default=repr)


@contextlib.contextmanager
def limited(seconds: float | None):
    """Raises `TooSlow` after so much CPU time."""

    def stop(*_):
        raise TooSlow

    if seconds is None:
        yield
        return
    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


_heard: list[str] = []
_cache = jax.config.jax_compilation_cache_dir  # JAX writes programs there, if it is told to
_listening = False


def _listen(event: str, arguments: tuple):
    if not _listening:
        return
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    cached = _cache is not None and str(arguments[:1]).startswith(_cache, 2)
    if (writes and not cached) or event.startswith(FORBIDDEN):
        _heard.append(event)


def fuzz(name: str, reader: Reader, mutants: int, seconds: float | None = SECONDS) -> Faults:
    """Reads so many mutants; the good files must read first."""
    global _listening
    counts, faults, slowest = Counter(), [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write(folder, reader.files)
        good = content(reader.read(folder))
        for number in range(mutants):
            generator = np.random.default_rng([number, len(name), *name.encode()])
            seal = reader.reseal is not None and number % 2 == 1
            if seal:
                files = reader.reseal(generator, reader.files)
            else:
                which = list(reader.files)[generator.integers(0, len(reader.files))]
                files = reader.files | {which: damage(generator, reader.files[which])}
            write(folder, files)
            start, _listening = time.process_time(), True
            try:
                with limited(seconds):
                    result = reader.read(folder)
            except TooSlow:
                word = "too slow"
            except MemoryError:
                word = "memory"
            except Exception as error:  # whatever a reader lets through is what is looked for
                word = "refused" if type(error) in OWN_WORDS else f"foreign {type(error).__name__}"
            else:
                _listening = False
                if files == reader.files or content(result) == good:
                    word = "same"
                else:
                    word = "altered, sealed" if reader.sealed and not seal else "altered"
            _listening = False
            slowest = max(slowest, time.process_time() - start)
            if _heard:
                word = f"ran {_heard.pop()}"
                _heard.clear()
            if word not in ("refused", "same", "altered"):
                faults.append(f"{name} {number}: {word}")
                word = word.split()[0] if word.startswith(("foreign", "ran")) else word
            counts[word] += 1
            if number % 250 == 249:
                jax.clear_caches()
    return Faults(counts, faults, slowest)


def write(folder: Path, files: dict[str, bytes]):
    """The files in the folder, and no others."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)


sys.addaudithook(_listen)


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--mutants", type=int, default=500, help="mutants of each reader")
    options.add_argument("--only", nargs="*", help="names of readers")
    options.add_argument(
        "--save", action="store_true", help="write the table to benchmarks/results/"
    )
    options = options.parse_args()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    columns = [
        "refused",
        "same",
        "altered",
        "altered, sealed",
        "foreign",
        "too slow",
        "memory",
        "ran",
    ]
    heads = ["reader", "mutants", *columns, "slowest, s", "memory, MB"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    print("\n".join(lines), flush=True)
    faults = []
    for name, reader in readers().items():
        if options.only and name not in options.only:
            continue
        found = fuzz(name, reader, options.mutants)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        row = [
            name,
            options.mutants,
            *(found.counts[c] for c in columns),
            f"{found.slowest:.2f}",
            peak,
        ]
        lines.append("| " + " | ".join(map(str, row)) + " |")
        print(lines[-1], *found.faults[:20], sep="\n", flush=True)
        faults += found.faults
    if options.save:
        command = "python scripts/fuzz_readers.py " + " ".join(sys.argv[1:])
        versions = (
            f"Python {platform.python_version()}, JAX {jax.__version__}, NumPy {np.__version__}"
        )
        told = "Mutants whose numbers were altered and accepted although a digest or checksum could tell"
        notes = [
            f"{told}, that ended in a foreign exception, took more than {SECONDS:g} s of CPU, more than "
            f"{MEMORY >> 20} MB, or ran anything: {len(faults)}.",
            "`altered`: accepted with other numbers where the format cannot tell, as every second mutant of "
            "the first three has checksums made good again. Peak memory is that of the process so far.",
        ]
        text = [f"# {__doc__.splitlines()[0]}", "", f"`{command}` ({versions})", "", *lines]
        for note in notes + faults[:50]:
            text += ["", note]
        (ROOT / "benchmarks" / "results" / "fuzz_readers.md").write_text("\n".join([*text, ""]))
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
