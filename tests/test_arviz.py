"""The ArviZ object of a run, in the form that the installed ArviZ takes: values, not shapes alone."""

import warnings

import arviz as az
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
import xarray as xr
from assertions import counting_programs
from numpyro.infer import Predictive, log_likelihood
from numpyro.infer.util import potential_energy, unconstrain_fn

import numpyro_diffusion as nd
from numpyro_diffusion.bridge import DensitySite
from numpyro_diffusion.ppl.each import each_draw
from numpyro_diffusion.schemes.levels import Level

ENERGY = nd.GaussianMixture()
DESIGN = np.array([[1.0, 0.2], [0.4, -0.5], [0.8, 1.0], [1.2, 0.0], [0.3, 0.3]])
IS_SEEN = np.array([True, True, False, True, True])
DATA = np.array([0.9, 0.6, 0.0, 1.3, 0.2])
GROUPS = {
    "posterior",
    "posterior_predictive",
    "log_likelihood",
    "sample_stats",
    "log_prior",
    "prior",
    "prior_predictive",
    "observed_data",
    "constant_data",
    "smc_trace",
    "weighted_particles",
}
OLD = int(az.__version__.split(".")[0]) < 1


def model(design, seen, measured, power=1.0):
    """Data are passed by position, under another name than their site's."""
    x = numpyro.sample("x", nd.DiffusionPrior(ENERGY))
    sigma = numpyro.sample("sigma", dist.HalfNormal(0.5))
    numpyro.deterministic("part/total", x.sum())
    numpyro.deterministic("is_left", x[0] < 0)
    numpyro.factor("soft", -0.1 * power * x[1] ** 2)
    with numpyro.plate("data", len(design)):
        numpyro.sample("y", dist.Normal(design @ x, sigma).mask(seen), obs=measured)


def frozen_levels(count=16):
    """Equal steps in log-SNR, with scales in closed form, so that no pilot is needed."""
    clock = jnp.concatenate([jnp.ones(1), jnp.linspace(1, 0, count), jnp.zeros(1)])
    power = jnp.minimum(jnp.arange(count + 2), 1.0)
    site = DensitySite(ENERGY)
    scale = jax.vmap(lambda c: jnp.sqrt(site.moments(c)[1]))(clock[:-1])
    scales = {"x": scale, "sigma": 0.7 * jnp.ones(count + 1)}
    return Level.by_hand(
        clock, power, scales, step_size=0.4, other_step_size=0.4, other_sites=("sigma",)
    )


@pytest.fixture(scope="module")
def smc():
    scheme = nd.Annealed(levels=frozen_levels(), moves=nd.schemes.Moves(num=2, num_other=2))
    smc = nd.SMC(model, scheme, num_particles=200, num_chains=3, progress_bar=False)
    return smc.run(jax.random.key(3), DESIGN, IS_SEEN, jnp.asarray(DATA), power=2.0)


@pytest.fixture(scope="module")
def data(smc):
    return smc.to_arviz(num_prior=300)


def group_names(data):
    return set(data.groups()) if OLD else set(data.children)


def test_native_form_with_every_group(data):
    assert isinstance(data, az.InferenceData if OLD else xr.DataTree)
    assert group_names(data) == GROUPS


def test_posterior_is_get_samples(smc, data):
    samples = smc.get_samples(group_by_chain=True)
    posterior = data["posterior"]
    assert set(posterior.data_vars) == {"x", "sigma", "part.total", "is_left"}
    for name in ("x", "sigma", "is_left"):
        np.testing.assert_array_equal(posterior[name].values, samples[name])
    assert posterior["x"].dims == ("chain", "draw", "x_dim_0")
    np.testing.assert_array_equal(posterior["part.total"].values, samples["part/total"])
    np.testing.assert_allclose(posterior["part.total"].values, posterior["x"].values.sum(-1))
    assert posterior["is_left"].dtype.kind == "i"


