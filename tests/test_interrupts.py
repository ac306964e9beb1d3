"""Interrupts in the pilot and in split samplers: what is done is kept, and the interrupt reaches the user."""

import importlib
import pickle
import signal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.schemes import pilot

PRIOR = nd.Gaussian([0.5, -0.3], [[1.0, 0.4], [0.4, 0.7]])
Y = jnp.array(1.0)


def model(y):
    x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
    numpyro.sample("y", dist.Normal(x[0] + x[1], 0.5), obs=y)


def sampler(particles=60, **options):
    scheme = nd.Annealed(pilot=nd.schemes.Pilot(particles, 0.9))
    return nd.SMC(model, scheme, num_particles=60, num_chains=2, progress_bar=False, **options)


@pytest.fixture(scope="module")
def whole():
    return sampler().run(jax.random.key(2), Y)


def counted(monkeypatch, stop_at=None, by=signal.SIGINT):
    """Levels of pilots that are run; a signal in one of them."""
    real, calls, pending = pilot._advance, [], [stop_at]

    def advance(*args):
        if isinstance(args[1].clock, jax.core.Tracer):  # looked at, not run
            return real(*args)
        calls.append(1)
        if len(calls) in pending:
            pending.clear()
            signal.raise_signal(by)
        return real(*args)

    monkeypatch.setattr(pilot, "_advance", advance)
    return calls


def same(one, two):
    for left, right in zip(
        *(
            jax.tree.leaves((r.result.levels, r.result.positions, r.result.trace))
            for r in (one, two)
        ),
        strict=True,
    ):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_in_the_pilot_keeps_its_levels(by, whole, monkeypatch):
    levels = len(whole.result.levels.clock)
    smc, calls = sampler(), counted(monkeypatch, 3, by)
    done = []
    with pytest.raises(KeyboardInterrupt) as caught:
        for y in (Y, 2 * Y):  # a user's loop over data sets ends
            smc.run(jax.random.key(2), y)
            done.append(y)
    assert not done and len(calls) == 3
    assert caught.value.__notes__ == [
        "3 levels of the pilot are done, and no level of the run.",
        "`resume()` goes on with the pilot, to the same levels.",
    ]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with pytest.raises(RuntimeError, match="no result yet"):
        smc.get_samples()
    for again in (pickle.loads(pickle.dumps(smc)), smc):
        calls.clear()
        same(again.resume(), whole)
        assert len(calls) == levels - 3
    with pytest.raises(RuntimeError, match="no interrupted run"):
        smc.resume()


def test_another_process_goes_on_with_the_pilot(whole, monkeypatch, tmp_path):
    path, levels = tmp_path / "run.safetensors", len(whole.result.levels.clock)
    options = {"checkpoint": path, "checkpoint_every": 1e-9}
    calls = counted(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        sampler(**options).run(jax.random.key(2), Y)
    kept = tmp_path / "run.safetensors.pilot"
    assert kept.exists() and not path.exists()
    for words, other in {
        "the PRNG key is another": lambda: sampler(**options).run(jax.random.key(3), Y),
        "the model .* is another": lambda: sampler(**options).run(jax.random.key(2), 2 * Y),
        "pilot was 'Pilot.*60.*' and is 'Pilot.*61": lambda: sampler(61, **options).run(
            jax.random.key(2), Y
        ),
    }.items():
        with pytest.raises(ValueError, match=f"{kept.name} is of another run: .*{words}"):
            other()
    data = kept.read_bytes()
    kept.write_bytes(data[: len(data) // 2])  # the file before it has three levels
    calls.clear()
    with pytest.warns(UserWarning, match="not a checkpoint of a pilot.*previous, is used"):
        same(sampler(**options).run(jax.random.key(2), Y), whole)
    assert len(calls) == levels - 3
    calls.clear()
    same(sampler(**options).run(jax.random.key(2), Y), whole)
    assert not calls  # a finished pilot is not made again


def test_an_interrupt_of_a_split_sampler_keeps_its_draws(key, monkeypatch):
    run = importlib.import_module("numpyro_diffusion.samplers.split.run")
    real, calls = run._sweeps, []

    def sweeps(*args):
        calls.append(1)
        if len(calls) in stop_at:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(run, "_sweeps", sweeps)
    bridge = nd.from_energy(PRIOR, lambda x: -0.5 * jnp.sum((x - 1.0) ** 2))
    options = {"num_chains": 2, "num_draws": 30, "num_burn_in": 12, "thinning": 2}
    stop_at = []
    whole = nd.samplers.split_gibbs(key, bridge, **options)
    assert len(calls) == 4 + 10  # chunks of three draws
    for last, words in ((4, "0 of 30 draws"), (7, "9 of 30 draws")):
        calls.clear()
        stop_at, ended = [last], []
        with pytest.raises(KeyboardInterrupt) as caught:
            for i in range(2):
                nd.samplers.split_gibbs(key, bridge, **options)
                ended.append(i)
        assert not ended and len(calls) == last and words in caught.value.__notes__[0]
    result = caught.value.result
    np.testing.assert_array_equal(result.positions["x"], whole.positions["x"][:, :9])
    np.testing.assert_array_equal(result.log_weights, whole.log_weights[:, :9])
    per_sweep = nd.samplers.PnPDM().evaluations(bridge)
    assert result.num_evaluations == 2 * (12 + 9 * 2) * per_sweep
    traced = jax.jit(lambda key: nd.samplers.split_gibbs(key, bridge, **options).positions["x"])(
        key
    )
    np.testing.assert_allclose(traced, whole.positions["x"], rtol=1e-4, atol=1e-4)
