"""The probability flow: its density against closed forms and other solvers, and its map against quantiles."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_form import eight_dimensional
from scipy.integrate import solve_ivp
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.density import (
    FlowDensity,
    Hutchinson,
    from_noise,
    probability_flow,
    to_noise,
)

LINE = nd.GaussianMixture([0.4, 0.6], [[-1.5], [1.0]], [[[0.09]], [[0.64]]])
MIXTURE = nd.GaussianMixture()
GAUSSIAN = nd.Gaussian([0.5, -1.0, 2.0], [[4.0, 0.6, -0.02], [0.6, 0.8, 0.01], [-0.02, 0.01, 1e-3]])


def exact(prior, x):
    t = jnp.asarray(prior.t_min)
    return np.asarray(jax.vmap(lambda u: prior.log_density(u, t))(jnp.asarray(x)))


def draws(prior, num, seed=0):
    t = jnp.asarray(prior.t_min)
    keys = jax.random.split(jax.random.key(seed), num)
    return jax.vmap(lambda key: prior.draw(key, t))(keys) / prior.schedule(t)[0]


def score_of(prior):
    """The prior as a score without energy."""
    mean, variance = prior.moments(jnp.asarray(prior.t_min))
    score = lambda params, x, t: params.score(x, t)
    return nd.ScoreFunction(score, prior.shape, params=prior, mean=mean, variance=variance)


# --- The density ------------------------------------------------------------------------------------


def test_a_gaussian_stands_still():
    """Nothing moves in whitened coordinates: exact in a few steps, a hundred standard deviations out too."""
    x = jnp.concatenate([draws(GAUSSIAN, 4), jnp.array([[200.0, -90.0, 5.0]])])
    found = probability_flow(GAUSSIAN, x)
    np.testing.assert_allclose(found.value, exact(GAUSSIAN, x), atol=1e-6, rtol=1e-12)
    assert (found.standard_error == 0).all() and (found.num_evaluations <= 19 * 4).all()
    assert "probability flow" in found.law


@pytest.mark.parametrize("tolerance", [pytest.param(1e-4, marks=pytest.mark.slow), 1e-7])
def test_a_mixture_to_the_tolerance_of_the_solver(tolerance):
    x = jnp.concatenate([draws(MIXTURE, 12), jnp.array([[0.0, 0.0], [6.0, 5.0], [-9.0, 4.0]])])
    found, truth = probability_flow(MIXTURE, x, rtol=tolerance, atol=tolerance), exact(MIXTURE, x)
    errors = np.abs(found.value - truth)
    # Beside the solver's error that of the Gaussian at t_max: the cube of the distance over its noise.
    allowed = 20 * tolerance * np.maximum(1, np.abs(truth)) + 2e-6 * np.sum(x**2, 1) ** 1.5 + 1e-6
    assert (errors < allowed).all(), errors
    assert errors[:12].max() < 10 * tolerance + 2e-6


@pytest.mark.long
def test_another_solver_and_eight_correlated_dimensions():
    prior = eight_dimensional().prior
    x, estimator = draws(prior, 6), FlowDensity(solver=diffrax.Dopri5())
    np.testing.assert_allclose(estimator(prior, x).value, exact(prior, x), atol=1e-3)


def test_evaluations_are_counted():
    """Of the score and of its derivative along each coordinate."""
    calls = []

    def score(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return MIXTURE.score(x, t)

    mean, variance = MIXTURE.moments(jnp.asarray(MIXTURE.t_min))
    prior = nd.ScoreFunction(score, (2,), mean=mean, variance=variance)
    for solver in (diffrax.Tsit5(), diffrax.Heun()):
        found = FlowDensity(solver=solver, rtol=1e-2, atol=1e-2)(prior, jnp.array([0.2, -0.3]))
        jax.effects_barrier()
        assert found.num_evaluations == 3 * len(calls)
        calls.clear()


def test_random_probes_are_unbiased_and_know_their_error():
    prior, num_probes = eight_dimensional().prior, 6
    x = draws(prior, 1, seed=3)[0]
    found = probability_flow(
        prior,
        jnp.tile(x, (200, 1)),
        jax.random.key(1),
        divergence=Hutchinson(num_probes),
        rtol=1e-3,
    )
    errors = np.asarray(found.value) - exact(prior, x[None])
    assert errors.std() > 0.05  # there is something to know
    assert abs(errors.mean()) < 4 * errors.std() / 200**0.5 + 1e-2
    stated = np.sqrt(np.mean(np.asarray(found.standard_error) ** 2))
    assert 0.82 < stated / errors.std() < 1.2
    per_step = 1 + num_probes
    assert (np.asarray(found.num_evaluations) % per_step == 0).all()


@pytest.mark.long
def test_tolerance_averages_probes():
    prior = eight_dimensional().prior
    found = probability_flow(prior, draws(prior, 2), divergence=Hutchinson(4), tolerance=0.5)
    assert (found.standard_error <= 0.5).all()
    assert (np.abs(found.value - exact(prior, draws(prior, 2))) < 2.5).all()


class Wrong(nd.AbstractEnergy):
    r"""The mixture on the line with the error $0.4\, \alpha_t^2 \sin 1.5 x_t$ in its energy."""

    schedule = property(lambda self: LINE.schedule)
    shape, t_min, t_max = (1,), LINE.t_min, LINE.t_max
    log_normalizer, log_normalizer_error = None, 0.0

    def energy(self, x, t):
        return LINE.energy(x, t) + 0.4 * self.schedule(t)[0] ** 2 * jnp.sum(jnp.sin(1.5 * x))

    def moments(self, t):
        return LINE.moments(t)


def by_scipy(u: float) -> float:
    """The flow's density by another solver, in another time and unwhitened: $d/dt$ of $x_t$, $\\log p$.

    dx = [f x - g^2/2 score] dt with f = -B'/2 and g^2 = B' of the variance preserving schedule.
    """
    weights, means = np.array([0.4, 0.6]), np.array([-1.5, 1.0])
    variances = np.array([0.09, 0.64])

    def right(t, state):
        x, rate, b = state[0], 0.1 + 19.9 * t, 0.1 * t + 0.5 * 19.9 * t**2
        alpha, total = np.exp(-0.5 * b), np.exp(-b) * variances + 1 - np.exp(-b)
        gaps = x - alpha * means
        p = weights * np.exp(-0.5 * gaps**2 / total) / np.sqrt(total)
        p = p / p.sum()
        pulls = -gaps / total
        score = p @ pulls - 0.6 * np.exp(-b) * np.cos(1.5 * x)
        curvature = p @ (pulls**2 - 1 / total) - (p @ pulls) ** 2
        curvature += 0.9 * np.exp(-b) * np.sin(1.5 * x)
        return [-0.5 * rate * (x + score), -0.5 * rate * (1 + curvature)]

    alpha, _ = LINE.schedule(jnp.asarray(LINE.t_min))
    x, change = solve_ivp(
        right, (LINE.t_min, LINE.t_max), [float(alpha) * u, 0.0], rtol=1e-10, atol=1e-10
    ).y[:, -1]
    end, sigma = (float(v) for v in LINE.schedule(jnp.asarray(LINE.t_max)))
    mean = weights @ means
    variance = weights @ (variances + (means - mean) ** 2)
    base = norm.logpdf(x, end * mean, np.sqrt(end**2 * variance + sigma**2))
    return base + change + float(jnp.log(alpha))


def test_with_model_error_it_is_the_flows_own_density():
    """Against SciPy's solver; it integrates to 1, and is neither the mixture nor the energy's law."""
    grid = jnp.linspace(-4.5, 6.0, 400)[:, None]
    found = np.asarray(probability_flow(Wrong(), grid, rtol=1e-7, atol=1e-7).value)
    spacing = float(grid[1, 0] - grid[0, 0])
    assert abs(np.exp(found).sum() * spacing - 1) < 1e-4
    for i in (80, 150, 171, 250):
        assert abs(found[i] - by_scipy(float(grid[i, 0]))) < 1e-5
    truth = exact(LINE, grid)
    tilted = truth - np.asarray(0.4 * jnp.sin(1.5 * grid[:, 0]))
    tilted -= np.log(np.exp(tilted).sum() * spacing)
    assert np.abs(found - truth).max() > 0.3 and np.abs(found - tilted).max() > 0.1
    divergence = np.sum(np.exp(truth) * (truth - found)) * spacing
    assert 0.005 < divergence < 0.2


@pytest.mark.long
def test_gradients_in_the_point_and_in_the_parameters():
    """Of a mixture whose covariance has equal eigenvalues: the basis of the reference is arbitrary then."""
    prior = nd.GaussianMixture([0.3, 0.7], np.zeros((2, 2)), [np.eye(2), 0.25 * np.eye(2)])
    x, t = jnp.array([0.4, -0.9]), jnp.asarray(prior.t_min)
    estimator = FlowDensity(rtol=1e-7, atol=1e-7)
    by_flow = eqx.filter_grad(lambda at: estimator.log_density(at[0])(at[1]))
    got, slope = eqx.filter_jit(by_flow)((prior, x))
    np.testing.assert_allclose(slope, prior.log_density_and_score(x, t)[1], atol=1e-4)
    expected = eqx.filter_grad(lambda prior: prior.log_density(x, t))(prior)
    np.testing.assert_allclose(got.means, expected.means, atol=1e-3)
    np.testing.assert_allclose(got.eigenvalues, expected.eigenvalues, atol=1e-3)


def test_a_score_alone_is_enough_in_32_bits(float32):
    prior = nd.GaussianMixture()
    x = draws(prior, 8)
    found = probability_flow(score_of(prior), x)
    assert found.value.dtype == jnp.float32
    np.testing.assert_allclose(found.value, exact(prior, x), atol=2e-3)
    z = jnp.array([0.3, -1.2], jnp.float32)
    back = to_noise(prior, from_noise(prior, z, num_steps=32), num_steps=32)
    assert back.dtype == jnp.float32 and jnp.abs(back - z).max() < 1e-3


# --- The map and refusals ---------------------------------------------------------------------------


def test_the_law_of_the_map_has_the_density_of_the_flow():
    z = jax.random.normal(jax.random.key(1), (15, 2))
    one = lambda z: from_noise(MIXTURE, z, num_steps=48)
    x, jacobian = jax.vmap(one)(z), jax.vmap(jax.jacrev(one))(z)
    pushed = norm.logpdf(z).sum(1) - np.linalg.slogdet(jacobian)[1]
    found = probability_flow(MIXTURE, x, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(pushed, found.value, atol=1e-3)


def test_refusals():
    with pytest.raises(ValueError, match="at least 2"):
        FlowDensity(Hutchinson(1))
    with pytest.raises(TypeError, match="explicit"):
        FlowDensity(solver=diffrax.Kvaerno5())  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="must be positive"):
        FlowDensity(rtol=0.0)
    with pytest.raises(TypeError, match="ScoreFunction"):
        from_noise(lambda x, t: x, jnp.zeros(2))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="one example of shape"):
        to_noise(MIXTURE, jnp.zeros((3, 2)))
    with pytest.raises(ValueError, match="num_steps"):
        from_noise(MIXTURE, jnp.zeros(2), num_steps=0)
    with pytest.raises(FloatingPointError) as caught:
        probability_flow(MIXTURE, jnp.zeros(2), rtol=1e-8, atol=1e-8, max_steps=5)
    assert "max_steps=5" in caught.value.__notes__[0]
    with pytest.raises(FloatingPointError, match="1 of 15 points"):
        x = jnp.zeros((15, 2)).at[3, 0].set(jnp.nan)
        probability_flow(MIXTURE, x, rtol=1e-7, atol=1e-7)


def test_equal_steps_converge_and_are_cheap():
    """A third-order method: eight times as exact with twice the steps, about."""
    prior = nd.GaussianMixture()
    x = jnp.array([[-2.0, 0.5], [1.0, -0.5], [0.0, 0.0], [3.0, 1.0]])
    truth = jax.vmap(lambda u: prior.log_density(u, jnp.asarray(prior.t_min)))(x)
    errors = []
    for num_steps in (8, 16, 32):
        found = nd.density.probability_flow(prior, x, solver=diffrax.Bosh3(), num_steps=num_steps)
        errors.append(float(jnp.sqrt(jnp.mean((found.value - truth) ** 2))))
        assert (found.num_evaluations <= 3 * (1 + 3 * (num_steps + 1))).all()
    assert errors[0] < 0.1 and errors[1] < errors[0] / 4 and errors[2] < errors[1] / 4
    with pytest.raises(ValueError, match="below `max_steps`"):
        nd.density.probability_flow(prior, x, num_steps=1000)
