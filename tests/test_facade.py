"""`nd.SMC` as its users meet it: draws, evidence, summary, interrupts, values that are not numbers."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS, init_to_sample
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import numpyro_diffusion as nd
from numpyro_diffusion.ppl.shown import normaliser_in_words
from numpyro_diffusion.schedules import VarianceExploding
from numpyro_diffusion.schemes.levels import Level
from numpyro_diffusion.smc import engine as engine

# Two diffusion sites, one in a plate, latent sites of both kinds around them, missing data: all Gaussian.
IMAGE = nd.Gaussian([0.5, -1.0], [[1.0, 0.6], [0.6, 0.8]])
GROUP = nd.Gaussian([0.2], [[0.7]], schedule=VarianceExploding(0.02, 40.0))
DESIGN = np.array([[1.0, 0.3], [0.2, -0.7], [0.5, 0.8]])
SEEN, Y = np.array([True, False, True]), np.array([1.4, np.nan, -0.9])
SIZE = (4, 500)


def gaussian(design, seen, y=None):
    image = numpyro.sample("image", nd.DiffusionPrior(IMAGE))
    shift = numpyro.sample("shift", dist.Normal(0.0, 1.0))
    with numpyro.plate("groups", 3):
        group = numpyro.sample("group", nd.DiffusionPrior(GROUP))
        effect = numpyro.sample("effect", dist.Normal(group[:, 0], 0.5))
    mean = numpyro.deterministic("mean", design @ image + effect + shift)
    numpyro.factor("soft", -0.5 * (shift - 0.4) ** 2)
    with numpyro.plate("data", 3):
        numpyro.sample("y", dist.Normal(mean, 0.3).mask(seen), obs=y)


def gaussian_posterior():
    """Mean and covariance of (image, group, effect, shift) and the log evidence."""
    noise = lambda e: float(e.schedule.noise_level(jnp.asarray(e.t_min))) ** 2
    mean = np.array([0.5, -1.0, *[0.2] * 6, 0.0])
    cov = np.zeros((9, 9))
    cov[:2, :2] = np.array([[1.0, 0.6], [0.6, 0.8]]) + noise(IMAGE) * np.eye(2)
    group = 0.7 + noise(GROUP)
    cov[2:8, 2:8] = np.kron([[group, group], [group, group + 0.25]], np.eye(3))
    cov[8, 8] = 1.0
    rows = np.concatenate([DESIGN, np.zeros((3, 3)), np.eye(3), np.ones((3, 1))], 1)[SEEN]
    rows = np.concatenate(
        [rows, np.eye(9)[8:]]
    )  # the factor is a datum of unit noise, unnormalised
    data, errors = np.array([*Y[SEEN], 0.4]), np.diag([0.09, 0.09, 1.0])
    total = rows @ cov @ rows.T + errors
    gain = cov @ rows.T @ np.linalg.inv(total)
    log_evidence = multivariate_normal.logpdf(data, rows @ mean, total) + 0.5 * np.log(2 * np.pi)
    return mean + gain @ (data - rows @ mean), cov - gain @ rows @ cov, float(log_evidence)


def run_gaussian(seed=0):
    return gaussian_smc().run(jax.random.key(seed), DESIGN, SEEN, y=Y)


def gaussian_smc():
    scheme = nd.Annealed(moves=3, pilot=nd.schemes.Pilot(128, conditional_ess=0.9))
    return nd.SMC(gaussian, scheme, num_particles=SIZE[1], num_chains=SIZE[0], progress_bar=False)


@pytest.fixture(scope="module")
def finished():
    return run_gaussian()


def as_vector(samples):
    """Values of the sites in the order of `gaussian_posterior`."""
    group, shift = samples["group"][..., 0], samples["shift"][..., None]
    return np.concatenate([samples["image"], group, samples["effect"], shift], -1)


def weighted(smc, function):
    """Weighted mean in each cloud."""
    samples, weights = smc.get_weighted_samples()
    w = np.asarray(weights / weights.sum(1, keepdims=True))
    return np.einsum("cn,cn...->c...", w, np.asarray(function(samples)))


def near(clouds, expected, floor):
    error = clouds.std(0, ddof=1) / len(clouds) ** 0.5
    return np.all(np.abs(clouds.mean(0) - expected) < 4 * error + floor)


def test_several_sites_a_plate_and_missing_data(finished):
    mean, cov, log_evidence = gaussian_posterior()
    sd = np.sqrt(np.diag(cov))
    assert abs(finished.log_evidence - log_evidence) < 3 * finished.log_evidence_error
    assert finished.log_evidence_error < 0.15
    assert near(weighted(finished, as_vector), mean, 0.05 * sd)
    centred = lambda s: as_vector(s) - mean
    products = weighted(finished, lambda s: centred(s)[..., None] * centred(s)[..., None, :])
    assert near(products, cov, 0.08 * np.outer(sd, sd))
    assert not np.allclose(cov[5, 5], 0.25 + 0.7, rtol=0.1)  # data do bear on what they name


def test_draws_are_equally_weighted_particles(finished):
    grouped, pooled = finished.get_samples(group_by_chain=True), finished.get_samples()
    shapes = {"image": (2,), "shift": (), "group": (3, 1), "effect": (3,), "mean": (3,)}
    assert {n: v.shape for n, v in grouped.items()} == {n: SIZE + s for n, s in shapes.items()}
    assert {n: v.shape for n, v in pooled.items()} == {n: (2000, *s) for n, s in shapes.items()}

    # Systematic resampling: counts differ from N times the weight by less than one.
    particles, weights = finished.get_weighted_samples()
    w = np.asarray(weights)
    np.testing.assert_allclose(w.sum(), 1.0)
    for c in range(SIZE[0]):
        where = np.asarray(particles["shift"][c])
        order = np.argsort(where)
        counts = np.searchsorted(where[order], np.asarray(grouped["shift"][c]))
        share = w[c, order] / w[c].sum()
        assert np.all(np.abs(np.bincount(counts, minlength=500) - 500 * share) < 1)
    np.testing.assert_allclose(w.sum(1), jax.nn.softmax(finished.result.log_evidence), rtol=1e-9)
    total = np.einsum("cn,cni->i", w, as_vector(particles))
    sd = np.sqrt(np.diag(gaussian_posterior()[1]))
    assert np.all(np.abs(as_vector(pooled).mean(0) - total) < 0.1 * sd)
    for c in range(SIZE[0]):
        own = weighted(finished, as_vector)[c]
        assert np.all(np.abs(as_vector(grouped)[c].mean(0) - own) < 0.2 * sd)
    # Sites stay together, and a deterministic site is that of its draw.
    expected = np.einsum("ij,nj->ni", DESIGN, pooled["image"]) + pooled["effect"]
    np.testing.assert_allclose(pooled["mean"], expected + pooled["shift"][:, None], rtol=1e-9)
    again = finished.get_samples()
    assert all(np.array_equal(pooled[n], again[n]) for n in pooled)


def test_evidence_of_the_clouds_is_pooled(finished):
    each = np.asarray(finished.result.log_evidence)
    np.testing.assert_allclose(finished.log_evidence, logsumexp(each) - np.log(4), rtol=1e-12)
    assert finished.evidence_is_normalized
    assert finished.result.target == "the posterior of the model under exp(-E(x, t_min))"
    assert finished.result.exact and finished.result.completed


def test_network_evaluations_are_counted(finished):
    """One to weigh, one to start the joint moves after the others have moved, two a move of two steps."""
    assert finished.scheme.evaluations_per_level(finished.bridge) == 1 + 1 + 3 * 2
    levels = finished.result.num_levels_run
    assert finished.network_evaluations == (1 + 8 * levels) * 4 * 500


def test_summary_tells_what_matters(finished, capsys):
    finished.print_summary(prob=0.8, max_rows=2)
    out = capsys.readouterr().out
    for words in (
        "image[0]",
        "image[1]",
        "group[0,0]",
        "shift",
        "effect: 1 more",
        "10.0%",
        "r_hat",
    ):
        assert words in out
    evidence = (
        f"log evidence {finished.log_evidence:.3f} +- {finished.log_evidence_error:.3f} nats "
        "(normalised: the prior's normaliser is known exactly)\n"
    )
    assert evidence in out
    assert "exp(-E(x, t_min)); exact as the number of particles grows" in out
    assert f"4 clouds of 500 particles, {finished.result.num_levels_run} levels" in out
    assert "Nothing to worry about" in out and "clouds agree on the evidence" in out
    mean = float(finished.get_samples()["shift"].mean())
    assert abs(mean - gaussian_posterior()[0][8]) < 0.2
    row = next(line.split() for line in out.splitlines() if line.split()[:1] == ["shift"])
    assert abs(float(row[1]) - mean) < 0.05


def test_repr_names_model_scheme_and_sizes(finished):
    pilot = "Pilot(num_particles=128, conditional_ess=0.9)"
    assert repr(finished) == (
        f"SMC(gaussian, Annealed(moves=3, pilot={pilot}), num_particles=500, num_chains=4, "
        "progress_bar=False)"
    )


def test_an_interrupt_keeps_levels_and_resume_goes_on(finished, monkeypatch):
    real, count = engine.run_chunk, 0

    def run_chunk(*args):
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "run_chunk", run_chunk)
        smc = gaussian_smc()
        with pytest.raises(KeyboardInterrupt) as caught:
            smc.run(jax.random.key(0), DESIGN, SEEN, y=Y)
    assert "not yet draws from the posterior; `resume()` goes on" in caught.value.__notes__[1]
    assert smc.result.num_levels_run == 8 and not smc.result.completed
    for ask in (smc.get_samples, smc.get_weighted_samples, lambda: smc.log_evidence):
        with pytest.raises(RuntimeError, match="interrupted after 8 levels; call `resume"):
            ask()
    smc = pickle.loads(pickle.dumps(smc))
    smc.resume()
    for a, b in zip(
        jax.tree.leaves((smc.result.positions, smc.result[1:4], smc.result.trace)),
        jax.tree.leaves((finished.result.positions, finished.result[1:4], finished.result.trace)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(RuntimeError, match="no interrupted run to resume"):
        smc.resume()


def test_nothing_before_a_run():
    smc = nd.SMC(gaussian)
    for name in ("result", "bridge", "log_evidence"):
        with pytest.raises(RuntimeError, match="call `run` first"):
            getattr(smc, name)
    for method in (smc.get_samples, smc.get_weighted_samples, smc.print_summary, smc.to_arviz):
        with pytest.raises(RuntimeError, match="neither samples nor an evidence; call `run` first"):
            method()


# The same law without its normaliser, and a factor that goes wrong beyond an edge.
def quadratic(precision, x, t):
    alpha, sigma = nd.schedules.VariancePreserving()(t)
    variance = alpha**2 * jnp.linalg.inv(precision) + sigma**2 * jnp.eye(2)
    return 0.5 * x @ jnp.linalg.solve(variance, x)


PRECISION = np.array([[1.5, -0.6], [-0.6, 1.0]])
UNNORMALISED = nd.EnergyFunction(quadratic, (2,), params=jnp.asarray(PRECISION))


def odd(bad, edge, y):
    x = numpyro.sample("x", nd.DiffusionPrior(UNNORMALISED))
    numpyro.sample("y", dist.Normal(x[0], 0.5), obs=y)
    numpyro.factor("odd", jnp.where(x[1] > edge, bad, 0.0))


def run_odd(seed, bad, edge, smc=None):
    """Arguments are arrays, so that all runs share one compilation."""
    smc = odd_smc() if smc is None else smc
    return smc.run(jax.random.key(seed), jnp.asarray(bad), jnp.asarray(edge), jnp.asarray(0.8))


def odd_smc():
    """Frozen levels made by hand: no pilot."""
    clock = jnp.concatenate([jnp.linspace(1, 0, 24), jnp.zeros(1)])
    power = jnp.ones(25).at[0].set(0)
    scale = {"x": jnp.sqrt(1.2 + jnp.exp(2 * jnp.linspace(4.6, -5.5, 24)))[:, None] * jnp.ones(2)}
    levels = Level.by_hand(clock, power, scale, step_size=0.3, num_moves=4)
    scheme = nd.Annealed(levels=levels, moves=4)
    return nd.SMC(odd, scheme, num_particles=400, num_chains=8, progress_bar=False)


def odd_posterior(edge):
    """Log evidence up to the prior's normaliser, mean and variance, on a grid."""
    axis = np.linspace(-6, 6, 601)
    x = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    noise = float(UNNORMALISED.schedule.noise_level(jnp.asarray(UNNORMALISED.t_min))) ** 2
    precision = np.linalg.inv(np.linalg.inv(PRECISION) + noise * np.eye(2))
    log_p = -0.5 * np.einsum("...i,ij,...j", x, precision, x)
    log_p += -0.5 * ((0.8 - x[..., 0]) / 0.5) ** 2 - np.log(0.5 * np.sqrt(2 * np.pi))
    p = np.exp(log_p) * (x[..., 1] <= edge)
    mean = np.einsum("ij,ijk->k", p, x) / p.sum()
    variance = np.einsum("ij,ijk->k", p, (x - mean) ** 2) / p.sum()
    return np.log(p.sum() * (axis[1] - axis[0]) ** 2), mean, variance


