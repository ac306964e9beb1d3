"""Pickles from strangers: tensors come in, lies are refused, and nothing runs."""

import io
import itertools
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from torch_files import name, number, run, state, tensor, text, torch_file

from numpyro_diffusion.teachers import read_equinox_leaves, read_safetensors, read_torch

STATE = (Path(__file__).parent / "data" / "torch_state.pt").read_bytes()


def test_the_file_by_hand_is_a_good_one():
    np.testing.assert_array_equal(read_torch(torch_file(state(tensor())))["w"], [0, 1])
    strided = read_torch(torch_file(state(tensor((2, 2), (1, 2), 0))))["w"]
    np.testing.assert_array_equal(strided, [[0, 2], [1, 3]])
    assert not strided.flags.writeable


LIES = {
    "more than the storage": (tensor((5,)), "a tensor of 5 numbers"),
    "past the end": (tensor((2,), (3,), 1), "the last at 4"),
    "huge": (tensor((2**40, 2**40)), "2 numbers|stride is not a count|size or stride"),
    "huge and flat": (tensor((2**61,), (0,)), "a tensor of 2305843009213693952 numbers"),
    "overflow": (tensor((2**63,), (0,)), "not a count"),
    "repeated": (tensor((1000,), (0,)), "contiguous"),
    "negative offset": (tensor(offset=-1), "not a count"),
    "negative stride": (tensor((2,), (-1,), 1), "not a count"),
    "negative size": (tensor((-2,)), "not a count"),
    "ranks differ": (tensor((2, 1)), "not a count"),
    "many dimensions": (tensor((1,) * 40, (1,) * 40), "40 dimensions"),
    "count too large": (tensor(count=5), "declares 5 numbers in 16 bytes"),
    "count too small": (tensor(count=3), "declares 3 numbers"),
    "negative count": (tensor(count=-4), "declares -4"),
    "type too wide": (tensor(kind="DoubleStorage"), "declares 4 numbers"),
    "unknown type": (tensor(kind="QUInt8Storage"), "torch.QUInt8Storage"),
    "no record": (tensor(key="7"), "no record 'data/7'"),
    "another record": (tensor(key="../data.pkl"), "no record"),
    "not a storage": (run(text("module"), number(0)) + b"Q", "not a storage"),
    "a bare name": (name("os", "system"), "a bare os.system"),
    "a bare storage": (
        run(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), number(4))
        + b"Q",
        "a bare storage",
    ),
    "key that is a tuple": (b"}" + run() + number(1) + b"s", "keys are not strings"),
    "extension": (b"\x82\x01", "instruction"),
    "an object": (name("collections", "OrderedDict") + b")\x81", "instruction"),
    "an instance": (b"(" + text("x") + b"icollections\nOrderedDict\n", "instruction"),
    "big integer": (b"\x8b" + struct.pack("<I", 2**31 - 1), "instruction"),
    "long text": (b"\x8d" + struct.pack("<Q", 2**62) + b"x", "ends too early"),
    "no name": (b"cos\nsys", "not found|ends too early"),
    "far memo": (b"j" + struct.pack("<I", 2**32 - 1), "damaged pickle"),
    "empty stack": (b"000000", "instruction"),
    "attributes not known": (
        name("collections", "OrderedDict") + b")R}" + text("scale") + number(2) + b"sb",
        "attributes .'scale'",
    ),
    "flags of another kind": (tensor(kind="BoolStorage", count=16), "neither 0 nor 1"),
    "metadata not known": (tensor(more=b"}" + text("conj") + b"\x88s"), "metadata .*'conj'"),
    "metadata beside a known one": (
        tensor(more=b"}" + text("neg") + b"\x88s" + text("x") + b"\x88s"),
        "metadata .*'x': True",
    ),
    "metadata that is no dict": (tensor(more=b"\x88"), "metadata .True."),
    "arguments too many": (tensor(more=b"}N"), "metadata .*None"),
    "negated flags": (
        tensor(kind="ByteStorage", count=16, more=b"}" + text("neg") + b"\x88s"),
        "metadata",
    ),
    "a hook": (
        name("torch._utils", "_rebuild_parameter")
        + run(tensor(), b"\x89", b"}" + text("hook") + number(1) + b"s")
        + b"R",
        "_rebuild_parameter with arguments that are not understood",
    ),
    "a parameter with more": (
        name("torch._utils", "_rebuild_parameter") + run(tensor(), b"\x89", b"}", b"N") + b"R",
        "not understood",
    ),
    "a size of many": (
        name("torch", "Size") + run(*33 * [number(1)]) + b"\x85R",
        "asks to call torch.Size",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_in_a_pickle_are_refused(lie):
    program, message = LIES[lie]
    with pytest.raises(ValueError, match=message):
        read_torch(torch_file(state(program)))


def test_lazy_negation_is_done():
    """PyTorch keeps the sign of a conjugate's imaginary part in a bit beside the tensor."""
    negated = tensor((2,), (2,), 1, more=b"}" + text("neg") + b"\x88s")
    np.testing.assert_array_equal(read_torch(torch_file(state(negated)))["w"], [-1, -3])
    plain = read_torch(torch_file(state(tensor((2,), (2,), 1, more=b"}"))))["w"]
    np.testing.assert_array_equal(plain, [1, 3])


def test_work_is_bounded_and_not_only_size():
    """Keys made to collide take quadratic time; small instructions by the million take seconds."""
    colliding = b"".join(number(i * (2**61 - 1)) + b"N" for i in range(3))
    with pytest.raises(ValueError, match="strings or small integers"):
        read_torch(torch_file(b"\x80\x02}(" + colliding + b"u."))
    assert read_torch(torch_file(b"\x80\x02}" + number(2**60 - 1) + b"Ns.")) == {2**60 - 1: None}
    with pytest.raises(ValueError, match="more than 1000000 instructions"):
        read_torch(torch_file(b"\x80\x02(" + b"N" * 1_000_000 + b"t."))
    # Building costs more than an instruction: a size out of the memo, again and again.
    size = name("torch", "Size") + b"q\x00" + run(number(1)) + b"q\x01"
    with pytest.raises(ValueError, match="more than 1000000 instructions"):
        read_torch(torch_file(b"\x80\x02](" + size + b"h\x00h\x01\x85R" * 100_000 + b"e."))


def test_long_directories_are_refused_before_they_are_read():
    raw = torch_file(state(tensor()))
    end = raw.rindex(b"PK\x05\x06")
    long = raw[: end + 12] + struct.pack("<I", 2**24) + raw[end + 16 :]
    with pytest.raises(ValueError, match="a directory of 16777216 bytes"):
        read_torch(long)
    wide = b"PK\x06\x06" + bytes(36) + struct.pack("<Q", 2**40) + bytes(8)
    locator = b"PK\x06\x07" + bytes(16)
    with pytest.raises(ValueError, match="a directory of 1099511627776 bytes"):
        read_torch(raw[:end] + wide + locator + raw[end:])


def test_a_far_memo_takes_no_memory():
    """Python's own unpickler would make room for four thousand million entries."""
    program = b"\x80\x02}r" + struct.pack("<I", 2**32 - 1) + text("w") + tensor() + b"s."
    np.testing.assert_array_equal(read_torch(torch_file(program))["w"], [0, 1])


def test_a_knot_of_containers_is_walked_once():
    """Forty lists, each twice in the next: 2**40 leaves for who does not look."""
    program = b"]q\x00"
    for level in range(40):
        get, put = b"h" + bytes([level]), b"q" + bytes([level + 1])
        program += b"](" + get + get + b"e" + put
    lists = read_torch(torch_file(state(b"](" + program + b"e")))["w"]
    assert len(lists) == 41
    assert all(later[0] is later[1] is earlier for earlier, later in itertools.pairwise(lists))


def test_archives_that_are_not_from_torch_are_refused():
    good = state(tensor())
    for data, message in {
        torch_file(good, **{"constants.pkl": b"x"}): "TorchScript",
        torch_file(good, **{"byteorder": b"big"}): "little-endian",
        torch_file(good, zipfile.ZIP_DEFLATED): "compressed",
        torch_file(b"\x80\x02K\x01."): "a int instead of a dict",
        torch_file(b""): "expected a zip archive",
        b"": "0 bytes",
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.": "PyTorch 1.6",
        b"\x93NUMPY\x01\x00": "zip",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_torch(data)
    nested = io.BytesIO()
    with zipfile.ZipFile(nested, "w") as archive:
        archive.writestr("archive/data.pkl", torch_file(good))
    with pytest.raises(ValueError, match="expected a zip archive of tensors"):
        read_torch(nested.getvalue())


def test_overlapping_records_are_refused():
    """A central directory that lists one record many times is a bomb of another kind."""
    raw = torch_file(state(tensor()), **{"big": bytes(5000)})
    end = raw.rindex(b"PK\x05\x06")
    start = struct.unpack("<I", raw[end + 16 : end + 20])[0]
    entry = raw.index(b"archive/big", start) - 46
    copies = b"".join(
        raw[entry:end].replace(b"archive/big", f"archive/b{i:02}".encode()) for i in range(50)
    )
    total = struct.unpack("<H", raw[end + 8 : end + 10])[0] + 50
    tail = struct.pack("<HHII", total, total, end - start + len(copies), start)
    data = raw[:end] + copies + raw[end : end + 8] + tail + raw[end + 20 :]
    with pytest.raises(ValueError, match="more bytes than the file|written by"):
        read_torch(data)


class Malice:
    def __init__(self, call, *arguments):
        self.parts = call, arguments

    def __reduce__(self):
        return self.parts


def test_no_code_runs(tmp_path):
    """Every way a pickle can call something, tried; the canary stays away."""
    import builtins
    import os
    import subprocess

    canary = tmp_path / "canary"
    touch = f"open({str(canary)!r}, 'w').close()"
    payloads = [
        Malice(os.system, f"touch {canary}"),
        Malice(builtins.eval, touch),
        Malice(builtins.exec, touch),
        Malice(subprocess.call, ["touch", str(canary)]),
        Malice(canary.touch),
        Malice(builtins.getattr, canary, "touch"),
    ]
    for protocol in range(6):
        for payload in payloads:
            raw = pickle.dumps({"w": payload}, protocol)
            for data in (torch_file(raw), raw):
                with pytest.raises(ValueError):
                    read_torch(data)
            for read in (read_equinox_leaves, read_safetensors):
                with pytest.raises(ValueError):
                    read(raw)
    # Where a tensor's arguments belong, and dressed as the names that are allowed.
    attack = name("posix", "system") + run(text(f"touch {canary}")) + b"R"
    for program in (
        attack,
        name("torch._utils", "_rebuild_parameter") + run(attack, b"\x89", b"N") + b"R",
        name("torch", "Size") + run(attack) + b"R",
        run(attack) + b"Q",
        name("collections", "OrderedDict") + run(attack) + b"R",
        b"\x8c\x05posix\x8c\x06system\x93" + run(text(f"touch {canary}")) + b"R",
        b"}" + attack + b"b",
    ):
        with pytest.raises(ValueError, match="system"):
            read_torch(torch_file(state(program)))
    objects = io.BytesIO()
    np.save(objects, np.array([payloads[0]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="not numbers"):
        read_equinox_leaves(objects.getvalue())
    assert not canary.exists()
    pickle.loads(pickle.dumps(payloads[0]))  # the canary can sing
    assert canary.exists()


def test_damaged_pickles_raise_value_errors_only(rng):
    """Past the archive's checksums: random bytes in the pickle itself."""
    with zipfile.ZipFile(io.BytesIO(STATE)) as archive:
        records = {n.partition("/")[2]: archive.read(n) for n in archive.namelist()}
    program = np.frombuffer(records.pop("data.pkl"), np.uint8)
    refused = 0
    for _ in range(1500):
        damaged = program.copy()
        places = rng.integers(0, len(program), rng.integers(1, 5))
        damaged[places] = rng.integers(0, 256, len(places))
        try:
            assert isinstance(read_torch(torch_file(damaged.tobytes(), **records)), dict)
        except ValueError:
            refused += 1
    assert refused > 500
