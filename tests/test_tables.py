"""Tables as data: units, columns that a diffusion takes badly, and training that learned nothing."""

import contextlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.util import log_density

import numpyro_diffusion as nd
from numpyro_diffusion.energies import Standardized
from numpyro_diffusion.energies.columns import few_values
from numpyro_diffusion.nets import Labels, ResidualMLP
from numpyro_diffusion.train import denoising_loss, energy_loss, level_loss
from numpyro_diffusion.train.settings import default_decay
from numpyro_diffusion.train.sources import Examples, Sampler

RNG = np.random.default_rng(0)
MEAN, SCALE = np.array([1e6, 3.0]), np.array([1e4, 0.5])
CORRELATION = np.array([[1.0, 0.6], [0.6, 1.0]])
TABLE = MEAN + SCALE * RNG.multivariate_normal(np.zeros(2), CORRELATION, 300)
LEVELS = {"noise_min": 0.1, "noise_max": 20.0}
QUICK = {"steps": 20, "batch_size": 8, "loss": denoising_loss,
         "stopping": nd.train.EarlyStopping(check_every=10, validation_repeats=2),
         "progress_bar": False}  # fmt: skip


def net(size=2, width=8, **options):
    return ResidualMLP(jax.random.key(1), (size,), width=width, depth=1, **options)


def standardized():
    return nd.ProperEnergy.from_data(net(), TABLE, **LEVELS, standardize=True)


# ---- units


def test_an_untrained_prior_is_the_gaussian_of_the_table_in_its_units():
    prior = nd.DiffusionPrior(standardized())
    noise = np.diag((0.1 * TABLE.std(0)) ** 2)
    exact = dist.MultivariateNormal(TABLE.mean(0), np.cov(TABLE.T, bias=True) + noise)
    np.testing.assert_allclose(prior.log_prob(TABLE[:5]), exact.log_prob(TABLE[:5]), rtol=1e-6)


def test_a_site_is_in_the_units_of_the_table_and_its_posterior_is_right(key):
    """With NumPyro's own density, and with the bridge of the samplers, which follows `x_base`."""
    law = standardized()

    def model(y):
        x = numpyro.sample("x", nd.DiffusionPrior(law))
        numpyro.sample("y", dist.Normal(x[0], 1e3), obs=y)

    x, y = jnp.asarray(TABLE[0]), 1.01e6
    found, _ = log_density(model, (y,), {}, {"x": x})
    exact = nd.DiffusionPrior(law).log_prob(x) + dist.Normal(x[0], 1e3).log_prob(y)
    np.testing.assert_allclose(found, exact, rtol=1e-9)
    bridge = nd.from_model(model, y)
    assert bridge.diffusion_sites == ("x_base",)
    np.testing.assert_allclose(bridge.constrain({"x_base": law.standardize(x)})["x"], x, rtol=1e-9)


def test_location_and_scale_may_be_latent():
    """As on the page on hierarchies: the standardised value is followed, location and scale are sites."""
    law = nd.Gaussian(np.zeros(1), np.eye(1))

    def model(y):
        mu, tau = (
            numpyro.sample("mu", dist.Normal(0.0, 5.0)),
            numpyro.sample("tau", dist.HalfNormal(2.0)),
        )
        affine = dist.transforms.AffineTransform(mu, tau)
        with numpyro.plate("groups", 3):
            prior = dist.TransformedDistribution(nd.DiffusionPrior(law), affine)
            theta = numpyro.sample("theta", prior)
            numpyro.sample("y", dist.Normal(theta[:, 0], 0.3), obs=y)

    bridge = nd.from_model(model, jnp.array([1.2, 3.6, 1.5]))
    assert bridge.diffusion_sites == ("theta_base",) and set(bridge.other_sites) == {"mu", "tau"}
    z = {"theta_base": jnp.array([[0.5], [-1.0], [2.0]]), "mu": jnp.array(1.0), "tau": jnp.log(2.0)}
    np.testing.assert_allclose(bridge.constrain(z)["theta"], [[2.0], [-1.0], [5.0]], rtol=1e-9)


def test_fit_and_file_keep_the_units(key, tmp_path):
    law = standardized()
    found = nd.fit(key, law, TABLE, **QUICK | {"loss": shifting}).energy
    direct = nd.fit(key, law.energy, law.standardize(TABLE), **QUICK | {"loss": shifting}).energy
    assert isinstance(found, Standardized)
    for a, b in zip(jax.tree.leaves(found.energy), jax.tree.leaves(direct), strict=True):
        np.testing.assert_array_equal(a, b)
    path = tmp_path / "table.safetensors"
    nd.save(path, found, {"columns": ["income", "age"]})
    loaded = nd.load(path)
    np.testing.assert_array_equal(loaded.location, found.location)
    x = jnp.asarray(TABLE[:3])
    np.testing.assert_array_equal(
        nd.DiffusionPrior(loaded).log_prob(x), nd.DiffusionPrior(found).log_prob(x)
    )


