"""Priors from imperfect data: against the maximum of the exact observed-data likelihood."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import numpyro_diffusion as nd
from numpyro_diffusion.smc.cloud import CloudModel, run_cloud
from numpyro_diffusion.train import UnknownNoise, fit_imperfect
from numpyro_diffusion.train.imperfect.data import check_noise
from numpyro_diffusion.train.imperfect.result import imperfect_verdict

RNG = np.random.default_rng(3)
SIZE, COUNT = 4, 400
ROOT = 0.6 * RNG.standard_normal((SIZE, SIZE))
MEAN, COVARIANCE = np.array([1.5, -2.0, 0.7, 3.0]), ROOT @ ROOT.T + 0.2 * np.eye(SIZE)
CLEAN = RNG.multivariate_normal(MEAN, COVARIANCE, COUNT)
QUIET = {"progress_bar": False}


def masked(values, share=0.25):
    """A quarter of the entries missing, but never all of an example."""
    hidden = RNG.random(values.shape) < share
    hidden.reshape(len(values), -1)[:, 0] &= ~hidden.reshape(len(values), -1).all(1)
    return np.where(hidden, np.nan, values)


def twice(x):
    """Two readings of every entry."""
    return jnp.stack([x, x])


ONCE = masked(CLEAN + 0.5 * RNG.standard_normal(CLEAN.shape))
TWICE = masked(CLEAN[:, None] + 0.5 * RNG.standard_normal((COUNT, 2, SIZE)))
START = nd.Gaussian(np.nanmean(ONCE, 0), np.diag(np.nanvar(ONCE, 0)))
FLOOR = float(START.schedule.noise_level(jnp.asarray(START.t_min))) ** 2


def covariance_of(energy):
    vectors = np.asarray(energy.eigenvectors)
    return vectors * np.asarray(energy.eigenvalues) @ vectors.T


def largest_likelihood(examples, operator, sigma=None):
    """Mean, covariance and noise that maximise the exact likelihood of what is seen, by L-BFGS."""
    flat = examples.reshape(len(examples), -1)
    seen = ~np.isnan(flat)
    y, both = jnp.where(seen, flat, 0.0), seen[:, :, None] & seen[:, None]
    lower = np.tril_indices(SIZE)

    def parts(theta):
        root = jnp.zeros((SIZE, SIZE)).at[lower].set(theta[SIZE:-1])
        return theta[:SIZE], root @ root.T, jnp.exp(theta[-1]) if sigma is None else sigma

    @jax.jit
    @jax.value_and_grad
    def loss(theta):
        mean, covariance, noise = parts(theta)
        whole = operator @ (covariance + FLOOR * jnp.eye(SIZE)) @ operator.T
        whole = jnp.where(both, whole, 0.0) + jnp.eye(seen.shape[1]) * jnp.where(
            seen[:, None], noise**2, 1.0
        )
        gap = jnp.where(seen, y - operator @ mean, 0.0)
        quadratic = jnp.einsum("ni,ni->n", gap, jnp.linalg.solve(whole, gap[..., None])[..., 0])
        return 0.5 * jnp.mean(quadratic + jnp.linalg.slogdet(whole)[1])

    start = np.concatenate([MEAN, np.eye(SIZE)[lower], [-1.0]])
    found = minimize(
        loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500, "gtol": 1e-7}
    )
    return tuple(np.asarray(part) for part in parts(found.x))


def assert_within_two_per_cent(result, exact):
    """Means in standard deviations, covariances in products of them."""
    mean, covariance, sigma = exact
    scale = np.sqrt(np.diag(covariance))
    assert np.abs((np.asarray(result.energy.mean) - mean) / scale).max() < 0.02
    gap = (covariance_of(result.energy) - covariance) / np.outer(scale, scale)
    assert np.abs(gap).max() < 0.02
    assert abs(result.noise / sigma - 1) < 0.02


# ---- closed forms


def test_a_gaussian_population_is_found_with_known_noise(key):
    result = fit_imperfect(key, START, ONCE, noise=0.5, rounds=40, num_particles=32, **QUIET)
    assert_within_two_per_cent(result, largest_likelihood(ONCE, np.eye(SIZE), 0.5))
    assert result.learned and "rose by" in result.verdict and not len(result.held_out)


def test_a_gaussian_population_is_found_with_unknown_noise(key):
    result = fit_imperfect(
        key,
        START,
        TWICE,
        noise=UnknownNoise(1.0),
        observe=twice,
        rounds=40,
        num_particles=32,
        **QUIET,
    )
    assert_within_two_per_cent(result, largest_likelihood(TWICE, np.tile(np.eye(SIZE), (2, 1))))


def test_the_evidence_of_a_gaussian_is_exact_at_any_number_of_levels(key):
    """With noise of its own for every example, and in the units of a table."""
    noise = np.linspace(0.2, 1.0, COUNT)[:, None]
    mean = np.asarray(START.mean)
    whole = [covariance_of(START) + (FLOOR + s**2) * np.eye(SIZE) for s in noise[:, 0]]
    exact = [
        multivariate_normal.logpdf(y[s], mean[s], total[np.ix_(s, s)])
        for y, total in zip(ONCE, whole, strict=True)
        for s in [~np.isnan(y)]
    ]
    options = {"noise": noise, "rounds": 1, "num_particles": 2, "num_levels": 1, **QUIET}
    found = fit_imperfect(key, START, ONCE, **options).history
    np.testing.assert_allclose(found["log_evidence"][0], np.mean(exact), rtol=1e-9)
    assert found["error"][0] < 1e-9 and found["ess"][0] > 1 - 1e-9
    # The same prior in units of 2 and 3, on data in theirs: the floor of `t_min` is in standard units.
    location, scale = jnp.full(SIZE, 3.0), jnp.full(SIZE, 2.0)
    units = nd.energies.Standardized(START, location, scale)
    other = fit_imperfect(key, units, 2 * ONCE + 3, **{**options, "noise": 2 * noise})
    seen = np.sum(~np.isnan(ONCE)) / COUNT
    expected = found["log_evidence"][0] - seen * np.log(2)
    np.testing.assert_allclose(other.history["log_evidence"][0], expected, rtol=1e-9)
    assert abs(other.draws.mean() - 2 * CLEAN.mean() - 3) < 0.2


# ---- mixtures and networks

WEIGHTS, MEANS = np.array([0.3, 0.7]), np.array([[-2.0, 0.5], [1.0, -0.5]])
COVARIANCES = np.array([[[0.5, 0.2], [0.2, 0.3]], [[0.2, -0.1], [-0.1, 0.6]]])
LABELS = RNG.random(COUNT) < WEIGHTS[1]
PAIRS = np.stack([RNG.multivariate_normal(MEANS[k], COVARIANCES[k]) for k in LABELS.astype(int)])
PAIRS = masked(PAIRS + 0.3 * RNG.standard_normal(PAIRS.shape))


def exact_evidence(weights, means, covariances, rows, noise=0.3):
    """Log density of what is seen of each row, the mixture with noise."""
    each = [
        [
            np.log(w)
            + multivariate_normal.logpdf(y[s], m[s], (c + noise**2 * np.eye(2))[np.ix_(s, s)])
            for w, m, c in zip(weights, means, covariances, strict=True)
        ]
        for y in rows
        for s in [~np.isnan(y)]
    ]
    return logsumexp(each, axis=1)


def test_a_mixture_is_as_likely_as_the_truth_and_its_evidence_is_right(key):
    """But for the sampler's steps, of which there are 48: an error of order one over their number."""
    means = [[-1.5, 0.0], [0.8, 0.0]]
    start = nd.GaussianMixture([0.5, 0.5], means, [0.5 * np.eye(2)] * 2)
    result = fit_imperfect(
        key, start, PAIRS, noise=0.3, rounds=14, patience=14, num_levels=48, **QUIET
    )
    evidence = lambda e: exact_evidence(e.weights, e.means, _covariances(e), PAIRS).mean()
    truth = exact_evidence(WEIGHTS, MEANS, COVARIANCES, PAIRS).mean()
    # Fitted to a sample the largest likelihood is above that of the truth; steps cost a little.
    assert evidence(start) + 0.3 < truth < evidence(result.energy) + 0.01
    best, history = result.best_round, result.history
    assert 0 < history["error"][best] < 0.01 and history["ess"][best] < 0.95
    for place, energy in ((0, start), (best, result.energy)):
        gap = history["log_evidence"][place] - evidence(energy)
        assert abs(gap) < 4 * history["error"][place] + 0.01