def test_draws_point_to_weighted_particles(smc, data):
    stats, cloud = data["sample_stats"], data["weighted_particles"]
    chosen = np.take_along_axis(cloud["sigma"].values, stats["particle"].values, 1)
    np.testing.assert_array_equal(chosen, data["posterior"]["sigma"].values)
    # Relatives stay neighbours: shuffled draws would pass for independent ones.
    assert np.all(np.diff(stats["particle"].values, axis=1) >= 0)
    weights = np.exp(cloud["log_weight"].values)
    np.testing.assert_allclose(weights.sum(), 1)
    np.testing.assert_allclose(weights, smc.get_weighted_samples()[1])
    ancestors = [len(np.unique(a)) for a in np.asarray(smc.result.state.ancestors)]
    drawn = [len(np.unique(a)) for a in stats["ancestor"].values]
    assert all(d <= a for d, a in zip(drawn, ancestors, strict=True))


def test_log_density_of_draws_is_the_models(data):
    args, kwargs = (DESIGN, IS_SEEN, DATA), {"power": 2.0}
    for chain, draw in ((0, 5), (2, 150)):
        one = data["posterior"].isel(chain=chain, draw=draw)
        values = {"x": jnp.asarray(one["x"].values), "sigma": jnp.asarray(one["sigma"].values)}
        z = unconstrain_fn(model, args, kwargs, values)
        expected = -potential_energy(model, args, kwargs, z)
        np.testing.assert_allclose(
            data["sample_stats"]["lp"].values[chain, draw], expected, rtol=1e-8
        )


def test_data_groups_tell_data_from_arguments(data):
    np.testing.assert_array_equal(data["observed_data"]["y"].values, DATA)
    assert set(data["observed_data"].data_vars) == {"y"}
    constant = data["constant_data"]
    assert set(constant.data_vars) == {"design", "seen"}
    np.testing.assert_array_equal(constant["design"].values, DESIGN)
    np.testing.assert_array_equal(constant["seen"].values, IS_SEEN.astype(int))


def test_log_likelihood_is_pointwise(data):
    posterior = data["posterior"]
    mean = posterior["x"].values @ DESIGN.T
    expected = scipy.stats.norm(mean, posterior["sigma"].values[..., None]).logpdf(DATA)
    values = data["log_likelihood"]["y"]
    np.testing.assert_allclose(values.values, expected[..., IS_SEEN])
    np.testing.assert_array_equal(values["y_seen"].values, np.flatnonzero(IS_SEEN))


def test_predictive_draws_are_new_data(data):
    """Data passed by position must not come back as their own prediction."""
    mean = data["posterior"]["x"].values @ DESIGN.T
    sigma = data["posterior"]["sigma"].values[..., None]
    white = (data["posterior_predictive"]["y"].values - mean) / sigma
    assert scipy.stats.kstest(white.ravel(), "norm").pvalue > 1e-3
    prior = data["prior"]
    white = data["prior_predictive"]["y"].values - prior["x"].values @ DESIGN.T
    white = white / prior["sigma"].values[..., None]
    assert scipy.stats.kstest(white.ravel(), "norm").pvalue > 1e-3


def test_predictions_and_likelihoods_are_those_of_numpyro(smc, data):
    """The same bits as `Predictive` with the keys of the run, from programs of our own."""
    args, latent = (DESIGN, IS_SEEN, DATA), {n: data["posterior"][n].values for n in ("x", "sigma")}
    free = numpyro.handlers.uncondition(model)
    for values, key, group in ((latent, "predict", "posterior_predictive"), ({}, "prior", "prior")):
        sizes = {"batch_ndims": 2} if values else {"num_samples": 300}
        draws = Predictive(free, values, return_sites=["x", "y"], **sizes)
        found = draws(smc._keys[key], *args, power=2.0)
        for name in data[group].data_vars:
            if name in found:
                theirs = np.reshape(found[name], data[group][name].shape)
                np.testing.assert_allclose(data[group][name].values, theirs, rtol=1e-9)
    theirs = log_likelihood(model, latent, *args, batch_ndims=2, power=2.0)["y"]
    ours = data["log_likelihood"]["y"].values
    np.testing.assert_allclose(ours, theirs[..., IS_SEEN], rtol=1e-9)


@pytest.mark.parametrize("axes", [(1,), (256,), (257,), (3, 200), (2, 1)])
def test_each_draw_comes_back_in_its_place(axes):
    count = int(np.prod(axes))
    draws = {"a": jnp.arange(2 * count, dtype=float).reshape(*axes, 2), "b": jnp.ones(axes)}
    found = each_draw(
        lambda d, c: {"s": d["a"] @ jnp.array([1.0, 3.0]) + c}, axes, draws, draws["b"]
    )
    expected = np.arange(count).reshape(axes) * 8 + 3 + 1
    np.testing.assert_array_equal(found["s"], expected)


