"""Compositions by scores alone, heuristics without weights, and factors of a sampler's law."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from jax.scipy.stats import norm

import numpyro_diffusion as nd

GRID = np.linspace(-9, 9, 20_001)
ONE = nd.GaussianMixture([0.3, 0.7], [[-2.0], [1.0]], [[[0.3]], [[0.6]]])
OTHER = nd.GaussianMixture([0.6, 0.4], [[-1.0], [2.0]], [[[0.8]], [[0.5]]])
PART = nd.Gaussian([1.0], [[0.6]])
HALVED = nd.Gaussian([0.5], [[1.4]])


def on_grid(energy):
    t = jnp.asarray(energy.t_min)
    return np.asarray(jax.vmap(lambda u: energy.log_density(u, t))(jnp.asarray(GRID[:, None])))


def truth(energy):
    """Log normaliser and P(x < 0) by quadrature."""
    log_p = on_grid(energy)
    log_z = np.log(np.trapezoid(np.exp(log_p), GRID))
    return log_z, np.trapezoid(np.exp(log_p - log_z) * (GRID < 0), GRID)


def run(scheme, bridge, num_particles=1000, num_chains=8):
    model = scheme(bridge, jax.random.key(0))
    return nd.run_smc(jax.random.key(1), model, num_particles, num_chains=num_chains)


def below_zero(result):
    weights = np.asarray(jax.nn.softmax(result.log_weights, -1))
    return np.sum(weights * (np.asarray(result.positions["x"])[..., 0] < 0), 1)


def scores(energy):
    """The same law without its energy."""
    return nd.ScoreFunction(
        lambda e, x, t: e.score(x, t), (1,), params=energy, t_min=energy.t_min, t_max=energy.t_max
    )


@pytest.mark.long
def test_ratios_of_kernels_need_scores_alone():
    """An error of order one over the levels, and hardly any spread."""
    log_z, below = truth(ONE + OTHER)
    composition = scores(ONE) + scores(OTHER)
    assert isinstance(composition, nd.energies.ComposedDenoiser)
    bridge = nd.from_energy(composition, bridge_type=nd.bridge.PathBridge)
    errors = []
    for levels in (40, 160):
        result = run(nd.ScoreComposition(levels=levels), bridge)
        found = np.asarray(result.log_evidence) - log_z
        errors.append(abs(found.mean()))
        assert found.std(ddof=1) < 0.03
    assert errors[0] < 0.06 and errors[1] < 0.02
    assert abs(below_zero(result).mean() - below) < 0.02
    assert "RadonNikodym" in result.target and result.exact and result.normalized


@pytest.mark.long
def test_continuous_time_weights_and_what_a_control_does_to_them():
    """Guidance and a power of 1.5: weights without densities, and far more even ones with a drift."""
    schemes = nd.schemes
    spreads = {}
    for law in (nd.cfg(ONE, PART, 2.0), 1.5 * ONE):
        log_z, _ = truth(law)
        bridge = nd.from_energy(law, bridge_type=nd.bridge.PathBridge)
        for name, correction in {
            "plain": schemes.FeynmanKacCorrection(),
            "controlled": schemes.DriftLite(),
        }.items():
            scheme = nd.ScoreComposition(levels=600, correction=correction)
            found = np.asarray(run(scheme, bridge).log_evidence) - log_z
            assert abs(found.mean()) < 0.06 + 3 * found.std(ddof=1) / 8**0.5
            spreads[name] = found.std(ddof=1)
    assert spreads["controlled"] < 0.2 * spreads["plain"]


@pytest.mark.slow
def test_a_likelihood_steers_a_composition():
    """Product of two Gaussians under one datum: everything in closed form."""
    y, sigma = 0.8, 0.3
    log_p = on_grid(PART + HALVED) + np.asarray(norm.logpdf(y, GRID, sigma))
    log_z = np.log(np.trapezoid(np.exp(log_p), GRID))
    mean = np.trapezoid(GRID * np.exp(log_p - log_z), GRID)
    bridge = nd.from_energy(
        PART + HALVED, lambda x: norm.logpdf(y, x[0], sigma), bridge_type=nd.bridge.PathBridge
    )
    result = run(nd.ScoreComposition(levels=100), bridge)
    found = np.asarray(result.log_evidence) - log_z
    assert abs(found.mean()) < 0.03 and found.std(ddof=1) < 0.1
    weights = np.asarray(jax.nn.softmax(result.log_weights, -1))
    means = np.sum(weights * np.asarray(result.positions["x"])[..., 0], 1)
    assert abs(means.mean() - mean) < 0.02


@pytest.mark.slow
def test_a_law_as_a_factor_of_a_sampler():
    """The law of a reverse sampler times another law: path space, one score and one energy."""
    log_z, below = truth(ONE + 0.5 * PART)
    tilted = scores(ONE) + nd.factors.LawFactor(PART, 0.5)
    result = run(nd.Twisted(levels=200), nd.from_energy(tilted, bridge_type=nd.bridge.PathBridge))
    found = np.asarray(result.log_evidence) - log_z
    assert found.std(ddof=1) < 0.15
    assert abs(found.mean()) < 3 * found.std(ddof=1) / 8**0.5 + 0.01
    shares = below_zero(result)
    assert abs(shares.mean() - below) < 3 * shares.std(ddof=1) / 8**0.5 + 0.01


@pytest.mark.long
def test_a_set_and_its_probability():
    """By a slack, which leads, and by a yes or no, which chooses."""
    log_p = on_grid(ONE)
    inside = (GRID > -1.5) & (GRID < 0)
    log_z = np.log(np.trapezoid(np.exp(log_p) * inside, GRID))
    slack = nd.factors.Restrict(lambda x: jnp.minimum(x + 1.5, -x))
    yes_or_no = nd.factors.Restrict(lambda x: jnp.all((x > -1.5) & (x < 0)))
    for factor in (slack, yes_or_no):
        result = run(nd.Annealed(), nd.from_energy(ONE + factor), 500)
        found = np.asarray(result.log_evidence) - log_z
        assert abs(found.mean()) < 3 * found.std(ddof=1) / 8**0.5 + 0.01 and found.std(ddof=1) < 0.1
        x = np.asarray(result.positions["x"])[np.asarray(result.log_weights) > -np.inf]
        assert x.min() >= -1.5 and x.max() <= 0


@pytest.mark.long
def test_half_the_guidance_may_propose():
    """The target stays what it is, and levels reach it with more even weights."""
    law = nd.cfg(HALVED, PART, 4.0)
    log_z, _ = truth(law)
    spreads = []
    for proposal in (None, nd.cfg(HALVED, PART, 2.0)):
        scheme = nd.ReverseDiffusion(levels=60, proposal=proposal, moves=0)
        found = np.asarray(run(scheme, nd.from_energy(law)).log_evidence) - log_z
        assert abs(found.mean()) < 3 * found.std(ddof=1) / 8**0.5 + 0.01
        spreads.append(found.std(ddof=1))
    assert max(spreads) < 0.1


@pytest.mark.long
def test_a_temperature_that_falls_with_the_noise():
    """Another path, the same law at its end."""
    law = ONE * (lambda t: 1 + jnp.exp(-3 * t / ONE.t_max) * 1.0)
    end = float(law.powers_at(jnp.asarray(law.t_min))[0])
    log_z, below = truth(end * ONE)
    assert truth(law)[0] == pytest.approx(log_z, abs=1e-6)
    result = run(nd.ReverseDiffusion(levels=60, moves=0), nd.from_energy(law))
    found = np.asarray(result.log_evidence) - log_z
    assert abs(found.mean()) < 3 * found.std(ddof=1) / 8**0.5 + 0.005
    assert abs(below_zero(result).mean() - below) < 0.03


def test_without_weights_it_is_a_heuristic():
    scheme = nd.schemes.unweighted(nd.ReverseDiffusion(levels=20, moves=0))
    result = run(scheme, nd.from_energy(2 * ONE), 200, 2)
    assert not result.exact and not result.weighted and "heuristic" not in result.evidence
    assert np.isnan(np.asarray(result.log_evidence)).all()
    assert np.ptp(np.asarray(result.log_weights)) == 0
    inside = lambda u: jnp.clip(u, -0.5, 0.5)
    scheme = nd.schemes.unweighted(nd.ReverseDiffusion(levels=20, moves=0), inside)
    x = np.asarray(run(scheme, nd.from_energy(2 * ONE), 200, 2).positions["x"])
    assert abs(x).max() == 0.5 and 0 < (abs(x) == 0.5).mean() < 1


def test_mixtures_weigh_by_normalisers():
    loose = nd.EnergyFunction(lambda e, x, t: e.energy(x, t) - 1.7, (1,), params=PART)
    with pytest.raises(ValueError, match="prior_normalizer"):
        nd.energies.Mixture([ONE, loose])
    mixture = nd.energies.Mixture([ONE, loose.with_log_normalizer(1.7, 0.2)], [0.75, 0.25])
    log_z, _ = truth(mixture)
    assert log_z == pytest.approx(0.0, abs=1e-6)
    share = 0.75 * np.exp(on_grid(ONE)) + 0.25 * np.exp(on_grid(PART))
    np.testing.assert_allclose(np.exp(on_grid(mixture)), share, rtol=1e-6, atol=1e-12)
    assert mixture.log_normalizer == 0.0
    assert mixture.log_normalizer_error == pytest.approx(0.05)
    both = nd.energies.Mixture([ONE, PART], [0.75, 0.25])
    t = jnp.asarray(0.4)
    draws = jax.vmap(lambda key: both.draw(key, t))(jax.random.split(jax.random.key(0), 4000))
    mean, variance = both.moments(t)
    assert abs(draws.mean() - mean[0]) < 4 * (variance[0] / 4000) ** 0.5


def test_what_is_refused():
    with pytest.warns(UserWarning, match="may have no normaliser"):
        PART - 0.9 * nd.Gaussian([0.0], [[0.3]])
    with pytest.raises(ValueError, match="must have a positive sum"):
        ONE * (lambda t: ONE.schedule.noise_level(t) ** 4)
    with pytest.raises(TypeError, match="added to energies"):
        ONE + 3.0
    with pytest.raises(ValueError, match="ScoreComposition"):
        nd.Twisted()(nd.from_energy(ONE + OTHER, bridge_type=nd.bridge.PathBridge))
    with pytest.raises(ValueError, match="have one part each"):
        nd.ScoreComposition()(nd.from_energy(ONE, bridge_type=nd.bridge.PathBridge))
    with pytest.raises(ValueError, match="change with the time"):
        nd.from_energy(ONE * (lambda t: 2.0), bridge_type=nd.bridge.PathBridge)
    with pytest.raises(TypeError, match="`AbstractScheme`"):
        nd.schemes.unweighted("none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs a `DensityBridge`"):
        bridge = nd.from_energy(ONE, bridge_type=nd.bridge.PathBridge)
        nd.schemes.unresampled(nd.Annealed())(bridge)


def test_a_set_is_sharp_at_its_end_in_32_bits(float32):
    """Compiled code rounds as it likes; where the noise ends, a factor is itself and nothing softer."""
    one = nd.GaussianMixture([0.3, 0.7], [[-2.0], [1.0]], [[[0.3]], [[0.6]]])
    bridge = nd.from_energy((one + one) / 0.5 + nd.factors.Restrict(lambda x: x[0]))
    see = jax.jit(jax.vmap(lambda u, c: bridge.see({"x": u}, c).log_density, (0, None)))
    values = see(jnp.asarray([[-0.004], [-1e-4], [0.2]], jnp.float32), jnp.zeros(()))
    assert np.isneginf(values[:2]).all() and np.isfinite(values[2])


def test_parts_are_read_where_the_whole_is():
    """A normaliser holds at one time: read elsewhere, it is none."""
    loose = nd.EnergyFunction(lambda e, x, t: e.energy(x, t) - 1.7, (1,), params=PART)
    later = loose.with_horizon(t_min=0.02).with_log_normalizer(1.7)
    early = loose.with_log_normalizer(1.7)
    with pytest.raises(ValueError, match=r"parts \[0\] are not known"):
        nd.energies.Mixture([early, later])
    assert nd.energies.Joint([early, later]).log_normalizer is None
    assert nd.energies.Joint([early, early]).log_normalizer == pytest.approx(3.4)
    assert nd.energies.Joint(early, 3).log_normalizer == pytest.approx(5.1)
    other = nd.Gaussian([0.0], [[1.0]], schedule=nd.schedules.VarianceExploding())
    with pytest.raises(ValueError, match="share one schedule"):
        ONE + nd.factors.LawFactor(other)


def test_a_heuristic_says_so_where_numpyro_users_look(capsys):
    def model():
        numpyro.sample("x", nd.DiffusionPrior(2 * ONE))

    scheme = nd.schemes.unweighted(nd.ReverseDiffusion(levels=10, moves=0))
    smc = nd.SMC(model, scheme, num_particles=50, num_chains=2, progress_bar=False)
    smc.run(jax.random.key(0))
    smc.print_summary()
    printed = capsys.readouterr().out
    assert "A heuristic: weights were left out" in printed and "log evidence nan" in printed
    attributes = smc.to_arviz(predictive=False)["posterior"].attrs
    assert not attributes["exact"] and "unweighted" in attributes["scheme"]
    assert "clouds disagree" not in printed and "Nothing to worry" not in printed
    assert smc.get_samples()["x"].shape == (100, 1)
