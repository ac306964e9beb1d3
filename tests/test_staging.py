"""Programs: equal where they do the same, never older than what they read, nothing computed twice."""

import blackjax.smc.resampling as blackjax_resampling
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from assertions import counting_programs
from jax.scipy.special import xlogy

import numpyro_diffusion as nd
from numpyro_diffusion._prng import alike, lean, threefry
from numpyro_diffusion._staging import Done, brief_jit, hoist, settle
from numpyro_diffusion.smc.packing import pack
from numpyro_diffusion.smc.resampling import systematic

X = jnp.array([0.5, 1.5, 2.5])


def test_programs_are_equal_where_they_do_the_same():
    def function(scale, power=2):
        return lambda x: jnp.sum(jax.nn.relu(xlogy(x, x)) * scale) ** power + jnp.logaddexp(x, X)[0]

    one, same = settle(function(2.0 * X), X), settle(function(X + 1.0), X)
    assert one.program == same.program and hash(one.program) == hash(same.program)
    np.testing.assert_allclose(one(2 * X), function(2.0 * X)(2 * X), rtol=1e-12)
    np.testing.assert_allclose(same(2 * X), function(X + 1.0)(2 * X), rtol=1e-12)
    for other in (function(2.0 * X, 3), function(1.0), function(2.0)):
        assert settle(other, X).program != one.program
    assert settle(function(1.0), X).program != settle(function(2.0), X).program


def test_derivatives_of_their_own_tell_programs_apart():
    def with_slope(slope):
        @jax.custom_jvp
        def function(x):
            return x

        function.defjvp(lambda primals, tangents: (primals[0], slope * tangents[0]))
        return lambda x: jnp.sum(function(x))

    two, three = settle(with_slope(2.0), X), settle(with_slope(3.0), X)
    assert two.program != three.program
    assert two.program == settle(with_slope(2.0), X).program
    np.testing.assert_allclose(jax.grad(two)(X), 2.0)
    np.testing.assert_allclose(jax.grad(three)(X), 3.0)


def test_hoisted_functions_are_the_same_with_less_to_do():
    def parts(t):
        def density(z):
            level = jnp.exp(-(jnp.tanh(t) ** 2))
            near = jnp.where(z > t, jnp.sin(t) * z, jnp.linalg.norm(X * t))
            return jnp.sum(near + level * jnp.clip(z, 0.0, t + 1.0) + jnp.broadcast_to(t, z.shape))

        return density

    def both(t, z):
        done = Done()
        first = hoist(parts(t), z, done=done)
        second = hoist(lambda z: jnp.sum(jnp.tanh(t) ** 3 * z), z, done=done)
        return jax.value_and_grad(first)(z), second(z), first(z + 1.0)

    def plain(t, z):
        return (
            jax.value_and_grad(parts(t))(z),
            jnp.sum(jnp.tanh(t) ** 3 * z),
            parts(t)(z + 1.0),
        )

    for run in (both, jax.jit(both), jax.vmap(both, (0, None))):
        t = jnp.array([0.3, 0.7]) if run not in (both,) and not hasattr(run, "lower") else 0.3
        expected = jax.vmap(plain, (0, None))(t, X) if np.ndim(t) else plain(t, X)
        got = jax.vmap(both, (0, None))(t, X) if np.ndim(t) else run(t, X)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), got, expected)
    text = str(jax.make_jaxpr(both)(0.3, X))
    assert text.count(" tanh ") == 1, text  # shared by all three


@pytest.mark.parametrize("width", [8, 16, 32, 64])
def test_unrolled_bits_are_those_of_jax(width):
    key = jax.random.key(3)
    draw = lambda key: jax.random.bits(key, (7, 3), f"uint{width}")
    np.testing.assert_array_equal(draw(key), draw(lean(key)))


def test_unrolled_keys_split_and_fold_as_those_of_jax():
    key, data = jax.random.key(11), jax.random.key_data
    for derive in (
        lambda k: jax.random.split(k, (3, 2)),
        lambda k: jax.random.fold_in(k, 12345),
        lambda k: jax.random.fold_in(jax.random.split(k)[1], jnp.asarray(-1)),
    ):
        np.testing.assert_array_equal(data(derive(key)), data(derive(lean(key))))
    np.testing.assert_array_equal(jax.random.normal(key, (5,)), jax.random.normal(lean(key), (5,)))
    assert alike(lean(key), key).dtype == key.dtype
    old = jax.random.PRNGKey(11)
    np.testing.assert_array_equal(alike(lean(old), old), old)
    other = jax.random.key(0, impl="rbg")
    assert lean(other).dtype == other.dtype  # other generators stay
    assert threefry(other).dtype == threefry(key).dtype


@pytest.mark.parametrize("num", [2, 37, 700])
def test_systematic_resampling_is_that_of_blackjax(num):
    for seed in range(5):
        key_weights, key = jax.random.split(jax.random.key(seed))
        weights = jax.nn.softmax(3 * jax.random.normal(key_weights, (num,)))
        weights = weights.at[0].set(0.0) / (1 - weights[0])
        expected = blackjax_resampling.systematic(key, weights, num)
        np.testing.assert_array_equal(systematic(key, weights, num), expected)


def test_packed_trees_come_back():
    tree = {
        "a": jnp.arange(6).reshape(2, 3),
        "b": (jnp.array([True, False]), jnp.array([0.5, 2.5])),
    }
    packed = pack(tree, 1)
    assert packed.values.shape == (2, 5)
    back = packed.unpack(exact=True)
    jax.tree.map(np.testing.assert_array_equal, back, jax.tree.map(np.asarray, tree))
    assert back["a"].dtype == tree["a"].dtype and back["b"][0].dtype == bool
    assert pack({}).unpack() == {}


