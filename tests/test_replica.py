"""Replica exchange against closed forms, and its swaps as a map of laws."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import modes
from closed_form import three_modes

import numpyro_diffusion as nd
from numpyro_diffusion._finite import NonFinite
from numpyro_diffusion.samplers.replica.bennett import batch_means_error, bennett
from numpyro_diffusion.samplers.replica.ladder import Ladder, advance, rungs
from numpyro_diffusion.schemes.levels import Level

LINE = np.linspace(-9, 9, 4001)
ONE = nd.GaussianMixture([0.3, 0.7], [[-2.0], [1.0]], [[[0.3]], [[0.6]]])
OTHER = nd.GaussianMixture([0.6, 0.4], [[-1.0], [2.0]], [[[0.8]], [[0.5]]])


def assert_within_errors(values: np.ndarray, truth) -> None:
    """The mean of chains, `(num_chains, num_draws, ...)`, is the truth within batch means' errors."""
    values = np.asarray(values).reshape(*values.shape[:2], -1)
    for j, exact in enumerate(np.ravel(truth)):
        error = batch_means_error(values[..., j])
        assert 0 < error < 0.1 * values[..., j].std() + 1e-9, "too few effective draws to tell"
        assert abs(values[..., j].mean() - exact) < 4 * error


def test_the_product_of_two_laws_against_quadrature(key):
    """Normaliser, mean and mass below 0; the two parts disagree on where the mass is."""
    product = ONE + OTHER
    bridge = nd.from_energy(product)
    found = nd.replica_exchange(key, bridge, num_chains=8, num_draws=800, num_burn_in=50)
    t = jnp.asarray(product.t_min)
    log_p = jax.jit(jax.vmap(lambda u: product.log_density(u, t)))(jnp.asarray(LINE[:, None]))
    p = np.exp(np.asarray(log_p))
    total = np.trapezoid(p, LINE)
    assert 0 < found.log_evidence_error < 0.05
    assert abs(found.log_evidence - np.log(total)) < 4 * found.log_evidence_error
    x = np.asarray(found.positions["x"])[..., 0]
    assert_within_errors(x, np.trapezoid(p * LINE, LINE) / total)
    assert_within_errors(x**2, np.trapezoid(p * LINE**2, LINE) / total)
    assert_within_errors(x < 0, np.trapezoid(p * (LINE < 0), LINE) / total)
    assert np.asarray(found.swap_acceptance).min() > 0.3
    assert (np.asarray(found.round_trips) > 80).all()
    assert found.exact and "t_min" in found.target
    assert "Nothing to worry about" in nd.diagnostics.verdict(found)
    assert "fresh states have reached the target of each of 8 ladders" in nd.diagnostics.verdict(
        found
    )
    bad = found._replace(
        swap_acceptance=np.array([0.5, 0.04, 0.6]),
        round_trips=np.array([40, 3]),
        log_evidence_error=0.7,
        non_finite=NonFinite({"y": np.array([0, 2, 0])}, {}),
    )
    lines = nd.diagnostics.verdict(bad).splitlines()
    for line, words in zip(
        lines,
        ("`y`: 2 of", "Replica 2 and replica 1 swap 4%", "In ladder 1 3 states", "is 0.7 nats"),
        strict=True,
    ):
        assert words in line
    num_replicas = len(np.asarray(found.levels.clock))
    run, walkers = 8 * 850 * num_replicas * 5, 64 * 5
    assert 0 < found.num_evaluations - run < 400 * walkers
    assert (found.num_evaluations - run) % walkers == 0


