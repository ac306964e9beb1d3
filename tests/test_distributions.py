"""`DiffusionPrior` as a valid NumPyro distribution, and as a prior under plain NUTS."""

import pickle
import warnings
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.batch_util import vmap_over
from numpyro.infer import (
    MCMC,
    NUTS,
    Predictive,
    init_to_mean,
    init_to_median,
    init_to_sample,
    init_to_uniform,
)

from numpyro_diffusion import (
    DiffusionPrior,
    EnergyFunction,
    Gaussian,
    GaussianMixture,
    ScoreFunction,
)
from numpyro_diffusion.ppl import NoisedPrior
from numpyro_diffusion.schedules import VarianceExploding, log_snr_grid, reverse_moments

# Of composed priors too, shapes and types of draws are looked at here.
pytestmark = pytest.mark.filterwarnings("ignore:draws of `DiffusionPrior` follow")

MEAN = np.array([0.5, -1.0, 2.0])
COVARIANCE = np.array([[1.0, 0.6, -0.2], [0.6, 0.8, 0.1], [-0.2, 0.1, 0.3]])
GAUSSIAN = Gaussian(MEAN, COVARIANCE)


def matrix_energy(scale, x, t):
    """An energy over 2 x 3 matrices, without closed-form draws."""
    alpha_t, sigma_t = GAUSSIAN.schedule(t)
    return 0.5 * jnp.sum((x - alpha_t) ** 2 / (alpha_t**2 * scale + sigma_t**2))


def bend(x):
    return jnp.tanh(x)  # pickled by its name


class Network(eqx.Module):
    """A function among the leaves, as in most networks."""

    weight: jax.Array
    activation: Callable = bend

    def __call__(self, x, t):
        return 0.5 * jnp.sum(x**2) + jnp.sum(self.activation(self.weight @ x))


SCALE = jnp.array([[1.0, 2.0, 0.5], [0.3, 1.5, 0.7]])
ENERGIES = {
    "gaussian": GAUSSIAN,
    "exploding": Gaussian(MEAN, COVARIANCE, VarianceExploding()),
    "mixture": GaussianMixture(),
    "composed": (Gaussian() + GaussianMixture()) / 1.5,
    "matrix": EnergyFunction(matrix_energy, (2, 3), params=SCALE, mean=1.0, variance=SCALE),
    "network": EnergyFunction(Network(jnp.array([[0.2, -0.7], [1.1, 0.3]])), 2),
}
PRIORS = {name: DiffusionPrior(energy, num_steps=10) for name, energy in ENERGIES.items()}
PRIORS["noised"] = NoisedPrior(GaussianMixture(), 0.4, num_steps=10)
each_prior = pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)


def values(prior, *batch):
    return 0.7 * jax.random.normal(jax.random.key(3), (*batch, *prior.event_shape))


# Compiled once a prior and a shape; `test_jit_changes_nothing` compares with op-by-op.
log_prob = eqx.filter_jit(lambda prior, x: prior.log_prob(x))


# --- NumPyro's generic checks -----------------------------------------------------------------------


@each_prior
def test_shapes_of_samples_and_log_probs(prior, key):
    for prepend in ((), (2,), (3, 2)):
        for batch in ((), (4,), (5, 4)):
            expanded = prior.expand(batch)
            assert expanded.batch_shape == batch
            shape = expanded.shape(prepend)
            assert shape == prepend + batch + prior.event_shape
            sample = jax.eval_shape(lambda k, d=expanded, n=prepend: d.sample(k, n), key)
            assert sample.shape == shape
            assert jax.eval_shape(expanded.log_prob, sample).shape == prepend + batch
    sample = prior.sample(key, (3, 2))
    assert sample.shape == (3, 2, *prior.event_shape) and jnp.all(jnp.isfinite(sample))
    assert len(np.unique(sample)) == sample.size  # independent draws