def test_options_that_a_compiler_does_not_know_are_left_out(monkeypatch):
    known = {"xla_backend_optimization_level": 0}
    options = {"xla_no_such_option": True, **known, "xla_nor_this_one": 1}
    monkeypatch.setattr(nd._staging.brief, "_IN_A_HURRY", options)
    double, before = brief_jit(lambda x: 2 * x), brief_jit(lambda x: x / 2)
    np.testing.assert_array_equal(double(X), 2 * X)
    assert options == known
    np.testing.assert_array_equal(double(X), 2 * X)
    np.testing.assert_array_equal(before(X), X / 2)


def test_errors_of_a_program_are_not_mistaken_for_options():
    def complain(x):
        raise ValueError(f"xla_ of {x}")

    failing = brief_jit(lambda x: jax.pure_callback(complain, jax.typeof(x), x))
    brief_jit(lambda x: x + 1)(X)  # drops what the compiler does not know
    before = dict(nd._staging.brief._IN_A_HURRY)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_ of"):
        jax.block_until_ready(failing(X))
    assert nd._staging.brief._IN_A_HURRY == before


PRIOR = nd.Gaussian([0.0], [[1.0]])
WIDTH, CENTRE = 1.0, jnp.zeros(1)


def log_evidence(width, centre, y):
    floor = float(PRIOR.schedule.noise_level(jnp.asarray(PRIOR.t_min))) ** 2
    return float(dist.Normal(centre, (1 + floor + width**2) ** 0.5).log_prob(y))


def evidence(model, levels, *args):
    scheme = nd.Annealed(levels=levels)
    smc = nd.SMC(model, scheme, num_particles=400, num_chains=2, progress_bar=False)
    return smc.run(jax.random.key(0), *args).log_evidence


def test_changed_constants_give_new_numbers(monkeypatch):
    """A global number, a global array, a closure cell and an attribute that change between two runs."""
    y = jnp.array([2.5])
    scale = jnp.asarray(0.5)
    likelihood = lambda x: jnp.sum(dist.Normal(x, scale).log_prob(2.5))
    # One pilot, at the narrowest law: levels touch the noise of an evidence and not its value.
    levels = nd.Annealed(levels=6, pilot=32)(nd.from_energy(PRIOR, likelihood)).levels

    def with_globals(y):
        x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
        numpyro.sample("y", dist.Normal(x + CENTRE, WIDTH).to_event(1), obs=y)

    for name, value in (("WIDTH", 1.0), ("WIDTH", 3.0), ("CENTRE", jnp.ones(1)), ("WIDTH", 0.5)):
        monkeypatch.setattr(f"{__name__}.{name}", value, raising=False)
        globals()[name] = value
        truth = log_evidence(WIDTH, float(CENTRE[0]), 2.5)
        assert abs(evidence(with_globals, levels, y) - truth) < 0.15, (name, value)
    cell = {"width": 1.0}

    class Instrument:
        noise = 1.0

    def with_cells(y):
        x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
        numpyro.sample("y", dist.Normal(x, cell["width"] * Instrument.noise).to_event(1), obs=y)

    for width, noise in ((1.0, 1.0), (2.0, 1.0), (2.0, 1.5)):
        cell["width"], Instrument.noise = width, noise
        assert abs(evidence(with_cells, levels, y) - log_evidence(width * noise, 0.0, 2.5)) < 0.15
    for scale in (jnp.ones(()), 3.0, jnp.asarray(0.5)):
        model = nd.Annealed(levels=levels)(nd.from_energy(PRIOR, likelihood))
        found = nd.run_smc(jax.random.key(1), model, 800).log_evidence
        assert abs(float(found) - log_evidence(float(scale), 0.0, 2.5)) < 0.15


def test_what_does_not_matter_compiles_nothing():
    def make():
        def model(y, gain=1.0):
            x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
            sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
            numpyro.sample("y", dist.Normal(gain * x, sigma).to_event(1), obs=y)

        return model

    def run(model, y, seed, levels=None):
        scheme = nd.Annealed(levels=levels, pilot=32)
        smc = nd.SMC(model, scheme, num_particles=32, num_chains=2, progress_bar=False)
        smc.run(jax.random.key(seed), y, gain=jnp.asarray(2.0))

    with counting_programs() as first:
        run(make(), jnp.array([0.7]), 0)
    with counting_programs() as again:
        run(make(), jnp.array([1.7]), 1)  # another function, other data, another key
        run(make(), np.array([-0.7]), 2, levels=7)  # and another number of levels
    assert 0 < first[0] <= 15 and again[0] == 0, (first, again)


def test_a_model_is_looked_at_in_few_programs():
    """Each operation that runs outside a program is a program of its own: there were thirty."""
    means, y = np.linspace(-1.0, 1.0, 14).reshape(2, 7), jnp.linspace(0.0, 1.0, 7)
    energy = nd.GaussianMixture([0.3, 0.7], means, np.stack([np.eye(7), 2 * np.eye(7)]))

    def model(y):
        x = numpyro.sample("x", nd.DiffusionPrior(energy))
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        numpyro.sample("y", dist.Normal(x, scale).to_event(1), obs=y)

    with counting_programs() as count:
        nd.from_model(model, y)
    assert count[0] <= 6