def shifting(energy, key, batch):
    """A loss that a step always lowers, so that weights move."""
    return jnp.sum((energy.offset - 1) ** 2) + 0 * jnp.sum(batch)


def test_augmentation_and_validation_are_in_the_units_of_the_table(key):
    seen = []

    def augment(key, x):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
        return x

    nd.fit(
        key, standardized(), TABLE, validation=TABLE[:20], augment=augment,
        **QUICK | {"loss": shifting, "steps": 2},
    )  # fmt: skip
    jax.effects_barrier()
    assert abs(np.mean([x[0] for x in seen]) - 1e6) < 2e4


def test_noise_of_t_min_is_taken_off():
    """For a Gaussian the denoised draw is the linear one, with variance d^4 / (d^2 + s^2)."""
    law = standardized()
    covariance = np.cov(law.standardize(TABLE).T, bias=True)
    gain = covariance @ np.linalg.inv(covariance + 0.01 * np.eye(2))
    x = TABLE[:4].reshape(2, 2, 2)
    exact = TABLE.mean(0) + TABLE.std(0) * ((x - TABLE.mean(0)) / TABLE.std(0) @ gain.T)
    np.testing.assert_allclose(law.denoised(x), exact, rtol=1e-5)


def test_what_takes_energies_names_the_remedy(key):
    law = standardized()
    with pytest.raises(AttributeError, match="Pass its `energy`, which is one in standard units"):
        nd.auditing.curl_ratio(law, TABLE, key)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="expects an AbstractEnergy; got Standardized"):
        nd.from_energy(law)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="trained on an array of examples; got function"):
        nd.fit(key, law, lambda key: jnp.zeros(2), **QUICK)
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 2\); got \(300, 1\)"):
        law.standardize(TABLE[:, :1])
    with pytest.raises(ValueError, match="scales finite and positive"):
        Standardized(law.energy, jnp.zeros(2), jnp.zeros(2))
    with pytest.raises(ValueError, match="column 1 of the data never change"):
        constant = np.stack([TABLE[:, 0], np.ones(300)], 1)
        nd.ProperEnergy.from_data(net(), constant, **LEVELS, standardize=True)


# ---- columns


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (np.full(300, 2.0), "column 1 never change: drop them"),
        (1e6 * TABLE[:, 1], "standard deviations run from"),
        (0.05 * RNG.normal(size=300), "column 1 vary by less than `noise_min`=0.1"),
        (1.0 * RNG.integers(0, 2, 300), "column 1 hold few values"),
    ],
)
def test_columns_that_a_diffusion_takes_badly_are_named(column, words):
    table = np.stack([RNG.normal(size=300), column], 1)
    # No time of the schedule is as noisy as the second case would need.
    far = np.std(column) > 1e3
    options = LEVELS | ({"noise_max": 1e7} if far else {})
    refused = pytest.raises(ValueError, match="t_max") if far else contextlib.nullcontext()
    with pytest.warns(UserWarning, match=f"takes this table badly.*{words}"), refused:
        nd.ProperEnergy.from_data(net(), table, **options)


def test_noise_and_network_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"`noise_max` must drown the data.*in column 0"):
        nd.ProperEnergy.from_data(net(), TABLE, noise_min=0.1, noise_max=20.0)
    with pytest.raises(ValueError, match=r"`net` does not take examples of shape \(3,\)"):
        nd.ProperEnergy.from_data(net(2), RNG.normal(size=(50, 3)), **LEVELS)
    with pytest.raises(ValueError, match=r"shape \(2,\) to the same shape; it gives \(3,\)"):
        nd.ProperEnergy(lambda w, c: jnp.zeros(3))
    nd.ProperEnergy(lambda w, c, condition: w)  # must be told a condition: not looked at
    nd.ProperEnergy(net(condition=Labels(jax.random.key(2), 3)))


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (np.repeat([0.0, 1.0], 50), 2),
        (np.repeat(np.arange(3.0), 40), 3),
        (np.repeat([0.0, 0.39], 50), None),  # within four noise levels
        (np.r_[np.zeros(98), 1.0, 2.0], None),  # a rare value is an outlier
        (np.linspace(0, 9, 100), None),
        (np.zeros(100), None),
        (np.array([0.0, 1.0]), None),  # two rows say nothing
        (0.05 * RNG.integers(0, 17, 400), None),  # grey values
    ],
)
def test_few_values_are_those_with_populated_gaps(column, expected):
    found = few_values(column[:, None], 0.1)
    assert found == ({} if expected is None else {0: expected})


