"""`SMC.update`: more data for a finished run, against one run on all data and against quadrature."""

import pickle
import signal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from assertions import assert_near, by_cloud
from scipy.special import logsumexp
from scipy.stats import halfnorm

import numpyro_diffusion as nd
from numpyro_diffusion import diagnostics
from numpyro_diffusion.ppl import smc as smc_module
from numpyro_diffusion.ppl.update import check_can_update
from numpyro_diffusion.smc import engine

WEIGHTS, MEANS = [0.3, 0.7], [[-2.0, 0.5], [1.0, -0.5]]
COVARIANCES = [[[0.5, 0.2], [0.2, 0.3]], [[0.2, -0.1], [-0.1, 0.6]]]
PRIOR = nd.GaussianMixture(WEIGHTS, MEANS, COVARIANCES)
NUM = 40
H = np.random.default_rng(0).normal(size=(NUM, 2))
Y = H @ [0.7, -0.2] + 0.6 * np.random.default_rng(1).normal(size=NUM)
BATCHES = range(4, NUM + 4, 4)


def model(design, seen, y=None):
    x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
    sigma = numpyro.sample("sigma", dist.HalfNormal(0.5))
    numpyro.sample("y", dist.Normal(design @ x, sigma).mask(seen), obs=y)


def first(n, sign=1.0):
    """Arguments of the model with the first `n` data."""
    return H, np.arange(NUM) < n, sign * Y


def exact(n, sign=1.0, num_grid=500):
    """Log evidence, mean and standard deviation of (x, sigma), by a sum over the noise level."""
    noise = float(PRIOR.schedule.noise_level(jnp.asarray(PRIOR.t_min))) ** 2
    step = 3 / num_grid
    grid, h, y = step * (np.arange(num_grid) + 0.5), H[:n], sign * Y[:n]
    terms, firsts, seconds = [], [], []
    for weight, mean, covariance in zip(WEIGHTS, MEANS, COVARIANCES, strict=True):
        s, rest = np.asarray(covariance) + noise * np.eye(2), y - h @ mean
        total = h @ s @ h.T + grid[:, None, None] ** 2 * np.eye(n)
        gain = np.linalg.solve(total, np.broadcast_to(h @ s, (num_grid, n, 2)))  # (grid, n, 2)
        m = mean + np.einsum("gnd,n->gd", gain, rest)
        log_det = np.linalg.slogdet(total)[1] + n * np.log(2 * np.pi)
        square = np.linalg.solve(total, np.broadcast_to(rest[:, None], (num_grid, n, 1)))[..., 0]
        term = halfnorm.logpdf(grid, scale=0.5) - 0.5 * (log_det + square @ rest)
        variance = np.diag(s) - np.einsum("gnd,nd->gd", gain, h @ s)
        terms.append(np.log(weight * step) + term)
        firsts.append(np.column_stack([m, grid]))
        seconds.append(np.column_stack([m**2 + variance, grid**2]))
    log_evidence = logsumexp(terms)
    share = np.exp(np.concatenate(terms) - log_evidence)
    mean = share @ np.concatenate(firsts)
    return log_evidence, mean, np.sqrt(share @ np.concatenate(seconds) - mean**2)


def new(num_particles=1000, **settings):
    scheme = nd.Annealed(pilot=nd.schemes.Pilot(conditional_ess=0.9))
    return nd.SMC(model, scheme, num_particles=num_particles, progress_bar=False, **settings)


@pytest.fixture(scope="module")
def grown():
    """Ten batches, with the log evidence and the error after each."""
    smc = new(3000).run(jax.random.key(0), *first(BATCHES[0]))
    history = [(smc.log_evidence, smc.log_evidence_error)]
    for n in BATCHES[1:]:
        smc.update(*first(n))
        history.append((smc.log_evidence, smc.log_evidence_error))
    return smc, history


