"""Twists that need no matrix, and what they read off observed sites: against closed forms."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import multivariate_normal
from test_twists import COVARIANCE, DATA, MEAN, OPERATOR, PRIOR, SIGMA, U, linear, noise

import numpyro_diffusion as nd
from numpyro_diffusion.bridge import combine
from numpyro_diffusion.ppl.observed import observed_laws


def model(y, operator=OPERATOR, prior=PRIOR):
    scale = numpyro.sample("scale", dist.LogNormal(-1.0, 1.0))
    x = numpyro.sample("x", nd.DiffusionPrior(prior))
    numpyro.sample("y", dist.Normal(jnp.asarray(operator) @ x, scale).to_event(1), obs=y)


@eqx.filter_jit
def softened(bridge, z, clocks):
    """What the likelihood has become, at several clocks."""

    def at(clock):
        seen = bridge.see(z, clock)
        rest = bridge.rest(z, seen.x_hat)
        both, _ = combine(bridge, z, clock, jnp.ones(()), seen, rest)
        return both - seen.log_density - rest.log_prior

    return jax.lax.map(at, jnp.asarray(clocks))


def test_matrix_free_moments_are_the_moments_where_data_are_few():
    """Two data: two directions span all that they speak of. The third and fourth are 0."""
    dense, z = linear(nd.twists.Moments()), {"x": jnp.asarray(U)}
    free = [linear(nd.twists.MatrixFree(n)) for n in (2, 4)]
    clocks = [0.2, 0.5, 0.8]
    expected = softened(dense, z, clocks)
    for bridge in free:
        np.testing.assert_allclose(softened(bridge, z, clocks), expected, rtol=1e-9)


def test_other_sites_move_without_new_directions():
    """Directions are found at one typical noise level; the density is right at any other."""
    bridge = nd.from_model(model, DATA, twist=nd.twists.MatrixFree(2))
    clock, one = jnp.asarray(0.5), jnp.ones(())
    z = {"x": jnp.asarray(U), "scale": jnp.log(SIGMA)}
    seen = eqx.filter_jit(bridge.see)(z, clock)

    @jax.jit
    def density(log_scale):
        moved = {**z, "scale": log_scale}
        return combine(bridge, moved, clock, one, seen, bridge.rest(moved, seen.x_hat))[0]

    gap = lambda log_scale: (
        float(density(log_scale))
        - float(
            dist.Normal(-1.0, 1.0).log_prob(
                log_scale
            )  # the log-normal prior in unconstrained space
        )
    )
    offset = gap(jnp.log(SIGMA)) - float(
        softened(linear(nd.twists.Moments()), {"x": jnp.asarray(U)}, [0.5])[0]
    )
    floor = float(nd.from_energy(PRIOR).noise(jnp.zeros(()))["x"]) ** 2
    prior = COVARIANCE + floor * np.eye(3)
    gain = prior @ np.linalg.inv(prior + noise(0.5) * np.eye(3))
    mean, left = MEAN + gain @ (U - MEAN), prior - gain @ prior
    for sigma in (0.05, 2.0):
        total = OPERATOR @ left @ OPERATOR.T + sigma**2 * np.eye(2)
        expected = multivariate_normal.logpdf(DATA, OPERATOR @ mean, total)
        np.testing.assert_allclose(gap(jnp.log(sigma)) - offset, expected, rtol=1e-7)
    slope = jax.grad(density)(jnp.log(0.3))
    rise = (density(jnp.log(0.3) + 1e-5) - density(jnp.log(0.3) - 1e-5)) / 2e-5
    np.testing.assert_allclose(slope, rise, rtol=1e-6)


def test_noised_observations():
    found = softened(linear(nd.twists.NoisedObservation()), {"x": jnp.asarray(U)}, [0.3, 0.7])
    for clock, value in zip((0.3, 0.7), found, strict=True):
        total = noise(clock) * OPERATOR @ OPERATOR.T + SIGMA**2 * np.eye(2)
        expected = multivariate_normal.logpdf(DATA, OPERATOR @ U, total)
        np.testing.assert_allclose(value, expected, rtol=1e-9)


def test_many_data_need_no_matrix():
    """150 data of 200 coordinates: what depends on them is exact, the determinant to some per cent."""
    numbers = np.random.default_rng(0)
    operator = numbers.standard_normal((150, 200)) / 10
    prior = nd.Gaussian(np.zeros(200), np.eye(200))
    places, y = numbers.standard_normal((2, 200)), numbers.standard_normal(150)

    def many(y):
        x = numpyro.sample("x", nd.DiffusionPrior(prior))
        numpyro.sample("y", dist.Normal(jnp.asarray(operator) @ x, 0.5).to_event(1), obs=y)

    bridge = nd.from_model(many, y, twist=nd.twists.NoisedObservation())
    at = eqx.filter_jit(lambda u: softened(bridge, {"x": u}, [0.5])[0])
    found = [float(at(jnp.asarray(u))) for u in places]
    total = noise(0.5, prior) * operator @ operator.T + 0.25 * np.eye(150)
    exact = [multivariate_normal.logpdf(y, operator @ u, total) for u in places]
    np.testing.assert_allclose(found[1] - found[0], exact[1] - exact[0], rtol=1e-6)
    determinant = 0.5 * np.linalg.slogdet(total / 0.25)[1]
    np.testing.assert_allclose(found[0], exact[0], atol=0.1 * determinant)


def several(y):
    with numpyro.plate("images", 4):
        x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
        numpyro.sample("y", dist.Normal(x @ OPERATOR.T, SIGMA).to_event(1), obs=y)


def added(y):
    a, b = (numpyro.sample(name, nd.DiffusionPrior(PRIOR)) for name in "ab")
    numpyro.sample("y", dist.Normal(OPERATOR @ (a + 2 * b), SIGMA).to_event(1), obs=y)


def rewarded(y):
    x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
    gap = (jnp.asarray(y) - OPERATOR @ x) / SIGMA
    numpyro.factor("y", jnp.sum(-0.5 * gap**2 - jnp.log(SIGMA * jnp.sqrt(2 * jnp.pi))))


def test_plates_two_sites_and_factors():
    """Each example has directions of its own, a datum of two sites is widened by both, a factor is one."""
    numbers = np.random.default_rng(0)
    y, u = numbers.normal(size=(4, 2)), numbers.normal(size=(4, 3))
    floor = float(nd.from_energy(PRIOR).noise(jnp.zeros(()))["x"]) ** 2
    prior, clock = COVARIANCE + floor * np.eye(3), 0.4
    gain = prior @ np.linalg.inv(prior + noise(clock) * np.eye(3))
    mean, left = MEAN + (u - MEAN) @ gain.T, prior - gain @ prior
    open_, square = OPERATOR @ left @ OPERATOR.T, SIGMA**2 * np.eye(2)
    noised = noise(clock) * OPERATOR @ OPERATOR.T + square

    def check(model, data, twist, z, *terms):
        found = softened(nd.from_model(model, data, twist=twist), z, [clock])[0]
        expected = sum(multivariate_normal.logpdf(*term) for term in terms)
        np.testing.assert_allclose(found, expected, rtol=1e-9)

    whole = {"x": jnp.asarray(u)}
    terms = [(y[i], OPERATOR @ mean[i], open_ + square) for i in range(4)]
    check(several, y, nd.twists.MatrixFree(3), whole, *terms)
    terms = [(y[i], OPERATOR @ u[i], noised) for i in range(4)]
    check(several, y, nd.twists.NoisedObservation(), whole, *terms)
    pair = {"a": jnp.asarray(u[0]), "b": jnp.asarray(u[1])}
    term = y[0], OPERATOR @ (mean[0] + 2 * mean[1]), 5 * open_ + square
    check(added, y[0], nd.twists.MatrixFree(3), pair, term)
    term = y[0], OPERATOR @ mean[0], open_ + square
    check(rewarded, y[0], nd.twists.MatrixFree(3), {"x": jnp.asarray(u[0])}, term)


ETA = 0.7
LAWS = {
    "normal": (lambda eta: dist.Normal(eta, 0.6), 1.9),
    "student": (lambda eta: dist.StudentT(3.0, eta, 0.6), 1.9),
    "cauchy": (lambda eta: dist.Cauchy(eta, 0.6), 1.9),
    "laplace": (lambda eta: dist.Laplace(eta, 0.6), 1.9),
    "logistic": (lambda eta: dist.Logistic(eta, 0.6), 1.9),
    "log_normal": (lambda eta: dist.LogNormal(eta, 0.6), 1.9),
    "bernoulli": (lambda eta: dist.Bernoulli(logits=eta), 1),
    "binomial": (lambda eta: dist.Binomial(7, logits=eta), 5),
    "poisson": (lambda eta: dist.Poisson(eta**2), 3),
    "rate": (lambda eta: dist.Exponential(1 / eta), 1.9),  # not registered: mean and variance
}


@pytest.mark.parametrize("name", LAWS)
def test_information_of_observed_laws(name):
    """Mean and variance of the score, over draws of the law and at one datum."""
    law, datum = LAWS[name]
    centre, information, residual = nd.ppl.observed_law(law(ETA), datum)
    np.testing.assert_allclose(centre, ETA, rtol=1e-6)
    score = jax.grad(lambda eta, y: jnp.sum(law(eta).log_prob(y)))
    np.testing.assert_allclose(information * residual, score(ETA, datum), rtol=1e-5)
    draws = law(ETA).sample(jax.random.key(0), (20_000,))
    scores = jax.vmap(lambda y: score(ETA, y))(draws)
    error = float(jnp.std(scores**2)) / 20_000**0.5
    assert abs(float(jnp.mean(scores**2)) - float(information)) <= 4 * error + 1e-9


@pytest.mark.parametrize(
    "law", [dist.Normal, dist.Cauchy, dist.Laplace, dist.Logistic, dist.LogNormal]
)
def test_scales_that_are_integers(law):
    whole = nd.ppl.observed_law(law(jnp.zeros(3), jnp.full(3, 2)), jnp.ones(3))
    for found, exact in zip(whole, nd.ppl.observed_law(law(0.0, 2.0), 1.0), strict=True):
        np.testing.assert_allclose(found, jnp.full(3, exact), rtol=1e-6)


def test_information_through_masks_events_and_matrices():
    covariance = np.array([[0.5, 0.2], [0.2, 0.3]])

    def both(x):
        seen = jnp.array([True, False, True])
        numpyro.sample("a", dist.Normal(2 * x, 0.5).mask(seen), obs=jnp.ones(3))
        numpyro.sample("b", dist.MultivariateNormal(x[:2], covariance), obs=jnp.zeros(2))

    trace = numpyro.handlers.trace(both).get_trace(jnp.arange(3.0))
    found = observed_laws(trace)
    np.testing.assert_allclose(found.information["a"], [4, 0, 4])
    np.testing.assert_allclose(found.residual["a"], [1, 0, -3])
    np.testing.assert_allclose(found.information["b"], np.linalg.inv(covariance), rtol=1e-5)

    def at(x):
        return observed_laws(numpyro.handlers.trace(both).get_trace(x["x"]))

    bend = nd.bridge.curvature(at, None, {"x": jnp.arange(3.0)})
    v = jnp.array([1.0, -2.0, 0.5])
    expected = 4 * np.array([4, 0, 4]) * v
    expected = expected.at[:2].add(np.linalg.inv(covariance) @ np.asarray(v)[:2])
    np.testing.assert_allclose(bend.times({"x": v})["x"], expected, rtol=1e-5)


def test_a_law_that_is_not_known_is_named():
    class Strange(dist.Distribution):
        support = dist.constraints.real

        def log_prob(self, value):
            return -jnp.abs(value)

    def strange():
        numpyro.sample("x", nd.DiffusionPrior(PRIOR))
        numpyro.sample("signal", Strange(), obs=1.0)

    with pytest.raises(ValueError, match=r"site `signal`.*Strange.*observed_law.register"):
        nd.from_model(strange, twist=nd.twists.MatrixFree())


def fixed(y, likelihood=None):
    x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
    if likelihood is None:
        numpyro.sample("y", dist.Normal(jnp.asarray(OPERATOR) @ x, 0.8).to_event(1), obs=y)
    else:
        numpyro.factor("y", likelihood(x, y))


def posterior():
    floor = float(nd.from_energy(PRIOR).noise(jnp.zeros(()))["x"]) ** 2
    prior = COVARIANCE + floor * np.eye(3)
    total = OPERATOR @ prior @ OPERATOR.T + 0.64 * np.eye(2)
    gain = prior @ OPERATOR.T @ np.linalg.inv(total)
    evidence = multivariate_normal.logpdf(DATA, OPERATOR @ MEAN, total)
    return (
        MEAN + gain @ (DATA - OPERATOR @ MEAN),
        np.diag(prior - gain @ OPERATOR @ prior) ** 0.5,
        evidence,
    )


def check(smc, mean, deviation, evidence, slack):
    found = smc.get_samples()["x"]
    np.testing.assert_allclose(smc.log_evidence, evidence, atol=slack)
    np.testing.assert_allclose((found.mean(0) - mean) / deviation, 0, atol=0.15)
    np.testing.assert_allclose(found.std(0), deviation, rtol=0.1)


@pytest.mark.long
@pytest.mark.parametrize(
    ("twist", "conjugate", "slack"),
    [(nd.twists.MatrixFree(2), False, 0.1), (nd.twists.NoisedObservation(), True, 0.3)],
    ids=["free", "noised"],
)
def test_posterior_in_path_space(twist, conjugate, slack):
    scheme = nd.Twisted(levels=60, conjugate=conjugate)
    smc = nd.SMC(fixed, scheme, twist=twist, num_particles=1000, num_chains=6, progress_bar=False)
    check(smc.run(jax.random.key(0), DATA), *posterior(), slack)


@pytest.mark.long
def test_black_box_likelihood():
    """A likelihood of NumPy, which knows no derivative."""

    def host(x, y):
        gap = (np.asarray(y) - np.asarray(x) @ OPERATOR.T) / 0.8
        return (-0.5 * gap**2 - np.log(0.8 * np.sqrt(2 * np.pi))).sum(-1).astype(x.dtype)

    def likelihood(x, y):
        shape = jax.ShapeDtypeStruct((), x.dtype)
        return jax.pure_callback(host, shape, x, y, vmap_method="broadcast_all")

    scheme = nd.Twisted(levels=60)
    smc = nd.SMC(
        lambda y: fixed(y, likelihood),
        scheme,
        twist=nd.twists.BlackBox(),
        num_particles=1500,
        num_chains=6,
        progress_bar=False,
    )
    check(smc.run(jax.random.key(0), DATA), *posterior(), 0.15)


@pytest.mark.long
def test_importance_weights_of_a_heuristic():
    """The heuristic's own draws, biased; their weights make up for it, and nothing is resampled."""
    found = {}
    schemes = {"none": nd.schemes.unweighted, "importance": nd.schemes.unresampled}
    for weights, wrapper in schemes.items():
        smc = nd.SMC(
            fixed,
            wrapper(nd.Twisted(levels=60)),
            num_particles=4000,
            num_chains=4,
            progress_bar=False,
        )
        found[weights] = smc.run(jax.random.key(0), DATA)
    raw = np.asarray(found["none"].result.positions["x"])
    kept = np.asarray(found["importance"].result.positions["x"])
    np.testing.assert_allclose(raw, kept, rtol=1e-6)
    assert not np.any(found["importance"].result.trace.resampled)
    mean, deviation, evidence = posterior()
    off = (raw.reshape(-1, 3).mean(0) - mean) / deviation  # standard errors are .008
    assert abs(off).max() > 0.05, off
    values, share = found["importance"].get_weighted_samples()
    weighted = np.einsum("cn,cni->i", share, values["x"])
    assert abs((weighted - mean) / deviation).max() < 0.03
    assert abs(found["importance"].log_evidence - evidence) < 0.03
    assert np.all(nd.diagnostics.pareto_k(found["importance"].result) < 0.7)
