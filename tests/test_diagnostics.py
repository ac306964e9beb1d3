"""What a run says about itself: errors against simulation, tables, verdicts, named bad values."""

import functools
import inspect
from typing import NamedTuple

import arviz as az
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

import numpyro_diffusion as nd
from numpyro_diffusion import diagnostics, plots
from numpyro_diffusion.bridge import DensitySite
from numpyro_diffusion.schemes.levels import Level
from numpyro_diffusion.schemes.particle import Info
from numpyro_diffusion.smc import Claims, SMCResult, SMCState, Trace

ENERGY = nd.GaussianMixture()
OLD_ARVIZ = int(az.__version__.split(".")[0]) < 1


def made_up(log_evidence=(0.1, 0.0, -0.1, 0.05), num_particles=512, num_levels=31, **changes):
    """A healthy result with some leaves changed."""
    clouds = len(log_evidence)
    full = functools.partial(np.full, (clouds, num_levels))
    nothing = {"x": np.zeros(clouds), "y": np.zeros(clouds)}
    later = {"x": full(0.0), "y": full(0.0)}
    info = Info(full(0.6), full(0.55), later, later, later)
    trace = Trace(full(0.8), full(0.95), full(0.0), full(False), full(200), info)
    weights = np.zeros((clouds, num_particles))
    result = SMCResult(
        positions={"x": weights},
        log_weights=weights,
        log_evidence=np.array(log_evidence),
        log_evidence_error=np.full(clouds, 0.1),
        initial_info=Info(np.ones(clouds), np.ones(clouds), nothing, nothing, nothing),
        trace=trace,
        levels={"clock": np.linspace(1, 0, num_levels)},
        claims=Claims("the posterior"),
        completed=True,
        state=SMCState(None, {}, weights, *[np.zeros(clouds)] * 7),
        num_levels_run=num_levels,
    )
    for name, value in changes.items():
        if name in Info._fields:
            info = result.trace.info._replace(**{name: value})
            result = result._replace(trace=result.trace._replace(info=info))
        elif name in Trace._fields:
            result = result._replace(trace=result.trace._replace(**{name: value}))
        else:
            result = result._replace(**{name: value})
    alone = np.broadcast_to(np.arange(np.shape(result.log_weights)[1]), result.log_weights.shape)
    state = result.state._replace(
        ancestors=alone, prior_family=np.ones_like(alone) / alone.shape[1]
    )
    return result._replace(state=state)


def changed(values, place, value):
    values = np.array(values)
    values[place] = value
    return values


# ---- the error of the log evidence


@pytest.mark.parametrize("relative_sd", [0.05, 0.3])
def test_log_evidence_error_is_the_spread_of_the_estimate(rng, relative_sd):
    sd = np.sqrt(np.log1p(relative_sd**2))
    draws = rng.normal(-(sd**2) / 2, sd, size=(4000, 4))  # Z has mean 1
    spread = np.log(np.exp(draws).mean(1)).std()
    honest = np.full(4, relative_sd)
    results = [made_up(row, num_levels=1, log_evidence_error=honest) for row in draws]
    errors = np.array([diagnostics.log_evidence_error(result) for result in results])
    # The larger of two estimates: a little too careful, never careless.
    assert 1.0 < np.sqrt(np.mean(errors**2)) / spread < 1.35
    blind = [result._replace(log_evidence_error=np.zeros(4)) for result in results]
    errors = np.array([diagnostics.log_evidence_error(result) for result in blind])
    # Genealogies that promise no error at all are refuted: Student's quantile of 3 degrees of freedom.
    assert abs(np.sqrt(np.mean(errors**2)) / spread / (3.182 / 1.960) - 1) < 0.05


def skewed_run(rng, scale, clouds=4, particles=128):
    """Clouds of independent particles with log-normal weights, of mean 1."""
    logs = scale * rng.normal(size=(clouds, particles)) - scale**2 / 2
    mean = np.exp(logs).mean(1)
    own = np.exp(logs).std(1) / mean / particles**0.5
    return made_up(np.log(mean), log_weights=logs, log_evidence_error=own)


