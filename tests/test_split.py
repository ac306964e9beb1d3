"""Split samplers against the laws that they are said to have, biased or not."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from closed_form import two_dimensional
from numpyro.infer import MCMC, NUTS, Gibbs

import numpyro_diffusion as nd
from numpyro_diffusion.samplers.split.base import Clock
from numpyro_diffusion.samplers.split.blocks import added_noise, clock_at, ladder, reverse_steps
from numpyro_diffusion.samplers.split.daps import flow

MIXTURE = nd.GaussianMixture([0.3, 0.7], [[-1.5], [1.0]], [[[0.3]], [[0.6]]])
LINE = np.linspace(-9, 9, 3001)
MEAN, COVARIANCE = np.array([0.5, -1.0]), np.array([[1.0, 0.6], [0.6, 0.8]])
OPERATOR, DATUM, SIGMA = np.array([[1.0, 0.5]]), np.array([1.2]), 0.5


def linear(x):
    return -0.5 * jnp.sum((DATUM - OPERATOR @ x) ** 2) / SIGMA**2


def heavy(x):
    return dist.StudentT(3.0, 0.0, 0.4).log_prob(x[0] + 0.3 * x[0] ** 2 - 0.2)


def assert_law(x, mean, covariance, log_weights=None):
    """Means and second moments of chains, `(num_chains, num_draws, d)`, within their own errors."""
    x = np.asarray(x) - mean
    weights = np.ones(x.shape[:2]) if log_weights is None else np.exp(np.asarray(log_weights))
    second = np.einsum("cni,cnj->cnij", x, x) - covariance
    values = np.concatenate([x, second.reshape(*x.shape[:2], -1)], -1)
    # A ratio of means over all chains; its deviations chain by chain tell the error.
    sums = np.einsum("cn,cnk->ck", weights, values) / weights.sum() * len(x)
    error = sums.std(0, ddof=1) / len(x) ** 0.5
    size = np.sqrt(
        np.concatenate([np.diag(covariance), np.outer(*2 * [np.diag(covariance)]).ravel()])
    )
    assert (error < 0.06 * size).all(), "too few effective draws to tell"
    assert (np.abs(sums.mean(0)) < 4 * error).all(), sums.mean(0) / error


def by_quadrature(density):
    total = np.trapezoid(density, LINE)
    mean = np.trapezoid(density * LINE, LINE) / total
    return np.array([mean]), np.array([[np.trapezoid(density * (LINE - mean) ** 2, LINE) / total]])


def on_the_line(blur):
    """Prior and likelihood, as they are and blurred."""
    t = jnp.asarray(MIXTURE.t_min)
    points = jnp.asarray(LINE[:, None])
    prior = np.exp(jax.jit(jax.vmap(lambda u: MIXTURE.log_density(u, t)))(points))
    likelihood = np.exp(jax.jit(jax.vmap(heavy))(points))
    kernel = np.exp(-0.5 * (LINE[:, None] - LINE) ** 2 / blur**2)
    kernel *= (LINE[1] - LINE[0]) / (2 * np.pi) ** 0.5 / blur
    return prior, likelihood, kernel @ prior, kernel @ likelihood


def test_pnp_has_the_laws_that_it_is_said_to_have(key):
    """A mixture and heavy-tailed data of a square: both copies, and the weighted one, by quadrature."""
    blur = 0.5
    prior, likelihood, blurred_prior, blurred_likelihood = on_the_line(blur)
    found = nd.samplers.split_gibbs(
        key, nd.from_energy(MIXTURE, heavy), nd.samplers.PnPDM(blur), num_chains=200, num_draws=100,
        num_burn_in=60,
    )  # fmt: skip
    exact = by_quadrature(prior * likelihood)
    biased = by_quadrature(prior * blurred_likelihood)
    assert biased[1] > 1.4 * exact[1]
    x = found.positions["x"]
    assert_law(x, *exact, found.log_weights)
    assert_law(x, *biased)
    assert_law(found.seen["x"], *by_quadrature(blurred_prior * likelihood))
    assert found.exact and "blurred" in found.seen_target and "blurred" not in found.target
    assert found.num_evaluations == 200 * 160 * 5
    assert 0.6 < float(found.acceptance["prior"].mean()) < 0.9
    # L / (L * N) is bounded, but 1 / L(v) is not: a tail there is, and no more than heavy data give.
    assert nd.diagnostics.pareto_k(found)[:20].max() < 1


def test_daps_with_an_energy_is_exact(key):
    prior, likelihood, *_ = on_the_line(0.5)
    found = nd.samplers.split_gibbs(
        key, nd.from_energy(MIXTURE, heavy), nd.samplers.DAPS(0.5, 4.0, 3), num_chains=200, num_draws=60,
        num_burn_in=60,
    )  # fmt: skip
    assert_law(found.positions["x"], *by_quadrature(prior * likelihood))
    assert found.exact and found.target == "exp(-E(x, t_min)) p(y | x)"


def reverse_map(clocks, bridge, s, noisy=True):
    """What steps from noise to the Gaussian N(0, s) do to a value: a factor and a variance, by eigenvalue."""
    tau = [float(added_noise(bridge, c)["x"]) for c in clocks]
    factor, variance = np.ones_like(s), np.zeros_like(s)
    for a, b in zip(tau[:-1], tau[1:], strict=True):
        moved = 1 - (b / a) ** 2 if noisy else 1 - b / a
        step = 1 + moved * (s / (s + a**2) - 1)
        factor, variance = step * factor, step**2 * variance + noisy * (a**2 - b**2)
    return factor, variance


def prior_and_basis():
    prior = nd.Gaussian(MEAN, COVARIANCE)
    s, basis = np.linalg.eigh(COVARIANCE)
    return prior, s + float(prior.schedule.noise_level(jnp.asarray(prior.t_min))) ** 2, basis


def data_side(noise):
    """Mean and covariance of v given x: a matrix, a vector and a covariance."""
    precision = np.eye(2) / noise**2 + OPERATOR.T @ OPERATOR / SIGMA**2
    covariance = np.linalg.inv(precision)
    return covariance / noise**2, covariance @ OPERATOR.T @ DATUM / SIGMA**2, covariance


def after(mean, covariance, matrix, shift, noise):
    return matrix @ mean + shift, matrix @ covariance @ matrix.T + noise


def test_pnp_with_four_reverse_steps(key):
    """From a score alone: the fixed point of two affine maps, discretisation and all."""
    prior, s, basis = prior_and_basis()
    bridge, noise = nd.from_energy(prior, linear, bridge_type=nd.bridge.PathBridge), 0.6
    factor, variance = reverse_map(ladder(bridge, clock_at(bridge, noise), 4), bridge, s)
    denoise = (basis * factor) @ basis.T, MEAN - (basis * factor) @ basis.T @ MEAN
    law = np.zeros(2), np.eye(2)
    for _ in range(500):
        seen = after(*law, *data_side(noise))
        law = after(*seen, *denoise, (basis * variance) @ basis.T)
    found = nd.samplers.split_gibbs(
        key, bridge, nd.samplers.PnPDM(noise, num_steps=4, weights="none"), num_chains=200, num_draws=100,
        num_burn_in=50,
    )  # fmt: skip
    assert_law(found.positions["x"], *law)
    assert_law(found.seen["x"], *after(*law, *data_side(noise)))
    assert float(found.acceptance["data"].min()) > 1 - 1e-9  # the proposal is the target
    assert not found.exact and "4 reverse steps" in found.target


def test_daps_with_a_score_is_off_by_a_known_amount(key):
    """Ten levels from closed forms: nothing is refused, so the law of a sweep is that of an affine map."""
    prior, s, basis = prior_and_basis()
    bridge, sampler = (
        nd.from_energy(prior, linear),
        nd.samplers.DAPS(0.3, 20.0, 10, "score", flow_steps=2),
    )
    law = np.zeros(2), np.eye(2)
    for clock in np.linspace(float(clock_at(bridge, 20.0)), float(clock_at(bridge, 0.3)), 10):
        noise = float(added_noise(bridge, jnp.asarray(clock))["x"])
        factor, _ = reverse_map(ladder(bridge, jnp.asarray(clock), 2, 7.0), bridge, s, noisy=False)
        back = (basis * factor) @ basis.T
        law = law[0], law[1] + noise**2 * np.eye(2)
        law = after(*law, back, MEAN - back @ MEAN, np.zeros((2, 2)))
        law = after(*law, *data_side(noise))
    precision = np.linalg.inv((basis * s) @ basis.T) + OPERATOR.T @ OPERATOR / SIGMA**2
    assert np.abs(law[1] / np.linalg.inv(precision) - 1).max() > 0.1
    found = nd.samplers.split_gibbs(
        key, bridge, sampler, num_chains=300, num_draws=20, num_burn_in=2
    )
    assert_law(found.positions["x"], *law)
    assert not found.exact and "DAPS with 10 levels" in found.target


def test_the_flow_of_a_gaussian(key):
    """Steps that leave much of the noise, as they are said to be; and many, against the exact flow."""
    prior, s, basis = prior_and_basis()
    bridge = nd.from_energy(prior, bridge_type=nd.bridge.PathBridge)
    start = clock_at(bridge, 1.5)
    u, run = np.asarray(jax.random.normal(key, (2,))), jax.jit(lambda *at: flow(bridge, *at))

    def ends(num_steps, factor):
        clocks = ladder(bridge, start, num_steps, 1.0)
        expected = MEAN + (basis * factor(clocks)) @ basis.T @ (u - MEAN)
        return run({"x": jnp.asarray(u)}, clocks)["x"], expected

    steps = lambda clocks: reverse_map(clocks, bridge, s, noisy=False)[0]
    np.testing.assert_allclose(*ends(4, steps), rtol=1e-6)
    # Along the flow a value stays as many deviations from the mean as it is.
    np.testing.assert_allclose(*ends(400, lambda clocks: np.sqrt(s / (s + 1.5**2))), atol=0.01)


def model(operator, y, sigma_scale=0.5):
    x = numpyro.sample("x", nd.DiffusionPrior(two_dimensional().prior))
    sigma = numpyro.sample("sigma", dist.HalfNormal(sigma_scale))
    centre = numpyro.deterministic("centre", operator @ x)
    numpyro.sample("y", dist.Normal(centre, sigma).to_event(1), obs=y)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Some donated buffers")  # NumPyro's, under `jax.vmap`
@pytest.mark.parametrize("which", ["PnPDM beside NUTS", "DAPS alone"])
def test_unknown_noise_inside_mcmc(key, which):
    """The noise level in a block of its own, or moved by the sampler: the joint law by quadrature."""
    problem = two_dimensional()._replace(
        operator=np.array([[1.0, 2.5], [0.5, -1.0], [1.0, 1.0]]), data=np.array([1.2, 0.3, 0.8])
    )
    blur = 0.3 if which == "PnPDM beside NUTS" else 0.0
    exact = problem._replace(covariances=problem.covariances + blur**2 * np.eye(2)).exact()
    if blur:
        kernel = Gibbs(
            [(nd.SplitKernel(model, nd.samplers.PnPDM(blur)), ["x"]), (NUTS(model), None)]
        )
        fields, method = ("block_states.0.log_weight",), jax.vmap
    else:
        kernel = nd.SplitKernel(model, nd.samplers.DAPS(0.4, 0.4, 1, num_moves=4))
        fields, method = ("log_weight",), "vectorized"
    mcmc = MCMC(
        kernel, num_warmup=150, num_samples=400, num_chains=48, chain_method=method,
        progress_bar=False,
    )  # fmt: skip
    mcmc.run(key, problem.operator, problem.data, extra_fields=fields)
    draws = {n: np.asarray(v) for n, v in mcmc.get_samples(group_by_chain=True).items()}
    np.testing.assert_allclose(draws["centre"], draws["x"] @ problem.operator.T, atol=1e-12)
    truth = {"sigma": (exact.sigma_mean, exact.sigma_sd), "x": (exact.mean, exact.variance**0.5)}
    for name, (mean, sd) in truth.items():
        for values, target in ((draws[name], mean), ((draws[name] - mean) ** 2, sd**2)):
            chains = values.mean(1)
            error = chains.std(0, ddof=1) / len(chains) ** 0.5
            assert (error < 0.05 * np.asarray(sd)).all()
            assert (np.abs(chains.mean(0) - target) < 4 * error).all(), (name, target)
    weights = np.asarray(mcmc.get_extra_fields()[fields[0]])
    assert weights.std() > 0.05 if blur else (weights == 0).all()


def test_warm_up_ends():
    """Noise falls over the first half, tuning goes on to the end and then stops."""
    steps = jnp.arange(300)
    clock = jax.vmap(lambda i: Clock(i, jnp.asarray(200)))(steps)
    annealed, gain = (
        np.asarray(jax.vmap(f)(clock)) for f in (lambda c: c.annealed, lambda c: c.gain)
    )
    np.testing.assert_allclose(annealed[[0, 50, 100, 250]], [0, 0.5, 1, 1])
    assert (
        (gain[:100] == 1).all() and (np.diff(gain[100:200]) < 0).all() and (gain[200:] == 0).all()
    )
    assert float(Clock(jnp.asarray(0), jnp.asarray(0)).annealed) == 1


def test_starts_in_32_bits(float32):
    """Noise a thousand times the prior's: the last clocks of the ladder all round to 0."""
    schedule = nd.schedules.VariancePreserving()
    ends = [float(schedule.time(-2 * jnp.log(s))) for s in (0.1, 100.0)]
    prior = nd.Gaussian([1.0, -2.0], np.diag([0.25, 0.01]), schedule, *ends)
    bridge = nd.from_energy(prior, bridge_type=nd.bridge.PathBridge)
    keys = jax.random.split(jax.random.key(3), 4000)

    def one(key):
        key_base, key_steps = jax.random.split(key)
        clocks = ladder(bridge, jnp.ones(()), 100, 7.0)
        return reverse_steps(key_steps, bridge, bridge.sample_base(key_base), clocks)["x"]

    draws = np.asarray(jax.jit(jax.vmap(one))(keys))
    assert np.isfinite(draws).all()
    np.testing.assert_allclose(draws.mean(0), prior.mean, atol=0.03)
    # The variable is the noised one at `t_min`.
    np.testing.assert_allclose(draws.std(0), np.sqrt([0.26, 0.02]), rtol=0.1)