@each_prior
def test_to_event_sums_and_expand_repeats(prior):
    x = values(prior, 5, 4)
    event = prior.expand((5, 4)).to_event(1)
    assert (event.batch_shape, event.event_shape) == ((5,), (4, *prior.event_shape))
    np.testing.assert_allclose(jax.jit(event.log_prob)(x), log_prob(prior, x).sum(1), rtol=1e-12)
    assert event.support.event_dim == prior.event_dim + 1
    draws = prior.expand((3,)).sample(jax.random.key(0))
    assert len(np.unique(draws)) == draws.size  # independent, not broadcast


@each_prior
def test_mask_removes_density_and_gradient(prior):
    x, mask = values(prior, 3), jnp.array([True, False, True])
    masked = prior.expand((3,)).mask(mask)
    got = jax.jit(masked.log_prob)(x)
    np.testing.assert_allclose(got, jnp.where(mask, log_prob(prior, x), 0.0), rtol=1e-12)
    slope = jax.jit(jax.grad(lambda x: masked.log_prob(x).sum()))(x.at[1].set(jnp.inf))
    assert jnp.all(slope[1] == 0) and jnp.all(jnp.isfinite(slope))


@pytest.mark.parametrize("name", ["gaussian", "network", "noised"])
def test_jit_changes_nothing(name, key):
    prior = PRIORS[name]
    x = values(prior, 4)
    expected = prior.log_prob(x)
    np.testing.assert_allclose(jax.jit(prior.log_prob)(x), expected, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(lambda p, x: p.log_prob(x))(prior, x), expected, rtol=1e-12)
    sample = jax.jit(lambda p, k: p.sample(k, (2,)))(prior, key)
    np.testing.assert_allclose(sample, prior.sample(key, (2,)), rtol=1e-9, atol=1e-12)


@each_prior
def test_vmap_over_values_and_over_keys(prior, key):
    x = values(prior, 4)
    np.testing.assert_allclose(jax.jit(jax.vmap(prior.log_prob))(x), log_prob(prior, x), rtol=1e-12)
    keys = jax.random.split(key, 3)
    sample = jax.vmap(prior.sample)(keys)
    assert sample.shape == (3, *prior.event_shape)
    np.testing.assert_allclose(sample[1], prior.sample(keys[1]), rtol=1e-9, atol=1e-12)


@each_prior
def test_vmap_over_the_parameters_of_the_energy(prior):
    """By construction inside `vmap`, by axes of NumPyro's `vmap_over`, and by a tree of axes."""
    x = values(prior)
    leaves, structure = jax.tree.flatten(prior)
    scaled = [jnp.stack([leaf, 1.1 * leaf]) for leaf in leaves]
    stacked = jax.tree.unflatten(structure, scaled)
    each = [jax.tree.unflatten(structure, [leaf[i] for leaf in scaled]) for i in range(2)]
    expected = jnp.stack([log_prob(one, x) for one in each])
    assert not jnp.allclose(expected[0], expected[1])
    at_x = lambda p: p.log_prob(x)
    np.testing.assert_allclose(jax.jit(jax.vmap(at_x))(stacked), expected, rtol=1e-12)
    fields = dict.fromkeys(prior.gather_pytree_data_fields(), 0)
    for axes in (vmap_over(stacked, **fields), jax.tree.map(lambda _: 0, stacked)):
        np.testing.assert_allclose(
            jax.jit(jax.vmap(at_x, in_axes=(axes,)))(stacked), expected, rtol=1e-12
        )
    made = jax.vmap(lambda leaves: jax.tree.unflatten(structure, leaves))(scaled)
    np.testing.assert_allclose(jax.jit(jax.vmap(at_x))(made), expected, rtol=1e-12)
    with pytest.raises(ValueError, match="distribution of one energy; got several"):
        stacked.log_prob(x)
    with pytest.raises(ValueError, match="distribution of one energy; got several"):
        stacked.sample(jax.random.key(0))