def site_means(smc):
    return by_cloud(smc, lambda s: np.concatenate([s["x"], s["sigma"][..., None]], -1))


def test_ten_batches_are_one_run_and_the_truth(grown):
    smc, history = grown
    for n, (log_evidence, error) in zip(BATCHES[::3], history[::3], strict=True):
        assert abs(log_evidence - exact(n)[0]) < min(0.1, 3 * error)
    log_evidence, mean, sd = exact(NUM)
    assert abs(smc.log_evidence - log_evidence) < 0.05
    assert_near(site_means(smc), mean, 0.05 * sd)
    spread = by_cloud(
        smc, lambda s: (np.concatenate([s["x"], s["sigma"][..., None]], -1) - mean) ** 2
    )
    assert_near(spread, sd**2, 0.1 * sd**2)
    assert smc.result.exact and smc.evidence_is_normalized


@pytest.mark.long
def test_one_run_on_all_data_agrees(grown):
    smc, _ = grown
    sd = exact(NUM)[2]
    once = new(3000).run(jax.random.key(1), *first(NUM))
    assert abs(once.log_evidence - smc.log_evidence) < 0.05 + 2 * once.log_evidence_error
    assert_near(site_means(once), site_means(smc).mean(0), 0.05 * sd)
    assert smc.result.target == once.result.target


def test_increments_are_prequential_scores(grown):
    smc, history = grown
    assert len(smc.increments) == len(BATCHES) - 1
    truth = np.diff([exact(n)[0] for n in BATCHES])
    gains, errors, levels = np.asarray(smc.increments).T
    assert (np.abs(gains - truth) < 3.5 * errors).all()
    # Neither far too small nor far too large: a chi square of nine numbers.
    assert 1.0 < np.sum((gains - truth) ** 2 / errors**2) < 25.0
    assert (errors < [error for _, error in history[1:]]).all()
    assert np.isclose(history[0][0] + gains.sum(), smc.log_evidence)
    assert levels.min() >= 2


def test_each_cloud_goes_on_from_its_own_particles(grown):
    smc, _ = grown
    before, evaluations = smc.result, smc.network_evaluations
    smc = pickle.loads(pickle.dumps(smc))
    smc.update(*first(NUM))  # the same data: nothing is gained
    after = smc.result
    # Nothing but rounding: weights, evidence and families of every cloud are as they were.
    np.testing.assert_allclose(after.log_evidence, before.log_evidence, atol=1e-9)
    np.testing.assert_allclose(after.log_weights, before.log_weights, atol=1e-9)
    np.testing.assert_array_equal(after.state.ancestors, before.state.ancestors)
    assert abs(smc.increments[-1].log_evidence) < 1e-9 and smc.increments[-1].error < 1e-9
    assert after.num_levels_run == 2
    # Of each cloud some particles, whose moves were all turned down, stand where they were.
    old, new = (np.asarray(r.positions["x"]) for r in (before, after))
    stayed = np.isclose(old, new, rtol=1e-9).all(-1).mean(1)
    assert ((0.0 < stayed) & (stayed < 0.5)).all(), f"shares {stayed} of the clouds stayed"
    # One at the start; at both levels one for the weight and one after the moves of sigma; two moves of two
    # steps at the second.
    assert smc.network_evaluations - evaluations == 4 * 3000 * (1 + 2 * 2 + 2 * 2)


def test_summary_and_arviz_tell_of_updates(grown, capsys):
    smc, _ = grown
    smc.print_summary()
    words = capsys.readouterr().out
    gain, error, levels = smc.increments[-1]
    assert f"update 9: log p(new data | old data) {gain:.3f} +- {error:.3f} nats" in words
    assert f"{levels} levels of the last update" in words and "target: the posterior" in words
    data = smc.to_arviz(predictive=False)
    attributes = data["posterior"].attrs
    np.testing.assert_allclose(
        attributes["log_evidence_increments"], [one.log_evidence for one in smc.increments]
    )
    assert float(data["observed_data"]["y"].isel({"y_dim_0": -1})) == Y[-1]