def test_values_that_are_not_finite_are_refused(key):
    bridge = nd.from_energy(MIXTURE, heavy, bridge_type=nd.bridge.PathBridge)
    initial = {"x": jnp.array([[0.5], [jnp.nan]])}
    with pytest.raises(
        FloatingPointError, match="site 'x'.*1 of 2 chains, first in chain 1"
    ) as info:
        nd.samplers.split_gibbs(
            key, bridge, num_draws=3, num_burn_in=2, num_chains=2, initial=initial
        )
    result = info.value.result  # type: ignore[attr-defined]
    assert np.isfinite(np.asarray(result.positions["x"][0])).all()


def test_refusals(key):
    bridge = nd.from_energy(MIXTURE, heavy, bridge_type=nd.bridge.PathBridge)
    with pytest.raises(ValueError, match="noise_level"):
        nd.samplers.PnPDM(0.0)
    with pytest.raises(ValueError, match="weights"):
        nd.samplers.PnPDM(weights="some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="DensityBridge"):
        nd.samplers.split_gibbs(key, bridge, nd.samplers.PnPDM(prior="energy"))
    with pytest.raises(ValueError, match="summed scores"):
        nd.samplers.split_gibbs(
            key,
            nd.from_energy(MIXTURE + MIXTURE, bridge_type=nd.bridge.PathBridge),
            nd.samplers.DAPS(),
        )
    with pytest.raises(ValueError, match="num_draws"):
        nd.samplers.split_gibbs(key, bridge, num_draws=0)
    without = nd.from_model(lambda: numpyro.sample("a", dist.Normal()))
    with pytest.raises(ValueError, match="no `DiffusionPrior`"):
        nd.samplers.split_gibbs(key, without)
    kernel = nd.SplitKernel(lambda: numpyro.sample("x", nd.DiffusionPrior(MIXTURE)))
    with pytest.raises(ValueError, match="'offset'"):
        kernel.init(key, 0, {"offset": jnp.zeros(())}, (), {})
