"""The log prior of draws, and power scaling by it, against closed forms; names of dimensions."""

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats

import numpyro_diffusion as nd
from numpyro_diffusion.ppl.groups import Run, prior_marks
from numpyro_diffusion.ppl.log_prior import log_priors

# Clouds of eight collapse, which is not what is asked here.
pytestmark = pytest.mark.filterwarnings("ignore:`log_evidence` is not to be relied on")
OLD = int(az.__version__.split(".")[0]) < 1
MEAN, COVARIANCE = np.array([0.5, -1.0]), np.array([[1.0, 0.6], [0.6, 0.8]])
ENERGY = nd.Gaussian(MEAN, COVARIANCE)
DESIGN, NOISE, DATA = np.array([1.0, -0.5]), 0.7, 2.5


def model(y):
    x = numpyro.sample("x", nd.DiffusionPrior(ENERGY))
    numpyro.sample("y", dist.Normal(DESIGN @ x, NOISE), obs=y)


def powered(power):
    """Mean and covariance of the posterior under a power of the prior, at the noise of `t_min`."""
    noise = float(ENERGY.schedule.noise_level(jnp.asarray(ENERGY.t_min)))
    prior = power * np.linalg.inv(COVARIANCE + noise**2 * np.eye(2))
    precision = prior + np.outer(DESIGN, DESIGN) / NOISE**2
    mean = np.linalg.solve(precision, prior @ MEAN + DESIGN * DATA / NOISE**2)
    return mean, np.linalg.inv(precision)


@pytest.fixture(scope="module")
def run():
    scheme = nd.Annealed(levels=8, pilot=64, moves=4)
    smc = nd.SMC(model, scheme, num_particles=1500, num_chains=4, progress_bar=False)
    smc.run(jax.random.key(1), DATA)
    return smc, smc.to_arviz(predictive=False)


def test_the_log_prior_is_that_of_the_gaussian(run):
    data = run[1]
    noise = float(ENERGY.schedule.noise_level(jnp.asarray(ENERGY.t_min)))
    law = scipy.stats.multivariate_normal(MEAN, COVARIANCE + noise**2 * np.eye(2))
    found = data["log_prior"]["x"]
    assert found.dims == ("chain", "draw")
    np.testing.assert_allclose(found, law.logpdf(data["posterior"]["x"].values), rtol=1e-6)


@pytest.mark.parametrize("power", [0.8, 1.25])
def test_weights_by_it_are_those_of_a_powered_prior(run, power):
    data = run[1]
    x = data["posterior"]["x"].values
    log_weights = (power - 1) * data["log_prior"]["x"].values
    weights = np.exp(log_weights - log_weights.max())
    each = np.einsum("cd,cdi->ci", weights, x) / weights.sum(1)[:, None]
    mean, covariance = powered(power)
    error = each.std(0, ddof=1) / 2
    assert np.all(np.abs(each.mean(0) - mean) < 4 * error + 0.01)
    assert np.all(4 * error < np.abs(mean - powered(1.0)[0]))  # the test could tell
    centred = x - each.mean(0)
    found = np.einsum("cd,cdi,cdj->ij", weights, centred, centred) / weights.sum()
    np.testing.assert_allclose(found, covariance, atol=0.1 * covariance.max())


def distance(power, coordinate):
    """Cumulative Jensen-Shannon distance of the powered posterior from the posterior, by quadrature."""
    laws = []
    for alpha in (1.0, power):
        mean, covariance = powered(alpha)
        laws.append(scipy.stats.norm(mean[coordinate], covariance[coordinate, coordinate] ** 0.5))
    sd, centre = laws[0].std(), laws[0].mean()
    # ArviZ integrates between the smallest and the largest draw.
    grid = np.linspace(centre - 3.7 * sd, centre + 3.7 * sd, 20_001)
    sides = []
    for p, q in ((laws[0].cdf(grid), laws[1].cdf(grid)), (laws[0].sf(grid), laws[1].sf(grid))):
        middle = np.log2(0.5 * (p + q))
        total = p * (np.log2(p) - middle) + q * (np.log2(q) - middle)
        sides.append(np.sqrt(np.sum(total) / np.sum(p + q)))
    return max(sides)


@pytest.mark.skipif(not OLD, reason="`psens` of ArviZ 0.x")
def test_sensitivity_by_arviz_agrees_with_quadrature(run):
    found = az.psens(run[1], component="prior", component_var_names=["x"])["x"].values
    truth = [sum(distance(a, i) for a in (1.01, 1 / 1.01)) / (2 * np.log2(1.01)) for i in (0, 1)]
    np.testing.assert_allclose(found, truth, rtol=0.12)
    assert np.all(found > 0.05)  # the prior matters here, by ArviZ's rule of thumb
    assert az.psens(run[1], component="likelihood")["x"].shape == (2,)


