"""Files of weights from strangers: the numbers come in, nothing else does, and nothing runs."""

import io
import struct
import zipfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save

from numpyro_diffusion.teachers import (
    read_bytes,
    read_equinox_leaves,
    read_safetensors,
    read_torch,
)

DATA = Path(__file__).parent / "data"
STATE = (DATA / "torch_state.pt").read_bytes()


def equinox_bytes(tree) -> bytes:
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, tree)
    return file.getvalue()


LEAVES = (
    jnp.arange(6.0).reshape(2, 3),
    np.asfortranarray(np.arange(6).reshape(2, 3)),
    jnp.asarray([1.5, -2.0], jnp.bfloat16),
    jnp.zeros((0, 4), jnp.float32),
    np.array([True, False]),
    10.0,
    3,
)
EQX = equinox_bytes(LEAVES)
TENSORS = {"a.weight": np.arange(6.0).reshape(2, 3), "b": np.array([1, 2], np.int8)}
SAFE = save(TENSORS)


def test_equinox_leaves_come_back():
    leaves = read_equinox_leaves(EQX)
    assert len(leaves) == len(LEAVES)
    for leaf, expected in zip(leaves, LEAVES, strict=True):
        expected = np.asarray(expected)
        assert leaf.dtype == expected.dtype and leaf.shape == expected.shape
        np.testing.assert_array_equal(leaf, expected)
    again = read_equinox_leaves(b'{"width": 8}\n' + EQX)
    np.testing.assert_array_equal(again[0], LEAVES[0])


