"""Plates sampled object by object, against quadrature over their shared sites."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from plates import PRIOR, data, exact, model

import numpyro_diffusion as nd
from numpyro_diffusion.ppl.plates.adapt import next_reference
from numpyro_diffusion.ppl.plates.reference import Reference
from numpyro_diffusion.ppl.plates.result import verdict

OPTIONS = {"split": ("y",), "num_particles": 200, "progress_bar": False, "batch_size": 12}
SCHEME = nd.Annealed(levels=12)


@pytest.fixture(scope="module", params=[pytest.param(3, marks=pytest.mark.long), 6])
def plate(request):
    """A run, and the exact posterior."""
    y = data(request.param)
    return nd.ppl.PlateSMC(model, SCHEME, **OPTIONS).run(jax.random.key(0), y), exact(y)


def test_evidence_of_all_objects(plate):
    run, (truth, _) = plate
    error, stated = run.log_evidence - truth, run.log_evidence_error
    assert abs(error) < 3.5 * stated < 1.0, (error, stated)
    assert run.evidence_is_normalized and run.result.exact


def test_posterior_of_the_shared_sites(plate):
    run, (_, moments) = plate
    for name in ("mu", "sigma"):
        (mean, sd), draws = moments[name], run.get_samples()[name]
        assert abs(draws.mean() - mean) < 0.15 * sd, (name, draws.mean(), mean, sd)
        assert abs(draws.std() / sd - 1) < 0.15, (name, draws.std(), sd)


def test_posterior_of_the_objects(plate):
    run, (_, moments) = plate
    draws = run.get_samples()
    mu, x, c = draws["mu"], draws["x"][..., 0], draws["c"]
    for name, values in (("x", x), ("c", c)):
        mean, sd = moments[name].T
        assert (np.abs(values.mean(0) - mean) < 0.3 * sd).all(), (name, values.mean(0), mean)
        assert (np.abs(values.std(0) / sd - 1) < 0.3).all(), (name, values.std(0), sd)
    together = ((mu - mu.mean())[:, None] * (c - c.mean(0))).mean(0)
    scale = moments["mu"][1] * moments["c"][:, 1]
    assert (np.abs(together - moments["mu c"]) < 0.2 * scale).all(), (together, moments["mu c"])
    signs = np.array([1.0, -1.0])
    np.testing.assert_allclose(draws["mean"], draws["x"] + c[..., None] * signs, atol=1e-6)


def test_summary_names_the_worst_object(plate, capsys):
    run, _ = plate
    run.print_summary(max_rows=2)
    told = capsys.readouterr().out
    worst = int(np.argmin(run.result.object_ess))
    assert f"{run.network_evaluations:,} network evaluations" in told
    assert "exact as particles and nodes become many" in told
    assert f"worst object ({worst})" in verdict(run.result)
    few = run.result._replace(object_ess=run.result.object_ess / 100)
    assert f"CHECK: object {worst} rests on" in verdict(few)
    apart = run.result._replace(object_spread=np.array([0.1, 0.8]))
    assert "the evidences of object 1 differ between its clouds by 80%" in verdict(apart)
    grouped = run.get_samples(group_by_chain=True)
    assert grouped["x"].shape == (4, 200, len(run.result.object_ess), 1)
    assert grouped["mu"].shape == (4, 200)


def test_arviz_knows_the_plate(plate):
    run, _ = plate
    data, n = run.to_arviz(num_prior=30), len(run.result.object_ess)
    posterior = data["posterior"]
    assert posterior["x"].dims == ("chain", "draw", "objects", "x_dim_1")
    assert posterior["c"].dims == ("chain", "draw", "objects") and posterior["mu"].ndim == 2
    grouped = run.get_samples(group_by_chain=True)
    for name in ("x", "mu", "mean"):
        np.testing.assert_allclose(posterior[name], grouped[name], rtol=1e-6)
    np.testing.assert_allclose(data["object_stats"]["object_ess"], run.result.object_ess)
    assert data["object_stats"]["object_spread"].dims == ("objects",)
    exact = dist.Normal(grouped["mean"], grouped["sigma"][..., None, None]).log_prob(
        jnp.asarray(data["observed_data"]["y"].values)
    )
    np.testing.assert_allclose(data["log_likelihood"]["y"], exact.sum(-1), rtol=1e-4, atol=1e-4)
    assert data["posterior_predictive"]["y"].shape == (4, 200, n, 2)
    gap = np.asarray(data["posterior_predictive"]["y"]) - grouped["mean"]
    ratio = gap.std() / np.sqrt((grouped["sigma"] ** 2).mean())
    assert abs(ratio - 1) < 0.1, ratio  # new data about each draw's own mean
    assert data["prior"]["mu"].shape == (1, 30)
    assert posterior.attrs["verdict"] == verdict(run.result)
    with pytest.raises(NotImplementedError, match="expected `run`; got `update`"):
        run.update(data)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_object_whose_data_are_impossible_is_named(plate, bad):
    run, _ = plate
    y = data(len(run.result.object_ess))
    y[2] = bad
    again = nd.ppl.PlateSMC(model, SCHEME, **OPTIONS | {"rounds": 0, "num_chains": 1})
    with pytest.raises(FloatingPointError, match="all particles of object 2 have weight 0"):
        again.run(jax.random.key(0), y)


def test_cost_is_linear(plate):
    run, _ = plate
    number = len(run.result.object_ess) * (run.rounds + run.num_chains) * run.num_particles
    bridge, level = nd.from_model(model, data(2)[:1]), SCHEME.evaluations_per_level
    assert run.network_evaluations / number == bridge.evaluations + 13 * level(bridge)


def test_a_reference_finds_a_narrow_target(key):
    """From far and wide to a correlated Gaussian."""
    centre, root = np.array([3.0, -2.0]), np.array([[0.02, 0.0], [0.05, 0.04]])
    start = Reference(jnp.zeros(2), 2.0 * jnp.eye(2))
    target = lambda phis: (
        -0.5 * np.sum(np.linalg.solve(root, (np.asarray(phis) - centre).T) ** 2, 0)
    )
    keys = iter(jax.random.split(key, 100))
    phis = start.sample(next(keys), 1000)
    found = next_reference(lambda: next(keys), start, target, (phis, target(phis)), 1000)
    widened = 1.3 * root
    np.testing.assert_allclose(found.loc, centre, atol=0.01)
    np.testing.assert_allclose(found.root @ found.root.T, widened @ widened.T, rtol=0.25)


def others(y, sigma=None, contrasts=None):
    """A model of many faults, by argument."""
    sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    with numpyro.plate("objects", len(y)):
        x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
        numpyro.sample("y", dist.Normal(x[..., 0], sigma), obs=y)


def driven(y):
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with numpyro.plate("objects", len(y)):
        x = numpyro.sample("x", nd.DiffusionPrior(nd.Gaussian(jnp.zeros(1), scale * jnp.eye(1))))
        numpyro.sample("y", dist.Normal(x[..., 0], 1.0), obs=y)


def coupled(y):
    sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    with numpyro.plate("objects", len(y)):
        x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
        numpyro.sample("y", dist.Normal(x[..., 0] - jnp.mean(x), sigma), obs=y)


def calibrated(y):
    sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    numpyro.sample("calibration", dist.Normal(sigma, 0.1), obs=1.0)
    with numpyro.plate("objects", len(y)):
        x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
        numpyro.sample("y", dist.Normal(x[..., 0], sigma), obs=y)


def averaged(y):
    sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    with numpyro.plate("objects", len(y)):
        x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
        numpyro.sample("y", dist.Normal(x[..., 0], sigma), obs=y)
    numpyro.deterministic("average", jnp.mean(x))


def global_image(y):
    x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
    with numpyro.plate("objects", len(y)):
        c = numpyro.sample("c", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(x[0] + c, 1.0), obs=y)


def alone(y):
    with numpyro.plate("objects", len(y)):
        x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
        numpyro.sample("y", dist.Normal(x[..., 0], 1.0), obs=y)


def only_shared(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("objects", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def labelled(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("objects", len(y)):
        k = numpyro.sample("k", dist.Bernoulli(0.5))
        x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
        numpyro.sample("y", dist.Normal(mu + k + x[..., 0], 1.0), obs=y)


def refused(model, *args, split=("y",), **kwargs):
    nd.ppl.PlateSMC(model, SCHEME, split=split, progress_bar=False).run(
        jax.random.key(0), *args, **kwargs
    )


def test_arguments_that_are_no_plate_are_refused():
    y = jnp.ones(3)
    for words, call in {
        r"leads? with an axis of objects.*got \['z'\].*are \['y'\]": lambda: refused(
            others, y, split=("z",)
        ),
        r"must have one length; got \{'y': 3, 'contrasts': 2\}": lambda: refused(
            others, y, contrasts=jnp.ones(2), split=("y", "contrasts")
        ),
        "two objects or more; got 1": lambda: refused(others, y[:1]),
        "argument `sigma` is split by object.*got float": lambda: refused(
            others, y, sigma=1.0, split=("y", "sigma")
        ),
        r'such as `\("y",\)`; got \'y\'': lambda: refused(others, y, split="y"),
        "two objects or more; got 0": lambda: refused(others, y[:0]),
        "`num_particles` must be at least 2; got 1": lambda: nd.ppl.PlateSMC(
            others, split=("y",), num_particles=1
        ),
        "no argument `checkpoint`.*use `nd.SMC`": lambda: nd.ppl.PlateSMC(
            others, split=("y",), checkpoint="run.safetensors"
        ),
        "must be an instance of `TunedScheme`": lambda: nd.ppl.PlateSMC(
            others, "annealed", split=("y",)
        ),
        "`num_nodes` must be at least 8; got 1. Each replicate has two": lambda: nd.ppl.PlateSMC(
            others, split=("y",), num_nodes=1
        ),
    }.items():
        with pytest.raises((TypeError, ValueError), match=words):
            call()


LATER = pytest.mark.long  # each compiles three models


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (labelled, r"got the discrete \['k'\]"),
        (calibrated, r"data at \['calibration'\] stand outside of the plate"),
        (driven, r"energy of a prior depends on the shared sites \['scale'\]"),
        pytest.param(coupled, "site `y` mixes objects", marks=LATER),
        pytest.param(averaged, "deterministic site `average` mixes objects", marks=LATER),
        pytest.param(global_image, r"diffusion sites \['x'\] are shared", marks=LATER),
        pytest.param(alone, r"all latent sites, \['x'\], belong to objects", marks=LATER),
        pytest.param(only_shared, "no latent site has an entry for each entry of `y`", marks=LATER),
    ],
)
def test_models_that_are_no_plate_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        refused(wrong, jnp.array([0.3, -1.0, 2.0]))
