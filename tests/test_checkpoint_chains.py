"""Checkpoints of replica exchange, split samplers and NumPyro's MCMC: stopped anywhere, the same bits."""

import importlib
import signal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import ESS, MCMC, NUTS, Gibbs

import numpyro_diffusion as nd
from numpyro_diffusion.samplers import kept

PRIOR = nd.Gaussian([0.5, -0.3], [[1.0, 0.4], [0.4, 0.7]])
BRIDGE = nd.from_energy(PRIOR, lambda x: -0.5 * jnp.sum((x - 1.0) ** 2))
DATA = {"y": jnp.array([1.0, 1.2])}  # which NumPyro cannot hash


def model(data, scale=1.0):
    s = numpyro.sample("s", dist.HalfNormal(scale))
    x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
    numpyro.deterministic("sum", x.sum())
    numpyro.sample("y", dist.Normal(x[0] + x[1], s), obs=data["y"])


def replica(key, path, num_draws=140, **options):
    scheme = nd.Annealed(pilot=nd.schemes.Pilot(60, 0.9))
    return nd.replica_exchange(
        key,
        options.pop("bridge", BRIDGE),
        scheme,
        num_draws=num_draws,
        num_burn_in=70,
        num_chains=2,
        checkpoint=path,
        **options,
    )


def split(key, path, num_draws=30, **options):
    return nd.samplers.split_gibbs(
        key,
        options.pop("bridge", BRIDGE),
        num_chains=2,
        num_draws=num_draws,
        num_burn_in=12,
        thinning=2,
        checkpoint=path,
        **options,
    )


def mcmc(key, path, num_samples=41, data=DATA, kernel=None, **options):
    kernel = (lambda: nd.MoveKernel(model, nd.moves.hmc(4))) if kernel is None else kernel
    new = nd.ppl.CheckpointedMCMC(
        kernel(),
        num_warmup=30,
        num_samples=num_samples,
        checkpoint=path,
        progress_bar=False,
        **{"num_chains": 2, "chain_method": "vectorized", "thinning": 2} | options,
    )
    new.run(key, data)
    return new.get_samples(True), new.get_extra_fields(True), new.last_state.rng_key


SAMPLERS = {"replica": replica, "split": split, "mcmc": mcmc}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that nothing has stopped."""
    found = {}

    def get(name):
        if name not in found:
            path = tmp_path_factory.mktemp("whole") / "chains.safetensors"
            found[name] = path, SAMPLERS[name](jax.random.key(1), path)
        return found[name]

    return get


def same(one, two):
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        if isinstance(left, jax.Array) and jnp.issubdtype(left.dtype, jax.dtypes.prng_key):
            left, right = jax.random.key_data(left), jax.random.key_data(right)
        np.testing.assert_array_equal(left, right)


def counted(monkeypatch, stop_at=()):
    """Chunks that are done; a signal in some of them."""
    real, calls, pending = kept.KeptChains.keep, [], list(stop_at)

    def keep(self, *args, **kwargs):
        calls.append(1)
        if len(calls) in pending:
            pending.remove(len(calls))
            args = (*args[:3], True)
            signal.raise_signal(signal.SIGTERM)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(kept.KeptChains, "keep", keep)
    return calls


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_stopped_sampler_goes_on_to_the_same_bits(name, whole, monkeypatch, tmp_path):
    """Stopped before, and again after, its first draws."""
    path, (_, expected) = tmp_path / "chains.safetensors", whole(name)
    run, key = SAMPLERS[name], jax.random.key(1)
    calls = counted(monkeypatch, (1, 3))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(key, path)
            raise AssertionError("the signal did not come through")
    assert len(calls) == 3
    same(run(key, path), expected)
    total = len(calls)
    same(run(key, path), expected)  # a finished file answers at once
    assert len(calls) == total


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_checkpoint_of_other_chains_is_refused(name, whole, tmp_path):
    path, _ = whole(name)
    run, key = SAMPLERS[name], jax.random.key(1)
    number = "num_samples" if name == "mcmc" else "num_draws"
    other = nd.from_energy(PRIOR, lambda x: -0.5 * jnp.sum((x - 1.1) ** 2))
    changed = {"data": {"y": DATA["y"] + 0.1}} if name == "mcmc" else {"bridge": other}
    with pytest.raises(ValueError, match="is of another run: .*the PRNG key is another"):
        run(jax.random.key(2), path)
    words = "the model" if name != "replica" else "of another run"  # its pilot's file comes first
    with pytest.raises(ValueError, match=f"is of another run: .*{words}|{words}"):
        run(key, path, **changed)
    with pytest.raises(ValueError, match=rf"{number} was \d+ and is 20"):
        run(key, path, **{number: 20})
    with pytest.raises(FileNotFoundError, match="no folder"):
        run(key, tmp_path / "none" / "chains.safetensors")
    with pytest.raises(ValueError, match="checkpoint_every"):
        run(key, tmp_path / "chains.safetensors", checkpoint_every=0)


def test_settings_of_a_kernel_that_only_its_start_shows_are_seen(tmp_path):
    """Another first step size is no part of a step's program."""
    path, key = tmp_path / "chains.safetensors", jax.random.key(1)
    options = {"num_samples": 4, "num_chains": 1, "thinning": 1}
    mcmc(key, path, kernel=lambda: NUTS(model, step_size=1.0), **options)
    with pytest.raises(ValueError, match="the first state of the chains .* is another"):
        mcmc(key, path, kernel=lambda: NUTS(model, step_size=0.1), **options)