def test_a_second_export_compiles_nothing(smc, data):
    with counting_programs() as count:
        smc.to_arviz(num_prior=300)
    assert count[0] == 0


def test_prior_draws_follow_the_prior(data):
    x, sigma = data["prior"]["x"].values[0], data["prior"]["sigma"].values[0]
    assert x.shape == (300, 2)
    mean, variance = ENERGY.moments(jnp.asarray(ENERGY.t_min))
    assert np.all(np.abs(x.mean(0) - mean) < 4 * np.sqrt(variance / 300))
    assert scipy.stats.kstest(sigma / 0.5, "halfnorm").pvalue > 1e-3


def test_smc_trace(smc, data):
    trace, result = data["smc_trace"], smc.result
    assert trace["ess"].dims == ("chain", "level")
    np.testing.assert_array_equal(trace["level"].values, np.arange(1, 18))
    for name in ("ess", "conditional_ess", "log_evidence_increment", "unique_ancestors"):
        np.testing.assert_array_equal(trace[name].values, getattr(result.trace, name))
    np.testing.assert_array_equal(trace["acceptance"].values, result.trace.info.acceptance)
    np.testing.assert_array_equal(trace["resampled"].values, result.trace.resampled.astype(int))
    assert trace["power"].dims == trace["t"].dims == ("chain", "level")
    for power in trace["power"].values:
        np.testing.assert_array_equal(power, result.levels.next_power)
    assert np.all(trace["t"].values[:, -1] == ENERGY.t_min)
    assert np.all(np.diff(trace["t"].values) <= 0)
    # The increments, with the initial weights, add up to the log evidence.
    np.testing.assert_allclose(
        trace["log_evidence"].values - trace["log_evidence_increment"].sum("level").values,
        0.0,
        atol=0.5,
    )


def test_attributes(smc, data):
    for attributes in (data.attrs, data["posterior"].attrs):
        np.testing.assert_allclose(attributes["log_evidence"], smc.log_evidence)
        assert attributes["evidence_is_normalized"] == 1
        assert attributes["inference_library"] == "numpyro_diffusion"
        assert all(isinstance(value, str | int | float) for value in attributes.values())


def test_summary(data):
    table = az.summary(data, var_names=["x", "sigma"])
    posterior = data["posterior"]
    expected = [*posterior["x"].mean(("chain", "draw")).values, float(posterior["sigma"].mean())]
    np.testing.assert_allclose(table["mean"].astype(float), expected, atol=0.05)
    assert list(table.index) == ["x[0]", "x[1]", "sigma"]