def test_errors_are_wider_where_few_families_hold_much(rng):
    """Without the rare large weights an evidence is low and its error small, both at once."""
    runs = [skewed_run(rng, 2.0) for _ in range(1500)]
    estimates = np.array([np.log(np.exp(run.log_evidence).mean()) for run in runs])
    errors = np.array([diagnostics.log_evidence_error(run) for run in runs])
    shares = np.array([np.exp(run.log_evidence) / np.exp(run.log_evidence).sum() for run in runs])
    plain = np.sqrt(
        [np.sum((w * r.log_evidence_error) ** 2) for w, r in zip(shares, runs, strict=True)]
    )
    plain = np.maximum(plain, 4 * shares.std(1, ddof=1) / 2)
    too_low = lambda error: np.mean(estimates < -1.96 * error)
    # 2.5 % is right, 11 % and 5.5 % are seen: some shares are too rare to be among 512.
    assert too_low(plain) > 0.085 and too_low(errors) < 0.075
    assert np.mean(estimates > 1.96 * errors) < 0.01
    assert np.sqrt(np.mean((estimates / errors) ** 2)) < 1.1


def test_verdict_says_where_few_families_hold_much():
    run = made_up()
    one = np.arange(512)

    def of(size):  # two large families in each cloud, the others alone
        return np.tile(np.where(one < 2 * size, one // size, one), (4, 1))

    words = diagnostics.verdict(run._replace(state=run.state._replace(ancestors=of(64))))
    assert words.startswith("A few families hold much of the evidence (skewness 0.3")
    assert "more likely too low" in words and len(words.splitlines()) == 1
    words = diagnostics.verdict(run._replace(state=run.state._replace(ancestors=of(4))))
    assert "Nothing to worry about" in words


def test_log_evidence_error_of_one_cloud_is_its_own():
    result = made_up([-3.0], log_evidence_error=np.array([0.2]))
    # Of as many as 1 / 0.04 families; Student's 97.5 % quantile is 2.07 there.
    assert diagnostics.log_evidence_error(result) == pytest.approx(0.2 * 2.066 / 1.960, rel=2e-3)


def test_errors_are_wide_where_few_families_are_left():
    """Two families know their spread as two numbers do: 12.7 standard errors, where many have 1.96."""
    two = made_up([-3.0], log_evidence_error=np.sqrt([0.5 - 1 / 512]))
    wide = 12.706 / 1.960 * 0.5**0.5
    assert diagnostics.log_evidence_error(two) == pytest.approx(wide, rel=5e-3)
    one = made_up([-3.0], log_evidence_error=np.ones(1))
    assert 10 < diagnostics.log_evidence_error(one) < 1000
    many = made_up([-3.0], log_evidence_error=np.array([0.02]))
    assert diagnostics.log_evidence_error(many) == pytest.approx(0.02, rel=5e-3)


def test_clouds_that_agree_by_chance_do_not_shrink_the_error():
    alike = made_up([-3.0, -3.0], log_evidence_error=np.full(2, 0.2))
    assert diagnostics.log_evidence_error(alike) == pytest.approx(0.211 / 2**0.5, rel=5e-3)
    assert "2 are few clouds" in diagnostics.verdict(alike)
    assert "few clouds" not in diagnostics.verdict(made_up(np.zeros(8)))


def test_log_evidence_error_counts_clouds_by_their_evidence():
    """A cloud with a vanishing share of the evidence has a vanishing share of the own error."""
    result = made_up([0.0, 0.0, -800.0], log_evidence_error=np.array([0.1, 0.1, 50.0]))
    # 1, 1, 0 across the clouds, further apart than their own errors say: three numbers are all there is.
    expected = 0.5 * 4.303 / 1.960
    assert diagnostics.log_evidence_error(result) == pytest.approx(expected, rel=1e-3)
    shifted = result._replace(log_evidence=result.log_evidence + 1e4)
    assert diagnostics.log_evidence_error(shifted) == pytest.approx(expected, rel=1e-3)


def test_log_evidence_error_where_one_cloud_counts_for_all():
    """The mean of 1, 0, 0, 0 has a standard error of a quarter of 4, whatever the noughts are logs of."""
    gaps = np.array([0.0, -12.0, -18.0, -15.0])
    result = made_up(gaps, log_evidence_error=np.full(4, 0.3))
    expected = (
        gaps.std(ddof=1) / 2 * 3.182 / 1.960
    )  # of four numbers, since genealogies are refuted
    assert diagnostics.log_evidence_error(result) == pytest.approx(expected, rel=1e-3)
    near = made_up(gaps / 10, log_evidence_error=np.full(4, 0.3))
    shares = np.exp(gaps / 10) / np.exp(gaps / 10).mean()
    expected = shares.std(ddof=1) / 2 * 3.182 / 1.960
    assert diagnostics.log_evidence_error(near) == pytest.approx(expected, rel=1e-3)


# ---- R-hat and the table


def test_r_hat_is_that_of_arviz(rng):
    values = rng.normal(size=(4, 500, 2))
    values[3, :, 0] += 2.0  # one cloud elsewhere
    values[2, :, 1] *= 5.0  # one that is wider, which means do not show
    names = {"x": values}
    expected = az.rhat(
        az.from_dict(posterior=names) if OLD_ARVIZ else az.from_dict({"posterior": names})
    )
    expected = np.asarray(expected["x"])
    assert (expected > 1.1).all()
    np.testing.assert_allclose(diagnostics.r_hat(values), expected, rtol=1e-6)
    np.testing.assert_allclose(diagnostics.r_hat(5 - 3 * values), expected, rtol=1e-3)
    np.testing.assert_allclose(diagnostics.r_hat(rng.normal(size=(4, 2000))), 1.0, atol=0.01)


def test_r_hat_is_missing_where_it_means_nothing(rng):
    assert np.isnan(diagnostics.r_hat(rng.normal(size=(1, 50))))
    assert np.isnan(diagnostics.r_hat(np.ones((3, 50))))
    assert np.isnan(diagnostics.r_hat(rng.normal(size=(4, 3))))
    assert diagnostics.r_hat(np.zeros((2, 9, 0, 3))).shape == (0, 3)
    apart = np.arange(3.0)[:, None] + 1e-9 * rng.normal(size=(3, 50))
    assert diagnostics.r_hat(apart) > 2


def rows(table):
    head, *lines = table.splitlines()
    columns = head.split()
    split = (line.split() for line in lines if "more" not in line)
    return {name: dict(zip(columns, cells, strict=True)) for name, *cells in split}


def test_summary_table(rng):
    x, sigma = rng.normal(size=(4, 500, 2, 3)), rng.gamma(2.0, size=(4, 500))
    grouped = {"sigma": sigma, "x": x, "count": rng.integers(0, 5, size=(4, 500))}
    table = rows(diagnostics.summary_table(grouped, 0.8, 24))
    assert list(table) == [
        "sigma", "x[0,0]", "x[0,1]", "x[0,2]", "x[1,0]", "x[1,1]", "x[1,2]", "count",
    ]  # fmt: skip
    assert list(table["sigma"]) == ["mean", "sd", "median", "10.0%", "90.0%", "mcse", "r_hat"]
    for name, values in {"sigma": sigma, "x[1,2]": x[..., 1, 2]}.items():
        low, median, high = np.quantile(values, [0.1, 0.5, 0.9])
        error = values.mean(1).std(ddof=1) / 2
        numbers = [values.mean(), values.std(), median, low, high, error, 1.0]
        shown = [float(cell) for cell in table[name].values()]
        np.testing.assert_allclose(shown, numbers, rtol=5e-3, atol=5e-3)


def test_the_error_of_a_mean_has_families_for_a_floor(rng):
    """Families of ten draws each that are all alike: as many independent numbers as there are families."""
    means = rng.normal(size=(4, 100))
    means -= means.mean(1, keepdims=True)  # clouds that agree by chance
    values, families = np.repeat(means, 10, 1), np.repeat(np.arange(100)[None], 4, 0).repeat(10, 1)
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    told = lambda **more: float(
        rows(diagnostics.summary_table({"x": values}, 0.8, 24, shares, **more))["x"]["mcse"]
    )
    parts = shares[:, None] * means / 100
    expected = np.sqrt(np.sum(parts**2) * 1000 / 999)
    count = 1 / np.sum((shares[:, None] / 100 * np.ones_like(means)) ** 2)
    expected *= stats.t.ppf(0.975, count - 1) / stats.norm.ppf(0.975)
    expected *= 1 + 0.738 * abs(np.sum(parts**3)) / np.sum(parts**2) ** 1.5
    assert told() < 1e-10
    np.testing.assert_allclose(told(families=families), expected, rtol=6e-3)
    alone = np.arange(1000)[None].repeat(
        4, 0
    )  # families of one: the usual error of independent draws
    independent = np.sqrt(np.sum(shares**2 * values.var(1, ddof=1) / 1000))
    np.testing.assert_allclose(told(families=alone), independent, rtol=6e-3)


def test_the_error_of_a_mean_is_that_of_the_clouds_where_they_refute_families(rng):
    """Each cloud has one of two modes: its draws look independent, and four numbers are all there is."""
    values = rng.normal(size=(4, 1000, 2)) + np.array([0.0, 5.0, 0.0, 5.0])[:, None, None] * [
        1.0,
        0.0,
    ]
    alone = np.arange(1000)[None].repeat(4, 0)
    table = rows(diagnostics.summary_table({"x": values}, families=alone))
    apart = values[..., 0].mean(1).std(ddof=1) / 2 * 3.182 / 1.960
    assert float(table["x[0]"]["mcse"]) == pytest.approx(apart, rel=6e-3)
    assert float(table["x[1]"]["mcse"]) < 2.5 / 4000**0.5  # four clouds, by chance


def test_summary_table_counts_clouds_by_their_shares(rng):
    """All columns are those of the law of two clouds in proportion 9 to 1."""
    values = np.stack([rng.normal(0.0, 1.0, 4000), rng.normal(3.0, 1.0, 4000)])
    row = rows(diagnostics.summary_table({"x": values}, 0.8, 24, np.array([0.9, 0.1])))["x"]
    both = np.concatenate([np.repeat(values[0], 9), values[1]])
    low, median, high = np.quantile(both, [0.1, 0.5, 0.9])
    error = np.sqrt(2 * np.sum((np.array([0.9, 0.1]) * (values.mean(1) - both.mean())) ** 2))
    shown = [float(cell) for cell in row.values()][:-1]
    expected = [both.mean(), both.std(), median, low, high, error]
    np.testing.assert_allclose(shown, expected, rtol=6e-3, atol=6e-3)


def test_summary_table_keeps_long_sites_short(rng):
    values = np.arange(64.0).reshape(8, 8) + 0.1 * rng.normal(size=(2, 100, 8, 8))
    table = diagnostics.summary_table({"image": values}, 0.9, 12)
    lines = table.splitlines()
    assert len(lines) == 14
    assert lines[12].split()[0] == "image[1,3]"
    assert "52 more, means in [12, 63], worst r_hat 1.0" in lines[-1]


def test_summary_table_of_one_cloud(rng):
    row = rows(diagnostics.summary_table({"x": rng.normal(size=(1, 50))}))["x"]
    assert row["mcse"] == row["r_hat"] == "-"
    with pytest.raises(ValueError, match="probability of an interval"):
        diagnostics.summary_table({}, prob=90)


@pytest.mark.parametrize("shape", [0.2, 0.5, 1.1])
def test_pareto_shape_of_weights_with_a_known_tail(shape):
    """Weights exp(k e) with exponential e have the tail index k."""
    draws = np.random.default_rng(0).exponential(size=(8, 20_000))
    found = diagnostics.pareto_k(made_up()._replace(log_weights=shape * draws))
    assert found.shape == (8,) and abs(found.mean() - shape) < 0.1
    assert np.isnan(diagnostics.pareto_k(made_up())).all()  # equal weights have no tail


# ---- the verdict


def test_verdict_of_a_good_run():
    words = diagnostics.verdict(made_up())
    assert "Nothing to worry about" in words
    assert "at least 200 of 512" in words
    assert "within 0.20 nats" in words
    alone = diagnostics.verdict(made_up([0.0]))
    assert "one cloud cannot be checked" in alone


ANCESTORS = np.full((4, 31), 200)
SHARES = np.full((4, 31), 0.95)
FINDINGS = {
    "collapse": (
        {"unique_ancestors": changed(ANCESTORS, np.s_[2, 20:], 3)},
        ["Cloud 2 collapsed at level 21: 3 of 512 starting particles", "more particles"],
    ),
    "small for its levels": (
        {"unique_ancestors": np.full((4, 61), 17), "ess": np.full((4, 61), 0.8)},
        ["small for 61 levels: 17 of 512 starting particles", "more particles"],
    ),
    "steep level": (
        {"conditional_ess": changed(SHARES, np.s_[1, 11], 0.08)},
        ["Level 12 kept 8% of a cloud's effective sample size", "95%", "conditional_ess"],
    ),
    "final weights": (
        {"ess": changed(SHARES, np.s_[3, -1], 0.03)},
        ["final effective sample size is 3.0% of a cloud"],
    ),
    "heavy tail": (
        {"log_weights": 1.2 * np.random.default_rng(0).exponential(size=(4, 2000))},
        ["heavy tail (Pareto shape 1.", "conditional_ess"],
    ),
    "clouds apart": (
        {"log_evidence": np.array([0.0, 0.1, -3.0, 0.0])},
        ["disagree on the log evidence", "1.3 nats"],
    ),
    "low acceptance": (
        {"acceptance": changed(SHARES - 0.35, np.s_[:, 7], 0.02)},
        ["The moves accept 2% at level 8 (60% typically)", "more `moves`"],
    ),
    "high acceptance": (
        {"other_acceptance": SHARES + 0.04},
        ["moves of the other sites accept 99%", "num_other"],
    ),
    "interrupted": (
        {"completed": False, "num_levels_run": 12},
        ["Not finished: 12 of 31 levels", "resume"],
    ),
    "narrower than its floats": (
        {
            "positions": {
                "x": (0.7 + 1e-6 * np.linspace(-1, 1, 4 * 512).reshape(512, 4).T).astype("f4")
            }
        },
        ["site `x` is", "units in the last place", "float32", "jax_enable_x64"],
    ),
    "a large constant": (
        {"log_evidence": np.array([1e8, 1e8, 1e8, 1e8], "f4")},
        ["as large as 1e+08", "8 nats apart", "Leave constants out"],
    ),
    "not a number": (
        {"nan": {"y": changed(0 * SHARES, np.s_[0, 4], 1 / 512)}},
        ["Log density NaN at site `y`: 1 of 2048 particles at level 5 (of 31)."],
    ),
}


def test_verdict_says_where_clouds_refute_their_families(rng):
    """Evidences agree, and a mode has half of two clouds and none of the others."""
    weights = np.where(np.arange(512) < 256, 0.0, -0.7)
    values = rng.normal(size=(4, 512, 2, 2))
    values[:2, :256, 1, 0] += 1.0
    words = diagnostics.verdict(made_up(positions={"y": np.zeros((4, 512)), "x": values}))
    assert words.startswith(
        "The clouds differ by more than their families explain, in the mean of `x[1, 0]`"
    )
    assert "across clouds is 0.3" in words and "0.04" in words and len(words.splitlines()) == 1
    # Few families are no proof of anything: those of a cloud are one number each.
    few = made_up(positions={"x": values}, log_weights=np.tile(weights, (4, 1)))
    few = few._replace(state=few.state._replace(ancestors=np.tile(np.arange(512) // 256, (4, 1))))
    assert "differ by more" not in diagnostics.verdict(few)
    one = made_up(positions={"x": values})  # and of one family nothing is known
    one = one._replace(state=one.state._replace(ancestors=np.zeros((4, 512), int)))
    assert "differ by more" not in diagnostics.verdict(one)
    # Nor do chains of a last level know of the levels before.
    assert "differ by more" not in diagnostics.verdict(
        made_up(positions={"x": values})._replace(chain_length=2)
    )
    rounding = made_up(1e-6 * np.arange(4.0), log_evidence_error=np.full(4, 1e-9))
    assert "differ by more" not in diagnostics.verdict(rounding)
    evidences = made_up([0.0, 0.1, -0.3, 0.2], log_evidence_error=np.full(4, 0.02))
    assert "explain, in the log evidence" in diagnostics.verdict(evidences)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_verdict_seldom_says_that_equal_clouds_differ(rng, offset):
    """A verdict on forty numbers, none of which differ but by chance: one in a thousand may be wrong."""
    wrong = 0
    for _ in range(500):
        values = offset + rng.standard_t(4, size=(4, 128, 40))
        values[..., 0] = 3.0  # the same everywhere
        run = made_up([0.02, 0.0, -0.02, 0.01], 128, positions={"x": values})
        wrong += "differ by more" in diagnostics.verdict(run)
    assert wrong <= 4  # with probability 0.998 if one in a thousand is


@pytest.mark.parametrize("name", FINDINGS)
def test_verdict_names_what_is_wrong_and_nothing_else(name):
    changes, expected = FINDINGS[name]
    words = diagnostics.verdict(made_up(**changes))
    for phrase in expected:
        assert phrase in words
    assert len(words.splitlines()) == 1
    assert "Nothing to worry about" not in words


def test_verdict_cannot_promise_on_a_surface_of_steps(rng):
    """Gradients vanish, and steps that no particle has met may hold the posterior."""
    result = made_up(positions={"x": rng.normal(size=(4, 512, 2))})
    steps = nd.from_energy(ENERGY, lambda x: 3.0 * jnp.floor(x[0]))
    words = diagnostics.verdict(result, steps)
    assert "site `likelihood` takes" in words and "Nothing to worry about" not in words
    for calm in (lambda x: 3.0 * x[0], lambda x: jnp.where(x[0] > 0.5, -jnp.inf, 0.0), None):
        assert "Nothing to worry about" in diagnostics.verdict(result, nd.from_energy(ENERGY, calm))


def test_verdict_says_where_there_are_no_data(rng):
    """A model whose `obs=` was forgotten runs, and its draws are those of the prior."""

    def model(y=None):
        x = numpyro.sample("x", nd.DiffusionPrior(ENERGY))
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    run = made_up(positions={name: rng.normal(size=(4, 512, 2)) for name in "xy"})
    for y, says in ((None, True), (np.zeros(ENERGY.shape), False)):
        words = diagnostics.verdict(run, nd.from_model(model, y))
        assert words.startswith("No site is observed") == says
    with_factor = nd.from_energy(ENERGY, lambda x: -jnp.sum(x**2))
    assert "No site is observed" not in diagnostics.verdict(run, with_factor)


def test_verdict_of_a_waste_free_run_counts_its_chains():
    """Of 64 chains, families that are a third of the levels are enough; ten are few of 512 particles."""
    ancestors = {"unique_ancestors": changed(ANCESTORS, np.s_[2, 20:], 10)}
    assert "10 of 512" in diagnostics.verdict(made_up(**ancestors))
    ancestors = {"unique_ancestors": changed(ANCESTORS, np.s_[2, 20:], 12)}
    words = diagnostics.verdict(made_up(**ancestors)._replace(chain_length=8))
    assert "Nothing to worry about" in words and "12 of 64" in words
    few = {"unique_ancestors": changed(ANCESTORS, np.s_[2, 20:], 2)}
    assert "2 of 64" in diagnostics.verdict(made_up(**few)._replace(chain_length=8))


def test_verdict_without_reports_from_the_scheme():
    """Kernels of the user's own report nothing, and one cloud may come without an axis."""
    result = made_up([0.0])
    trace = result.trace._replace(info={})
    result = result._replace(trace=trace, initial_info={})
    first = jax.tree.map(lambda leaf: np.asarray(leaf)[0], (trace, result.log_evidence))
    single = result._replace(trace=first[0], log_evidence=first[1], log_weights=np.zeros(512))
    for each in (result, single):
        assert diagnostics.non_finite(each, "nan") == ""
        assert "Nothing to worry about" in diagnostics.verdict(each)


def test_verdict_of_a_run_without_levels():
    assert "no level was run" in diagnostics.verdict(made_up(trace=None, completed=False))


# ---- values that are not numbers


def test_non_finite_adds_up_clouds_and_finds_the_worst_level():
    share = np.zeros((4, 31))
    share[:, 3] = 3 / 512
    share[1, 4:7] = 6 / 512
    result = made_up(nan={"x": 0 * share, "y": share})
    assert diagnostics.non_finite(result, "nan") == (
        "site `y`: 12 of 2048 particles at level 4 (of 31), the worst of 4 levels from 4 to 7"
    )
    assert diagnostics.non_finite(result, "infinite") == ""


def test_non_finite_at_the_start():
    result = made_up()
    start = result.initial_info._replace(infinite={"x": np.array([0, 0, 2 / 512, 0])})
    words = diagnostics.non_finite(result._replace(initial_info=start), "infinite")
    assert words == "site `x`: 2 of 2048 particles at the start"


def test_zeros_count_where_noise_is_left():
    """At clock 0 supports are nested."""
    clock = np.concatenate([np.ones(2), np.linspace(1, 0, 30)])
    power = np.concatenate([np.zeros(2), np.ones(30)])
    levels = Level.by_hand(clock, power, {"x": np.ones(31)})
    share = np.zeros((4, 31))
    share[0, 30] = 0.5
    calm = made_up(zero={"x": share}, levels=levels)
    assert "Nothing to worry about" in diagnostics.verdict(calm)
    lost = made_up(zero={"x": share, "hard": changed(share, (2, 5), 3 / 512)}, levels=levels)
    assert "is 0 where noise is left, at site `hard`: 3 of 2048 particles at level 6 (of 31)" in (
        diagnostics.verdict(lost)
    )
    died = lost._replace(num_levels_run=5, completed=False)  # its trace goes on to its death
    assert "3 of 2048 particles at level 6" in diagnostics.verdict(died)


def one_side(y=None):
    x = numpyro.sample("x", nd.DiffusionPrior(ENERGY))
    numpyro.factor("hard", jnp.where(x[0] > 0.8, -jnp.inf, 0.0))
    numpyro.sample("y", dist.Normal(x[0], 1.0), obs=y)


def test_a_hard_set_is_right_where_supports_are_nested_and_named_where_they_are_not(key):
    r"""$p(y, x_0 < 0.8)$ in closed form: the first coordinate is a mixture of two Gaussians."""
    y, weights, means, sds = 0.3, np.array([0.3, 0.7]), np.array([-2.0, 1.0]), np.sqrt([0.5, 0.2])
    total = np.sqrt(sds**2 + 1)
    posterior_mean = (means + y * sds**2) / total**2
    inside = stats.norm.cdf((0.8 - posterior_mean) * total / sds)
    exact = np.log(np.sum(weights * stats.norm.pdf(y, means, total) * inside))
    run = lambda scheme: nd.SMC(
        one_side, scheme, num_particles=1000, num_chains=4, progress_bar=False
    )
    nested = run(nd.LikelihoodTempered())
    nested.run(key, y=y)
    assert abs(nested.log_evidence - exact) < 4 * nested.log_evidence_error, (
        f"log p(y, x < 0.8): expected {exact:.3f}, got {nested.log_evidence:.3f} "
        f"+- {nested.log_evidence_error:.3f}"
    )
    assert "The density is 0" not in diagnostics.verdict(nested.result)
    lossy = run(nd.Annealed(levels=frozen_levels(), moves=1))
    lossy.run(key, y=y)
    assert "The density is 0 where noise is left, at site `hard`" in (
        diagnostics.verdict(lossy.result)
    )
    trace = lossy.to_arviz().smc_trace
    assert float(trace["zero_density"].max()) > 0


def frozen_levels(count=10):
    """Equal steps in log-SNR with scales in closed form: no pilot to wait for."""
    clock = jnp.concatenate([jnp.ones(1), jnp.linspace(1, 0, count), jnp.zeros(1)])
    power = jnp.minimum(jnp.arange(count + 2), 1.0)
    site = DensitySite(ENERGY)
    scale = jax.vmap(lambda c: jnp.sqrt(site.moments(c)[1]))(clock[:-1])
    return Level.by_hand(clock, power, {"x": scale}, step_size=0.4)


def model(bad, y=None):
    x = numpyro.sample("x", nd.DiffusionPrior(ENERGY))
    numpyro.factor("bad", jnp.where(x[0] > 1.5, bad, 0.0))
    numpyro.sample("y", dist.Normal(x[0], 1.0), obs=y)


@pytest.fixture(scope="module")
def smc():
    scheme = nd.Annealed(levels=frozen_levels(), moves=1)
    return nd.SMC(model, scheme, num_particles=300, num_chains=2, progress_bar=False)


def run(smc, key, bad):
    """Arrays, unlike Python numbers, may change without recompilation."""
    return smc.run(key, jnp.asarray(bad), y=jnp.asarray(0.7))


def test_nan_is_reported_by_site_and_level(smc, key):
    with pytest.warns(
        UserWarning, match=r"NaN at site `bad`: \d+ of 600 particles .*level \d+ \(of 11\)"
    ):
        run(smc, key, jnp.nan)
    # Weight 0 is what the warning says: the law is the posterior restricted to the good side.
    x = smc.get_samples()["x"]
    assert x[:, 0].max() <= 1.5
    assert "NaN at site `bad`" in diagnostics.verdict(smc.result)


def test_infinite_density_is_refused_by_site_and_level(smc, key):
    with pytest.raises(FloatingPointError, match=r"\+inf at site `bad`: .*level \d+ \(of 11\)"):
        run(smc, key, jnp.inf)
    assert smc.result.completed  # what was computed stays


def test_good_values_pass_in_silence(smc, key, capsys):
    run(smc, key, -0.5)
    smc.print_summary()
    printed = capsys.readouterr().out
    assert "x[1]" in printed
    assert "log evidence" in printed
    assert diagnostics.verdict(smc.result) in printed


# ---- arguments of a model


def test_array_arguments_by_name():
    def function(design, y, *more, weights=None, link=None, **rest):
        del design, y, more, weights, link, rest

    design, y, flags = np.ones((3, 2)), np.array([1.0, np.nan, 2.0]), jnp.array([True, False])
    found = diagnostics.array_arguments(
        function,
        (design, y, np.arange(3), "text"),
        {"weights": np.full(3, 2.0), "link": np.exp, "extra": flags, "scale": None},
        {"y": jnp.asarray(y)},
    )
    assert list(found) == ["design", "arg2", "weights", "extra"]
    np.testing.assert_array_equal(found["design"], design)
    np.testing.assert_array_equal(found["arg2"], [0, 1, 2])
    assert found["extra"].dtype == bool


def test_array_arguments_leaves_out_keys_and_looks_through_wrappers():
    def function(key, design, y):
        del key, design, y

    seeded = numpyro.handlers.seed(functools.partial(function, jax.random.key(0)), 1)
    assert "design" in inspect.signature(seeded).parameters
    found = diagnostics.array_arguments(seeded, (np.ones(2),), {"y": jax.random.key(1)}, {})
    assert list(found) == ["design"]


# ---- ArviZ in odd cases; the rest is in test_arviz.py


class Levels(NamedTuple):
    next_clock: np.ndarray


def test_to_arviz_keeps_names_and_types_that_netcdf_can_hold():
    result = made_up(num_levels=3)
    result = result._replace(levels=Levels(np.array([0.6, 0.3, 0.0])))
    half = np.ones((4, 5, 2), jnp.bfloat16)
    groups = {"posterior": {"plate/x": half}, "log_likelihood": {"dead": np.zeros((4, 5, 3))}}
    data = diagnostics.to_arviz(groups, result, None, {"exact": True, "scheme": object})
    posterior = data["posterior"]
    assert posterior["plate.x"].dims == ("chain", "draw", "plate.x_dim_0")
    assert posterior["plate.x"].dtype == np.float32
    assert posterior.attrs["exact"] == 1
    assert isinstance(posterior.attrs["scheme"], str)
    assert "t" not in data["smc_trace"]
    assert "power" not in data["smc_trace"]
    np.testing.assert_array_equal(data["smc_trace"]["clock"].values, 4 * [[0.6, 0.3, 0.0]])


# ---- figures


def test_plot_levels_draws_the_trace():
    result = made_up()
    figure = plots.plot_levels(result)
    drawn = np.array([line.get_ydata() for line in figure.axes[0].lines])
    np.testing.assert_array_equal(drawn, result.trace.ess)
    assert len(figure.axes) == 5
    figure = plots.plot_levels(made_up(other_acceptance=np.ones((4, 31))))
    assert len(figure.axes) == 4  # nothing else was moved
    plt.close("all")


def test_plot_images_share_a_colour_scale(rng):
    images = rng.normal(size=(3, 4, 5))
    images[1, 0, 0] = np.nan
    figure = plots.plot_images(images, ["a", "b", "c"], columns=2)
    shown = [ax.images[0] for ax in figure.axes if ax.images]
    assert [image.get_clim() for image in shown] == [(np.nanmin(images), np.nanmax(images))] * 3
    assert [ax.get_title() for ax in figure.axes[:3]] == ["a", "b", "c"]
    plt.close("all")


def test_plot_restoration(rng, tmp_path):
    images, noise = rng.normal(size=(4, 50, 8, 8)), rng.gamma(2.0, size=(4, 50))
    figure = plots.plot_restoration(
        images[0, 0], images[0, 1], images, noise, made_up(), true_noise=0.3
    )
    figure.savefig(tmp_path / "figure.png")
    panels = {ax.get_title(): ax for ax in figure.axes if ax.get_title()}
    mean = panels["posterior mean"].images[0].get_array()
    np.testing.assert_allclose(mean, images.mean((0, 1)))
    np.testing.assert_allclose(panels["posterior sd"].images[0].get_array(), images.std((0, 1)))
    plt.close("all")


def test_plots_say_which_extra_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError) as error:
        plots.plot_levels(made_up())
    assert "numpyro-diffusion[plots]" in error.value.__notes__[0]
