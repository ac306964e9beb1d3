"""What a model may be given: numbers, tables and text as arguments, and data that each count once."""

import contextlib
import dataclasses
import datetime
import threading
import time
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from numpyro import handlers
from numpyro.contrib.module import eqx_module, random_eqx_module
from scipy.stats import norm

import numpyro_diffusion as nd

ENERGY = nd.GaussianMixture()
DATA = np.array([0.3, 0.1])
FAST = nd.Annealed(levels=2, moves=nd.schemes.Moves(num=1, num_other=1), pilot=16)


def model(y, extra=None):
    del extra
    x = numpyro.sample("x", nd.DiffusionPrior(ENERGY))
    numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)


def with_part(part):
    """The model with something beside its sites."""

    def whole(y):
        x = numpyro.sample("x", nd.DiffusionPrior(ENERGY))
        numpyro.sample("y", dist.Normal(part(x), 0.5).to_event(1), obs=y)

    return whole


def log_likelihood(model, *args, x=0.2):
    """At one value of the only latent site."""
    bridge = nd.from_model(model, *args)
    at = lambda sites: {name: jnp.asarray(x) for name in sites}
    return float(bridge.rest(at(bridge.other_sites), at(bridge.diffusion_sites)).log_likelihood)


# ---- plain numbers as data


@pytest.mark.parametrize(
    ("law", "y", "expected"),
    [
        (lambda x: dist.Uniform(x - 0.5, x + 0.5), 0.6, 0.0),
        (lambda x: dist.Uniform(x - 0.5, x + 0.5), 0.8, -np.inf),
        (lambda x: dist.Uniform(x - 2.5, x + 2.5).mask(True), 1, np.log(0.2)),
        (lambda x: dist.Uniform(x - 1, x + 1, validate_args=True), [0.6, 0.7], 2 * np.log(0.5)),
        (lambda x: dist.Pareto(jnp.exp(x), 2.0), 3.0, np.log(2 * np.exp(0.4) / 27)),
        (
            lambda x: dist.LeftTruncatedDistribution(dist.Normal(), low=x),
            0.6,
            norm.logpdf(0.6) - norm.logsf(0.2),
        ),
        (lambda x: dist.DiscreteUniform(jnp.floor(x), jnp.floor(x) + 3), 1, -np.log(4)),
    ],
)
@pytest.mark.parametrize("kind", [lambda y: y, np.array, jnp.asarray])
def test_plain_numbers_beside_bounds_that_move(law, y, expected, kind):
    def bounded(y):
        numpyro.sample("y", law(numpyro.sample("x", dist.Normal(0.0, 1.0))), obs=y)

    def constant():
        bounded(kind(y))

    for found in (log_likelihood(bounded, kind(y)), log_likelihood(constant)):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


# ---- arguments that are no arrays


@dataclasses.dataclass
class Settings:
    scale: float = 1.0


@pytest.mark.parametrize(
    "extra",
    [
        pd.DataFrame({"a": [1.0, 2.0], "b": ["u", "v"]}),
        Settings(),
        types.SimpleNamespace(a=1),
        slice(0, 2),
        {"inside": {1, 2}},
        ["a", "b"],
        np.array(["a", "b"]),
        np.array(["2020-01-01"], "datetime64[D]"),
        np.datetime64("2020-01-01"),
        datetime.date(2020, 1, 1),
        np.array([1, None], object),
        np.zeros(2, [("a", float)]),
        np.ma.array([1.0, 2.0], mask=[0, 1]),
        lambda z: z,
    ],
)
def test_arguments_of_any_kind_reach_the_model(extra):
    seen = []

    def curious(y, extra):
        seen.append(extra)
        model(y)

    nd.from_model(curious, DATA, extra)
    assert all(type(value) is type(extra) for value in seen)