@each_prior
def test_gradient_of_log_prob_is_the_score_and_the_slope(prior):
    x, h = values(prior), 1e-5
    slope = jax.jit(jax.grad(prior.log_prob))(x)
    _, score = eqx.filter_jit(prior.energy.log_density_and_score)(x, jnp.asarray(prior.time))
    np.testing.assert_allclose(slope, score, rtol=1e-9)
    direction = jax.random.normal(jax.random.key(5), x.shape)
    rise = log_prob(prior, x + h * direction) - log_prob(prior, x - h * direction)
    np.testing.assert_allclose(rise / (2 * h), jnp.sum(slope * direction), rtol=1e-6)


@each_prior
def test_gradient_in_the_parameters_of_the_energy(prior):
    x, h = values(prior), 1e-6
    slope = jax.jit(jax.grad(lambda p: p.log_prob(x)))(prior)
    leaves, structure = jax.tree.flatten(prior)
    key_leaves = jax.random.split(jax.random.key(7), len(leaves))
    moves = [jax.random.normal(k, jnp.shape(v)) for k, v in zip(key_leaves, leaves, strict=True)]
    moved = lambda s: jax.tree.unflatten(
        structure, [v + s * m for v, m in zip(leaves, moves, strict=True)]
    )
    rise = (log_prob(moved(h), x) - log_prob(moved(-h), x)) / (2 * h)
    product = sum(jnp.sum(g * m) for g, m in zip(jax.tree.leaves(slope), moves, strict=True))
    np.testing.assert_allclose(product, rise, rtol=1e-5)


@each_prior
def test_tree_round_trip(prior, key):
    leaves, structure = jax.tree.flatten(prior)
    assert all(isinstance(leaf, jax.Array | np.ndarray | float) for leaf in leaves)
    again = jax.tree.unflatten(structure, leaves)
    assert jax.tree.structure(again) == structure
    assert type(again) is type(prior) and again.num_steps == prior.num_steps
    x = values(prior, 2)
    np.testing.assert_array_equal(log_prob(again, x), log_prob(prior, x))
    np.testing.assert_array_equal(again.sample(key), prior.sample(key))
    twice = jax.tree.map(lambda leaf: 2 * leaf, prior)
    assert jax.tree.structure(twice) == structure
    # Placeholders of every kind, as JAX and Equinox put them.
    for placeholder in (None, object(), 0, "x"):
        jax.tree.unflatten(structure, [placeholder] * len(leaves))


@each_prior
def test_pickle_round_trip(prior):
    again = pickle.loads(pickle.dumps(prior))
    x = values(prior, 2)
    np.testing.assert_array_equal(log_prob(again, x), log_prob(prior, x))
    assert again.num_steps == prior.num_steps
    assert (again.batch_shape, again.event_shape) == (prior.batch_shape, prior.event_shape)
    expanded = pickle.loads(pickle.dumps(prior.expand((2,)).to_event(1)))
    np.testing.assert_allclose(jax.jit(expanded.log_prob)(x), log_prob(prior, x).sum(), rtol=1e-12)


@each_prior
def test_support_is_real_and_maps_to_itself(prior, key):
    assert prior.support == constraints.independent(constraints.real, prior.event_dim)
    assert not prior.is_discrete and not prior.has_enumerate_support
    sample = prior.sample(key, (3,))
    assert prior.support(sample).shape == (3,) and jnp.all(prior.support(sample))
    transform = biject_to(prior.support)
    np.testing.assert_array_equal(transform(sample), sample)
    np.testing.assert_array_equal(transform.log_abs_det_jacobian(sample, sample), jnp.zeros(3))


def test_validation_warns_of_values_outside_the_support():
    prior = DiffusionPrior(GAUSSIAN, validate_args=True)
    with pytest.warns(UserWarning, match="Out-of-support"):
        assert prior.log_prob(jnp.array([0.0, jnp.nan, 0.0])) == -jnp.inf


@each_prior
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtype_is_that_of_the_energy_and_the_value(prior, dtype):
    cast = lambda leaf: jnp.asarray(leaf, dtype)
    prior, x = jax.tree.map(cast, prior), values(prior, 3).astype(dtype)
    total = lambda x: prior.log_prob(x).sum()
    value, slope = jax.eval_shape(jax.value_and_grad(total), x)
    assert log_prob(prior, x).dtype == value.dtype == slope.dtype == dtype


