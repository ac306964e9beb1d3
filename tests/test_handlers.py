"""`noised`: the model itself at `t_min`, and its twisted, noised relative above."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, init_to_sample
from numpyro.infer.util import log_density, potential_energy

from numpyro_diffusion import (
    DiffusionPrior,
    EnergyFunction,
    Gaussian,
    GaussianMixture,
    ScoreFunction,
    Tweedie,
    noised,
)
from numpyro_diffusion.ppl import NoisedPrior, NoisedReparam
from numpyro_diffusion.twists import AbstractTwist, Identity, added_variance

MIXTURE = GaussianMixture()
GAUSSIAN = Gaussian([0.5, -1.0, 2.0], [[1.0, 0.6, -0.2], [0.6, 0.8, 0.1], [-0.2, 0.1, 0.3]])


def plated():
    with numpyro.plate("rows", 2, dim=-2), numpyro.plate("columns", 3):
        x = numpyro.sample("x", DiffusionPrior(MIXTURE))
        numpyro.sample("y", dist.Normal(x.sum(-1), 0.3), obs=jnp.arange(6.0).reshape(2, 3))


def masked():
    mask = jnp.array([True, False, True])
    with numpyro.plate("n", 3), handlers.mask(mask=mask):
        x = numpyro.sample("x", DiffusionPrior(MIXTURE))
        numpyro.sample("y", dist.Normal(x[..., 0], 0.3), obs=jnp.array([1.0, jnp.nan, 2.0]))
    numpyro.sample("z", DiffusionPrior(MIXTURE).expand([2, 3]).mask(mask).to_event(1))


def constrained():
    x = numpyro.sample("x", DiffusionPrior(MIXTURE))
    z = numpyro.sample("z", DiffusionPrior(GAUSSIAN))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(3)))
    mean = numpyro.deterministic("mean", x[0] + jnp.sum(weights * z))
    numpyro.sample("y", dist.Normal(mean, sigma), obs=0.7)


def factored():
    x = numpyro.sample("x", DiffusionPrior(MIXTURE))
    with handlers.scale(scale=0.25):
        z = numpyro.sample("z", DiffusionPrior(GAUSSIAN), sample_shape=(4,))
    numpyro.factor("constraint", -10 * (x.sum() - z.sum()) ** 2)


def subsampled():
    with numpyro.plate("n", 10, subsample_size=4, dim=-1):
        x = numpyro.sample("x", DiffusionPrior(MIXTURE))
        numpyro.sample("y", dist.Normal(x[..., 1], 1.0), obs=jnp.ones(4))


def partly_observed():
    obs_mask = jnp.array([True, False, True])
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", DiffusionPrior(MIXTURE), obs=jnp.ones((3, 2)), obs_mask=obs_mask)
    numpyro.sample("y", dist.Normal(x.sum(), 1.0), obs=0.2)


MODELS = {
    m.__name__: m for m in (plated, masked, constrained, factored, subsampled, partly_observed)
}
each_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
T_MIN = max(MIXTURE.t_min, GAUSSIAN.t_min)


def traced(model, key, *args):
    return handlers.trace(handlers.seed(model, key)).get_trace(*args)


def latents(trace):
    return {
        name: site["value"]
        for name, site in trace.items()
        if site["type"] == "sample" and not site["is_observed"]
    }


def density(model, z):
    """Log density of the model at latent values `z`, and the values of all its sites; compiled."""

    @jax.jit
    def run(z):
        log_joint, trace = log_density(model, (), {}, z)
        return log_joint, {name: site["value"] for name, site in trace.items()}

    return run(z)


# --- The identity at the end ------------------------------------------------------------------------


@each_model
@pytest.mark.parametrize("twist", [None, Identity()], ids=repr)
@pytest.mark.parametrize("t", [MIXTURE.t_min, 0.0])
def test_at_t_min_it_is_the_model(model, twist, t, key):
    key_z, key_plate = jax.random.split(key)
    end = noised(model, t, twist)
    z = latents(traced(end, key_z))
    original = {name.removesuffix("_noised"): value for name, value in z.items()}
    assert "x_noised" in z or "x_unobserved_noised" in z
    # One key for both: it chooses the rows of a subsampling plate and nothing else.
    got, values = density(handlers.seed(end, key_plate), z)
    expected, _ = density(handlers.seed(model, key_plate), original)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert jnp.isfinite(got)
    for name, value in original.items():
        np.testing.assert_allclose(values[name], value, rtol=1e-12)


@pytest.mark.parametrize("twist", [None, Identity()], ids=repr)
def test_at_t_min_potential_energy_and_its_gradient_are_the_models(twist):
    """In unconstrained space, as NUTS and the samplers of this package see it."""
    z = {
        "x": jnp.array([0.3, -0.7]),
        "z": jnp.array([0.1, 0.4, 1.1]),
        "sigma": jnp.array(-0.4),
        "weights": jnp.array([0.2, -0.3]),
    }
    new_name = lambda name: f"{name}_noised" if name in ("x", "z") else name
    end = noised(constrained, MIXTURE.t_min, twist)
    potential = lambda model, z: potential_energy(model, (), {}, z)
    expected, slope = jax.jit(jax.value_and_grad(lambda z: potential(constrained, z)))(z)
    renamed = {new_name(name): value for name, value in z.items()}
    got, slope_end = jax.jit(jax.value_and_grad(lambda z: potential(end, z)))(renamed)
    np.testing.assert_allclose(got, expected, rtol=1e-13)
    for name in z:
        np.testing.assert_allclose(slope_end[new_name(name)], slope[name], rtol=1e-9)


def test_energies_with_their_own_horizons_stop_at_their_own_ends():
    early = Gaussian([0.0], [[1.0]], t_min=0.3)

    def model():
        numpyro.sample("x", DiffusionPrior(MIXTURE))
        numpyro.sample("z", DiffusionPrior(early))

    z = {"x": jnp.array([0.3, -0.7]), "z": jnp.array([1.2])}
    renamed = {f"{name}_noised": value for name, value in z.items()}
    got, _ = density(noised(model, 0.0), renamed)
    np.testing.assert_allclose(got, density(model, z)[0], rtol=1e-12)
    _, values = density(noised(model, 0.2), renamed)
    np.testing.assert_allclose(values["z"], z["z"], rtol=1e-12)
    assert not jnp.allclose(values["x"], z["x"])


# --- Above the end ----------------------------------------------------------------------------------


@pytest.mark.parametrize("twist", [Tweedie(), Identity()], ids=repr)
@pytest.mark.parametrize("t", [0.05, 0.5, MIXTURE.t_max])
def test_density_is_noised_prior_times_likelihood_of_the_twist(twist, t):
    u, t = 0.8 * jax.random.normal(jax.random.key(0), (2, 3, 2)), jnp.asarray(t)
    got, values = density(noised(plated, t, twist), {"x_noised": u})
    each = jax.vmap(jax.vmap(lambda u: twist(MIXTURE, u, t)))
    log_density_u, x_hat = jax.jit(each)(u)
    likelihood = dist.Normal(x_hat.sum(-1), 0.3).log_prob(jnp.arange(6.0).reshape(2, 3))
    np.testing.assert_allclose(got, log_density_u.sum() + likelihood.sum(), rtol=1e-12)
    np.testing.assert_allclose(values["x"], x_hat, rtol=1e-12)
    # And the log density is that of u = x_t / alpha_t.
    np.testing.assert_allclose(log_density_u, NoisedPrior(MIXTURE, t).log_prob(u), rtol=1e-12)


def test_tweedie_is_the_mean_of_the_prior_given_the_noised_variable():
    """By quadrature in one dimension, with no score."""
    energy = GaussianMixture([0.3, 0.7], [[-2.0], [1.5]], [[[0.3]], [[0.8]]], t_min=0.1)
    grid = jnp.linspace(-12, 12, 4001)
    prior = jnp.exp(jax.jit(DiffusionPrior(energy).log_prob)(grid[:, None]))
    twist = jax.jit(lambda u, t: Tweedie()(energy, u, t))
    for t in (0.11, 0.4, 0.7):
        t, u = jnp.asarray(t), jnp.array([0.4])
        variance = added_variance(energy, t)
        weight = prior * jnp.exp(-0.5 * (u - grid) ** 2 / variance)
        log_density, x_hat = twist(u, t)
        np.testing.assert_allclose(x_hat, weight @ grid / weight.sum(), rtol=1e-8)
        evidence = weight.sum() * (grid[1] - grid[0]) / jnp.sqrt(2 * jnp.pi * variance)
        np.testing.assert_allclose(log_density, jnp.log(evidence), rtol=1e-8)


@pytest.mark.parametrize("twist", [Tweedie(), Identity()], ids=repr)
def test_every_twist_is_the_identity_at_t_min(twist):
    u, t = jnp.array([0.3, 2.0]), jnp.asarray(MIXTURE.t_min)
    log_density, x_hat = jax.jit(lambda u, t: twist(MIXTURE, u, t))(u, t)
    np.testing.assert_allclose(x_hat, u, rtol=1e-14)
    np.testing.assert_allclose(log_density, MIXTURE.log_density(u, t), rtol=1e-14)


def test_one_compilation_serves_all_times():
    traces = []

    @jax.jit
    def at(t, u):
        traces.append(t)
        return log_density(noised(plated, t), (), {}, {"x_noised": u})[0]

    u = jnp.ones((2, 3, 2))
    values = [at(jnp.asarray(t), u) for t in (0.9, 0.3, MIXTURE.t_min)]
    assert len(traces) == 1 and len(set(map(float, values))) == 3
    batch = jax.vmap(at, (0, None))(jnp.array([0.9, 0.3]), u)
    np.testing.assert_allclose(batch, jnp.stack(values[:2]), rtol=1e-12)


def test_draws_of_noised_sites_follow_the_noised_prior(key):
    t, num = 0.4, 20_000

    def model():
        with numpyro.plate("n", num):
            numpyro.sample("x", DiffusionPrior(GAUSSIAN))

    trace = traced(noised(model, t), key)
    noise = float(GAUSSIAN.schedule.noise_level(jnp.asarray(t))) ** 2
    vectors, values = np.asarray(GAUSSIAN.eigenvectors), np.asarray(GAUSSIAN.eigenvalues)
    covariance = (vectors * values) @ vectors.T + noise * np.eye(3)
    u = trace["x_noised"]["value"] - np.asarray(GAUSSIAN.mean)
    white = np.linalg.solve(np.linalg.cholesky(covariance), u.T)
    assert np.all(np.abs(white.mean(1)) < 5 / np.sqrt(num))
    assert np.all(np.abs(white @ white.T / num - np.eye(3)) < 5 * np.sqrt(2 / num))


# --- Which sites ------------------------------------------------------------------------------------


@each_model
def test_only_latent_diffusion_sites_change(model, key):
    before, after = traced(model, key), traced(noised(model, 0.3), key)
    diffusion = {"x", "z"} & set(latents(before)) | {"x_unobserved"} & set(before)
    for name, site in before.items():
        assert after[name]["type"] == ("deterministic" if name in diffusion else site["type"]), name
        assert jnp.shape(after[name]["value"]) == jnp.shape(site["value"]), name
    assert set(after) - set(before) == {f"{name}_noised" for name in diffusion}
    for name in diffusion:
        old, new = before[name]["fn"], after[f"{name}_noised"]["fn"]
        assert type(new) is NoisedPrior or type(new) is type(old)
        assert (new.batch_shape, new.event_shape) == (old.batch_shape, old.event_shape)
        assert after[f"{name}_noised"]["scale"] == before[name]["scale"]


def test_observed_and_substituted_sites_keep_value_and_prior(key):
    value = jnp.array([0.5, -0.2])

    def model():
        numpyro.sample("x", DiffusionPrior(MIXTURE), obs=value)

    free = lambda: numpyro.sample("x", DiffusionPrior(MIXTURE))
    for inner in (
        model,
        handlers.condition(free, {"x": value}),
        handlers.substitute(free, {"x": value}),
    ):
        trace = traced(noised(inner, 0.5), key)
        assert list(trace) == ["x"] and trace["x"]["type"] == "sample"
        assert isinstance(trace["x"]["fn"], DiffusionPrior)
        np.testing.assert_array_equal(trace["x"]["value"], value)


def test_models_without_diffusion_sites_and_noised_models_stay_as_they_are(key):
    def model():
        numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal()), 1.0), obs=0.3)

    assert list(traced(noised(model, 0.5), key)) == ["mu", "y"]
    once, twice = noised(plated, 0.5), noised(noised(plated, 0.5), 0.5)
    assert list(traced(once, key)) == list(traced(twice, key))


def test_transformed_diffusion_sites_are_taken_apart(key):
    scale = jnp.array([2.0, 0.5])

    def model():
        prior = dist.TransformedDistribution(
            DiffusionPrior(MIXTURE), dist.transforms.AffineTransform(1.0, scale)
        )
        with numpyro.plate("n", 3):
            numpyro.sample("x", prior)

    trace = traced(noised(model, 0.0), key)
    assert [n for n in trace if n != "n"] == ["x_base_noised", "x_base", "x"]
    u = trace["x_base_noised"]["value"]
    assert u.shape == (3, 2)
    np.testing.assert_allclose(trace["x"]["value"], 1.0 + scale * u, rtol=1e-12)
    got, _ = density(noised(model, 0.0), {"x_base_noised": u})
    expected, _ = density(model, {"x": 1.0 + scale * u})
    np.testing.assert_allclose(got, expected + 3 * jnp.sum(jnp.log(scale)), rtol=1e-12)

    with pytest.raises(ValueError, match="take apart .* 'x' under.*transform its value"):
        traced(noised(handlers.mask(model, mask=jnp.array(True)), 0.0), key)


def test_options_of_the_site_reach_the_noised_site(key):
    def model():
        infer = {"note": 3}
        numpyro.sample("x", DiffusionPrior(MIXTURE, num_steps=7), sample_shape=(5,), infer=infer)

    site = traced(noised(model, 0.5), key)["x_noised"]
    assert site["value"].shape == (5, 2) and site["infer"]["note"] == 3
    assert site["fn"].num_steps == 7


class Stretched(AbstractTwist):
    def __call__(self, energy, u, t):
        return energy.log_density(u, t), (1 + added_variance(energy, t)) * u


def test_a_twist_of_ones_own_is_one_small_class(key):
    trace = traced(noised(plated, 0.5, Stretched()), key)
    factor = 1 + added_variance(MIXTURE, 0.5)
    np.testing.assert_allclose(trace["x"]["value"], factor * trace["x_noised"]["value"], rtol=1e-12)


SCORE_ONLY = ScoreFunction(lambda x, t: -x, 2)


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (lambda: noised(plated, 0.5, Tweedie), TypeError, "must be a twist.*Instantiate"),
        (lambda: noised(plated, 1.5), ValueError, r"one time in \[0, 1\].* got 1.5"),
        (lambda: noised(plated, jnp.array([0.1, 0.2])), ValueError, "Map over several"),
        (
            lambda: noised(lambda: numpyro.sample("x", DiffusionPrior(SCORE_ONLY)), 0.5)(),
            TypeError,
            "needs an energy at site 'x'; got the score-only prior",
        ),
        (
            lambda: handlers.reparam(constrained, {"sigma": NoisedReparam(0.5)})(),
            ValueError,
            "site 'sigma' has a HalfNormal",
        ),
        (
            lambda: handlers.reparam(
                lambda: numpyro.sample("x", DiffusionPrior(MIXTURE), obs=jnp.ones(2)),
                {"x": NoisedReparam(0.5)},
            )(),
            ValueError,
            "and is observed",
        ),
    ],
)
def test_bad_input_is_refused_with_a_remedy(run, error, message, key):
    with pytest.raises(error, match=message), handlers.seed(rng_seed=key):
        run()


# --- Under NUTS -------------------------------------------------------------------------------------


@pytest.mark.long
def test_nuts_at_an_intermediate_level_has_the_exact_posterior(key):
    """A Gaussian prior makes Tweedie linear, so the posterior at every level is Gaussian."""
    t, sigma, y = jnp.asarray(0.3), 0.5, jnp.array([1.0, -0.3])
    design = jnp.array([[1.0, 0.5, -1.0], [0.2, 1.0, 0.3]])
    energy = EnergyFunction(GAUSSIAN.energy, 3, mean=GAUSSIAN.mean)

    def model():
        x = numpyro.sample("x", DiffusionPrior(energy, num_steps=20))
        numpyro.sample("y", dist.Normal(design @ x, sigma).to_event(1), obs=y)

    mcmc = MCMC(
        NUTS(noised(model, t), init_strategy=init_to_sample),
        num_warmup=500,
        num_samples=1500,
        progress_bar=False,
    )
    mcmc.run(key)
    u = np.asarray(mcmc.get_samples()["x_noised"])

    vectors, values = np.asarray(GAUSSIAN.eigenvectors), np.asarray(GAUSSIAN.eigenvalues)
    noise = float(GAUSSIAN.schedule.noise_level(t)) ** 2
    prior = (vectors * (values + noise)) @ vectors.T
    mean = np.asarray(GAUSSIAN.mean)
    shrink = np.eye(3) - float(added_variance(energy, t)) * np.linalg.inv(prior)  # x_hat in u
    operator = np.asarray(design) @ shrink
    precision = np.linalg.inv(prior) + operator.T @ operator / sigma**2
    covariance = np.linalg.inv(precision)
    expected = mean + covariance @ operator.T @ (y - design @ mean) / sigma**2
    ess = numpyro.diagnostics.effective_sample_size(u[None])
    assert np.all(ess > 300)
    assert np.all(np.abs(u.mean(0) - expected) < 5 * np.sqrt(np.diag(covariance) / ess))
    np.testing.assert_allclose(u.var(0), np.diag(covariance), rtol=5 * np.sqrt(2 / ess.min()))
    x = np.asarray(mcmc.get_samples()["x"])
    np.testing.assert_allclose(x, mean + (u - mean) @ shrink.T, rtol=1e-9, atol=1e-12)