@pytest.mark.parametrize(
    "y",
    [
        [0.3, 0.1],
        pd.Series(DATA),
        pd.DataFrame({"a": DATA})["a"],
        np.array([0.3, 0.1], object),
        DATA.astype(">f8"),
        DATA.astype(np.longdouble),
        np.ma.array(DATA),
    ],
)
def test_data_of_any_kind_are_the_same_numbers(y):
    x = np.array([0.2, 0.2])
    expected = norm(x, 0.5).logpdf(DATA).sum()
    np.testing.assert_allclose(log_likelihood(model, y, x=x), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("y", "extra", "error", "message"),
    [
        (["a", "b"], None, TypeError, "site `y` expects numbers; got a list.*Encode"),
        (np.array(["1", "2"], object), None, TypeError, "site `y` expects numbers.*type object"),
        (np.array([1, 2], "m8[s]"), None, TypeError, "site `y` expects numbers.*timedelta"),
        (pd.array([1, None], dtype="Int64"), None, ValueError, r"`y` has 1 values.*index \(1,\)"),
        ([[1.0], [1.0, 2.0]], None, TypeError, "site `y` expects numbers"),
        ([], None, ValueError, r"`y` expects values of shape \(2,\); got \(0,\)"),
        (np.ma.array(DATA, mask=[0, 1]), None, TypeError, "`y` holds a masked array.*fn.mask"),
        (DATA, iter([1.0]), TypeError, "argument `extra` holds a list_iterator.*a list"),
        (DATA, {"a": 1, 2: 3}, TypeError, "argument `extra` holds a dict whose keys"),
    ],
)
def test_arguments_that_are_refused(y, extra, error, message):
    with pytest.raises(error, match=message):
        nd.from_model(model, y, extra)


@pytest.mark.parametrize("given", [lambda n: n, int])
def test_integers_that_do_not_fit_are_not_wrapped(float32, given):
    def counts(n):
        numpyro.sample("y", dist.Poisson(numpyro.sample("rate", dist.Gamma(1.0, 1.0))), obs=n)

    with pytest.raises(ValueError, match="holds integers beyond 2147483647.*64 bits"):
        nd.from_model(counts, given(np.array(3_000_000_000)))


def test_a_table_as_argument_makes_a_whole_run():
    def tabled(table, names):
        assert names == {"v"}
        model(table["v"])

    run = lambda model, *args: nd.SMC(
        model, FAST, num_particles=16, num_chains=2, progress_bar=False
    ).run(jax.random.key(0), *args)
    smc = run(tabled, pd.DataFrame({"v": DATA, "name": ["a", "b"]}), {"v"})
    assert smc.log_evidence == run(model, DATA).log_evidence
    # New values in a table are new data.
    assert smc.run(jax.random.key(0), pd.DataFrame({"v": DATA + 1}), {"v"}).log_evidence != (
        run(model, DATA).log_evidence
    )
    assert smc.log_evidence == run(model, DATA + 1).log_evidence


# ---- each datum once


def plated(y, size=5):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", size):
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def plated_factor(y, size=5):
    del y
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", size):
        numpyro.factor("y", -(x**2))


@pytest.mark.parametrize(
    ("model", "y", "size", "times"),
    [
        (plated, 0.3, 5, 5),
        (plated, np.full(1, 0.3), 5, 5),
        (plated, np.full(5, 0.3), 5, 1),
        (plated, 0.3, 1, 1),
        (plated, np.full((3, 1), 0.3), 1, 1),
        (plated_factor, None, 5, 5),
        (plated_factor, None, 1, 1),
    ],
)
def test_a_datum_that_counts_several_times_is_told(model, y, size, times):
    if times == 1:
        nd.from_model(model, y, size)  # warnings are errors here
        return
    with pytest.warns(UserWarning, match=f"`y` has values of shape .*counts {times} times"):
        nd.from_model(model, y, size)


def beside_an_event(y, dim=-1):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", 1, dim=dim):
        numpyro.sample("y", dist.Normal(x, 1.0).expand([2]).to_event(1), obs=y)


@pytest.mark.parametrize(
    ("model", "shape", "option", "told"),
    [
        (plated, (5,), 1, True),
        (beside_an_event, (5, 2), -1, True),
        (beside_an_event, (5, 1, 2), -2, True),
        (plated, (5, 1), 1, False),  # along no plate
        (beside_an_event, (1, 2), -1, False),
        (beside_an_event, (1, 5, 2), -2, False),
    ],
)
def test_data_along_a_plate_of_size_1_are_told(model, shape, option, told):
    words = "`y` has 5 values along plate `data`, whose size is 1.*Set the size to 5"
    with pytest.warns(UserWarning, match=words) if told else contextlib.nullcontext():
        nd.from_model(model, np.zeros(shape), option)  # warnings are errors here


def test_data_beyond_the_shape_of_their_law_count_once_each():
    def free(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("x", dist.Normal()), 1.0), obs=y)

    expected = norm(0.2, 1).logpdf(DATA).sum()
    np.testing.assert_allclose(log_likelihood(free, DATA), expected)


# ---- what is no site, or no site of its own

NET = eqx.nn.Linear(2, 2, key=jax.random.key(0))


def hidden(x):
    with handlers.block(hide=["z"]):
        return x + numpyro.sample("z", dist.Normal())


def overwritten(x):
    shift = numpyro.sample("data", dist.Normal())
    with numpyro.plate("data", 2):
        return x + shift