@pytest.mark.long
def test_other_data_and_fewer():
    smc = new().run(jax.random.key(2), *first(12))
    smc.update(*first(12, sign=-1.0))  # the other side of the prior
    assert len(smc.increments) == 1 and smc.increments[0].num_levels > 4
    log_evidence, mean, sd = exact(12, -1.0)
    assert abs(smc.log_evidence - log_evidence) < 4 * smc.log_evidence_error + 0.05
    with pytest.warns(UserWarning, match="the new data are 4 numbers where the old ones were 12"):
        smc.update(*first(4, sign=-1.0))
    log_evidence, mean, sd = exact(4, -1.0)
    assert abs(smc.log_evidence - log_evidence) < 4 * smc.log_evidence_error + 0.05
    assert_near(site_means(smc), mean, 0.1 * sd)


@pytest.mark.long
def test_waste_free_clouds_go_on():
    smc = new(500, chain_length=5).run(jax.random.key(3), *first(12))
    smc.update(*first(24))
    log_evidence, mean, sd = exact(24)
    gain = log_evidence - exact(12)[0]
    assert abs(smc.log_evidence - log_evidence) < 4 * smc.log_evidence_error + 0.02
    assert abs(smc.increments[0].log_evidence - gain) < 4 * smc.increments[0].error
    assert smc.increments[0].error < smc.log_evidence_error
    assert_near(site_means(smc), mean, 0.1 * sd)


def test_an_interrupted_update_goes_on_and_a_failed_one_leaves_no_trace(grown, monkeypatch):
    smc, _ = grown
    start = pickle.loads(pickle.dumps(smc))
    whole = pickle.loads(pickle.dumps(smc))
    with pytest.warns(UserWarning, match="12 numbers"):
        whole.update(*first(12, -1.0))
    run = engine.run_chunk

    def interrupted(*arguments):
        answer = run(*arguments)
        signal.raise_signal(signal.SIGINT)
        return answer

    monkeypatch.setattr(engine, "run_chunk", interrupted)
    with pytest.warns(UserWarning, match="12 numbers"), pytest.raises(KeyboardInterrupt):
        start.update(*first(12, -1.0))
    monkeypatch.undo()
    assert not start.result.completed and len(start.increments) == len(smc.increments)
    with pytest.raises(RuntimeError, match="call `resume"):
        start.update(*first(20))
    start = pickle.loads(pickle.dumps(start)).resume()
    np.testing.assert_array_equal(start.result.log_evidence, whole.result.log_evidence)
    assert start.increments == whole.increments

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(smc_module, "between", interrupt)
    before = whole.result
    with pytest.raises(KeyboardInterrupt):
        whole.update(*first(20))
    assert whole.result is before and whole.increments == start.increments
    assert whole._arguments[0][1].sum() == 12


def plain(y, size=2, scale=1.0):
    """No diffusion site: the sites, or the data's bounds, depend on arguments."""
    with numpyro.plate("sites", size):
        theta = numpyro.sample("theta", dist.HalfNormal(scale))
    numpyro.sample("y", dist.Uniform(0.0, theta.sum()).expand([len(y)]), obs=y)