def assert_odd_posterior(smc, edge):
    log_evidence, mean, variance = odd_posterior(edge)
    alpha, _ = UNNORMALISED.schedule(jnp.asarray(UNNORMALISED.t_min))
    gap = smc.log_evidence - 2 * float(jnp.log(alpha)) - log_evidence
    assert abs(gap) < 3.5 * smc.log_evidence_error and smc.log_evidence_error < 0.05
    assert near(weighted(smc, lambda s: s["x"]), mean, 0.01)
    assert near(weighted(smc, lambda s: (s["x"] - mean) ** 2), variance, 0.02)


def test_an_unknown_normaliser_is_owned_up_to(capsys):
    smc = run_odd(0, 0.0, 1.0)
    assert_odd_posterior(smc, np.inf)
    assert not smc.evidence_is_normalized
    smc.print_summary()
    out = capsys.readouterr().out
    assert "nats (up to a constant: the prior's normaliser is unknown)" in out
    assert "nd.prior_normalizer(prior" in out


@pytest.mark.parametrize(
    "energy, not_needed, words",
    [
        (None, False, "normalised"),
        (UNNORMALISED, True, "normalised: the prior's normaliser is not needed by this scheme"),
        (UNNORMALISED, False, "up to a constant: the prior's normaliser is unknown"),
        (UNNORMALISED.with_log_normalizer(1.5, 0.25), False, "known to 0.5 nats"),
        (UNNORMALISED.with_log_normalizer(1.5, 0.0), False, "known exactly"),
    ],
)
def test_summaries_say_how_well_the_normaliser_is_known(energy, not_needed, words):
    def model(y):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        if energy is not None:
            with numpyro.plate("two", 2):  # whose errors add up
                mean = numpyro.sample("x", nd.DiffusionPrior(energy)).sum()
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    assert normaliser_in_words(nd.from_model(model, 0.5), not_needed).endswith(words)