def _covariances(energy):
    vectors, values = np.asarray(energy.eigenvectors), np.asarray(energy.eigenvalues)
    return np.einsum("kij,kj,klj->kil", vectors, values, vectors)


def test_a_network_comes_near_the_true_evidence_of_held_out_examples(key):
    """From the Gaussian of incomplete rows, most of the way to the distribution that made them."""
    net = nd.nets.ResidualMLP(jax.random.key(1), (2,), width=32, depth=1)
    rows = PAIRS[~np.isnan(PAIRS).any(1)]
    base = nd.InnerProductEnergy.from_data(net, rows, noise_min=0.1, noise_max=20.0)
    result = fit_imperfect(
        key, nd.NetworkDenoiser(base), PAIRS, noise=0.3, rounds=4, held_out=0.25, num_levels=48,
        steps=300, batch_size=64, learning_rate=5e-3,
        optimizer=nd.train.Optimizer(weight_decay=0.01), **QUIET,
    )  # fmt: skip
    best = exact_evidence(WEIGHTS, MEANS, COVARIANCES, PAIRS[result.held_out]).mean()
    values = result.history["log_evidence"]
    assert len(result.held_out) == COUNT // 4 and result.learned
    assert best - values[result.best_round] < 0.5 * (best - values[0])
    assert result.draws.shape == PAIRS.shape and np.isfinite(result.draws).all()
    seen = ~np.isnan(PAIRS)
    # Draws keep to what is seen, by less than its noise.
    assert np.std((result.draws - PAIRS)[seen]) < 0.35