def test_bounds_that_data_push_and_refusals():
    """Uniform data under an unknown bound: the posterior narrows to where all of them are possible."""
    y = np.array([0.3, 1.1, 0.7, 1.4])
    smc = nd.SMC(plain, nd.LikelihoodTempered(), num_particles=2000, progress_bar=False)
    with pytest.raises(RuntimeError, match="call `run` with a key first"):
        smc.update(y)
    smc.run(jax.random.key(0), y[:2], size=1)
    smc.update(y, size=1)
    grid = np.linspace(1.4, 8.0, 200_001)
    density = halfnorm.pdf(grid) / grid ** len(y)
    truth = np.trapezoid(density, grid)
    assert abs(smc.log_evidence - np.log(truth)) < 3 * smc.log_evidence_error
    samples = smc.get_samples()["theta"]
    assert samples.min() >= 1.4
    assert abs(samples.mean() - np.trapezoid(grid * density, grid) / truth) < 0.02
    before = smc.result
    with pytest.warns(UserWarning, match="2 numbers where the old ones were 4"):
        with pytest.raises(ValueError, match="values that the old ones rule out.*from the start"):
            smc.update(y[:2], size=1)
    with pytest.raises(ValueError, match="every particle is impossible under the new data"):
        smc.update(np.array([*y, 900.0]), size=1)
    with pytest.raises(ValueError, match=r"expects.*`theta` of shape \(1,\).*got.*\(2,\).*start"):
        smc.update(y, size=2)
    with pytest.raises(ValueError, match="not finite"):
        smc.update(np.array([*y, np.nan]), size=1)
    assert smc.result is before and len(smc.increments) == 1


def test_refuses_heuristics_path_space_and_other_priors():
    def gaussian(energy, y):
        x = numpyro.sample("x", nd.DiffusionPrior(energy))
        numpyro.sample("y", dist.Normal(x[0], 1.0), obs=y)

    prior, scheme = nd.Gaussian([0.0], [[1.0]]), nd.Annealed(levels=3)
    smc = nd.SMC(gaussian, scheme, num_particles=8, num_chains=1, progress_bar=False)
    smc.run(jax.random.key(0), prior, 0.5)
    with pytest.raises(ValueError, match="expects the prior of the run at site `x`"):
        smc.update(nd.Gaussian([0.0], [[2.0]]), 0.5)
    claims = smc.result.claims
    model = nd.FeynmanKac(None, None, None, None, claims=claims)
    heuristic = smc.result._replace(claims=nd.smc.unweighted(model._replace(init=id)).claims)
    with pytest.raises(ValueError, match="got those of a heuristic.*`nd.Annealed"):
        check_can_update(scheme, smc.bridge, heuristic)
    path = nd.from_model(gaussian, prior, 0.5, bridge_type=nd.bridge.PathBridge)
    with pytest.raises(ValueError, match="`Twisted` does not know.*`nd.Annealed"):
        check_can_update(nd.Twisted(), path, smc.result)
    other = smc.result._replace(claims=claims._replace(target="another law"))
    with pytest.raises(ValueError, match="expects a run whose target is .*got one of: another law"):
        check_can_update(scheme, smc.bridge, other)


def test_increment_error_is_that_of_a_ratio():
    """Two clouds of importance weights, whose families are their particles, against repetition."""
    rng = np.random.default_rng(0)

    class Result:
        chain_length, weighted = None, True

        def __init__(self, log_weights):
            self.log_weights = log_weights
            self.log_evidence = logsumexp(log_weights, axis=1) - np.log(log_weights.shape[1])
            self.state = type("State", (), {})()
            self.state.ancestors = np.tile(np.arange(log_weights.shape[1]), (len(log_weights), 1))
            w = np.exp(log_weights - logsumexp(log_weights, axis=1, keepdims=True))
            self.log_evidence_error = np.sqrt(np.sum((w - 1 / w.shape[1]) ** 2, 1))

    gains, errors = [], []
    for _ in range(400):
        z = rng.normal(size=(2, 400))
        before, after = Result(0.8 * z), Result(0.8 * z + 0.4 * (z + rng.normal(size=z.shape)))
        pooled = [logsumexp(r.log_evidence) for r in (after, before)]
        gains.append(pooled[0] - pooled[1])
        errors.append(diagnostics.log_increment_error(before, after))
    # Of two clouds the larger of two estimates: above the truth on average, and not by much.
    assert 0.95 < np.mean(errors) / np.std(gains) < 1.5