@each_prior
def test_everything_is_single_precision_in_a_single_precision_session(prior, float32, key):
    prior = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), prior)
    sample = prior.sample(key, (2,))
    got = log_prob(prior, sample)
    assert sample.dtype == got.dtype == jnp.float32
    assert jnp.all(jnp.isfinite(got))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: p.log_prob(jnp.arange(3)), TypeError, "got values of type int.*astype"),
        (lambda p: p.log_prob(np.array([True, False, True])), TypeError, "type bool"),
        (lambda p: p.log_prob(jnp.zeros(4)), ValueError, r"shape \(..., 3\); got \(4,\)"),
        (lambda p: p.log_prob(jnp.zeros((3, 2))), ValueError, r"got \(3, 2\).*Reshape"),
        (lambda p: p.log_prob(0.5), ValueError, r"got \(\)"),
        (lambda p: p.sample(None), ValueError, "expects a PRNG key.*Seed the model"),
        (lambda p: DiffusionPrior(3.0), TypeError, "got float. Wrap .* `EnergyFunction`"),
        (lambda p: DiffusionPrior(GAUSSIAN.energy), TypeError, "expects an energy or a denoiser"),
        (
            lambda p: DiffusionPrior(GaussianMixture),
            TypeError,
            r"the class `GaussianMixture`. Make one: `GaussianMixture\(...\)`",
        ),
        (lambda p: DiffusionPrior(GAUSSIAN, num_steps=0), ValueError, "at least 1; got 0"),
        (lambda p: DiffusionPrior(GAUSSIAN, num_steps=1.5), ValueError, "got 1.5"),
    ],
)
def test_bad_input_is_refused_with_a_remedy(call, error, message):
    with pytest.raises(error, match=message):
        call(DiffusionPrior(GAUSSIAN))


def test_moments_are_those_of_the_law_where_they_are_known(key):
    prior = DiffusionPrior(GaussianMixture([0.2, 0.8], [[0.0], [5.0]], [[[1.0]], [[4.0]]]))
    noise = float(prior.energy.schedule.noise_level(jnp.asarray(prior.energy.t_min))) ** 2
    np.testing.assert_allclose(prior.mean, [4.0])
    np.testing.assert_allclose(prior.variance, [0.2 * 1 + 0.8 * 4 + 0.16 * 25 + noise], rtol=1e-6)
    assert prior.expand((3,)).mean.shape == (3, 1)
    for energy in (prior.energy + prior.energy, ScoreFunction(lambda x, t: -x, shape=(2,))):
        for name in ("mean", "variance"):
            with pytest.raises(NotImplementedError, match=f"the {name} of .*exact draws.*Estimate"):
                getattr(DiffusionPrior(energy), name)


def test_draws_of_a_composed_prior_warn_that_they_follow_another_law(key):
    composed = DiffusionPrior(GAUSSIAN / 0.5, num_steps=2)
    with pytest.warns(UserWarning, match="reverse process of Composed.*not its distribution"):
        composed.sample(key)
    DiffusionPrior(GAUSSIAN).sample(key)
    with pytest.warns(
        UserWarning, match="draws of `NoisedPrior` follow the reverse process of Comp"
    ):
        NoisedPrior(GAUSSIAN / 0.5, 0.3, num_steps=2).sample(key)


def test_whoever_draws_a_composed_prior_is_told_once(key):
    """NUTS where it starts from the prior, and prior predictive draws; not what starts elsewhere."""

    def model(y=None):
        x = numpyro.sample("x", DiffusionPrior(GAUSSIAN / 0.5, num_steps=2))
        numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    def nuts(strategy):
        options = {"num_warmup": 2, "num_samples": 2, "progress_bar": False}
        MCMC(NUTS(model, init_strategy=strategy), **options).run(key, y=jnp.zeros(3))

    said = {
        "sample": (lambda: nuts(init_to_sample), 1),
        "uniform": (lambda: nuts(init_to_uniform), 0),
        "prior predictive": (lambda: Predictive(model, num_samples=3)(key), 1),
        "posterior predictive": (lambda: Predictive(model, {"x": jnp.zeros((2, 3))})(key), 0),
    }
    for name, (run, times) in said.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            run()
        words = [str(w.message) for w in caught if "not its distribution" in str(w.message)]
        assert len(words) == times, name