def hierarchy(y, seen):
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with numpyro.plate("person", 3, dim=-2), numpyro.plate("day", 4, dim=-1):
        z = numpyro.sample("z", dist.Normal(0.0, scale))
        numpyro.deterministic("twice", 2 * z)
        numpyro.sample("y", dist.Normal(z, 0.5).mask(seen), obs=y)
    with numpyro.plate("person", 3):
        numpyro.sample("x", nd.DiffusionPrior(ENERGY))


Y, SEEN = np.linspace(-1, 1, 12).reshape(3, 4), np.ones((3, 4), bool)
SMALL = dict(num_particles=8, num_chains=2, progress_bar=False)


@pytest.fixture(scope="module")
def many():
    smc = nd.SMC(hierarchy, nd.Annealed(levels=2, moves=1, pilot=8), **SMALL)
    return smc.run(jax.random.key(0), Y, SEEN)


def test_plates_name_dimensions_and_priors_keep_them(many):
    data = many.to_arviz(coords={"person": ["a", "b", "c"]}, num_prior=5)
    posterior, prior = data["posterior"], data["log_prior"]
    assert posterior["z"].dims == posterior["twice"].dims == ("chain", "draw", "person", "day")
    assert posterior["x"].dims == ("chain", "draw", "person", "x_dim_1")
    assert list(posterior["person"].values) == ["a", "b", "c"]
    assert prior["z"].dims == ("chain", "draw", "person", "day") and prior["scale"].ndim == 2
    assert prior["x"].dims == ("chain", "draw", "person")
    assert data["posterior_predictive"]["y"].dims == ("chain", "draw", "person", "day")
    scale, z = posterior["scale"].values, posterior["z"].values
    law = scipy.stats.norm(0, scale[..., None, None])
    np.testing.assert_allclose(prior["z"], law.logpdf(z), rtol=1e-6)
    lognormal = scipy.stats.lognorm(1.0).logpdf(scale)  # of the scale itself: no Jacobian
    np.testing.assert_allclose(prior["scale"], lognormal, rtol=1e-6)


def test_names_that_are_given_take_the_place_of_plates(many):
    data = many.to_arviz(
        dims={"z": ["who", None], "x": ["person", "axis"]},
        pred_dims={"y": ["new", "day"]},
        coords={"axis": ["east", "north"]},
        log_prior=False,
        num_prior=5,
    )
    assert data["posterior"]["z"].dims == ("chain", "draw", "who", "z_dim_1")
    assert data["posterior"]["x"].dims == ("chain", "draw", "person", "axis")
    assert list(data["posterior"]["axis"].values) == ["east", "north"]
    assert data["posterior_predictive"]["y"].dims == ("chain", "draw", "new", "day")
    assert data["observed_data"]["y"].dims == ("person", "day")
    assert "log_prior" not in (data.groups() if OLD else data.children)
    attrs = data["posterior"].attrs
    assert attrs["inference_library"] == "numpyro_diffusion" and attrs["numpyro_version"]
    assert attrs["scheme"] == "Annealed(moves=1, levels=2, pilot=8)" and attrs["seconds"] > 0
    assert attrs["created_at"].startswith("20")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dims": {"q": ["a"]}}, "`dims` names variables"),
        ({"dims": {"z": ["a"]}}, "expects 2 names"),
        ({"dims": {"z": ["scale", "day"]}}, "that of a variable"),
        ({"dims": {"z": ["draw", "day"]}}, "that of another dimension"),
        ({"dims": {"z": ["a", "a"]}}, "that of another dimension"),
        ({"dims": {"z": ["a", "b"]}, "coords": {"a": [1, 2]}}, "`coords` has 2 values"),
    ],
)
def test_names_that_do_not_fit_are_refused(many, options, words):
    with pytest.raises(ValueError, match=words):
        many.to_arviz(predictive=False, log_likelihood=False, log_prior=False, **options)


SCORES = nd.ScoreFunction(ENERGY.score, 2)


def of_scores(y):
    x = numpyro.sample("x", nd.DiffusionPrior(SCORES))
    a = numpyro.sample("a", dist.Normal(1.0, 2.0))
    numpyro.sample("y", dist.Normal(x[0] + a, 0.5), obs=y)


def test_a_prior_of_scores_alone_is_left_out():
    bridge = nd.SMC(of_scores, nd.Twisted(), **SMALL).bridge_at(0.3)
    run = Run(of_scores, (0.3,), {}, bridge, None, {})  # type: ignore[arg-type]
    latent = {"x": jnp.zeros((2, 3, 2)), "a": jnp.arange(6.0).reshape(2, 3)}
    found = log_priors(run, latent)
    assert list(found) == ["a"]
    np.testing.assert_allclose(
        found["a"], scipy.stats.norm(1.0, 2.0).logpdf(latent["a"]), rtol=1e-6
    )
    assert prior_marks(run)["log_prior"]["left_out"].startswith("x: known by scores alone")
