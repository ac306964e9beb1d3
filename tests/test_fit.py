"""The training loop: sources, accumulation, devices, and runs that go on as if they had never stopped."""

import itertools
import json
import os
import subprocess
import sys
import textwrap

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.energies import NetworkDenoiser
from numpyro_diffusion.nets import Labels, ResidualMLP
from numpyro_diffusion.train import EarlyStopping, Optimizer, denoising_loss
from numpyro_diffusion.train.distill import from_teacher
from numpyro_diffusion.train.sources import Examples, Mixed, Sampler, Stream

# Data are of the Gaussian that training starts from, so that some runs find nothing to learn.
pytestmark = pytest.mark.filterwarnings("ignore:training learned nothing:UserWarning")

MEAN, COVARIANCE = np.array([0.5, -1.0]), np.array([[1.0, 0.6], [0.6, 0.8]])
QUICK = {"progress_bar": False, "steps": 40, "batch_size": 8, "loss": denoising_loss,
         "stopping": EarlyStopping(check_every=10, validation_repeats=2)}  # fmt: skip
DATA = np.random.default_rng(0).multivariate_normal(MEAN, COVARIANCE, 200)


def small(condition=None):
    net = ResidualMLP(jax.random.key(1), (2,), width=8, depth=1, condition=condition)
    return nd.ProperEnergy(net, MEAN, COVARIANCE)


def same(first, second):
    return all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    )


def stopped_after(monkeypatch, checks: int):
    """Interrupts training right after so many checkpoints were written."""
    loop = sys.modules["numpyro_diffusion.train.fit"]  # the name in the package is the function
    write, count = loop.write_progress, itertools.count(1)

    def interrupt(*args):
        write(*args)
        if next(count) == checks:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "write_progress", interrupt)


@pytest.mark.parametrize("stream", [False, True])
def test_a_resumed_run_is_the_same_bit_for_bit(stream, key, tmp_path, monkeypatch):
    batches = lambda: (DATA[np.arange(i, i + 8) % 200] for i in itertools.count())
    data = lambda: batches() if stream else DATA
    options = QUICK | {"validation": DATA[:20]}
    whole = nd.fit(key, small(), data(), **options)
    path = tmp_path / "run.safetensors"
    with monkeypatch.context() as patch:
        stopped_after(patch, 2)
        part = nd.fit(key, small(), data(), checkpoint=path, **options)
    assert part.stopped == "interrupted"
    rest = nd.fit(key, small(), data(), checkpoint=path, **options)
    assert same(rest.energy, whole.energy) and rest.best_step == whole.best_step
    for name, values in whole.history.items():
        np.testing.assert_array_equal(rest.history[name], values)
    again = nd.fit(key, small(), data(), checkpoint=path, **options)  # nothing is left to do
    assert same(again.energy, whole.energy)


def test_a_checkpoint_of_another_run_is_refused(key, tmp_path):
    path = tmp_path / "run.safetensors"
    nd.fit(key, small(), DATA, checkpoint=path, **QUICK)
    with pytest.raises(ValueError, match="another run: batch_size is 8, not 4"):
        nd.fit(key, small(), DATA, checkpoint=path, **QUICK | {"batch_size": 4})
    with pytest.raises(ValueError, match="another run: data is"):
        nd.fit(key, small(), DATA + 1e-9, checkpoint=path, **QUICK)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="not a checkpoint"):
        nd.fit(key, small(), DATA, checkpoint=path, **QUICK)


def test_accumulated_gradients_are_those_of_the_whole_batch(key):
    def loss(energy, key, batch):  # without noise, so that only the batch matters
        return jnp.mean(jax.vmap(lambda x: energy.energy(x, jnp.asarray(0.1)) ** 2)(batch))

    options = QUICK | {"validation": DATA[:20], "loss": loss}
    batches = lambda size: (DATA[np.arange(i, i + size) % 200] for i in itertools.count(0, size))
    whole = nd.fit(key, small(), batches(8), **options)
    parts = nd.fit(
        key,
        small(),
        batches(4),
        **options | {"batch_size": 4, "optimizer": Optimizer(accumulate=2)},
    )
    np.testing.assert_allclose(
        parts.history["train_loss"][1:], whole.history["train_loss"][1:], rtol=1e-9
    )
    assert whole.history["train_loss"][-1] < whole.history["train_loss"][1]


def test_sources_give_what_they_say(key):
    ones = Sampler(lambda key: jnp.ones(2) + 0 * jax.random.normal(key, (2,)))
    stream = Stream(lambda: np.zeros((1, 2)), (2,))
    mixed = Mixed((Examples(jnp.asarray(DATA)), ones, stream), (6.0, 3.0, 1.0))
    batch = mixed.draw(key, 10, mixed.feed(10)).examples
    assert batch.shape == (10, 2)
    assert all(any(np.array_equal(x, d) for d in DATA) for x in batch[:6])
    np.testing.assert_array_equal(batch[6:9], np.ones((3, 2)))
    np.testing.assert_array_equal(batch[9], np.zeros(2))
    with pytest.raises(ValueError, match="batches of 3 examples.*got 1"):
        stream.feed(3)
    with pytest.raises(ValueError, match="one positive share"):
        Mixed((ones,), (1.0, 2.0))


