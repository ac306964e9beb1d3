"""Densities from scores against closed forms: quadrature, Monte Carlo, steps of a discrete model."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from closed_form import two_dimensional
from scipy.stats import t as student

import numpyro_diffusion as nd
from numpyro_diffusion.density import (
    ExactDivergence,
    GaussHermite,
    GaussLegendre,
    Hutchinson,
    Mirrored,
    ScoreFormula,
    Stratified,
    UsualSum,
    score_formula,
)
from numpyro_diffusion.schedules import from_betas

LINEAR = np.linspace(1e-4, 0.02, 1000)
POINTS = {
    1: np.array([[0.0], [-2.0], [1.2], [6.0]]),
    2: np.array([[0.0, 0.0], [1.0, -2.0], [-2.0, 0.5], [2.5, 3.0]]),
}


def mixture(dimension, scale=1.0, **options):
    """Unequal, anisotropic components in 1 or 2 dimensions."""
    if dimension == 1:
        means, covariances = np.array([[-2.0], [1.0]]), np.array([[[0.3]], [[0.6]]])
        return nd.GaussianMixture([0.3, 0.7], scale * means, scale**2 * covariances, **options)
    means = np.array([[-2, 0.5], [1, -0.5], [0.0, 1.5]])
    covariances = np.array(
        [[[0.5, 0.2], [0.2, 0.3]], [[0.2, -0.1], [-0.1, 0.6]], np.diag([0.1, 0.4])]
    )
    return nd.GaussianMixture([0.3, 0.25, 0.45], scale * means, scale**2 * covariances, **options)


def wide(dimension, seed=3):
    """Correlated components in many dimensions."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(3, dimension, dimension)) / np.sqrt(dimension)
    covariances = 0.5 * factors @ factors.transpose(0, 2, 1) + 0.1 * np.eye(dimension)
    return nd.GaussianMixture([0.3, 0.25, 0.45], rng.normal(size=(3, dimension)), covariances)


def exact(prior, x):
    log_density = lambda u: prior.log_density(u, jnp.asarray(prior.t_min))
    return np.asarray(jax.vmap(log_density)(jnp.asarray(x)))


def score_of(prior):
    """The score of a prior as a function that knows nothing else of it."""
    mean, variance = prior.moments(jnp.asarray(prior.t_min))
    score = lambda params, x, t: params.score(x, t)
    return nd.ScoreFunction(
        score, prior.shape, prior.schedule, params=prior, mean=mean, variance=variance
    )


