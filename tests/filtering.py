"""A filter with a closed form, run by tests in processes of their own: many devices, two hosts, a kill.

A random walk seen through noise, as in `test_smc`: its bootstrap filter is a Feynman-Kac model.
"""

import functools
import signal
import sys
import tempfile

import jax

if (
    __name__ == "__main__" and sys.argv[1] == "two_hosts"
):  # before BlackJAX, whose import starts a backend
    jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", 2, int(sys.argv[3]))

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.scipy.stats import norm  # noqa: E402

import numpyro_diffusion as nd  # noqa: E402
from numpyro_diffusion.samplers.kept import KeptChains  # noqa: E402

DATA = np.array([0.9, -0.3, 1.7, 2.4, 0.1, -1.8, -0.9, 0.2, 1.5, 3.1, 2.2])


def walk(data=DATA, noise=0.8):
    return nd.from_kernels(
        lambda key: {"x": 0.5 + jax.random.normal(key)},
        lambda key, p, y: {"x": 0.9 * p["x"] + 0.7 * jax.random.normal(key)},
        lambda p, new, y: norm.logpdf(y, new["x"], noise),
        jnp.asarray(data),
        log_initial=lambda p: norm.logpdf(0.4, p["x"], noise),
    )


def long_walk():
    return walk(np.tile(DATA, 200))


def same(result, other) -> None:
    """Results agree but for the rounding of sums."""
    for name in ("positions", "log_weights", "log_evidence", "log_evidence_error", "trace"):
        ours, theirs = jax.tree.leaves(getattr(result, name)), jax.tree.leaves(getattr(other, name))
        for one, two in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4, err_msg=name)


def eight_devices():
    """On eight virtual devices: more clouds, as many, and fewer than devices; batches; a mesh."""
    assert jax.device_count() == 8
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))
    for chains, devices, options in (
        (16, jax.devices(), {}),
        (8, jax.devices(), {"resampling": "multinomial"}),
        (2, mesh, {"batch_size": 30, "keep_genealogy": True}),
        (None, jax.devices(), {"threshold": 1.0}),
    ):
        options = {"num_chains": chains, **options}
        key = jax.random.key(3)
        one = nd.run_smc(key, walk(), 400, **options)
        many = nd.run_smc(key, walk(), 400, devices=devices, **options)
        same(one, many)
        assert len(many.positions["x"].sharding.device_set) == 8
    one = nd.run_smc(jax.random.key(3), walk(), 8)  # a particle a device
    same(one, nd.run_smc(jax.random.key(3), walk(), 8, devices=jax.devices()))
    for chains, size in ((3, 400), (1, 404)):
        try:
            nd.run_smc(jax.random.key(3), walk(), size, num_chains=chains, devices=jax.devices())
        except ValueError as error:
            assert "for each of 8 devices; got" in str(error)
        else:
            raise AssertionError(f"{chains} clouds of {size} on 8 devices")

    density()


def density(*cases):
    """Points of a density on eight devices and on one."""
    prior, devices = nd.GaussianMixture(), jax.devices()
    x = jnp.linspace(-1.0, 1.0, 48).reshape(24, 2)
    options = {"times": nd.density.Stratified(4), "noises": nd.density.Mirrored(2)}
    for more in cases or ({"batch_size": 16},):
        one, many = (
            nd.density.score_formula(prior, x, devices=d, **options, **more)
            for d in (None, devices)
        )
        for name in ("value", "standard_error"):
            ours, theirs = getattr(one, name), getattr(many, name)
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(one.num_evaluations, many.num_evaluations)
        assert "tolerance" in more or len(many.value.sharding.device_set) == 8
    bridge, options = gaussian(), {"num_live": 40, "num_delete": 9, "devices": devices}
    for call, words in (
        (lambda: nd.density.score_formula(prior, x[:5], devices=devices), "expected points in"),
        (
            lambda: nd.nested_sampling(jax.random.key(3), bridge, **options),
            "expected points that are replaced at once (`num_delete`) in equal blocks for each of 8",
        ),
    ):
        try:
            call()
        except ValueError as error:
            assert words in str(error), error
        else:
            raise AssertionError(words)


