"""Runs on many devices and hosts, checkpoints after a kill, and pure runs of many data sets."""

import importlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from filtering import DATA, walk
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.smc.checkpoint import Checkpoint
from numpyro_diffusion.smc.identity import Identity

HERE = Path(__file__).parent


def started(name, *args, devices=1):
    flags = f"--xla_force_host_platform_device_count={devices} {os.environ.get('XLA_FLAGS', '')}"
    root = str(HERE.parent)
    path = os.pathsep.join([root, str(HERE), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(HERE / "filtering.py"), name, *map(str, args)]
    settings = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_eight_devices_give_the_numbers_of_one():
    process = started("eight_devices", devices=8)
    out, _ = process.communicate()
    assert process.returncode == 0, out


@pytest.mark.long
def test_samplers_on_eight_devices_give_the_numbers_of_one():
    process = started("samplers", devices=8)
    out, _ = process.communicate()
    assert process.returncode == 0, out


def test_two_processes_give_the_numbers_of_one():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    processes = [started("two_hosts", port, rank) for rank in (0, 1)]
    outs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outs)


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, rng):
    def run(path, out):
        process = started("checkpointed", tmp_path / path, tmp_path / out)
        told, _ = process.communicate()
        assert process.returncode == 0, told
        return np.load(tmp_path / out)

    whole = run("whole.safetensors", "whole.npz")
    path = tmp_path / "killed.safetensors"
    process = started("checkpointed", path, tmp_path / "killed.npz")
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(rng.uniform(0.0, 0.5))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed.npz").exists()
    again = run("killed.safetensors", "killed.npz")
    assert whole.files == again.files and len(whole.files) > 10
    for name in whole.files:
        np.testing.assert_array_equal(whole[name], again[name])


def stopped_at(path, key, levels=4, model=None, **options):
    options = {"num_chains": 2, "checkpoint": path, "levels_per_chunk": 2} | options
    return nd.run_smc(key, model or walk(), 60, max_levels=levels, **options)


def test_checkpoints_of_another_run_are_refused_by_name(key, tmp_path):
    path = tmp_path / "run.safetensors"
    stopped_at(path, key)
    for words, change in {
        "the PRNG key is another": {"key": jax.random.key(9)},
        "the levels is another": {"model": walk(DATA + 0.1)},
        "what it computes, its data or a constant": {"model": walk(noise=0.9)},
        "num_chains was 2 and is 3": {"num_chains": 3},
        "threshold was 0.5 and is 0.6": {"threshold": 0.6},
        "resampling was 'systematic' and is 'residual'": {"resampling": "residual"},
    }.items():
        with pytest.raises(ValueError, match=f"is of another run: .*{words}"):
            stopped_at(path, **{"key": key} | change)
    assert stopped_at(path, key, levels=11).completed