def test_swaps_keep_the_joint_law(key):
    """Exact draws at four levels, 20,000 times: after two rounds of swaps they still are, and independent."""
    bridge = nd.from_energy(ONE)
    clock, power = np.array([1, 0.65, 0.45, 0.0, 0.0]), np.array([0.0, 1.0, 1.0, 1.0, 1.0])
    levels = Level.by_hand(clock, power, {"x": jnp.ones((4, 1))}, num_moves=0)
    kernels = nd.Annealed().kernels(bridge)
    times = [float(bridge.times(jnp.asarray(c))["x"]) for c in clock[:4]]

    @eqx.filter_jit
    def swapped(key):
        key_draw, *keys = jax.random.split(key, 3)

        def one(key, t, c, floor):
            z = {"x": ONE.draw(key, t) / ONE.schedule(t)[0]}
            return kernels.remembered(kernels.evaluate(z, c, jnp.ones(()), floor))

        draws = jax.random.split(key_draw, (20_000, 4))
        both = jax.vmap(jax.vmap(one), (0, None, None, None))
        particles = both(draws, jnp.asarray(times), levels.clock, levels.floor)
        ladder = Ladder(particles, jnp.zeros((20_000, 4), bool), jnp.asarray(True))
        tried = []
        for key in keys:
            ladder, report = advance(kernels, levels, ladder, key)
            tried.append(jnp.mean(jnp.exp(jnp.minimum(report.log_accept, 0.0)), 0))
        return particles.position["x"], ladder.particles.position["x"], sum(tried)

    before, after, acceptance = swapped(key)
    before, after = np.asarray(before)[..., 0], np.asarray(after)[..., 0]
    assert (np.asarray(acceptance) > 0.25).all() and np.asarray(acceptance).min() < 0.8
    assert (np.mean(before != after, 0) > 0.25).all()
    means, sds = np.zeros(4), np.zeros(4)
    for k, t in enumerate(times):
        mean, variance = (float(m[0]) for m in ONE.moments(jnp.asarray(t)))
        alpha_t = float(ONE.schedule(jnp.asarray(t))[0])
        means[k], sds[k] = mean / alpha_t, variance**0.5 / alpha_t
    white = (after - means) / sds
    second = np.cov(white.T)
    assert np.abs(white.mean(0)).max() < 4 / 20_000**0.5
    assert np.abs(second - np.eye(4)).max() < 5 / 20_000**0.5
    share = np.mean(after[:, -1] < -0.5), np.mean(before[:, -1] < -0.5)
    assert abs(share[0] - share[1]) < 4 * (0.5 / 20_000) ** 0.5
    there, back = bridge.carry({"x": jnp.ones(1)}, *levels.clock[1:3])
    again, forth = bridge.carry(there, *levels.clock[2:0:-1])
    np.testing.assert_allclose([again["x"][0], back + forth], [1.0, 0.0], atol=1e-12)


@pytest.mark.long
def test_a_model_with_an_unknown_offset(key):
    """Three anisotropic components and a common offset: both sites move, in both kinds of blocks."""
    problem = three_modes()
    bridge = nd.from_model(problem.model, problem.operator, y=problem.data)
    found = nd.replica_exchange(key, bridge, num_chains=8, num_draws=800, num_burn_in=100)
    exact = problem.exact()
    assert 0 < found.log_evidence_error < 0.05
    assert abs(found.log_evidence - exact.log_evidence) < 4 * found.log_evidence_error
    x = np.asarray(found.positions["x"])
    assert_within_errors(x, exact.mean)
    assert_within_errors((x - exact.mean) ** 2, exact.variance)
    # A component of 3e-4 is met twice in as many independent draws, or never: no error can be told of it.
    shares, likely = np.asarray(modes(problem, x)), np.asarray(exact.modes) > 0.01
    assert likely.sum() == 2
    assert_within_errors(shares[..., likely], exact.modes[likely])
    assert shares[..., ~likely].mean() < 0.01
    assert_within_errors(np.asarray(found.positions["offset"]), exact.offset_mean)


def test_rungs_are_evenly_apart():
    """Steps of length 0.1, but for two of 0.5, of which neither can be split."""
    steps = np.full(40, 0.1)
    steps[[10, 11]] = 0.5
    shares = np.append(np.exp(-(steps**2)), 1.0)
    chosen = rungs(shares, None)
    place = np.concatenate([[0.0], np.cumsum(steps)])[chosen]
    assert chosen[0] == 0 and chosen[-1] == 40 and len(chosen) == 6
    assert np.abs(np.diff(place) - 0.96).max() < 0.35
    assert 17 in rungs(shares, None, 17)
    assert len(rungs(shares, 100)) == 41


def test_bennett_on_two_gaussians(rng):
    r"""N(0, 1) and 3 N(1, 0.5^2), without a map: the ratio is log 3, and the error is honest."""
    log_ratio = lambda x: np.log(3) + 0.5 * x**2 - 2 * (x - 1) ** 2 + np.log(2)
    errors, stated = [], []
    for _ in range(200):
        x, y = rng.normal(size=(1, 300)), 1 + 0.5 * rng.normal(size=(1, 300))
        found, deviation = bennett(log_ratio(x), -log_ratio(y))
        errors.append(found - np.log(3))
        stated.append(batch_means_error(deviation))
    assert abs(np.mean(errors)) < 4 * np.std(errors) / 200**0.5
    assert 0.9 < np.std(errors) / np.sqrt(np.mean(np.square(stated))) < 1.15
    nowhere = np.full((1, 5), -np.inf)
    assert np.isnan(bennett(nowhere, nowhere)[0])


def test_refusals(key):
    bridge = nd.from_energy(ONE)
    with pytest.raises(ValueError, match="num_replicas"):
        nd.replica_exchange(key, bridge, num_replicas=1)
    with pytest.raises(ValueError, match="num_draws"):
        nd.replica_exchange(key, bridge, num_draws=1)
    with pytest.raises(ValueError, match="path space"):
        nd.replica_exchange(key, nd.from_energy(ONE, bridge_type=nd.bridge.PathBridge))