# ---- training that learned nothing, and tables of few rows


def test_training_that_learned_nothing_is_said_at_once(key, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    options = QUICK | {"progress_bar": True, "learning_rate": 1.0}
    options["optimizer"] = nd.train.Optimizer(weight_decay=0.0)
    energy = nd.ProperEnergy(net(), np.zeros(2), CORRELATION)
    with pytest.warns(UserWarning, match="training learned nothing: in 20 steps no check"):
        found = nd.fit(
            key, energy, RNG.multivariate_normal(np.zeros(2), CORRELATION, 50), **options
        )
    assert not found.learned and found.best_step == 0
    assert found.verdict.startswith(
        "learned nothing: in 20 steps no check was better than the start"
    )
    assert "learning_rate" in found.verdict
    assert "learned nothing" in capsys.readouterr().err.strip().splitlines()[-1]
    for a, b in zip(jax.tree.leaves(found.energy), jax.tree.leaves(energy), strict=True):
        np.testing.assert_array_equal(a, b)


def test_training_that_learned_says_how_much(key):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = nd.fit(key, standardized(), TABLE, **QUICK | {"loss": shifting})
    start = found.history["validation_loss"][0]
    assert found.learned
    assert found.verdict == (
        f"best at step 20 of 20: the held-out loss fell from {start:.4f} to {found.best_loss:.4f}."
    )


@pytest.mark.parametrize("rows", [3, 7, 30, 79])
def test_few_rows_train_by_default(rows, key):
    data = RNG.normal(size=(rows, 2))
    options = {k: v for k, v in QUICK.items() if k != "loss"} | {"steps": 1}
    options["stopping"] = nd.train.EarlyStopping(check_every=1, validation_repeats=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = nd.fit(key, nd.ProperEnergy(net(), np.zeros(2), np.eye(2)), data, **options)
    assert np.isfinite(found.history["validation_loss"]).all()


def test_decay_is_strong_where_rows_are_few_for_their_columns(key):
    def decay(rows, columns, weights=None):
        source = Examples(jnp.zeros((rows, columns)), weights=weights)
        return default_decay(source, (columns,))

    assert decay(130, 13) == 10.0
    assert decay(400, 10) == 2.5
    assert decay(1000, 10) == 0.5
    assert decay(20_000, 2) == 0.01
    assert decay(1000, 10, jnp.r_[jnp.ones(400), jnp.zeros(600)]) == 2.5
    assert default_decay(Sampler(lambda key: jnp.zeros(2)), (2,)) == 0.01


def test_level_loss_repeats_few_examples(key):
    energy, few = nd.ProperEnergy(net()), jnp.asarray(RNG.normal(size=(3, 2)))
    whole = jnp.tile(few, (3, 1))
    np.testing.assert_array_equal(level_loss(energy, key, few), level_loss(energy, key, whole))
    assert jnp.isfinite(energy_loss(energy, key, few[:1]))
    with pytest.raises(ValueError, match="`group` must be at least 2; got 1"):
        level_loss(energy, key, few, group=1)
    with pytest.raises(ValueError, match=r"got \(0, 2\)"):
        level_loss(energy, key, few[:0])


def test_the_audit_names_an_untrained_network_and_few_values(key):
    table = RNG.normal(size=(60, 2))
    table[:, 1] = RNG.integers(0, 2, 60)
    with pytest.warns(UserWarning, match="few values"):
        law = nd.ProperEnergy.from_data(net(), table, **LEVELS, standardize=True)
    options = {"num_levels": 2, "num_draws": 20, "num_steps": 5, "num_examples": 10}
    report = nd.audit(law, table, key=key, progress_bar=False, **options)
    assert report.untrained and report.few_values == {1: 2}
    assert report.findings[0].startswith("The network has learned nothing")
    assert "column 1 (2)" in report.findings[1]
    assert report.noise_levels[0] == pytest.approx(0.1)
    trained = nd.ProperEnergy(wiggly, np.zeros(2), np.eye(2))
    report = nd.audit(trained, RNG.normal(size=(60, 2)), key=key, progress_bar=False, **options)
    assert not report.untrained and not report.few_values


def wiggly(w, c):
    return 0.1 * jnp.sin(3 * w)