def test_nan_for_some_particles_is_counted_named_and_harmless():
    """Weight 0 where the factor is NaN: the posterior is the one without that corner."""
    edge = 2.4
    share = 1 - np.exp(odd_posterior(edge)[0] - odd_posterior(np.inf)[0])
    assert 0.005 < share < 0.05
    with pytest.warns(
        UserWarning, match="log density NaN at site `odd`: .* of 3200 particles"
    ) as w:
        smc = run_odd(1, np.nan, edge)
    assert "weight 0" in str(w[0].message)
    assert_odd_posterior(smc, edge)
    assert np.all(smc.get_samples()["x"][:, 1] <= edge)
    counted = np.asarray(smc.result.trace.info.nan["odd"])
    assert np.all(np.asarray(smc.result.trace.info.nan["x"]) == 0)
    assert 0 < counted.max() < 0.05


def test_infinite_density_is_an_error_that_names_the_site():
    smc = odd_smc()
    message = r"\+inf at site `odd`: .* particles at .*level \d+ \(of 24\).*bound the likelihood"
    with pytest.raises(FloatingPointError, match=message):
        run_odd(1, np.inf, 2.4, smc)
    assert smc.result.trace.info.infinite["odd"].shape == (8, 24)


def test_nan_everywhere_is_an_error_that_keeps_what_was_computed():
    smc = odd_smc()
    with pytest.raises(FloatingPointError, match="every particle of cloud 0 has weight 0 at") as e:
        run_odd(1, np.nan, -1e9, smc)
    assert any("NaN at site `odd`: " in note for note in e.value.__notes__)
    assert not smc.result.completed
    with pytest.raises(RuntimeError):
        smc.get_samples()


