"""Checkpoints of `fit`: nothing altered gets in, and no other run goes on from one."""

import json
import os

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import numpyro_diffusion as nd
from numpyro_diffusion.nets import ResidualMLP
from numpyro_diffusion.train import EarlyStopping, denoising_loss
from numpyro_diffusion.train.checkpoint import Progress, read_progress, write_progress

QUICK = {"progress_bar": False, "steps": 1, "batch_size": 8, "loss": denoising_loss,
         "stopping": EarlyStopping(check_every=1, validation_repeats=2)}  # fmt: skip
DATA = np.random.default_rng(0).normal(size=(200, 2))


def small():
    return nd.ProperEnergy(ResidualMLP(jax.random.key(1), (2,), width=8, depth=1))


def checkpoint_of(key, path, **changes):
    return nd.fit(key, small(), DATA, checkpoint=path, **(QUICK | changes))


def test_functions_of_another_run_are_told_from_a_checkpoint(key, tmp_path):
    """Same name, same shapes, another number inside: a closure, a global, a constant of a schedule."""
    path = tmp_path / "run.safetensors"
    widths = {"noise": 0.1}
    options = {
        "augment": lambda key, x: x + widths["noise"] * jax.random.normal(key, x.shape),
        "loss": lambda energy, key, batch: jnp.mean((energy.net.read.weight - 1.0) ** 2),
        "learning_rate": lambda step: 1e-3 / (1 + step),
        "trainable": lambda energy: energy.net,
    }  # fmt: skip
    checkpoint_of(key, path, **options)
    assert checkpoint_of(key, path, **options).best_step in (0, 1)
    others = {
        "loss": lambda energy, key, batch: jnp.mean((energy.net.read.weight - 2.0) ** 2),
        "learning_rate": lambda step: 1e-3 / (2 + step),
        "trainable": lambda energy: energy.net.blocks,
    }
    for name, other in others.items():
        with pytest.raises(ValueError, match=f"another run: .*{name} is"):
            checkpoint_of(key, path, **options | {name: other})
    widths["noise"] = 0.2
    with pytest.raises(ValueError, match="another run: augment is"):
        checkpoint_of(key, path, **options)
    widths["noise"] = 0.1
    with pytest.raises(ValueError, match="another run: .*augment is '.*', not None"):
        checkpoint_of(key, path, **options | {"augment": None})


@pytest.mark.filterwarnings("ignore:training learned nothing")
def test_functions_that_draw_data_are_told_from_a_checkpoint(key, tmp_path):
    path, options = tmp_path / "run.safetensors", QUICK | {"validation": DATA[:20]}
    draw = lambda width: lambda key: width * jax.random.normal(key, (2,))
    nd.fit(key, small(), draw(1.0), checkpoint=path, **options)
    with pytest.raises(ValueError, match="another run: sampler is"):
        nd.fit(key, small(), draw(2.0), checkpoint=path, **options)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A checkpoint, the run that it is of, and what its settings are."""
    path = tmp_path_factory.mktemp("checkpoint") / "run.safetensors"
    array = np.linspace(-1, 1, 6).reshape(2, 3)
    history = {"step": [0, 5, 10], "train_loss": [np.nan, 2.0, 1.0]}
    history["validation_loss"] = [3.0, 1.5, 2.0]
    run = Progress((array, array + 1), array + 2, 1.5, 5, 10, 1, history)
    write_progress(path, run, {"steps": 20})
    return path, run


def test_no_flipped_bit_alters_a_checkpoint(written, tmp_path, rng):
    path, run = written
    raw, damaged = np.frombuffer(path.read_bytes(), np.uint8), tmp_path / "run.safetensors"
    for place in range(8 * len(raw)):
        flipped = raw.copy()
        flipped[place // 8] ^= 1 << place % 8
        damaged.write_bytes(flipped.tobytes())
        try:
            read = read_progress(damaged, run, {"steps": 20})
        except ValueError:
            continue
        assert eqx.tree_equal(read[:2], jax.tree.map(jnp.asarray, run[:2]))
        np.testing.assert_equal(read[2:], run[2:])


def as_first_version(path, target, edit=lambda progress: None, **tensors):
    """A checkpoint without a digest, with its progress edited."""
    with safe_open(path, framework="np") as file:
        metadata = {name: file.metadata()[name] for name in ("settings", "progress")}
        arrays = {name: file.get_tensor(name) for name in file.keys()} | tensors
    progress = json.loads(metadata["progress"])
    edit(progress)
    metadata |= {"progress": json.dumps(progress), "format": "numpyro-diffusion training 1"}
    save_file(arrays, target, metadata)
    return target


def test_checkpoints_of_the_first_version_go_on(written, tmp_path):
    path, run = written
    old = as_first_version(path, tmp_path / "old.safetensors")
    read = read_progress(old, run, {"steps": 20, "loss": "a1", "trainable": ["x"]})
    np.testing.assert_equal(read[2:], run[2:])
    with pytest.raises(ValueError, match="another run: steps is 20, not 30"):
        read_progress(old, run, {"steps": 30})


EDITS = {
    "a text for a step": lambda progress: progress.update(step="x"),
    "a negative step": lambda progress: progress.update(step=-5),
    "a step that is NaN": lambda progress: progress.update(step=np.nan),
    "a step too far": lambda progress: progress.update(step=15),
    "a step that is a flag": lambda progress: progress.update(step=True),
    "a best loss not its own": lambda progress: progress.update(best_loss=1.0),
    "a best step not its own": lambda progress: progress.update(best_step=10),
    "misses that were none": lambda progress: progress.update(misses=0),
    "a field too many": lambda progress: progress.update(more=1),
    "a field too few": lambda progress: progress.pop("misses"),
    "no history": lambda progress: progress.update(history=[]),
    "a short history": lambda progress: progress["history"]["train_loss"].pop(),
    "a loss that is NaN": lambda progress: progress["history"]["train_loss"].__setitem__(2, np.nan),
    "steps that fall": lambda progress: progress["history"].update(step=[0, 10, 5]),
    "an empty history": lambda progress: progress.update(
        history={"step": [], "train_loss": [], "validation_loss": []}
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_progress_that_makes_no_sense_is_refused(name, written, tmp_path):
    path, run = written
    edited = as_first_version(path, tmp_path / "run.safetensors", EDITS[name])
    with pytest.raises(ValueError, match="not a checkpoint of `fit`"):
        read_progress(edited, run, {"steps": 20})


def test_weights_that_are_not_numbers_stay_out_of_checkpoints(written, tmp_path):
    path, run = written
    spoiled = run._replace(best=np.array([[1.0, np.nan, 2.0], [np.inf, 0.0, 0.0]]))
    with pytest.raises(ValueError, match="2 of the 6 in `best` are NaN or infinite"):
        write_progress(tmp_path / "run.safetensors", spoiled, {})
    assert not any(tmp_path.iterdir())
    edited = as_first_version(path, tmp_path / "old.safetensors", **{"2": spoiled.best})
    with pytest.raises(ValueError, match="in `best` are NaN"):
        read_progress(edited, run, {"steps": 20})
    with pytest.raises(FileNotFoundError, match="no folder"):
        read_progress(tmp_path / "none" / "run.safetensors", run, {})


def test_a_checkpoint_is_on_disk_before_it_has_its_name(written, tmp_path, monkeypatch):
    """In this order only, a crash of the machine leaves the old file or the new one."""
    events = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (events.append("sync"), sync(file)))
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("name"), replace(*paths)))
    write_progress(tmp_path / "run.safetensors", written[1], {})
    assert events == ["sync", "name", "sync"]  # numbers, their name, the folder