def test_safetensors_come_back():
    tensors = read_safetensors(SAFE)
    assert tensors.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        assert tensors[name].dtype == expected.dtype
        np.testing.assert_array_equal(tensors[name], expected)
    half = save({"x": np.asarray(jnp.asarray([1.5, -2.0], jnp.bfloat16))})
    assert read_safetensors(half)["x"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(read_safetensors(half)["x"].astype(float), [1.5, -2.0])


def test_torch_tensors_are_those_that_torch_saved():
    """The file is PyTorch's own, see `data/README.md`: views, shared storages, all common types."""
    loaded = read_torch(DATA / "torch_state.pt")
    with np.load(DATA / "torch_state.npz") as expected:
        assert list(loaded["state_dict"]) == expected.files
        for name, array in loaded["state_dict"].items():
            assert array.shape == expected[name].shape
            np.testing.assert_array_equal(array.astype(np.float64), expected[name])
    types = {name: str(array.dtype) for name, array in loaded["state_dict"].items()}
    assert types["0.weight"] == "float32" and types["bfloat16"] == "bfloat16"
    assert types["half"] == "float16" and types["flags"] == "bool" and types["number"] == "int64"
    rest = {name: loaded[name] for name in loaded if name != "state_dict"}
    plain = {"step": 3, "rate": 1e-3, "note": "é", "size": (1, 2), "last": None}
    assert rest == {"list": [1, (True, [])], **plain}


def test_members_of_archives_and_folders(tmp_path):
    wheel, folder = tmp_path / "a.whl", tmp_path / "folder"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pkg/net.eqx", EQX)
    (folder / "pkg").mkdir(parents=True)
    (folder / "pkg" / "net.eqx").write_bytes(EQX)
    assert read_bytes(wheel, "pkg/net.eqx") == EQX == read_bytes(folder, "pkg/net.eqx")
    with pytest.raises(ValueError, match="has no member 'nothing'"):
        read_bytes(wheel, "nothing")
    for outside in ("../a.whl", str(wheel)):
        with pytest.raises(ValueError, match="inside the folder"):
            read_bytes(folder, outside)
    with pytest.raises(FileNotFoundError, match="working directory"):
        read_bytes(tmp_path / "none.eqx")
    with pytest.raises(ValueError, match="neither"):
        read_bytes(folder / "pkg" / "net.eqx", "net.eqx")


def test_limits_hold_before_anything_is_unpacked(tmp_path):
    bomb = tmp_path / "bomb.whl"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net.eqx", bytes(10**7))
    assert bomb.stat().st_size < 20_000
    with pytest.raises(ValueError, match="10000000 bytes, more than `max_bytes` = 1000000"):
        read_bytes(bomb, "net.eqx", max_bytes=10**6)
    for read, data in ((read_equinox_leaves, EQX), (read_safetensors, SAFE), (read_torch, STATE)):
        with pytest.raises(ValueError, match="max_bytes"):
            read(data, max_bytes=len(data) - 1)


READERS = {
    "equinox": (read_equinox_leaves, EQX),
    "safetensors": (read_safetensors, SAFE),
    "torch": (read_torch, STATE),
}


def test_counts_are_bounded_and_not_only_sizes():
    with pytest.raises(ValueError, match="more than 20000 blocks"):
        read_equinox_leaves(equinox_bytes((np.zeros(0),)) * 20_001)
    note = b'{"__metadata__":{"note":"' + b" " * 2**22 + b'"}}'
    with pytest.raises(ValueError, match="a header of .* where at most 4194304 are read"):
        read_safetensors(struct.pack("<Q", len(note)) + note)


def test_flags_are_zero_or_one():
    flags = np.array([0, 1, 2], np.uint8).view(np.bool_)
    with pytest.raises(ValueError, match="neither 0 nor 1"):
        read_safetensors(save({"x": flags}))
    with pytest.raises(ValueError, match="neither 0 nor 1"):
        read_equinox_leaves(equinox_bytes((flags,)))


def test_numbers_of_eight_bits_come_back():
    for dtype in (jnp.float8_e4m3fn, jnp.float8_e5m2):
        array = np.asarray(jnp.asarray([1.5, -2.0], dtype))
        assert read_safetensors(save({"x": array}))["x"].dtype == dtype
        np.testing.assert_array_equal(read_safetensors(save({"x": array}))["x"], array)


@pytest.mark.parametrize("kind", READERS)
def test_truncation_anywhere_is_noticed(kind, rng):
    read, data = READERS[kind]
    ends, whole = {0}, 0
    if kind == "equinox":  # whole blocks are a shorter file, which its reader cannot know
        for leaf in LEAVES:
            whole += len(equinox_bytes((leaf,)))
            ends.add(whole)
    for size in sorted(
        {*rng.integers(0, len(data), 300).tolist(), 0, len(data) - 1} - (ends - {0})
    ):
        with pytest.raises(ValueError, match="expected"):
            read(data[:size])


@pytest.mark.parametrize("kind", READERS)
def test_flipped_bits_raise_value_errors_only(kind, rng):
    read, data = READERS[kind]
    raw, refused = np.frombuffer(data, np.uint8), 0
    for _ in range(1500):
        damaged = raw.copy()
        places = rng.integers(0, len(raw), rng.integers(1, 4))
        damaged[places] ^= (1 << rng.integers(0, 8, len(places))).astype(np.uint8)
        try:
            read(damaged.tobytes())
        except ValueError:
            refused += 1
    assert refused > 150


HEADERS = {
    "too many": "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }",
    "overflow": "{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999, 9999999999), }",
    "negative": "{'descr': '<f4', 'fortran_order': False, 'shape': (-4,), }",
    "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    "strings": "{'descr': '<U4', 'fortran_order': False, 'shape': (1,), }",
    "records": "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }",
    "a call": "{'descr': '<f4', 'fortran_order': False, 'shape': (__import__('os').getpid(),), }",
    "no type": "{'fortran_order': False, 'shape': (1,), }",
    "deep": "(" * 2000,
    "a type that is none": "{'descr': 'nonsense', 'fortran_order': False, 'shape': (1,), }",
    "a side too long": "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 10**30), }",
    "a side far too long": f"{{'descr': '<f4', 'fortran_order': False, 'shape': (0, 1{'0' * 30}), }}",
    "a shape that is none": "{'descr': '<f4', 'fortran_order': False, 'shape': 4, }",
}


@pytest.mark.parametrize("lie", HEADERS)
def test_lies_in_npy_headers_are_refused(lie):
    header = HEADERS[lie].encode()
    block = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(16)
    with pytest.raises(ValueError, match="block 1 at byte"):
        read_equinox_leaves(equinox_bytes((jnp.ones(2),)) + block)


def test_arrays_can_go_to_jax():
    leaves = [*read_equinox_leaves(EQX), *read_torch(STATE)["state_dict"].values()]
    assert all(bool(jnp.all(jnp.asarray(leaf) == leaf)) for leaf in jax.tree.leaves(leaves))
