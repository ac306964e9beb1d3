"""What is no model, no density, no energy or no number: refused by name, before anything is compiled."""

import asyncio
import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_diffusion as nd

ENERGY = nd.Gaussian([0.0], [[1.0]])


def from_law(law, y, energy=ENERGY):
    """A bridge for one observed site, whose law has a latent x."""

    def model(y):
        x = numpyro.sample("x", nd.DiffusionPrior(energy))[0]
        numpyro.sample("y", law(x), obs=y)

    return nd.from_model(model, y)


OUTSIDE = {
    "half a count": (lambda x: dist.Poisson(jnp.exp(x)), 2.5),
    "count below 0": (lambda x: dist.Poisson(jnp.exp(x)), -1),
    "more successes than trials": (lambda x: dist.Binomial(5, logits=x), 7),
    "coin that shows 2": (lambda x: dist.Bernoulli(logits=x), 2),
    "category that is not there": (lambda x: dist.Categorical(logits=x * jnp.arange(3.0)), 5),
    "negative duration": (lambda x: dist.Exponential(jnp.exp(x)), -0.1),
    "negative LogNormal": (lambda x: dist.LogNormal(x, 1.0), -1.0),
    "share above 1": (lambda x: dist.Beta(jnp.exp(x), 1.0), 1.5),
    "shares that add up to 2": (lambda x: dist.Dirichlet(jnp.exp(x) * jnp.ones(2)), [1.5, 0.5]),
    "angle beyond pi": (lambda x: dist.VonMises(x, 1.0), 9.0),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_data_outside_the_support_have_density_0(name):
    """NumPyro's own formulas give some of them a finite number."""
    rest = from_law(*OUTSIDE[name]).rest({}, {"x": jnp.full(1, 0.2)})
    assert rest.log_likelihood == -jnp.inf


def one_site(y):
    numpyro.sample("y", dist.Normal(numpyro.sample("x", nd.DiffusionPrior(ENERGY))[0], 1.0), obs=y)


def yields(y):
    yield one_site(y)


async def awaits(y):
    one_site(y)


class Yields:
    def __call__(self, y):
        yield one_site(y)


@pytest.mark.parametrize("enter", [nd.SMC, lambda model: nd.from_model(model, 0.3)])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "`model` must be a NumPyro model, a function; got NoneType"),
        ([one_site], "`model` must be a NumPyro model, a function; got list"),
        (dist.Normal(), r"a function that calls `numpyro.sample`; got a distribution \(Normal\)"),
        (nd.DiffusionPrior(ENERGY), r"got a distribution \(DiffusionPrior\). Sample it in one"),
        (yields, "`yield` or `async`, whose body does not run"),
        (functools.partial(yields), "`yield` or `async`"),
        (Yields(), "`yield` or `async`"),
        (awaits, "`yield` or `async`"),
    ],
)
def test_what_is_no_model(model, message, enter):
    with pytest.raises(TypeError, match=message):
        enter(model)


def test_a_partial_or_a_callable_object_is_a_model():
    class Model:
        def __call__(self, y):
            one_site(y)

    for model in (functools.partial(one_site), Model(), lambda y: one_site(y)):
        assert nd.from_model(model, 0.3).diffusion_sites == ("x",)
    assert asyncio.iscoroutinefunction(awaits)


