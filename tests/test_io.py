"""Save and load: nothing changes on the way, and nothing but our own files gets in."""

import json
import struct

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from numpyro_diffusion import (
    EnergyFunction,
    Gaussian,
    GaussianMixture,
    InnerProductEnergy,
    ProperEnergy,
    load,
    save,
)
from numpyro_diffusion.io import read_card
from numpyro_diffusion.nets import Linear, ResidualMLP
from numpyro_diffusion.schedules import Cosine, RectifiedFlow, VarianceExploding

ENERGIES = {
    "gaussian": lambda: Gaussian(schedule=Cosine()),
    "mixture": lambda: GaussianMixture(schedule=VarianceExploding(0.01, 50.0)),
    "composed": lambda: (Gaussian() + GaussianMixture()) / 0.5,
    "proper": lambda: ProperEnergy(log_normalizer=-1.5, log_normalizer_error=0.25),
    "inner": lambda: InnerProductEnergy(
        ResidualMLP(jax.random.key(3), (2, 3), width=8, depth=3),
        np.arange(6.0).reshape(2, 3),
        np.arange(1.0, 7.0),
        RectifiedFlow(),
    ),
    "float32": lambda: jax.tree.map(
        lambda a: a.astype(jnp.float32) if eqx.is_array(a) else a, ProperEnergy()
    ),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "energy.safetensors"


@pytest.mark.parametrize("name", ENERGIES)
def test_round_trip_is_bit_identical(name, path):
    energy = ENERGIES[name]()
    save(path, energy)
    loaded = load(path)
    assert jax.tree.structure(loaded) == jax.tree.structure(energy)
    assert eqx.tree_equal(loaded, energy, typematch=True)
    x, t = jnp.ones(energy.shape), jnp.asarray(0.2)
    assert loaded.energy(x, t) == energy.energy(x, t)
    assert loaded.log_normalizer == energy.log_normalizer
    assert loaded.log_normalizer_error == energy.log_normalizer_error


def test_card_comes_back(path):
    card = {"licence": "CC BY 4.0", "range": [-1.0, 1.0], "split": {"test": 300}}
    save(path, Gaussian(), card)
    assert read_card(path) == card


def test_failed_save_leaves_the_old_file(path):
    save(path, Gaussian())
    before = path.read_bytes()
    with pytest.raises(TypeError, match="Functions are code"):
        save(path, EnergyFunction(lambda x, t: jnp.sum(x**2), shape=(2,)))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_missing_file_says_where_it_looked(path):
    with pytest.raises(FileNotFoundError, match="working directory"):
        load(path)


class Slab(eqx.Module):
    """A network from outside the package."""

    layer: Linear

    def __call__(self, u, c_noise):
        return self.layer(u)


def test_own_classes_are_named_by_the_caller(path):
    energy = ProperEnergy(Slab(Linear(jax.random.key(0), 2, 2)))
    save(path, energy)
    with pytest.raises(ValueError, match="classes=") as error:
        load(path)
    assert "Slab" in str(error.value)
    assert eqx.tree_equal(load(path, classes=[Slab]), energy)


def parts(path):
    """Header and tensors of a safetensors file."""
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def rewrite(path, header, body, digest=False):
    """A file without a digest, as the first version wrote it, unless the one that is there shall stay."""
    if not digest:
        header["__metadata__"]["version"] = "1"
        header["__metadata__"].pop("sha256", None)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def edit_tree(path, edit):
    header, body = parts(path)
    tree = json.loads(header["__metadata__"]["tree"])
    header["__metadata__"]["tree"] = json.dumps(edit(tree))
    rewrite(path, header, body)


def with_field(name, value):
    def edit(tree):
        tree["fields"][name] = value
        return tree

    return edit


EDITS = {
    "code": with_field("schedule", {"module": "os.system", "fields": {"command": "true"}}),
    "abstract": with_field("schedule", {"module": "schedules.AbstractSchedule", "fields": {}}),
    "not a module": with_field("schedule", {"module": "schedules.log_snr_grid", "fields": {}}),
    "extra field": with_field("malice", 1),
    "unknown entry": with_field("mean", {"pickle": "gASV"}),
    "missing tensor": with_field("mean", {"array": "nowhere", "dtype": "float64", "shape": [2]}),
    "wrong kind": with_field("schedule", 3.0),
    "wrong number": with_field("t_min", "soon"),
    "a normaliser that is none": with_field("log_normalizer", [0.0]),
    "an infinite normaliser": with_field("log_normalizer", {"float": "inf"}),
    "a normaliser that is NaN": with_field("log_normalizer", {"float": "nan"}),
    "a negative error": with_field("log_normalizer_error", -1.0),
    "a flag for a number": with_field("t_min", False),
    "one array twice": with_field(
        "eigenvectors", {"array": "energy.eigenvalues", "dtype": "float64", "shape": [2]}
    ),
    "a huge number": with_field("t_max", 10**400),
    "bad check": with_field(
        "schedule",
        {"module": "schedules.VariancePreserving", "fields": {"beta_min": -1.0, "beta_max": 2.0}},
    ),
    "not an energy": lambda tree: tree["fields"]["schedule"],
    "a list": lambda tree: [1, 2],
    "null": lambda tree: None,
}


def test_files_of_the_first_version_still_load(path):
    save(path, Gaussian(), {"licence": "CC0"})
    rewrite(path, *parts(path))
    assert eqx.tree_equal(load(path), Gaussian()) and read_card(path) == {"licence": "CC0"}


def test_a_digest_is_demanded_where_one_was_written(path):
    save(path, Gaussian())
    header, body = parts(path)
    for name, value in (("card", '{"licence": "mine"}'), ("version", "1"), ("sha256", "0" * 64)):
        edited = header | {"__metadata__": header["__metadata__"] | {name: value}}
        rewrite(path, edited, body, digest=True)
        for read in (load, read_card):
            with pytest.raises(ValueError, match="SHA-256|beside version 1"):
                read(path)
    header["__metadata__"].pop("sha256")
    rewrite(path, header, body, digest=True)
    with pytest.raises(ValueError, match="SHA-256"):
        load(path)


def test_no_flipped_bit_alters_an_energy(path, rng):
    save(path, Gaussian(), {"units": "counts"})
    raw = np.frombuffer(path.read_bytes(), np.uint8)
    for place in rng.choice(8 * len(raw), 400, replace=False):
        damaged = raw.copy()
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged.tobytes())
        try:
            energy = load(path)
        except ValueError:
            continue
        assert eqx.tree_equal(energy, Gaussian()) and read_card(path) == {"units": "counts"}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_numbers_are_refused_by_name(bad, path):
    spoil = lambda energy, value: eqx.tree_at(
        lambda e: e.net.read.weight, energy, replace_fn=lambda w: w.at[0, 0].set(value)
    )
    energy = ProperEnergy()
    with pytest.raises(ValueError, match=r"1 of the .* in `energy.net.read.weight` are NaN or inf"):
        save(path, spoil(energy, bad))
    assert not path.exists()
    marked = spoil(energy, 1.2345678)
    save(path, marked)
    header, body = parts(path)
    number = np.asarray(1.2345678, marked.net.read.weight.dtype)
    assert body.count(number.tobytes()) == 1
    body = body.replace(number.tobytes(), number.dtype.type(bad).tobytes())
    rewrite(path, header, body)
    with pytest.raises(ValueError, match=r"in `energy.net.read.weight` are NaN or infinite"):
        load(path)