def test_a_damaged_checkpoint_gives_way_to_the_one_before(key, tmp_path):
    path = tmp_path / "run.safetensors"
    whole = nd.run_smc(key, walk(), 60, num_chains=2, levels_per_chunk=2)
    stopped_at(path, key)
    stopped_at(path, key, levels=8)
    data = path.read_bytes()
    for damage in (data[: len(data) // 2], data[:-1] + bytes([data[-1] ^ 1]), b"another file"):
        path.write_bytes(damage)
        with pytest.warns(UserWarning, match=r"is not a checkpoint.*previous, is used"):
            again = stopped_at(path, key, levels=11)
        np.testing.assert_array_equal(again.positions["x"], whole.positions["x"])
        np.testing.assert_array_equal(again.trace.ess, whole.trace.ess)
        (tmp_path / "run.safetensors.previous").write_bytes(data)
    path.write_bytes(data[:100])
    (tmp_path / "run.safetensors.previous").unlink()
    with pytest.raises(ValueError, match="not a checkpoint of a run.*no earlier one"):
        stopped_at(path, key)


def test_two_runs_do_not_share_a_checkpoint(key, tmp_path):
    path = tmp_path / "run.safetensors"
    with (
        Checkpoint(path, Identity(key, walk(), {})),
        pytest.raises(RuntimeError, match="another run"),
    ):
        stopped_at(path, key)
    stopped_at(path, key)
    with pytest.raises(FileNotFoundError, match="no folder"):
        stopped_at(tmp_path / "none" / "run.safetensors", key)


def test_a_state_goes_on_with_its_own_run_alone(key):
    part = nd.run_smc(key, walk(), 60, max_levels=4)
    assert not part.completed and part.target.startswith(
        "the intermediate distribution after 4 of 11"
    )
    whole = nd.run_smc(key, walk(), 60)
    for state in (
        part,
        pickle.loads(pickle.dumps(part._replace(claims=None)))._replace(claims=part.claims),
    ):
        rest = nd.run_smc(key, walk(), 60, state=state)  # another object, the same model
        np.testing.assert_array_equal(rest.positions["x"], whole.positions["x"])
        with pytest.raises(ValueError, match="of another run: .*PRNG key"):
            nd.run_smc(jax.random.key(8), walk(), 60, state=state)
        with pytest.raises(ValueError, match="of another run: the levels"):
            nd.run_smc(key, walk(2 * DATA), 60, state=state)
        with pytest.raises(ValueError, match="of another run: the model"):
            nd.run_smc(key, walk(noise=2.0), 60, state=state)


def test_sigterm_is_an_interrupt(key, monkeypatch):
    from numpyro_diffusion.smc import engine

    real = engine.run_chunk

    def run_chunk(*args):
        signal.raise_signal(signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(engine, "run_chunk", run_chunk)
    with pytest.raises(KeyboardInterrupt) as caught:
        nd.run_smc(key, walk(), 60, levels_per_chunk=3)
    assert caught.value.result.num_levels_run == 3
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_an_interrupt_of_replica_exchange_keeps_its_draws(key, monkeypatch):
    exchange = importlib.import_module("numpyro_diffusion.samplers.replica.exchange")
    real, calls = exchange._draws, []

    def draws(*args):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(exchange, "_draws", draws)
    bridge = nd.from_energy(nd.Gaussian([0.5], [[0.3]]))
    options = {"num_chains": 2, "num_replicas": 3, "num_draws": 160, "num_burn_in": 40}
    with pytest.raises(KeyboardInterrupt) as caught:
        nd.replica_exchange(key, bridge, **options)
    assert len(calls) == 3  # of four chunks of 50
    result = caught.value.result
    (draws,) = jax.tree.leaves(result.positions)
    assert draws.shape[:2] == (2, 110) and np.isfinite(draws).all()
    assert "110 of 160 draws are done" in caught.value.__notes__[0]


@pytest.mark.parametrize("options", [{}, {"num_chains": 3, "batch_size": 7, "threshold": 0.9}])
def test_a_pure_run_has_the_numbers_of_the_engine(key, options):
    one, two = nd.run_smc(key, walk(), 60, **options), nd.smc.sample(key, walk(), 60, **options)
    for name in ("positions", "log_weights", "log_evidence", "log_evidence_error", "trace"):
        for left, right in zip(
            *(jax.tree.leaves(getattr(r, name)) for r in (one, two)), strict=True
        ):
            np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_pure_run_sets_the_prior_apart(key):
    """Levels before `evidence_from` make the cloud of the prior, and do not count."""
    apart = walk()._replace(evidence_from=4)
    one, two = (f(key, apart, 60, num_chains=3) for f in (nd.run_smc, nd.smc.sample))
    assert (
        np.abs(
            np.asarray(one.log_evidence - nd.run_smc(key, walk(), 60, num_chains=3).log_evidence)
        ).min()
        > 1.0
    )
    np.testing.assert_allclose(one.log_evidence, two.log_evidence, rtol=1e-6)
    np.testing.assert_allclose(one.log_evidence_error, two.log_evidence_error, rtol=1e-5)


def test_tracing_the_engine_names_the_pure_form(key):
    with pytest.raises(TypeError, match=r"nd.smc.sample"):
        jax.jit(lambda key: nd.run_smc(key, walk(), 60).log_evidence)(key)


PRIOR = nd.Gaussian([0.5, -0.3], [[1.0, 0.4], [0.4, 0.7]])


def model(y):
    x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
    numpyro.sample("y", dist.Normal(x[0] + x[1], 0.5), obs=y)


def log_evidence(y):
    return norm.logpdf(y, 0.5 - 0.3, (1.0 + 0.7 + 2 * 0.4 + 0.5**2) ** 0.5)


def sampler(**options):
    options = {"num_particles": 400, "num_chains": 4, "progress_bar": False} | options
    return nd.SMC(model, **options)


@pytest.fixture(scope="module")
def run():
    return sampler().run(jax.random.key(2), jnp.array(1.0))


def test_many_data_sets_in_one_program(run, key):
    sample = nd.ppl.Sampler(run)
    ys = jnp.linspace(-2.0, 3.0, 40)
    program, keys = jax.jit(jax.vmap(sample)), jax.random.split(key, 40)
    data = sample.stack((y,) for y in ys)
    results = program(keys, data)
    exact = np.array([log_evidence(y) for y in ys])
    clouds = np.asarray(results.log_evidence)
    means = np.log(np.exp(clouds - exact[:, None]).mean(1))
    errors = np.exp(clouds - exact[:, None]).std(1, ddof=1) / 2
    z = means / np.maximum(errors, 1e-3)
    assert np.abs(means).max() < 0.15 and np.sqrt((z**2).mean()) < 2.0, (means, z)
    with pytest.raises(ValueError, match="another structure"):
        sample.data(jnp.ones(2))
    for whole in (1, jnp.array(1), np.int32(1)):
        for one, two in zip(sample.data(whole), sample.data(jnp.array(1.0)), strict=True):
            np.testing.assert_array_equal(one, two)
    with pytest.raises(ValueError, match="not finite") as caught:
        sample.stack([(1.0,), (jnp.array(np.nan),)])
    assert caught.value.__notes__ == ["These were the arguments of data set 1."]
    # NaN that no look at a model has met, as within a program: its own clouds die, and no others.
    spoiled = [leaf.at[3].set(np.nan) for leaf in data]
    again = program(keys, spoiled).log_evidence
    rest = np.arange(40) != 3
    np.testing.assert_array_equal(again[rest], results.log_evidence[rest])
    assert not np.isfinite(np.asarray(again[3])).any()


def test_a_budget_of_evaluations_stops_or_finishes(run):
    whole = run.network_evaluations
    small = sampler(max_evaluations=0.6 * whole)
    with pytest.warns(UserWarning, match="ended this run on its way"):
        small.run(jax.random.key(2), jnp.array(1.0))
    assert small.network_evaluations <= 0.6 * whole and not small.result.completed
    assert small.result.target.startswith("the noised model at clock")
    with pytest.raises(RuntimeError, match="resume"):
        small.get_samples()
    small.resume()
    np.testing.assert_array_equal(small.result.positions["x"], run.result.positions["x"])
    ended = sampler(max_evaluations=0.5 * whole, finish=True).run(jax.random.key(2), jnp.array(1.0))
    assert ended.network_evaluations <= 0.5 * whole and ended.result.completed
    assert abs(ended.log_evidence - log_evidence(1.0)) < 4 * ended.log_evidence_error < 0.5
    quick = sampler(max_seconds=1e3, finish=True).run(jax.random.key(2), jnp.array(1.0))
    assert quick.result.completed
    assert abs(quick.log_evidence - log_evidence(1.0)) < 4 * quick.log_evidence_error < 0.5


def test_budgets_that_pay_for_nothing_are_refused():
    for options, words in (
        ({"max_evaluations": 10}, "must pay for a level, expected at least"),
        ({"max_evaluations": 10, "finish": True}, "a first and a last level, expected at least"),
        ({"max_seconds": 1e-6}, "must leave time for a level"),
    ):
        with pytest.raises(ValueError, match=words):
            sampler(**options).run(jax.random.key(2), jnp.array(1.0))
    for options, words in (
        ({"finish": True}, "within a budget; got none"),
        ({"max_seconds": -1.0}, "finite number above 0; got -1.0"),
        (
            {"max_seconds": 1.0, "finish": True, "checkpoint": "x"},
            "which another process would not",
        ),
        ({"devices": "gpu"}, "must be devices"),
        ({"devices": jax.devices() * 2}, "must differ"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            sampler(**options)


def test_a_finished_checkpoint_answers_at_once(run, tmp_path):
    path = tmp_path / "posterior.safetensors"
    first = sampler(checkpoint=path).run(jax.random.key(2), jnp.array(1.0))
    again = sampler(checkpoint=path).run(jax.random.key(2), jnp.array(1.0))
    for one in (first, again):
        np.testing.assert_array_equal(one.result.positions["x"], run.result.positions["x"])
        assert one.log_evidence == run.log_evidence
    with pytest.raises(ValueError, match="of another run: .*the model"):
        sampler(checkpoint=path).run(jax.random.key(2), jnp.array(1.5))


def test_a_network_in_half_precision_keeps_an_energy_in_its_own(key):
    net = nd.nets.ResidualMLP(key, (2,), width=16, depth=1)
    write = 0.3 * jax.random.normal(key, net.write.weight.shape)
    net = eqx.tree_at(lambda n: n.write.weight, net, write)
    energy = nd.ProperEnergy(net)
    low = nd.ProperEnergy(nd.nets.LowPrecision(net))
    x = jax.random.normal(jax.random.key(1), (200, 2))
    exact, rounded = (
        jax.vmap(lambda u, e=e: e.energy(u, jnp.asarray(0.3)))(x) for e in (energy, low)
    )
    assert exact.dtype == rounded.dtype
    errors = np.abs(np.asarray(exact - rounded))
    assert (
        1e-6 < errors.max() < 0.1 * np.abs(exact).max()
        and errors.mean() < 0.02 * np.abs(exact).mean()
    )
    with pytest.raises(ValueError, match="one of bfloat16.*got 'int8'"):
        nd.nets.LowPrecision(net, "int8")
