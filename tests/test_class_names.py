"""Labels of classes in files: one for each, the same wherever a class stands, and old files read as ever."""

import importlib
import inspect
import json
import pkgutil
import struct
import sys
import zipfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion._safetensors import _digest, parse
from numpyro_diffusion.io import labels as class_names
from numpyro_diffusion.io import read_card
from numpyro_diffusion.io.former_labels import FORMER_LABELS
from numpyro_diffusion.io.labels import class_finder, label_of, saved_classes

DATA = Path(__file__).parent / "data"
OLD = json.loads((DATA / "saved_by_place.json").read_text())


class Ramp(eqx.Module):
    """The user's class in old files, which has moved since."""

    slope: float

    def __call__(self, t):
        return 1 + self.slope * jnp.sum(t)


class ResidualMLP(eqx.Module):
    """A network of a user that is called as one of ours."""

    gain: jax.Array

    def __call__(self, u, c_noise):
        return self.gain * u


GIVEN = {"users": [Ramp], "classifier": [nd.train.ratio.RatioClassifier]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "prior.safetensors"


def metadata_of(path):
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def relabel(path, edit, **metadata):
    """The file with other labels, and a digest that holds."""
    header, body = metadata_of(path)
    known = header["__metadata__"]
    known |= {"tree": json.dumps(edit(json.loads(known["tree"])))} | metadata
    known.pop("sha256", None)
    _, arrays = parse(path.read_bytes())
    if known["version"] != "1":
        known["sha256"] = _digest(known, arrays)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def labels_of(node):
    """Every label in a tree."""
    if isinstance(node, dict):
        own = [node["module"]] if "module" in node else []
        return own + [label for value in node.values() for label in labels_of(value)]
    return [label for value in node for label in labels_of(value)] if isinstance(node, list) else []


def old_file(name, path):
    with zipfile.ZipFile(DATA / "saved_by_place.zip") as archive:
        path.write_bytes(archive.read(f"{name}.safetensors"))
    return path


def check_numbers(prior, expected):
    energy = prior.energy if isinstance(prior, nd.energies.Standardized) else prior
    x = jnp.asarray(expected["x"])
    close = lambda found, told: np.testing.assert_allclose(found, told, rtol=1e-9, atol=1e-11)
    for level in (expected["low"], expected["high"]):
        t = jnp.asarray(level["t"])
        close(eqx.filter_jit(energy.denoise)(x, t), level["denoise"])
        assert ("log_density" in level) == isinstance(energy, nd.AbstractEnergy)
        if "log_density" in level:
            close(eqx.filter_jit(energy.log_density)(x, t), level["log_density"])
    if "restored" in expected:
        close(prior.restore(x), expected["restored"])


@pytest.mark.parametrize("name", OLD)
def test_old_files_give_the_numbers_of_then(name, path):
    """Also when saved again, under the labels of today."""
    old_file(name, path)
    before = labels_of(json.loads(metadata_of(path)[0]["__metadata__"]["tree"]))
    assert metadata_of(path)[0]["__metadata__"]["version"] == "2"
    assert all("." in label for label in before)
    prior = nd.load(path, classes=GIVEN.get(name, []))
    assert read_card(path) == {"made": name}
    check_numbers(prior, OLD[name])
    nd.save(path, prior)
    after = labels_of(json.loads(metadata_of(path)[0]["__metadata__"]["tree"]))
    expected = [FORMER_LABELS.get(label) for label in before]
    assert all(new == label for new, label in zip(after, expected, strict=True) if label)
    ours = {
        "users": "mine.old_place.Ramp",
        "classifier": "numpyro_diffusion.train.ratio.RatioClassifier",
    }
    assert {label for label in before if label not in FORMER_LABELS} <= {ours.get(name)}
    again = nd.load(path, classes=GIVEN.get(name, []))
    assert jax.tree.structure(again) == jax.tree.structure(prior) and eqx.tree_equal(again, prior)


def test_old_files_need_no_module_to_stand_where_it_stood(path, monkeypatch):
    """No import happens, and the modules that labels name are not there."""
    saved_classes()  # known from the import of the package on
    for place in {label.rpartition(".")[0] for label in FORMER_LABELS}:
        monkeypatch.delitem(sys.modules, f"numpyro_diffusion.{place}", raising=False)
    monkeypatch.setattr(importlib, "import_module", None)
    for name in OLD:
        assert nd.load(old_file(name, path), classes=GIVEN.get(name, [])) is not None


def test_every_saved_class_has_a_label_of_its_own():
    for info in pkgutil.walk_packages(nd.__path__, f"{nd.__name__}."):
        importlib.import_module(info.name)
    before = dict(saved_classes())
    saved_classes.cache_clear()
    assert dict(saved_classes()) == before  # a second class of a name raises, see below
    for label, cls in before.items():
        assert label == cls.__name__ == label_of(cls) and label.isidentifier()
        assert class_names.is_ours(cls) and not inspect.isabstract(cls)
        assert not label.startswith("_")
    public = {cls for cls in vars(nd.nets).values() if inspect.isclass(cls)}
    assert {cls for cls in public if not inspect.isabstract(cls)} <= set(before.values())
    assert len(before) >= len(set(FORMER_LABELS.values())) == len(FORMER_LABELS)
    assert set(FORMER_LABELS.values()) <= before.keys()


def test_a_second_class_of_a_name_is_refused(monkeypatch):
    other = type("Linear", (eqx.Module,), {"__module__": "numpyro_diffusion.elsewhere"})
    monkeypatch.setattr(class_names, "_PARTS", (*class_names._PARTS, other))
    saved_classes.cache_clear()
    with pytest.raises(
        RuntimeError, match=r"nets\.mlp\.Linear and numpyro_diffusion\.elsewhere\.Linear"
    ):
        saved_classes()
    monkeypatch.undo()
    assert saved_classes()["Linear"] is nd.nets.Linear


def test_a_label_does_not_know_where_its_class_stands(path, monkeypatch):
    """A file from before a move and one from after it name the class alike."""
    net = nd.nets.ResidualMLP(jax.random.key(0), (2,), width=2, depth=1)
    nd.save(path, nd.ProperEnergy(net))
    before = metadata_of(path)[0]["__metadata__"]["tree"]
    monkeypatch.setattr(nd.nets.ResidualMLP, "__module__", "numpyro_diffusion.rooms.of.later")
    nd.save(path, nd.ProperEnergy(net))
    assert metadata_of(path)[0]["__metadata__"]["tree"] == before
    assert set(labels_of(json.loads(before))) == {
        "ProperEnergy", "ResidualMLP", "ResidualBlock", "Linear", "VariancePreserving",
    }  # fmt: skip
    assert type(nd.load(path).net) is nd.nets.ResidualMLP


def test_a_class_that_gets_another_name_is_found_under_both(path, monkeypatch):
    nd.save(path, nd.Gaussian())
    relabel(path, lambda tree: tree | {"module": "Normal"})
    with pytest.raises(ValueError, match="'Normal', which this release does not have"):
        nd.load(path)
    monkeypatch.setitem(FORMER_LABELS, "Normal", "Gaussian")
    assert eqx.tree_equal(nd.load(path), nd.Gaussian())


def test_a_class_of_a_user_is_told_from_ours_of_the_same_name(path):
    energy = nd.ProperEnergy(ResidualMLP(jnp.array([1.0, 2.0])))
    nd.save(path, energy)
    assert f"{__name__}.ResidualMLP" in labels_of(
        json.loads(metadata_of(path)[0]["__metadata__"]["tree"])
    )
    assert eqx.tree_equal(nd.load(path, classes=[ResidualMLP]), energy)
    with pytest.raises(ValueError, match=r"cannot be read: pass `classes=\[ResidualMLP\]`"):
        nd.load(path)
    ours = nd.ProperEnergy(nd.nets.ResidualMLP(jax.random.key(0), (2,), width=2, depth=1))
    nd.save(path, ours)
    assert eqx.tree_equal(nd.load(path, classes=[ResidualMLP]), ours)


def test_a_package_of_a_user_may_be_called_as_a_room_of_ours(path, monkeypatch):
    """`nets.mlp.ResidualMLP` once meant two classes; from version 3 on it is the user's."""
    monkeypatch.setattr(ResidualMLP, "__module__", "nets.mlp")
    energy = nd.ProperEnergy(ResidualMLP(jnp.array([1.0, 2.0])))
    nd.save(path, energy)
    assert eqx.tree_equal(nd.load(path, classes=[ResidualMLP]), energy)
    with pytest.raises(ValueError, match=r"pass `classes=\[ResidualMLP\]`"):
        nd.load(path)
    relabel(path, lambda tree: tree, version="2")
    assert eqx.tree_equal(nd.load(path, classes=[ResidualMLP]), energy)  # as it was then
    with pytest.raises(ValueError, match="ResidualMLP has fields"):
        nd.load(path)


def disguised():
    net = type("Linear", (eqx.Module,), {"__annotations__": {"weight": jax.Array},
               "__call__": lambda self, u, c_noise: self.weight * u})  # fmt: skip
    net.__module__, net.__qualname__ = "numpyro_diffusion.nets.mlp", "Linear"
    return net


def test_a_class_in_the_disguise_of_ours_is_refused(path):
    net = disguised()
    with pytest.raises(
        TypeError, match=r"`energy.net`: expected the class `Linear` of this package.*Rename"
    ):
        nd.save(path, nd.ProperEnergy(net(jnp.ones(2))))
    nd.save(path, nd.Gaussian())
    with pytest.raises(TypeError, match="expected the class `Linear` of this package.*Rename it"):
        nd.load(path, classes=[net])
    spy = type(
        "Spy", (nd.schedules.Cosine,), {"__module__": "numpyro_diffusion.schedules.standard"}
    )
    saved_classes.cache_clear()
    assert spy not in saved_classes().values()


def test_two_classes_of_one_name_are_kept_apart(path):
    def make(factor):
        class Net(eqx.Module):
            weight: jax.Array

            def __call__(self, u, c_noise):
                return factor * self.weight * u

        return Net

    one, two = make(1.0), make(2.0)
    energies = [nd.ProperEnergy(net(jnp.ones(2))) for net in (one, two)]
    with pytest.raises(
        TypeError, match=r"energies.1.net`: expected classes of different names.*Rename one"
    ):
        nd.save(path, energies[0] + energies[1])
    nd.save(path, energies[0])
    with pytest.raises(ValueError, match="two that are called .*Net.*Rename one"):
        nd.load(path, classes=[one, two])
    one.__module__, two.__module__ = "first", "second"
    both = energies[0] + energies[1]
    nd.save(path, both)
    assert eqx.tree_equal(nd.load(path, classes=[two, one]), both)


def test_classes_must_be_a_list_of_classes_of_modules(path):
    nd.save(path, nd.Gaussian())
    for wrong in (3, "os.system", print, int, [Ramp], None):
        with pytest.raises(
            TypeError, match="expects classes of modules; got .*Pass the class itself"
        ):
            nd.load(path, classes=[wrong])
    for wrong in (Ramp, "Ramp", None):
        with pytest.raises(
            TypeError, match=r"expects a list of classes; got .*Write `classes=\[...\]`"
        ):
            nd.load(path, classes=wrong)


MADE_UP = [
    "os.system", "builtins.eval", "__class__", "__init__", "Gaussian.__class__", "Gaussian.denoise",
    "numpyro_diffusion.Gaussian", "numpyro_diffusion.energies.gaussian.Gaussian", "class_names.saved_classes",
    "energies.gaussian.Gaussian", "AbstractEnergy", "gaussian", "Gaussian ", "Gaussian\0", ".Gaussian",
    "Gaussian.", "", ".", "..", "Gauẞian", "x" * 3_000_000, "a." * 1_000_000 + "Gaussian", "[" * 1000,
]  # fmt: skip


@pytest.mark.parametrize("label", MADE_UP, ids=lambda label: ascii(label)[:30])
@pytest.mark.parametrize("version", ["2", "3"])
def test_made_up_labels_are_refused_by_name(label, version, path, monkeypatch):
    nd.save(path, nd.Gaussian())
    monkeypatch.setattr(importlib, "import_module", None)
    relabel(path, lambda tree: tree | {"module": label}, version=version)
    if (label, version) == ("energies.gaussian.Gaussian", "2"):
        assert eqx.tree_equal(nd.load(path), nd.Gaussian())
        return
    with pytest.raises(ValueError, match="cannot be read: (pass|install)") as error:
        nd.load(path, classes=[Ramp])
    assert repr(label)[:60] in str(error.value)
    assert len(str(error.value)) < 700


@pytest.mark.parametrize(
    "label", [None, 3, True, 1.5, [], ["Gaussian"], {}, {"module": "Gaussian"}]
)
def test_labels_that_are_no_text_are_refused_by_name(label, path):
    nd.save(path, nd.Gaussian())
    relabel(path, lambda tree: tree | {"module": label})
    with pytest.raises(ValueError, match="a class is named by a string; got") as error:
        nd.load(path)
    assert repr(label) in str(error.value)


def test_a_label_of_ten_megabytes_is_refused(path):
    nd.save(path, nd.Gaussian())
    relabel(path, lambda tree: tree | {"module": "x" * 10_000_000})
    with pytest.raises(ValueError, match="header") as error:
        nd.load(path)
    assert len(str(error.value)) < 700


def test_the_digest_covers_labels(path):
    nd.save(path, nd.Gaussian(schedule=nd.schedules.Cosine()))
    raw = path.read_bytes()
    assert raw.count(b'\\"Cosine\\"') == 1
    path.write_bytes(raw.replace(b'\\"Cosine\\"', b'\\"Cosinf\\"'))
    with pytest.raises(ValueError, match="SHA-256"):
        nd.load(path)


def test_an_unknown_label_says_what_to_do_and_the_nearest_names():
    find = class_finder([Ramp])
    unknown = "the file holds a class LABEL, which "
    for label, told in {
        "mine.Scald": "pass `classes=[Scald]`: "
        + unknown
        + "is built only if it is given. Nearest names: Scaled",
        "Gausian": f"install the release that wrote it: {unknown}this release does not have. Nearest "
        "names: Gaussian",
    }.items():
        with pytest.raises(ValueError) as error:
            find(label)
        assert str(error.value).startswith(told.replace("LABEL", repr(label)))
        assert str(error.value).count(",") <= 4


def test_what_moved_is_found_by_its_name_and_never_twice():
    find = class_finder([Ramp])
    assert find("mine.Ramp") is find("mine.Ramp") is Ramp
    with pytest.raises(ValueError, match=r"pass both .*'mine.Ramp' and 'yours.Ramp'"):
        find("yours.Ramp")
    with pytest.raises(ValueError, match="'Ramp', which this release does not have"):
        find("Ramp")  # a name without a module is one of ours
    with pytest.raises(ValueError, match="built only if it is given. Nearest names: Gaussian"):
        class_finder([nd.Gaussian])("mine.Gaussian")  # nor does one of ours stand for a user's
    twin = type("Ramp", (eqx.Module,), {"__module__": "other"})
    find = class_finder([Ramp, twin])
    assert find("other.Ramp") is twin and find(f"{__name__}.Ramp") is Ramp
    with pytest.raises(ValueError, match="pass one class in .*could be each of"):
        find("mine.Ramp")