def test_training_from_a_sampler_finds_its_scale(key):
    """Draws of twice the spread move the energy away from the Gaussian that it starts from."""
    law = nd.Gaussian(MEAN, 4 * COVARIANCE)
    found = nd.fit(
        key,
        small(),
        lambda key: law.draw(key, jnp.zeros(())),
        **QUICK | {"steps": 300, "batch_size": 32},
    )
    start, end = found.history["validation_loss"][[0, -1]]
    assert end < start - 0.1


def test_streams_end_and_need_held_out_examples(key):
    few = iter([DATA[:8]] * 25)
    result = nd.fit(key, small(), few, validation=DATA[:20], **QUICK)
    assert result.stopped == "exhausted" and result.history["step"][-1] == 20
    with pytest.raises(ValueError, match="`Stream` holds nothing out"):
        nd.fit(key, small(), iter([DATA[:8]]), **QUICK)
    with pytest.raises(TypeError, match="returns pairs"):
        nd.fit(key, small(), iter([DATA[:8]]), condition=np.zeros(8), **QUICK)


def test_null_is_learned_at_the_rate_that_was_asked_for(key):
    labels, options = np.arange(200) % 3, QUICK | {"optimizer": Optimizer(weight_decay=0.0)}
    start = small(Labels(jax.random.key(2), 3))
    start = eqx.tree_at(lambda e: e.net.write.weight, start, jnp.ones((2, 8)))
    rows = {}
    for rate in (0.0, 0.3):
        told = nd.fit(key, start, DATA, condition=labels, null_rate=rate, **options).energy
        rows[rate] = np.abs(told.net.condition.weight - start.net.condition.weight).max(1)
    assert rows[0.0][3] < 1e-12 and rows[0.0][:3].min() > 0
    assert rows[0.3].min() > 0
    with pytest.raises(ValueError, match="no null condition"):
        nd.fit(key, small(), DATA, condition=labels, **options)
    with pytest.raises(ValueError, match="one entry an example, 200"):
        nd.fit(key, start, DATA, condition=labels[:5], **options)


class Linear(eqx.Module):
    """A backbone that is a matrix."""

    matrix: jax.Array

    def __call__(self, w, c_noise):
        return self.matrix @ w


@pytest.mark.parametrize("log_snr", [4.0, 0.0, -3.0])
def test_half_a_symmetric_teacher_is_the_teacher(log_snr):
    """The factor of one half, exactly, for `F = K w` with K symmetric; what turns is lost."""
    variances, symmetric = np.ones(2), np.array([[0.3, -0.2], [-0.2, 0.1]])
    turn = np.array([[0.0, 0.4], [-0.4, 0.0]])
    x = jnp.array([0.3, -1.2])
    student = nd.InnerProductEnergy(None, MEAN, variances)
    untrained = NetworkDenoiser(nd.InnerProductEnergy(None, MEAN, variances))
    t = student.schedule.time(jnp.asarray(log_snr))
    exact = nd.Gaussian(MEAN, np.eye(2)).denoise(x, t)
    np.testing.assert_allclose(untrained.denoise(x, t), exact, rtol=1e-9)
    said = []
    for matrix in (symmetric, symmetric + turn):
        base = nd.InnerProductEnergy(Linear(jnp.asarray(matrix)), MEAN, variances)
        teacher = NetworkDenoiser(base)
        said.append((from_teacher(student, teacher).denoise(x, t), teacher.denoise(x, t)))
    np.testing.assert_allclose(said[0][0], said[0][1], rtol=1e-9)
    np.testing.assert_allclose(said[1][0], said[0][1], rtol=1e-9)
    assert np.abs(said[1][1] - said[0][1]).max() > 1e-3
    with pytest.raises(ValueError, match="must share mean, scales and basis"):
        from_teacher(nd.InnerProductEnergy(None, MEAN, 2 * variances), teacher)


def test_two_devices_give_what_one_does(tmp_path):
    script = textwrap.dedent("""
        import json, jax, numpy as np, numpyro_diffusion as nd
        from numpyro_diffusion.train import EarlyStopping, Optimizer, denoising_loss
        data = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
        options = dict(steps=20, batch_size=8, progress_bar=False, loss=denoising_loss)
        options["stopping"] = EarlyStopping(check_every=10)
        losses = []
        for devices in (None, jax.devices()):
            net = nd.nets.ResidualMLP(None, (2,), width=8, depth=1)
            energy = nd.ProperEnergy(net, (0.0, 0.0), ((1.0, 0.3), (0.3, 1.0)))
            result = nd.fit(jax.random.key(0), energy, data, optimizer=Optimizer(devices=devices), **options)
            losses.append(result.history["validation_loss"].tolist())
        print(json.dumps([len(jax.devices()), losses]))
    """)
    flags = "--xla_force_host_platform_device_count=2"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_ENABLE_X64": "0"}
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    count, (one, two) = json.loads(run.stdout)
    assert count == 2 and abs(one[-1] - one[0]) > 1e-4
    np.testing.assert_allclose(two, one, rtol=1e-5)