def with_factor(value):
    def model(y):
        one_site(y)
        numpyro.factor("f", value)

    return nd.from_model(model, 0.3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: from_law(lambda x: dist.Normal(x, 1.0), 0.3 + 1j),
            "site `y` has a distribution of real",
        ),
        (
            lambda: from_law(lambda x: dist.Normal(x, 1.0), np.ones(2) * 1j),
            "site `y` has a distribution of real",
        ),
        (lambda: with_factor(1j), "factor `f` is complex.*real part"),
        (lambda: with_factor(jnp.ones(2, complex)), "factor `f` is complex"),
        (lambda: from_law(lambda x: dist.Normal(x, 1.0), jax.random.key(0)), "`y` expects numbers"),
    ],
)
def test_data_and_factors_that_are_no_real_numbers(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def read(x):
    return dist.Normal(float(x), 1.0)


def numpy_of(x):
    return dist.Normal(np.exp(x), 1.0)


def branch(x):
    return dist.Normal(x if x > 0 else 2 * x, 1.0)


@pytest.mark.parametrize("law", [read, numpy_of, branch])
def test_python_that_needs_the_value_of_a_latent(law):
    with pytest.raises(ValueError, match="array arguments or latent sites.*use `jax.numpy`"):
        from_law(law, 0.3)


@pytest.mark.parametrize(
    ("scale", "message"), [(-1.0, "invalid scale"), (0.0, "invalid scale"), (np.nan, "invalid sc")]
)
def test_scales_that_are_none_are_refused_by_numpyro(scale, message):
    with pytest.raises(ValueError, match=message):
        from_law(lambda x: dist.Normal(x, scale), 0.3)


def test_no_data():
    """An empty array is a likelihood of 1; a plate of size 0 is none to NumPyro."""
    empty = from_law(lambda x: dist.Normal(x, 1.0), np.zeros(0))
    assert empty.rest({}, {"x": jnp.ones(1)}).log_likelihood == 0.0

    def plated(y):
        with numpyro.plate("data", len(y)):
            one_site(y)

    with pytest.raises(AssertionError, match="size of plate should be positive"):
        nd.from_model(plated, np.zeros(0))


def test_half_precision_and_booleans_are_numbers():
    at = {"x": jnp.full(1, 0.2)}
    for y in (np.float16(0.25), jnp.asarray(0.25, jnp.bfloat16)):
        found = from_law(lambda x: dist.Normal(x, 1.0), y).rest({}, at).log_likelihood
        np.testing.assert_allclose(found, -0.5 * 0.05**2 - 0.5 * np.log(2 * np.pi), rtol=1e-6)
    found = from_law(lambda x: dist.Normal(x, 1.0), True).rest({}, at).log_likelihood
    np.testing.assert_allclose(found, -0.5 * 0.8**2 - 0.5 * np.log(2 * np.pi), rtol=1e-6)


# ---- energies


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (lambda x: x**2, r"an array of shape \(1,\) and type float64"),
        (lambda x: jnp.sum(x) * 1j, "type complex128"),
        (lambda x: jnp.sum(x > 0), "type int64"),
        (lambda x: 1, "int"),
        (lambda x: None, "NoneType"),
    ],
)
def test_functions_that_are_no_energies(value, got):
    energy = nd.EnergyFunction(lambda x, t: value(x), shape=(1,))
    with pytest.raises(
        TypeError, match=rf"`EnergyFunction` must return real .* \(\) .*got .*{got}"
    ):
        from_law(lambda x: dist.Normal(x, 1.0), 0.3, energy)
    with pytest.raises(TypeError, match="`EnergyFunction` must return real"):
        nd.DiffusionPrior(energy).log_prob(jnp.zeros(1))


def test_functions_that_are_no_scores():
    score = nd.ScoreFunction(lambda x, t: -jnp.sum(x), shape=(2,))
    with pytest.raises(
        TypeError, match=r"`ScoreFunction` must return real numbers of shape \(2,\)"
    ):
        score.denoise(jnp.zeros(2), jnp.asarray(0.5))


@pytest.mark.parametrize("shape", [(0,), (-1,), (2.0,), (True,), "2", 2.5])
def test_shapes_that_are_none(shape):
    with pytest.raises(ValueError, match="`shape` must be "):
        nd.EnergyFunction(lambda x, t: jnp.sum(x**2), shape=shape)


@pytest.mark.parametrize(
    ("compose", "error", "message"),
    [
        (lambda e: e - e, ValueError, "no positive precision"),
        (lambda e: -1 * e, ValueError, "no positive precision"),
        (lambda e: float("nan") * e, ValueError, "powers must be finite"),
        (lambda e: float("inf") * e, ValueError, "powers must be finite"),
        (lambda e: e / 0, ValueError, "expected a temperature other than 0"),
        (lambda e: e / np.float32(0), ValueError, "expected a temperature other than 0"),
        (lambda e: e * "2", TypeError, "raised to a number.*got '2'"),
        (lambda e: e * np.ones(2), TypeError, "raised to a number"),
        (lambda e: e + 1, TypeError, "energies are added to energies.*got int"),
        (lambda e: e + nd.factors.Restrict(3), TypeError, "`inside` must be a function.*got int"),
        (lambda e: e + nd.factors.Tilt(3), TypeError, "`reward` must be a function.*got int"),
        (lambda e: e + nd.factors.Coupling(3), TypeError, "`cost` must be a function.*got int"),
    ],
)
def test_compositions_that_are_none(compose, error, message):
    with pytest.raises(error, match=message):
        compose(ENERGY)


def test_a_power_of_0_beside_others_is_the_others():
    x = jnp.full(1, 0.7)
    both = 0 * nd.Gaussian([3.0], [[2.0]]) + ENERGY
    np.testing.assert_allclose(both.energy(x, both.t_min), ENERGY.energy(x, both.t_min))