# ---- operator


def twice_with_gain(x, gain):
    """Two instruments, of which one has another scale."""
    return jnp.stack([x, gain * x])


def test_an_unknown_gain_is_found(key):
    examples = TWICE * np.array([1.0, 1.7])[None, :, None]
    noise = np.array([0.5, 0.85])[:, None]
    result = fit_imperfect(
        key, START, examples, noise=noise, observe=twice_with_gain, parameters=1.0, rounds=15,
        num_particles=4, steps=1000, **QUIET,
    )  # fmt: skip
    seen = ~np.isnan(TWICE).any(1)
    error = 0.5 * np.sqrt(2) * 1.7 / np.sqrt(np.sum(CLEAN[seen] ** 2))
    assert abs(result.parameters - 1.7) < 4 * error < 0.1


# ---- words and refusals


def test_noise_and_spread_that_cannot_be_told_apart_are_named(key):
    with pytest.warns(UserWarning, match="cannot tell the noise"):
        fit_imperfect(
            key, START, ONCE, noise=UnknownNoise(0.5), rounds=1, num_particles=32, **QUIET
        )


def test_a_fit_that_learned_nothing_says_so():
    history = {"log_evidence": np.array([-2.0, -2.1, -2.2]), "error": np.full(3, 0.01)}
    words = imperfect_verdict(history, 0, "patience", True)
    assert words.startswith("learned nothing: in 2 rounds") and "held-out" in words
    assert "-2.1000 at best" in words


def test_a_prior_on_the_noise_counts_as_data():
    noise = check_noise(UnknownNoise(1.0, prior=(3.0, 2.0)), np.zeros((4, 2)), (2,))
    squares, seen = np.full((4, 2), 2.0), np.array([[True, False]] * 4)
    # Four squares of 2: (2 + 4) / (3 + 1 + 2).
    np.testing.assert_allclose(noise.update(squares, seen).scale, 1.0)


BAD = ONCE.copy()
BAD[:, 2] = np.nan
EMPTY = ONCE.copy()
EMPTY[5] = np.nan


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"examples": BAD}, ValueError, "no example has entry 2"),
        ({"examples": EMPTY}, ValueError, "first: 5"),
        ({"examples": np.where(np.isnan(ONCE), np.inf, ONCE)}, ValueError, "infinite"),
        ({"examples": ONCE[:, :2]}, ValueError, "to match the energy"),
        ({"examples": np.ones((4, SIZE), int)}, TypeError, "floating"),
        ({"noise": 0.0}, ValueError, "positive"),
        ({"noise": np.nan}, ValueError, "positive"),
        ({"noise": np.ones(3)}, ValueError, "broadcast"),
        ({"noise": UnknownNoise(np.ones(3))}, ValueError, "`start`"),
        ({"observe": twice}, ValueError, "`observe`"),
        ({"parameters": 1.0}, ValueError, "missing"),
        ({"held_out": 1.0}, ValueError, "in \\[0, 1\\)"),
        ({"rounds": 0}, ValueError, "rounds"),
        ({"energy": nd.Gaussian() * 2.0}, (TypeError, ValueError), "match|trained"),
    ],
)
def test_bad_input_is_refused(key, changes, error, words):
    given = {"energy": START, "examples": ONCE, "noise": 0.5, **QUIET} | changes
    energy, examples = given.pop("energy"), given.pop("examples")
    with pytest.raises(error, match=words):
        fit_imperfect(key, energy, examples, **given)


# ---- engine


def test_many_clouds_estimate_their_evidence_without_bias(key):
    """A linear Gaussian state space, with resampling at most steps: the mean of the estimate is exact."""
    y, root = jnp.array([0.5, -1.0, 2.0]), 0.6

    def start(key):
        return jax.random.normal(key), jnp.zeros(())

    def step(key, x, y, shared):
        new = 0.8 * x + root * jax.random.normal(key)
        return new, -0.5 * (new - y) ** 2 + 0.0 * shared

    model = CloudModel(start, lambda x, w, y: w @ x, step, y)
    run = jax.jit(jax.vmap(lambda key: run_cloud(key, model, 8, threshold=0.7)))
    clouds = run(jax.random.split(key, 4000))
    gaps = np.abs(np.subtract.outer(np.arange(3), np.arange(3)))
    covariance = 0.8**gaps + np.eye(3)
    exact = multivariate_normal.logpdf(y, np.zeros(3), covariance) + 1.5 * np.log(2 * np.pi)
    ratios = np.exp(np.asarray(clouds.log_evidence) - exact)
    assert abs(ratios.mean() - 1) < 4 * ratios.std() / 4000**0.5 < 0.1
    assert 0.5 < np.mean(clouds.log_evidence_error) / np.std(np.asarray(clouds.log_evidence)) < 1.5