def gaussian():
    return nd.from_energy(nd.Gaussian([0.5], [[0.3]]), lambda x: norm.logpdf(1.0, x[0], 0.5))


def nested():
    """Points that nested sampling replaces, on eight devices and on one."""
    options = {"num_live": 40, "num_inner_steps": 3, "num_delete": 8}
    one, many = (
        nd.nested_sampling(jax.random.key(3), gaussian(), devices=d, **options)
        for d in (None, jax.devices())
    )
    assert one.num_evaluations == many.num_evaluations
    np.testing.assert_allclose(one.log_evidence, many.log_evidence, rtol=1e-4)
    np.testing.assert_allclose(one.positions["x"], many.positions["x"], rtol=1e-3, atol=1e-4)


def samplers():
    """All schemes, chains of replica exchange and of a split sampler, on eight devices and on one."""
    energy = nd.GaussianMixture([0.3, 0.7], [[-1.0], [0.6]], [[[0.2]], [[0.3]]])
    seen = lambda x: -0.5 * jnp.sum((x - 0.4) ** 2) / 0.5
    bridge, key = nd.from_energy(energy, seen), jax.random.key(3)
    near = lambda one, two: np.testing.assert_allclose(one, two, rtol=2e-2, atol=2e-2)
    for scheme in (nd.Annealed(), nd.LikelihoodTempered(), nd.ReverseDiffusion(), nd.Twisted()):
        path = nd.from_energy(energy, seen, bridge_type=scheme.bridge_type)
        run = scheme(path, key)
        one, many = (
            nd.run_smc(key, run, 200, num_chains=8, devices=devices)
            for devices in (None, jax.devices())
        )
        near(one.log_evidence, many.log_evidence)
        near(one.trace.ess, many.trace.ess)
    options = {"num_chains": 8, "num_draws": 100, "num_burn_in": 20}
    for function in (nd.replica_exchange, nd.samplers.split_gibbs):
        interrupted(lambda path, f=function: f(
            key, bridge, **options, devices=jax.devices(), checkpoint=path, checkpoint_every=1e-9
        ))  # fmt: skip
    for function in (nd.replica_exchange, nd.samplers.split_gibbs):
        one, many = (function(key, bridge, devices=d, **options) for d in (None, jax.devices()))
        near(*(np.mean(jax.tree.leaves(r.positions)[0]) for r in (one, many)))
    density({}, {"tolerance": 0.05})
    x, devices = jnp.linspace(-1.0, 1.0, 16)[:, None], jax.devices()
    one, many = (nd.density.probability_flow(energy, x, devices=d) for d in (None, devices))
    np.testing.assert_allclose(one.value, many.value, rtol=1e-4, atol=1e-4)
    assert len(many.value.sharding.device_set) == 8
    nested()


def interrupted(run):
    """Chains on several devices, stopped after their first draws, go on to the same bits."""
    keep = KeptChains.keep

    def stop(*args):
        keep(*args)
        KeptChains.keep = keep
        signal.raise_signal(signal.SIGTERM)

    with tempfile.TemporaryDirectory() as folder:
        whole = run(f"{folder}/whole")
        KeptChains.keep = stop
        try:
            run(f"{folder}/stopped")
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError("no interrupt")
        for one, two in zip(
            *(jax.tree.leaves(r.positions) for r in (whole, run(f"{folder}/stopped"))), strict=True
        ):
            np.testing.assert_array_equal(one, two)