def test_a_damaged_file_gives_way_to_the_one_before(whole, tmp_path):
    path, expected = whole("mcmc")
    copy = tmp_path / "chains.safetensors"
    copy.write_bytes(path.read_bytes()[:-100])
    copy.with_name("chains.safetensors.previous").write_bytes(path.read_bytes())
    with pytest.warns(UserWarning, match="not a checkpoint of a chain.*previous, is used"):
        same(mcmc(jax.random.key(1), copy), expected)


KERNELS = {
    "NUTS": (lambda: NUTS(model), {"chain_method": "sequential"}),
    "MoveKernel": (lambda: nd.MoveKernel(model, nd.moves.hmc(4)), {}),
    "one chain": (lambda: nd.MoveKernel(model, nd.moves.hmc(4)), {"num_chains": 1}),
    "ESS": (lambda: ESS(model), {"num_chains": 4}),
    "SplitKernel": (lambda: nd.SplitKernel(model), {}),
    "Gibbs": (
        lambda: Gibbs([(nd.ParticleGibbs(model, num_particles=8), ["x"]), (NUTS(model), None)]),
        {"chain_method": jax.vmap},
    ),
    "ParticleMarginal": (lambda: nd.ParticleMarginal(model, num_particles=8), {}),
}


@pytest.mark.parametrize(
    "name", [n if n == "NUTS" else pytest.param(n, marks=pytest.mark.long) for n in KERNELS]
)
@pytest.mark.filterwarnings("ignore:log density NaN", "ignore:.*chains.*:UserWarning")
def test_the_draws_are_those_of_numpyro(name, tmp_path):
    """For the same key, warm-up and thinning; those that `thinning` leaves over go first."""
    kernel, options = KERNELS[name]
    options = {"num_chains": 2, "chain_method": "vectorized"} | options
    plain = MCMC(kernel(), num_warmup=21, num_samples=41, thinning=4, progress_bar=False, **options)
    plain.run(jax.random.key(3), DATA, extra_fields=("i",) if name == "NUTS" else ())
    ours = nd.ppl.CheckpointedMCMC(
        kernel(),
        num_warmup=21,
        num_samples=41,
        thinning=4,
        progress_bar=False,
        checkpoint=tmp_path / "chains.safetensors",
        **options,
    )
    ours.run(jax.random.key(3), DATA, extra_fields=("i",) if name == "NUTS" else ())
    expected = plain.get_samples(True)
    assert ours.get_samples(True).keys() == expected.keys()
    for site, value in ours.get_samples(True).items():
        np.testing.assert_allclose(value, expected[site], rtol=1e-5, atol=1e-6)
    same(ours.get_extra_fields().get("i", 0), plain.get_extra_fields().get("i", 0))
    assert ours.num_samples == 41 and ours.post_warmup_state is None


def test_what_does_not_go_with_a_checkpoint_is_refused(key, tmp_path):
    new = nd.ppl.CheckpointedMCMC(
        NUTS(model), num_warmup=1, num_samples=2, checkpoint=tmp_path / "a", progress_bar=False
    )
    with pytest.raises(NotImplementedError, match="one file: expected a call of `run`"):
        new.warmup(key, DATA)
    new.post_warmup_state = 1
    with pytest.raises(ValueError, match="expected no `post_warmup_state`"):
        new.run(key, DATA)
    with pytest.raises(TypeError, match="no checkpoint from within a program"):
        jax.jit(lambda key: split(key, tmp_path / "b"))(key)


def test_chains_of_two_processes_do_not_share_a_file(key, whole):
    path, _ = whole("split")
    exchange = importlib.import_module("numpyro_diffusion.samplers.kept")
    with (
        exchange.KeptChains(path, 60.0, "split sampler", key, lambda: "", {}),
        pytest.raises(RuntimeError, match="another run writes"),
    ):
        split(jax.random.key(1), path)


def test_keys_and_starts_are_those_of_the_chains(key, tmp_path):
    path = tmp_path / "chains.safetensors"
    with pytest.raises(TypeError, match=r"`key` must be one PRNG key.*got 0"):
        mcmc(0, path)
    with pytest.raises(
        ValueError, match="each of the 2 chains along the first axis of `keys`; got 3"
    ):
        mcmc(jax.random.split(key, 3), path)
    new = nd.ppl.CheckpointedMCMC(
        NUTS(model), num_warmup=1, num_samples=2, num_chains=2, chain_method="vectorized",
        checkpoint=path, progress_bar=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"axis of `init_params\['s'\]`; got 0"):
        new.run(key, DATA, init_params={"s": 0.0, "x": jnp.zeros((2, 2))})