def test_a_model_without_diffusion_site_is_tempered():
    """One conjugate pair: evidence and posterior in closed form, no network."""

    def conjugate(y):
        mean = numpyro.sample("mean", dist.Normal(1.0, 2.0))
        numpyro.sample("y", dist.Normal(mean, 0.5).expand([3]), obs=y)

    y, count = np.array([2.9, 3.4, 2.2]), 12
    power = jnp.linspace(0, 1, count) ** 3
    clock = jnp.zeros(count + 1).at[0].set(1)
    scale = {"mean": 1 / jnp.sqrt(0.25 + 12 * power)}
    levels = Level.by_hand(clock, jnp.append(power, 1.0), scale, step_size=0.8)
    smc = nd.SMC(conjugate, nd.Annealed(levels=levels), num_chains=8, progress_bar=False)
    smc.run(jax.random.key(0), y)
    total = 0.25 * np.eye(3) + 4.0
    log_evidence = multivariate_normal.logpdf(y, np.ones(3), total)
    assert abs(smc.log_evidence - log_evidence) < 3.5 * smc.log_evidence_error < 0.2
    variance = 1 / (0.25 + 12)
    mean = variance * (0.25 + 4 * y.sum())
    assert near(weighted(smc, lambda s: s["mean"]), mean, 0.02 * variance**0.5)
    assert near(weighted(smc, lambda s: (s["mean"] - mean) ** 2), variance, 0.05 * variance)
    assert smc.network_evaluations == 0 and smc.result.target == "the posterior"
    assert smc.evidence_is_normalized