def two_hosts(*_: str):
    """One of two processes that run one filter; the first compares with itself alone."""
    assert jax.device_count() == 2 and jax.local_device_count() == 1
    key = jax.random.key(3)
    for chains in (4, 1):
        both = nd.run_smc(key, walk(), 400, num_chains=chains, devices=jax.devices())
        same(nd.run_smc(key, walk(), 400, num_chains=chains), both)
    everywhere = {"devices": jax.devices()}
    for call, words in (  # hosts that stop at different levels would wait for each other
        (
            lambda: nd.run_smc(key, walk(), 400, max_seconds=60.0, **everywhere),
            "`max_seconds` is for devices of one host; got devices of several",
        ),
        (
            lambda: nd.density.score_formula(nd.Gaussian(), jnp.zeros((4, 2)), **everywhere),
            "expected devices of one host; got devices of several",
        ),
        (lambda: nd.samplers.split_gibbs(key, gaussian(), **everywhere), "expected devices of one"),
    ):
        try:
            call()
        except ValueError as error:
            assert words in str(error), error
        else:
            raise AssertionError(words)


def _written(out: str, result):
    arrays = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(result._replace(claims=None)))}
    np.savez(out, **{name: leaf for name, leaf in arrays.items() if hasattr(leaf, "dtype") and
                     not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)})  # fmt: skip


def checkpointed(path: str, out: str):
    """A long filter that writes itself down all the time."""
    options = {"checkpoint": path, "checkpoint_every": 1e-3, "levels_per_chunk": 2}
    _written(out, nd.run_smc(jax.random.key(3), long_walk(), 50, num_chains=2, **options))


def posterior(path: str, out: str):
    """A posterior with a pilot of many levels, which writes itself down all the time."""
    import numpyro

    def model(y):
        x = numpyro.sample("x", nd.DiffusionPrior(nd.Gaussian([0.5, -0.3], [[1, 0.4], [0.4, 0.7]])))
        numpyro.sample("y", numpyro.distributions.Normal(x[0] + x[1], 0.05), obs=y)

    scheme = nd.Annealed(pilot=nd.schemes.Pilot(100, conditional_ess=0.995))
    options = {"checkpoint": path, "checkpoint_every": 1e-3, "progress_bar": False}
    smc = nd.SMC(model, scheme, num_particles=50, num_chains=2, **options)
    _written(out, smc.run(jax.random.key(3), jnp.asarray(1.0)).result)


def chains(kind: str, path: str, out: str):
    """Replica exchange, a split sampler or a chain of MCMC, which write themselves down all the time."""
    import numpyro

    prior = nd.Gaussian([0.5, -0.3], [[1, 0.4], [0.4, 0.7]])
    bridge = nd.from_energy(prior, lambda x: -0.5 * jnp.sum((x - 1.0) ** 2))
    key, options = jax.random.key(3), {"checkpoint": path, "checkpoint_every": 1e-3}
    if kind == "replica":
        result = nd.replica_exchange(key, bridge, num_draws=4000, num_chains=2, **options)
        _written(out, result)
    elif kind == "split":
        result = nd.samplers.split_gibbs(key, bridge, num_draws=4000, num_chains=2, **options)
        _written(out, result)
    else:

        def model(y):
            x = numpyro.sample("x", nd.DiffusionPrior(prior))
            numpyro.sample("y", numpyro.distributions.Normal(x[0] + x[1], 0.5), obs=y)

        mcmc = nd.ppl.CheckpointedMCMC(
            numpyro.infer.NUTS(model), num_warmup=1000, num_samples=4000, progress_bar=False, **options
        )  # fmt: skip
        mcmc.run(key, jnp.asarray(1.0), extra_fields=("num_steps",))
        np.savez(out, **mcmc.get_samples(), **mcmc.get_extra_fields())


replica, split, mcmc = (functools.partial(chains, kind) for kind in ("replica", "split", "mcmc"))

if __name__ == "__main__":
    functions = (eight_devices, density, nested, samplers, two_hosts, checkpointed, posterior)
    kinds = {"replica": replica, "split": split, "mcmc": mcmc}
    named = {function.__name__: function for function in functions} | kinds
    named[sys.argv[1]](*sys.argv[2:])