def projected(x):
    return x + numpyro.sample("p", dist.ProjectedNormal(jnp.ones(2)))


def twice(x):
    numpyro.deterministic("twice", x)
    return numpyro.deterministic("twice", 2 * x)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda x: x * numpyro.param("p", 2.0), "`p` .*initial value.*`numpyro.sample`"),
        (lambda x: x * numpyro.param("p", jax.random.normal), "`p` .*initial value"),
        (lambda x: eqx_module("net", NET)(x), r"`net\$params` .*initial value"),
        (
            lambda x: random_eqx_module("net", NET, {"weight": dist.Normal()})(x),
            r"`net\$params` .*initial value",
        ),
        (lambda x: x + jax.random.normal(numpyro.prng_key()), "PRNG key.*as an argument"),
        (hidden, "site `z` is hidden by `handlers.block`.*substitute"),
        (projected, r"`p` \(ProjectedNormal\) has a support.*ProjectedNormalReparam"),
        (twice, r"`twice` \(a deterministic and a deterministic\)"),
        (overwritten, r"`data` \(a sample and a plate\)"),
        (lambda x: x + numpyro.sample("", dist.Normal()), "string that is not empty; got ''"),
    ],
)
def test_what_is_no_site_is_refused(part, message):
    with pytest.raises(ValueError, match=message):
        nd.from_model(with_part(part), DATA)


def seeded_inside(x):
    with handlers.seed(rng_seed=0), handlers.block():
        return x + numpyro.sample("z", dist.Normal())


def same_plate(x):
    for name in "ab":
        with numpyro.plate("data", 2):
            x = x + numpyro.sample(name, dist.Normal())
    return x


@pytest.mark.parametrize(
    ("part", "others"),
    [
        (lambda x: handlers.substitute(lambda: numpyro.param("p", 2.0), {"p": 3.0})() * x, ()),
        (lambda x: random_eqx_module("net", NET, dist.Normal())(x), ("net/weight", "net/bias")),
        (seeded_inside, ()),
        (same_plate, ("a", "b")),
    ],
)
def test_what_is_known_or_sampled_is_taken(part, others):
    assert nd.from_model(with_part(part), DATA).other_sites == others


def test_two_threads_do_not_read_each_others_sites():
    found = {}

    def slow(name):
        def slow_model(y):
            x = numpyro.sample(f"x{name}", nd.DiffusionPrior(ENERGY))
            time.sleep(0.01)  # the other thread's turn
            shift = numpyro.sample(f"shift{name}", dist.Normal())
            time.sleep(0.01)
            numpyro.sample("y", dist.Normal(x + shift, 0.5).to_event(1), obs=y)

        return slow_model

    def look(name):
        bridge = nd.from_model(slow(name), DATA)
        found[name] = bridge.diffusion_sites, bridge.other_sites

    threads = [threading.Thread(target=look, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: ((f"x{n}",), (f"shift{n}",)) for n in "ab"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            np.array([[1.0], [np.nan], [2.0]]),
            "1 of 3 with NaN or infinite numbers, the first is number 1",
        ),
        (np.arange(9.0), r"shape \(9,\)\. .*single numbers are `data\[:, None\]`"),
        (np.ones((1, 1)), r"got shape \(1, 1\)"),
        (np.ones((0, 1)), r"got shape \(0, 1\)"),
        (np.array([["a"], ["b"]]), "real numbers .*got <U1"),
        (np.ones((3, 1), complex), "real numbers .*got complex128"),
    ],
)
def test_training_data_that_are_none_are_told_why(data, words):
    net = nd.nets.ResidualMLP(None, 1, width=4)
    ends = {"noise_min": 0.1, "noise_max": 2.0}
    energy = nd.Gaussian([0.0], [[1.0]])
    for call in (
        lambda: nd.ProperEnergy.from_data(net, data, **ends),
        lambda: nd.ProperEnergy.from_data(net, data, standardize=True, **ends),
        lambda: nd.normalizers.pointwise_normalizer(energy, data, jax.random.key(0)),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            call()


def test_a_prior_in_units_says_what_to_pass(key):
    data = np.random.default_rng(0).normal(size=(20, 1))
    net = nd.nets.ResidualMLP(None, 1, width=4)
    prior = nd.ProperEnergy.from_data(net, data, noise_min=0.1, noise_max=2.0, standardize=True)
    for call in (lambda: nd.from_energy(prior), lambda: nd.prior_normalizer(prior, key)):
        with pytest.raises(TypeError, match="got Standardized. Pass its `energy`"):
            call()
    with pytest.raises(AttributeError, match="no `log_normalizer`: .*Pass its `energy`"):
        _ = prior.log_normalizer