def test_what_could_not_be_read_again_is_not_saved(path):
    for dtype in (jnp.float8_e4m3fn, jnp.complex64, jnp.int4):
        energy = eqx.tree_at(lambda e: e.mean, Gaussian(), jnp.ones(2).astype(dtype))
        with pytest.raises((ValueError, TypeError), match="cannot save"):
            save(path, energy)
    with pytest.raises(TypeError, match="expects an energy or a denoiser; got Cosine"):
        save(path, Cosine())
    for card in ([1], {"loss": np.nan}, {"data": np.ones(2)}, "CC0"):
        with pytest.raises(TypeError, match="`card` must be"):
            save(path, Gaussian(), card)
    with pytest.raises(FileNotFoundError, match="no folder"):
        save(path.parent / "none" / path.name, Gaussian())
    assert list(path.parent.iterdir()) == []


class Table(eqx.Module):
    """A network whose weights have dots in their names."""

    parts: dict

    def __call__(self, u, c_noise):
        return self.parts["a.b"] * u + self.parts["a"]["b"]


def test_names_with_dots_are_kept_apart(path):
    energy = ProperEnergy(Table({"a.b": jnp.ones(2), "a": {"b": jnp.zeros(2)}}))
    save(path, energy)
    assert eqx.tree_equal(load(path, classes=[Table]), energy)