def test_diffusion_site_in_numpyro_scan_is_refused_and_not_wrong():
    from numpyro.contrib.control_flow import scan

    def model():
        step = lambda carry, _: (carry + numpyro.sample("x", DiffusionPrior(GAUSSIAN)), None)
        scan(step, jnp.zeros(3), None, length=4)

    with pytest.raises(ValueError, match="sample all steps in a `plate`"):
        numpyro.infer.util.log_density(model, (), {}, {"x": jnp.zeros((4, 3))})


# --- The law ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gaussian", "exploding"])
def test_law_is_that_of_the_data_with_the_noise_of_t_min(name):
    energy = ENERGIES[name]
    noise = float(energy.schedule.noise_level(jnp.asarray(energy.t_min))) ** 2
    direct = dist.MultivariateNormal(MEAN, COVARIANCE + noise * np.eye(3))
    x = values(direct, 5)
    np.testing.assert_allclose(DiffusionPrior(energy).log_prob(x), direct.log_prob(x), rtol=1e-10)
    t = 0.6
    noise = float(energy.schedule.noise_level(jnp.asarray(t))) ** 2
    direct = dist.MultivariateNormal(MEAN, COVARIANCE + noise * np.eye(3))
    np.testing.assert_allclose(NoisedPrior(energy, t).log_prob(x), direct.log_prob(x), rtol=1e-10)


@pytest.mark.parametrize("t", [None, 0.3])
def test_draws_follow_the_law(t, key):
    """First moments and the law of the log density itself, against its mean under quadrature-free truth."""
    energy, num = Gaussian(MEAN, COVARIANCE, VarianceExploding(0.2, 50.0)), 20_000
    prior = DiffusionPrior(energy) if t is None else NoisedPrior(energy, t)
    noise = float(energy.schedule.noise_level(jnp.asarray(energy.t_min if t is None else t))) ** 2
    covariance = COVARIANCE + noise * np.eye(3)
    white = np.linalg.solve(np.linalg.cholesky(covariance), (prior.sample(key, (num,)) - MEAN).T)
    assert np.all(np.abs(white.mean(1)) < 5 / np.sqrt(num))
    assert np.all(np.abs(white @ white.T / num - np.eye(3)) < 5 * np.sqrt(2 / num))
    # White noise, not merely of unit covariance.
    assert np.all(np.abs((white**4).mean(1) - 3) < 5 * np.sqrt(96 / num))


def reverse_law(energy, num_steps, variance):
    """Variance of the discretised reverse process in one eigendirection, exactly."""
    times = log_snr_grid(energy.schedule, num_steps, energy.t_min, energy.t_max)
    alpha, sigma = (np.asarray(v) for v in energy.schedule(times))
    q = [np.asarray(v) for v in reverse_moments(energy.schedule, times[:-1], times[1:])]
    shrink = alpha * variance / (alpha**2 * variance + sigma**2)  # slope of the denoiser
    got = alpha[0] ** 2 * variance + sigma[0] ** 2
    for noised, data, added, slope in zip(*q, shrink[:-1], strict=True):
        got = (noised + data * slope) ** 2 * got + added
    return got / alpha[-1] ** 2


@pytest.mark.parametrize("as_score", [False, True])
def test_reverse_process_has_its_exact_law(as_score, key):
    """For a Gaussian every step is linear, so the law of the discretised process is known."""
    variances, num, num_steps = np.array([0.3, 4.0]), 20_000, 30
    mean = np.array([1.0, -2.0])
    exact = Gaussian(mean, np.diag(variances))
    options = dict(mean=mean, variance=variances)
    wrap = (ScoreFunction, exact.score) if as_score else (EnergyFunction, exact.energy)
    prior = DiffusionPrior(wrap[0](wrap[1], 2, **options), num_steps=num_steps)
    draws = prior.sample(key, (num,))
    expected = np.array([reverse_law(exact, num_steps, v) for v in variances])
    error = np.sqrt(expected / num)
    assert np.all(np.abs(draws.mean(0) - mean) < 5 * error)
    assert np.all(np.abs(draws.var(0) / expected - 1) < 5 * np.sqrt(2 / num))