@pytest.mark.long
def test_nuts_on_the_same_model_agrees():
    """Nothing here has a closed form: two samplers, one model object, masked data."""
    seen = jnp.array([True, True, False, True, True])
    y = jnp.array([0.4, 1.1, jnp.nan, 0.6, -0.3])

    def model(y=None):
        image = numpyro.sample("image", nd.DiffusionPrior(IMAGE))
        sigma = numpyro.sample("sigma", dist.LogNormal(-1.0, 0.5))
        share = numpyro.sample("share", dist.Beta(2.0, 3.0))
        mean = share * jnp.tanh(image[0]) + (1 - share) * image[1] ** 2
        with numpyro.plate("data", 5), handlers.mask(mask=seen):
            numpyro.sample("y", dist.StudentT(5.0, mean, sigma), obs=y)

    smc = nd.SMC(model, num_particles=1000, num_chains=8, progress_bar=False)
    smc.run(jax.random.key(0), y=y)
    mcmc = MCMC(
        NUTS(model, init_strategy=init_to_sample),
        num_warmup=500,
        num_samples=2000,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(1), y=y)
    draws = mcmc.get_samples(group_by_chain=True)
    for name in ("image", "sigma", "share"):
        for power in (1, 2):
            clouds = weighted(smc, lambda s, n=name, p=power: s[n] ** p)
            ours, theirs = clouds.mean(0), np.asarray(draws[name] ** power)
            error = theirs.std((0, 1)) / np.sqrt(effective_sample_size(theirs))
            error = np.hypot(error, clouds.std(0, ddof=1) / 8**0.5)
            assert np.all(error < 0.1 * theirs.std((0, 1)))
            assert np.all(np.abs(ours - theirs.mean((0, 1))) < 4 * error)