def test_a_damaged_card_is_refused_in_words(path):
    save(path, Gaussian())
    header, body = parts(path)
    for card, message in (("{", "is damaged"), ("[" * 10**5, "is damaged"), ("[1]", "JSON object")):
        header["__metadata__"]["card"] = card
        rewrite(path, header, body)
        with pytest.raises(ValueError, match=message):
            read_card(path)


@pytest.mark.parametrize("name", EDITS)
def test_edited_headers_are_refused(name, path):
    save(path, Gaussian())
    edit_tree(path, EDITS[name])
    label = name in ("code", "abstract", "not a module")
    with pytest.raises(
        ValueError, match="pass `classes=" if label else "does not describe an energy"
    ):
        load(path)


def test_missing_field_is_refused(path):
    save(path, ProperEnergy())
    edit_tree(path, lambda tree: tree["fields"]["net"]["fields"].pop("read") and tree)
    with pytest.raises(ValueError, match="has fields"):
        load(path)


def test_shapes_must_agree_with_the_header_and_with_each_other(path):
    save(path, Gaussian())
    edit_tree(path, with_field("mean", {"array": "energy.mean", "dtype": "float64", "shape": [3]}))
    with pytest.raises(ValueError, match=r"should be float64\[3\] and is float64\[2\]"):
        load(path)
    swapped = {"array": "energy.eigenvectors", "dtype": "float64", "shape": [2, 2]}
    save(path, Gaussian())
    edit_tree(path, with_field("eigenvalues", swapped))
    with pytest.raises(ValueError, match="does not describe an energy"):
        load(path)


def test_other_versions_and_other_programs_are_refused(path):
    save(path, Gaussian())
    header, body = parts(path)
    header["__metadata__"]["version"] = "999"
    rewrite(path, header, body, digest=True)
    with pytest.raises(ValueError, match="expected format version 1 to 3; got 999"):
        load(path)
    save_file({"layer.weight": np.ones((2, 2))}, path, {"format": "pt"})
    with pytest.raises(ValueError, match="safetensors of another program"):
        load(path)
    path.write_bytes(b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x08builtins")
    with pytest.raises(ValueError, match="another format"):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="0 bytes"):
        load(path)


def test_deep_nesting_is_refused(path):
    save(path, Gaussian())
    header, body = parts(path)
    header["__metadata__"]["tree"] = "[" * 100_000 + "]" * 100_000
    rewrite(path, header, body)
    with pytest.raises(ValueError, match="does not describe an energy"):
        load(path)


def test_truncation_anywhere_is_noticed(path, rng):
    save(path, ProperEnergy())
    raw = path.read_bytes()
    for size in rng.integers(0, len(raw), 60):
        path.write_bytes(raw[:size])
        with pytest.raises(ValueError, match="expected a safetensors file"):
            load(path)


def test_damaged_headers_raise_value_errors_only(path, rng):
    """Random bytes in the header: either refused in words, or an energy of the right form."""
    save(path, ProperEnergy())
    raw = np.frombuffer(path.read_bytes(), np.uint8)
    (size,) = struct.unpack("<Q", raw[:8].tobytes())
    refused = 0
    for _ in range(300):
        damaged = raw.copy()
        places = rng.integers(0, 8 + size, rng.integers(1, 4))
        damaged[places] = rng.integers(0, 256, len(places))
        path.write_bytes(damaged.tobytes())
        try:
            assert isinstance(load(path), ProperEnergy)
        except ValueError:
            refused += 1
    assert refused > 200