def test_reverse_process_converges_as_one_over_its_steps():
    exact = Gaussian([0.0, 0.0], np.diag([0.3, 4.0]))
    noise = float(exact.schedule.noise_level(jnp.asarray(exact.t_min))) ** 2
    for variance in (0.3, 4.0):
        error = [1 - reverse_law(exact, n, variance) / (variance + noise) for n in (50, 100, 200)]
        assert 0 < error[2] < 0.05
        np.testing.assert_allclose(np.array(error[:2]) / error[1:], 2.0, atol=0.15)


def test_reverse_process_finds_the_modes_of_a_mixture_by_weight(key):
    exact = GaussianMixture([0.25, 0.75], [[-3.0], [2.0]], [[[0.2]], [[0.5]]])
    mean, variance = exact.moments(jnp.asarray(0.0))
    wrapped = EnergyFunction(exact.energy, 1, mean=mean, variance=variance)
    draws = DiffusionPrior(wrapped).sample(key, (4000,))
    share = float(jnp.mean(draws < -0.5))
    assert abs(share - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 4000)


# --- Scores without energy, and the failure they cause ----------------------------------------------


def test_score_only_prior_can_be_drawn_but_has_no_density(key):
    prior = DiffusionPrior(ScoreFunction(lambda x, t: -x, 3), num_steps=5)
    assert prior.sample(key, (2,)).shape == (2, 3)
    message = "score-only prior ScoreFunction.*NUTS, HMC, MALA.*distil an energy"
    with pytest.raises(TypeError, match=message):
        prior.log_prob(jnp.zeros(3))

    def model():
        numpyro.sample("x", prior)

    with pytest.raises(TypeError, match=message):
        MCMC(NUTS(model), num_warmup=1, num_samples=1, progress_bar=False).run(key)


@jax.custom_vjp
def constant_with_score(x):
    """The constant 0, whose gradient claims to be the score of a standard normal."""
    return 0.0 * jnp.sum(x, -1)


constant_with_score.defvjp(lambda x: (constant_with_score(x), x), lambda x, g: (-g[..., None] * x,))


class ScoreOnly(dist.Distribution):
    """A prior as score-based packages write it: the right gradient of the wrong value."""

    support = constraints.real_vector

    def __init__(self, size):
        super().__init__((), (size,))

    def sample(self, key, sample_shape=()):
        return jax.random.normal(key, (*sample_shape, *self.event_shape))

    def log_prob(self, value):
        return constant_with_score(value)


def posterior_draws(model, key, num_warmup=500, num_samples=500, **options):
    kernel = NUTS(model, init_strategy=init_to_sample, **options)
    mcmc = MCMC(kernel, num_warmup=num_warmup, num_samples=num_samples, progress_bar=False)
    mcmc.run(key, extra_fields=("diverging", "num_steps"))
    return mcmc.get_samples(), mcmc.get_extra_fields()


@pytest.mark.long
def test_a_score_without_density_fails_silently_and_an_energy_does_not(key):
    """Prior N(0, I) in 49 dimensions, y = 2, unit noise: the posterior is N(1, 1/2) in each."""
    size = 49

    def model(prior):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=jnp.full(size, 2.0))

    wrong, fields = posterior_draws(lambda: model(ScoreOnly(size)), key)
    x = wrong["x"]
    assert float(jnp.mean(x)) > 1.6 and float(jnp.mean(jnp.std(x, 0))) < 0.5
    assert int(jnp.sum(fields["diverging"])) == 0  # nothing warns

    # Noise of 2 % of a unit at t_min: the prior is N(0, 1.0004 I).
    energy = Gaussian(np.zeros(size), np.eye(size), VarianceExploding(0.02, 80.0), t_min=0.0)
    right, fields = posterior_draws(lambda: model(DiffusionPrior(energy)), key)
    x = right["x"]
    variance = 1 / (1 / 1.0004 + 1.0)
    error = np.sqrt(variance / x.size)
    assert abs(float(jnp.mean(x)) - 2.0 * variance) < 6 * error
    np.testing.assert_allclose(jnp.mean(jnp.std(x, 0)), np.sqrt(variance), rtol=0.02)
    np.testing.assert_allclose([2.0 * variance, np.sqrt(variance)], [1.0, 0.71], atol=0.005)
    assert int(jnp.max(fields["num_steps"])) <= 15