@pytest.mark.parametrize("dimension", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_equals_the_truth_whatever_the_scale_of_the_data(dimension, scale):
    """Errors of the rule over time: below 1e-3, 1e-6 and 1e-8 nats (relative, in the tails)."""
    prior, x = mixture(dimension, scale), scale * POINTS[dimension]
    truth, noises = exact(prior, x), GaussHermite(64 if dimension == 1 else 48)
    allowed = np.maximum(np.abs(truth), 1)
    for num, tolerance in ((16, 1e-3), (32, 1e-6), (64, 1e-8)):
        found = score_formula(prior, x, times=GaussLegendre(num), noises=noises)
        np.testing.assert_array_less(np.abs(found.value - truth) / allowed, tolerance)
        assert (found.standard_error == 0).all()


@pytest.mark.long
def test_a_far_tail_converges():
    """Ten standard deviations out, where the Gaussian reference is of no help: -70 nats."""
    prior, x = mixture(2), np.array([[6.0, 5.0]])
    truth = exact(prior, x)
    errors = [
        np.abs(
            score_formula(prior, x, times=GaussLegendre(n), noises=GaussHermite(64)).value - truth
        )
        for n in (32, 64, 96)
    ]
    assert errors[0] < 0.1 and errors[1] < 1e-5 and errors[2] < 1e-8


def test_a_gaussian_has_no_error_at_all():
    found = score_formula(nd.Gaussian(), np.array([[0.3, -2.0], [5.0, 5.0]]))
    np.testing.assert_allclose(
        found.value, exact(nd.Gaussian(), [[0.3, -2.0], [5.0, 5.0]]), atol=1e-9
    )
    assert (found.standard_error < 1e-9).all() and (found.num_evaluations == 256).all()


ESTIMATORS = {
    "scores": ScoreFormula(),
    "nodes": ScoreFormula(GaussLegendre(16)),
    "exact divergence": ScoreFormula(Stratified(8), divergence=ExactDivergence()),
    "random divergence": ScoreFormula(Stratified(8), divergence=Hutchinson(2)),
    "reference": ScoreFormula(
        Stratified(8), Mirrored(4), reference=nd.Gaussian(np.zeros(2), np.eye(2))
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATORS)
def test_is_unbiased_and_knows_its_error(name):
    """Mean within 4 standard errors, error bars right in the mean, 90 to 99 % of 95 % intervals hit."""
    prior, x, repeats = mixture(2), np.array([-0.5, 0.7]), 1000
    estimator = ESTIMATORS[name]
    found = estimator(score_of(prior), np.tile(x, (repeats, 1)), jax.random.key(1))
    errors = np.asarray(found.value) - exact(prior, x[None])
    assert abs(errors.mean()) < 4 * errors.std() / repeats**0.5 + 1e-4
    stated = np.sqrt(np.mean(np.asarray(found.standard_error) ** 2))
    assert 0.85 < stated / errors.std() < 1.15
    width = student.ppf(0.975, estimator.noises.num_pairs - 1)
    covered = np.mean(np.abs(errors) < width * np.asarray(found.standard_error))
    assert 0.9 <= covered <= 0.99


@pytest.mark.long
@pytest.mark.parametrize("dimension", [4, 16])
def test_many_dimensions(dimension):
    prior = wide(dimension)
    x = np.asarray(
        jax.vmap(lambda key: prior.draw(key, jnp.asarray(prior.t_min)))(
            jax.random.split(jax.random.key(2), 200)
        )
    )
    x = x / float(prior.schedule(jnp.asarray(prior.t_min))[0])
    found = score_formula(prior, x, jax.random.key(3))
    z = (np.asarray(found.value) - exact(prior, x)) / np.asarray(found.standard_error)
    assert abs(z.mean()) < 0.35 and 0.8 < np.mean(np.abs(z) < student.ppf(0.95, 7)) < 0.96


def test_a_reference_that_is_the_law_leaves_nothing_to_estimate():
    prior = mixture(2)
    found = score_formula(score_of(prior), POINTS[2], reference=prior)
    np.testing.assert_allclose(found.value, exact(prior, POINTS[2]), atol=1e-6)
    assert (found.standard_error < 1e-6).all()


@pytest.mark.long
def test_spends_evaluations_until_the_error_bar_is_met():
    prior = mixture(2)
    found = score_formula(prior, POINTS[2], jax.random.key(4), tolerance=0.02)
    assert (found.standard_error <= 0.02).all()
    assert len(set(np.asarray(found.num_evaluations).tolist())) > 1  # no more than each point needs
    assert (np.abs(found.value - exact(prior, POINTS[2])) < 0.08).all()
    short = score_formula(prior, POINTS[2], tolerance=1e-6, max_evaluations=600)
    assert (short.num_evaluations == 512).all() and (short.standard_error > 1e-6).all()


@pytest.mark.long
def test_gradient_is_the_score_and_batching_changes_nothing():
    prior, x = mixture(2), jnp.asarray(POINTS[2])
    estimator = ScoreFormula(GaussLegendre(32), GaussHermite(16))
    gradient = jax.jit(jax.grad(lambda x: estimator(prior, x).value.sum()))(x)
    score = jax.vmap(jax.grad(lambda u: prior.log_density(u, jnp.asarray(prior.t_min))))(x)
    np.testing.assert_allclose(gradient, score, rtol=1e-3, atol=1e-3)
    whole = score_formula(prior, x.reshape(2, 2, 2), jax.random.key(5))
    for batch_size in (300, 100):
        parts = score_formula(prior, x.reshape(2, 2, 2), jax.random.key(5), batch_size=batch_size)
        np.testing.assert_allclose(parts.value, whole.value, rtol=1e-9)
    assert whole.value.shape == (2, 2)


@pytest.mark.long
def test_derivative_in_parameters():
    """The density of a mixture whose means move, differentiated through its scores alone."""
    x, estimator = jnp.array([0.4, -0.2]), ScoreFormula(GaussLegendre(32), GaussHermite(16))
    base = mixture(2)
    moved = lambda shift: eqx.tree_at(lambda m: m.means, base, base.means + shift)
    slope = jax.grad(lambda shift: estimator(moved(shift), x).value)(0.0)
    truth = jax.grad(lambda shift: moved(shift).log_density(x, jnp.asarray(base.t_min)))(0.0)
    np.testing.assert_allclose(slope, truth, rtol=1e-3)


def test_single_floats(float32):
    prior, x = mixture(2), POINTS[2].astype(np.float32)
    found = score_formula(prior, x, times=GaussLegendre(32), noises=GaussHermite(32))
    assert found.value.dtype == jnp.float32
    np.testing.assert_allclose(found.value, exact(prior, x), rtol=2e-6, atol=2e-5)


@pytest.mark.long
def test_a_plug_in_value_is_a_bound_whose_gap_is_the_error_of_the_score():
    r"""$E_p[\log p - \ell] = \frac12 \int E |\Delta s|^2 dr$, here with a score that is off by a field."""
    prior = mixture(1)
    field = lambda x, t: 0.4 * prior.schedule(t)[0] ** 2 * jnp.sin(1.5 * x)
    wrong = nd.ScoreFunction(
        lambda p, x, t: p.score(x, t) - field(x, t),
        (1,),
        prior.schedule,
        params=prior,
        mean=-2 * 0.3 + 0.7,
        variance=2.4,
    )
    grid = np.linspace(-8, 8, 401)[:, None]
    rules = {"times": GaussLegendre(32), "noises": GaussHermite(32)}
    found = np.asarray(score_formula(wrong, grid, **rules).value)
    truth = exact(prior, grid)
    gap = np.trapezoid(np.exp(truth) * (truth - found), grid[:, 0])
    # The same by quadrature over levels, with the noised mixture in closed form.
    t = np.linspace(prior.t_min, prior.t_max, 1001)
    x_t = np.linspace(-12, 12, 401)[:, None]
    log_p = jax.vmap(lambda t: jax.vmap(lambda x: -prior.energy(x, t))(jnp.asarray(x_t)))(
        jnp.asarray(t)
    )
    squares = jax.vmap(lambda t: field(jnp.asarray(x_t[:, 0]), t) ** 2)(jnp.asarray(t))
    means = np.trapezoid(np.exp(log_p) * squares, x_t[:, 0], axis=1)
    alpha, sigma = jax.vmap(prior.schedule)(jnp.asarray(t))
    integral = 0.5 * np.trapezoid(np.asarray(alpha**2) * means, np.asarray((sigma / alpha) ** 2))
    assert gap == pytest.approx(integral, rel=2e-3) and gap > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("dimension", [1, 2])
def test_steps_of_ddpm_without_the_constant(dimension):
    prior = mixture(dimension, schedule=from_betas(LINEAR), t_min=0.0, t_max=1.0)
    x = POINTS[dimension][:3]
    found = nd.density.elbo(prior, x, noises=GaussHermite(16))
    np.testing.assert_allclose(found.value, exact(prior, x), atol=2e-4)
    usual = {
        weights: (UsualSum(weights, 1000, GaussHermite(16))(prior, x).value - exact(prior, x))
        / dimension
        for weights in (nd.density.riemann_weights, nd.density.ddpm_weights, nd.density.snr_weights)
    }
    riemann, ddpm, snr = (np.asarray(error) for error in usual.values())
    for error in (riemann, ddpm):
        assert (0.32 < error).all() and (error < 0.37).all()
    assert (-0.53 < snr).all() and (snr < -0.43).all()


@pytest.mark.long
def test_random_steps_agree_with_their_error_bars():
    prior, x = mixture(2), np.tile(POINTS[2][1], (100, 1))
    found = nd.density.elbo(prior, x, jax.random.key(6), num_steps=100, noises=Mirrored(4))
    errors = np.asarray(found.value) - exact(prior, x[:1])
    assert abs(errors.mean()) < 4 * errors.std() / 10 + 0.02
    assert 0.8 < np.sqrt(np.mean(np.asarray(found.standard_error) ** 2)) / errors.std() < 1.25


@pytest.mark.long
def test_a_score_as_the_prior_of_a_model():
    """Importance sampling over a grid of x with the estimated density: evidence of the closed form."""
    problem = two_dimensional(sigma=0.5)
    prior = nd.DiffusionPrior(
        score_of(problem.prior), log_density=ScoreFormula(GaussLegendre(24), GaussHermite(16))
    )
    side = np.linspace(-7, 6, 60)
    x = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    log_likelihood = dist.Normal(x @ problem.operator[0], 0.5).log_prob(problem.data[0])
    log_joint = np.asarray(prior.log_prob(jnp.asarray(x)) + log_likelihood)
    log_evidence = np.log(np.exp(log_joint).sum()) + 2 * np.log(side[1] - side[0])
    assert log_evidence == pytest.approx(problem.exact().log_evidence, abs=2e-4)


def test_estimator_inside_plates_and_transformations():
    prior = nd.DiffusionPrior(mixture(2), log_density=ScoreFormula(Stratified(8), Mirrored(2)))
    x = jnp.asarray(POINTS[2])
    single = [prior.log_prob(x_i) for x_i in x]
    np.testing.assert_allclose(prior.log_prob(x), single, rtol=1e-9)
    mapped = jax.vmap(lambda prior, x: prior.log_prob(x), (None, 0))(prior, x)
    np.testing.assert_allclose(mapped, single, rtol=1e-9)

    def model():
        with numpyro.plate("n", 4):
            numpyro.sample("x", prior)

    log_joint, _ = numpyro.infer.util.log_density(model, (), {}, {"x": x})
    np.testing.assert_allclose(log_joint, sum(single), rtol=1e-9)


def test_refusals():
    prior = mixture(2)
    with pytest.raises(TypeError, match="denoiser or an energy"):
        score_formula(lambda x: x, np.zeros(2))
    with pytest.raises(ValueError, match="shape"):
        score_formula(prior, np.zeros(3))
    with pytest.raises(FloatingPointError, match=r"index \(1,\)"):
        score_formula(prior, np.array([[0.0, 1.0], [np.nan, 0.0]]))
    with pytest.raises(TypeError, match="closed form"):
        score_formula(prior, np.zeros(2), reference=nd.EnergyFunction(lambda x, t: 0.0, (2,)))
    with pytest.raises(ValueError, match="million|too many"):
        score_formula(wide(16), np.zeros(16), noises=GaussHermite(8))
    with pytest.raises(ValueError, match="under `jit`"):
        jax.jit(lambda x: score_formula(prior, x, tolerance=0.1).value)(np.zeros(2))
    for bad in (
        lambda: Mirrored(1),
        lambda: GaussHermite(5),
        lambda: Stratified(1),
        lambda: Hutchinson(0),
    ):
        with pytest.raises(ValueError, match="expects|at least|must be even"):
            bad()
    with pytest.raises(TypeError, match="Instantiate"):
        nd.DiffusionPrior(prior, log_density=ScoreFormula)
    with pytest.raises(TypeError, match="log_density=nd.density.ScoreFormula"):
        nd.DiffusionPrior(score_of(prior)).log_prob(np.zeros(2))

    composed = (
        2 * prior
    )  # its levels are a path: the numbers would look like a density, and be none
    for refused in (
        lambda: score_formula(composed, np.zeros(2)),
        lambda: nd.density.elbo(composed, np.zeros(2), num_steps=4),
        lambda: UsualSum(num=4)(composed, np.zeros(2)),
        lambda: nd.density.probability_flow(composed, np.zeros(2)),
        lambda: nd.density.from_noise(composed, np.zeros(2)),
        lambda: nd.DiffusionPrior(composed, log_density=ScoreFormula()).log_prob(np.zeros(2)),
    ):
        with pytest.raises(ValueError, match="only a path"):
            refused()

    def model():
        x = numpyro.sample("x", nd.DiffusionPrior(prior, log_density=ScoreFormula()))
        numpyro.sample("y", dist.Normal(x[0], 1.0), obs=0.3)

    with pytest.raises(ValueError, match="`x` has `log_density=ScoreFormula`"):
        nd.SMC(model, num_particles=8, num_chains=1).run(jax.random.key(0))
    with pytest.raises(ValueError, match="`x` has `log_density=ScoreFormula`"):
        with numpyro.handlers.seed(rng_seed=0):
            nd.noised(model, 0.5)()


def test_the_weighted_loss_is_the_likelihood():
    """Two models differ by as much in the loss, times dimension and range, as in the mean log density."""
    law = mixture(2)
    key_data, key_loss = jax.random.split(jax.random.key(8))
    keys, t = jax.random.split(key_data, 5000), jnp.asarray(0.0)
    data = jax.vmap(lambda key: law.draw(key, t))(keys)
    other = nd.Gaussian(np.array([0.2, 0.5]), np.array([[1.5, -0.3], [-0.3, 1.0]]))
    levels = jax.vmap(law.schedule.noise_level)(jnp.asarray([law.t_min, law.t_max]))

    def difference(key):
        options = {"weight": nd.train.likelihood_weight}
        loss = lambda model: nd.train.denoising_loss(model, key, data, **options)
        return 2 * jnp.log(levels[1] / levels[0]) * (loss(other) - loss(law))

    by_loss = np.asarray(jax.lax.map(difference, jax.random.split(key_loss, 100)))
    truth, error = np.mean(exact(law, data) - exact(other, data)), by_loss.std(ddof=1) / 10
    assert abs(by_loss.mean() - truth) < 3 * error and error < 0.02 < truth / 10


def test_the_penalty_of_a_generator_is_a_cross_entropy_with_its_gradient():
    prior = mixture(2)
    samples = jnp.asarray(np.random.default_rng(0).normal(size=(4000, 2)) * [0.8, 0.5] + [0.3, 0.2])

    score = score_of(prior)

    def penalty(shift, key):
        return nd.density.score_matching_penalty(score, samples + shift, key)

    shift = jnp.zeros(2)
    values, slopes = jax.lax.map(
        lambda key: jax.value_and_grad(penalty)(shift, key), jax.random.split(jax.random.key(1), 10)
    )
    truth = lambda shift: (
        -jnp.mean(
            jax.vmap(lambda u: prior.log_density(u, jnp.asarray(prior.t_min)))(samples + shift)
        )
    )
    error = lambda a: np.asarray(a).std(0, ddof=1) / len(a) ** 0.5
    assert abs(values.mean() - truth(shift)) < 4 * error(values) and error(values) < 0.05
    assert (np.abs(slopes.mean(0) - jax.grad(truth)(shift)) < 4 * error(slopes) + 0.005).all()