def test_loo(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # few draws: Pareto k may be high
        loo = az.loo(data, pointwise=True)
    pointwise = data["log_likelihood"]["y"].values.reshape(-1, 4)
    # Truncated importance sampling, since plain weights 1 / p(y_i) have no variance (Ionides, 2008).
    limit = scipy.special.logsumexp(-pointwise, 0) - 0.5 * np.log(len(pointwise))
    log_weights = np.minimum(-pointwise, limit)
    rough = scipy.special.logsumexp(log_weights + pointwise, 0)
    rough = rough - scipy.special.logsumexp(log_weights, 0)
    total = loo.elpd_loo if OLD else loo.elpd
    np.testing.assert_allclose(total, rough.sum(), atol=0.5)
    assert loo.n_data_points == 4


def test_compare(smc, data):
    worse = smc.to_arviz(predictive=False)
    name = "log_likelihood"
    if OLD:
        worse.log_likelihood["y"] = worse.log_likelihood["y"] - 1.0
    else:
        worse[name] = worse[name].to_dataset() - 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ meets a newer pandas
        table = az.compare({"worse": worse, "right": data})
    assert table.index[0] == "right"
    assert "posterior_predictive" not in group_names(worse)


@pytest.mark.parametrize("name", ["plot_trace", "plot_posterior", "plot_dist", "plot_rank"])
def test_plots(data, name):
    if not hasattr(az, name):
        pytest.skip(f"ArviZ {az.__version__} has no {name}")
    if name == "plot_dist" and OLD:
        pytest.skip("draws arrays, not groups, in ArviZ 0.x")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ meets a newer matplotlib
        getattr(az, name)(data, var_names=["sigma", "x"])
    plt.close("all")


def test_round_trip(data, tmp_path):
    path = tmp_path / "run.nc"
    data.to_netcdf(path)
    back = az.from_netcdf(str(path))
    assert group_names(back) == GROUPS
    for group in GROUPS:
        ours, theirs = (each[group] if OLD else each[group].to_dataset() for each in (data, back))
        xr.testing.assert_identical(ours, theirs.load())
    assert back.attrs["target"] == data.attrs["target"]
    back.close()


COMPOSED = (nd.Gaussian() + ENERGY) / 0.5


def odd(measured, phase):
    """Names and types that an ArviZ object cannot hold as they are."""
    x = numpyro.sample("draw", nd.DiffusionPrior(COMPOSED, num_steps=3))
    numpyro.deterministic("a/b", x[0])
    numpyro.deterministic("a.b", x[1])
    numpyro.deterministic("level", x[0] - x[1])
    numpyro.deterministic("draw__dim_0", x.sum())
    numpyro.deterministic("wave", (x[0] + 1j * x[1]) * phase)
    numpyro.sample("log_weight", dist.Normal(x, 0.5).to_event(1), obs=measured)


@pytest.fixture(scope="module")
def odd_runs():
    scheme = nd.Annealed(levels=2, moves=1, pilot=16)
    smc = nd.SMC(odd, scheme, num_particles=8, num_chains=2, progress_bar=False)
    found = []
    for seed in range(2):
        smc.run(jax.random.key(seed), np.array([0.3, 0.1]), np.array(1j))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found.append(smc.to_arviz(num_prior=5))
    return smc, found, [str(each.message) for each in told]


def test_sites_called_like_dimensions_and_complex_ones_are_all_there(odd_runs, tmp_path):
    smc, (_, data), told = odd_runs
    samples = smc.get_samples(group_by_chain=True)
    expected = {
        "draw_": samples["draw"],
        "a.b": samples["a.b"],
        "a.b_": samples["a/b"],
        "level": samples["level"],
        "draw__dim_0": samples["draw__dim_0"],
        "wave_real": -samples["draw"][..., 1],
        "wave_imag": samples["draw"][..., 0],
    }
    posterior, cloud = data["posterior"], data["weighted_particles"]
    assert set(posterior.data_vars) == set(expected)
    assert set(cloud.data_vars) == {*expected, "log_weight"}
    for name, values in expected.items():
        np.testing.assert_array_equal(posterior[name].values, values)
    np.testing.assert_allclose(np.exp(cloud["log_weight"].values).sum(), 1)
    np.testing.assert_array_equal(data["observed_data"]["log_weight_"].values, [0.3, 0.1])
    assert set(data["log_likelihood"].data_vars) == {"log_weight_"}
    assert float(data["constant_data"]["phase_imag"]) == 1
    assert any("`a/b` is `a.b_`, `draw` is `draw_`" in message for message in told)
    data.to_netcdf(tmp_path / "odd.nc")


def test_a_table_has_both_parts_of_a_complex_site(odd_runs, capsys):
    smc = odd_runs[0]
    smc.print_summary()
    table, _ = capsys.readouterr().out.split("\n\n", 1)
    rows = {line.split()[0]: line.split()[1] for line in table.splitlines()[1:]}
    wave = smc.get_samples(group_by_chain=True)["wave"]
    mean = nd.diagnostics.cloud_shares(smc.result) @ np.asarray(wave).mean(1)
    assert rows["wave_real"] == f"{mean.real:.2f}" and rows["wave_imag"] == f"{mean.imag:.2f}"


def test_prior_draws_of_a_composed_prior_are_marked(odd_runs, data):
    _, (_, composed), told = odd_runs
    assert any("reverse process of Composed" in message for message in told)
    for group in ("prior", "prior_predictive"):
        assert "another distribution" in composed[group].attrs["draws"]
        assert "draws" not in data[group].attrs


@pytest.mark.skipif(not OLD, reason="ArviZ 1.x joins datasets by xarray")
def test_runs_are_joined(odd_runs):
    first, second = odd_runs[1]
    both = az.concat(first, second, dim="chain", reset_dim=True)
    np.testing.assert_array_equal(
        both.posterior["level"].values,
        np.concatenate([first.posterior["level"], second.posterior["level"]]),
    )
    assert both.smc_trace["clock"].shape == (4, first.smc_trace["level"].size)