# --- Plain NUTS on models with diffusion sites ------------------------------------------------------


def ess_error(draws):
    """Standard error of the mean over autocorrelated draws."""
    from numpyro.diagnostics import effective_sample_size

    ess = effective_sample_size(np.asarray(draws)[None])
    assert np.all(ess > 100)
    return np.std(draws, 0) / np.sqrt(ess)


@pytest.mark.long
def test_nuts_on_plates_masks_and_several_sites_is_exact(key):
    """Two sites, one in a plate with a masked datum: a linear-Gaussian posterior."""
    shared, local = Gaussian(MEAN, COVARIANCE), Gaussian([0.0], [[2.0]])
    observed = jnp.array([True, True, False, True])
    y = jnp.array([1.0, -0.5, 77.0, 2.5])
    design = jnp.array([[1.0, 0.5, -1.0], [0.2, 1.0, 0.3], [0.0, 1.0, 2.0], [1.0, -1.0, 0.4]])
    sigma = 0.7

    def model():
        x = numpyro.sample("x", DiffusionPrior(shared))
        with numpyro.plate("data", 4):
            z = numpyro.sample("z", DiffusionPrior(local))
            with handlers.mask(mask=observed):
                numpyro.sample("y", dist.Normal(design @ x + z[:, 0], sigma), obs=y)

    draws, fields = posterior_draws(model, key, num_samples=1500)
    assert draws["x"].shape == (1500, 3) and draws["z"].shape == (1500, 4, 1)
    assert int(jnp.sum(fields["diverging"])) == 0

    # The exact posterior of (x, z), by conditioning.
    prior = np.zeros((7, 7))
    prior[:3, :3], prior[3:, 3:] = COVARIANCE, 2.0 * np.eye(4)
    mean = np.concatenate([MEAN, np.zeros(4)])
    noise = float(shared.schedule.noise_level(jnp.asarray(shared.t_min))) ** 2
    prior += noise * np.eye(7)
    operator = np.concatenate([design, np.eye(4)], 1)[np.asarray(observed)]
    gain = prior @ operator.T @ np.linalg.inv(operator @ prior @ operator.T + sigma**2 * np.eye(3))
    expected = mean + gain @ (np.asarray(y)[np.asarray(observed)] - operator @ mean)
    covariance = prior - gain @ operator @ prior

    joint = np.concatenate([draws["x"], draws["z"][..., 0]], 1)
    assert np.all(np.abs(joint.mean(0) - expected) < 5 * ess_error(joint))
    products = (joint - expected)[:, :, None] * (joint - expected)[:, None, :]
    errors = ess_error(products.reshape(len(joint), -1)).reshape(7, 7)
    assert np.all(np.abs(products.mean(0) - covariance) < 5 * errors)


@pytest.mark.parametrize(
    "strategy", [init_to_mean, init_to_median, init_to_sample, init_to_uniform]
)
@pytest.mark.parametrize(
    "energy", [GAUSSIAN, EnergyFunction(GAUSSIAN.energy, 3)], ids=["closed", "not"]
)
def test_every_initialisation_starts_a_chain(strategy, energy, key):
    def model():
        with numpyro.plate("n", 2):
            numpyro.sample("x", DiffusionPrior(energy, num_steps=10))

    info = numpyro.infer.util.initialize_model(key, model, init_strategy=strategy)
    assert info.param_info.z["x"].shape == (2, 3)
    assert jnp.isfinite(info.param_info.potential_energy)
