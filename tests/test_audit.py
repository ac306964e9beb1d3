"""The audit as a whole: silent at exact priors, and each fault found by its own measurement."""

import arviz
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray
from assertions import Shifted

import numpyro_diffusion as nd
from numpyro_diffusion import auditing, diagnostics, plots
from numpyro_diffusion.pretrained import load_digits

MIXTURE = nd.GaussianMixture()
SIZES = {"num_levels": 4, "num_examples": 60, "num_draws": 400, "progress_bar": False}


def exact_data(num, seed):
    draw = lambda key: MIXTURE.draw(key, jnp.asarray(0.0))
    return jax.vmap(draw)(jax.random.split(jax.random.key(seed), num))


DATA, HELD_OUT = exact_data(600, 0), exact_data(400, 1)


@pytest.fixture(scope="module")
def report():
    """Of an exact energy."""
    return nd.audit(MIXTURE, DATA, held_out=HELD_OUT, key=jax.random.key(2), **SIZES)


def test_an_exact_energy_passes_everything(report):
    assert report.findings == [] and report.skipped == ()
    [words] = report.verdict
    assert words.startswith("Nothing to worry about: ")
    for phrase in (
        "no worse than a linear denoiser",
        "score is a gradient",
        "covariances are positive",
        "density and score agree",
        "nats (standard deviation) about where scores put them",
        "chains stay with the data",
        "of theirs; its closed form)",
        "cannot be told from others",
    ):
        assert phrase in words
    assert report.draws_from == "its closed form" and report.log_normalizer == 0
    assert (report.num_data, report.num_held_out, report.shape) == (600, 400, (2,))


def test_the_table_has_the_numbers(report, capsys):
    report.print_table()
    printed = capsys.readouterr().out
    assert printed.strip() == str(report)
    lines = printed.splitlines()
    heads = lines[2].split()
    assert heads[:3] == ["noise", "residual", "linear"] and len(lines[3].split()) == len(heads)
    columns = np.array([[float(c.replace("-", "nan") if c == "-" else c) for c in line.split()]
                        for line in lines[3:7]]).T  # fmt: skip
    shown = dict(zip(heads, columns, strict=True))
    np.testing.assert_allclose(shown["residual"], report.denoising.residual, rtol=0.03)
    np.testing.assert_allclose(shown["SimA"], report.membership.auc[0], atol=1e-3)
    assert np.isnan(shown["L"][-1]) and not np.isnan(shown["L"][0])
    assert f"60 chains from the data: energies fall by {report.rest.fall:.2f} +- " in printed
    assert report.verdict[0] in printed


def test_a_report_is_immutable(report):
    with pytest.raises(AttributeError):
        report.times = None


# ---- faults, each measured on a prior that has it and no other


def only(report, *phrases):
    """There is one finding, and it says these things."""
    [words] = report.findings
    for phrase in phrases:
        assert phrase in words
    assert report.verdict[0] == words and report.verdict[1].startswith("Fine otherwise: ")


def turned(params, x, t):
    return params[1] @ params[0].score(x, t)


@pytest.mark.long
def test_a_rotated_score_is_caught_and_not_asked_for_a_density():
    c, s = np.cos(0.3), np.sin(0.3)
    turn = jnp.asarray([[c, -s], [s, c]])
    rotated = nd.ScoreFunction(turned, 2, params=(MIXTURE, turn), variance=np.var(DATA, 0))
    found = nd.audit(rotated, DATA, key=jax.random.key(2), num_steps=20, **SIZES)
    assert any("not a gradient" in words for words in found.findings)
    assert found.gradient is found.offsets is found.rest is found.membership is None
    assert len(found.skipped) == 2 and found.verdict[-2:] == list(found.skipped)
    assert "A denoiser alone has no density" in str(found) and "pass `held_out`" in str(found)
    assert found.draws_from == "the reverse process, 20 steps" and np.isnan(found.log_normalizer)
    # Where noise drowns the data, J = -R(0.3) / s^2, whose ratio is the tangent of the angle.
    assert abs(found.curl.ratio[-1] - np.tan(0.3)) < 0.01


def test_a_wrong_gradient_is_caught(report):
    class Inconsistent(Shifted):
        def energy_and_score(self, x, t):
            value, score = self.inner.energy_and_score(x, t)
            return value, 1.02 * score

    energy = Inconsistent(MIXTURE, jnp.asarray(0.0))
    found = auditing.gradient_agreement(energy, HELD_OUT[:40], jax.random.key(0), report.times)
    only(report._replace(gradient=found), "density and score disagree along", "`jax.grad`")


def ripples(params, x, t):
    """An exact energy, a constant, and at low noise a ripple of about `size` nats."""
    mixture, size, constant = params
    _, s = mixture.schedule(t)
    ripple = jnp.sqrt(2.0) * jnp.sin(7 * x[0] + 5 * x[1])
    return mixture.energy(x, t) + size * jnp.exp(-((s / 0.02) ** 2)) * ripple + constant


@pytest.mark.parametrize(
    ("size", "constant", "phrases"),
    [
        (0.0, 0.0, None),
        (1.5, 0.0, ["off against each other", "scatter by 1.", "anchors"]),
        (
            0.0,
            2.0,
            ["The stored normaliser is 0.00 nats, the scores say -2.0", "`prior_normalizer`"],
        ),
    ],
)
def test_a_ripple_and_an_offset_are_caught_by_the_normaliser(report, size, constant, phrases):
    params = (MIXTURE, jnp.asarray(size), jnp.asarray(constant))
    energy = nd.EnergyFunction(ripples, 2, params=params, variance=np.var(DATA, 0))
    found = auditing.normalizer_spread(
        energy, HELD_OUT[:100], jax.random.key(0), report.times[:1], num_draws=8
    )
    found = report._replace(offsets=found)
    assert found.findings == [] if phrases is None else only(found, *phrases) is None


def test_chains_that_leave_the_data_are_caught(report):
    """Wells of two nats or less, or within three errors, are let pass."""
    at = lambda fall, error: report._replace(rest=report.rest._replace(fall=fall, fall_error=error))
    only(at(571.0, 78.0), "Chains leave the data: energies fall by 571 +- 78 nats", "`Twisted`")
    only(at(np.nan, np.nan), "energies fall by nan")
    for fall, error in ((1.9, 0.1), (8.0, 3.0), (-30.0, 1.0)):
        assert at(fall, error).findings == []


def test_an_offset_between_levels_is_a_note_and_no_finding(report):
    """Posteriors do not feel a function of time, so it is said and not blamed."""
    offsets = report.offsets._replace(value=report.offsets.value + np.array([0.0, 0.0, 3.0, 0.0]))
    found = report._replace(offsets=offsets)
    assert found.findings == []
    assert "energies are off by -3" in found.verdict[1] and "Posteriors" in found.verdict[1]


def test_a_prior_of_the_wrong_scale_is_caught(report):
    wide = auditing.compare_draws(1.25 * exact_data(400, 5), HELD_OUT, jax.random.key(0))
    only(report._replace(draws=wide), "Draws (its closed form) differ", "covariance is off")
    assert abs(wide.scale - 1.25) < 4 * wide.scale_error
    narrow = report.draws._replace(scale=0.85, scale_error=0.02)  # in directions that do not lead
    only(report._replace(draws=narrow), "sd 0.85 +- 0.02 of the data's")


def test_given_draws_are_used():
    found = nd.audit(
        MIXTURE, DATA, held_out=HELD_OUT, key=jax.random.key(2), draws=DATA + 0.5, **SIZES
    )
    assert found.draws_from == "given" and found.draws.num_draws == 600
    only(found, "Draws (given) differ from the data: their mean is off by")


def test_a_prior_that_memorised_is_caught(report):
    """All mass on sixty examples: it denoises them at no cost, and nothing else."""
    members = np.asarray(DATA[:60])
    kernels = nd.GaussianMixture(np.ones(60) / 60, members, np.tile(1e-6 * np.eye(2), (60, 1, 1)))
    times = report.times
    found = auditing.membership_audit(kernels, members, HELD_OUT[:60], jax.random.key(0), times)
    held_out = auditing.denoising_residual(kernels, HELD_OUT, jax.random.key(0), times)
    only(report._replace(membership=found), "has memorised them", "100% of them at 1% false alarms")
    words = "\n".join(report._replace(denoising=held_out).findings)
    assert "that of a straight line" in words and "surer than it should be" in words


def test_an_indefinite_covariance_is_caught(report):
    matrix = jnp.diag(jnp.asarray([-1.3, -0.1]))
    score = lambda m, x, t: m @ x / (1 - jnp.exp(-t)) ** 2
    prior = nd.ScoreFunction(score, 2, Saturating(), params=matrix, t_min=0.01, t_max=0.99)
    found = auditing.posterior_spectrum(prior, HELD_OUT[:20], jax.random.key(0), [0.1, 0.5])
    np.testing.assert_allclose(found.smallest, -0.3, rtol=1e-6)
    np.testing.assert_allclose(found.negative_size, 0.3, rtol=1e-6)
    found = report._replace(spectrum=found, noise_levels=found.noise_levels)
    only(found, "25.0% of the implied posterior covariance is negative", "(and 1 other)")


@pytest.mark.parametrize("noise, is_fault", [(2.0, True), (30.0, False)])
def test_a_width_that_is_off_is_a_fault_where_a_posterior_feels_it(report, noise, is_fault):
    """A Gaussian of twice the variance: at noise s its derivative is off by about 1 / s^2 of the noise's."""
    data = np.random.default_rng(0).normal(size=(4000, 2))
    wide = nd.Gaussian(np.zeros(2), 2 * np.eye(2))
    times = np.asarray(wide.schedule.time(-2 * jnp.log(jnp.asarray([noise]))))
    found = auditing.denoising_residual(wide, data, jax.random.key(0), times)
    assert found.predicted / found.residual > 1.3  # of its own size it is far off in both
    told = report._replace(denoising=found, noise_levels=found.noise_levels)
    remark = "the denoiser's derivative is off by much of itself"
    assert any("less sure than it could be" in words for words in told.findings) == is_fault
    assert any(remark in words for words in told.verdict) == (not is_fault)
    if not is_fault:
        assert f"at most {1 / noise**2:.1g} of the noise's variance" in told.verdict[1]


def test_a_faint_negative_covariance_is_a_remark(report):
    size, share = 0.002 * np.ones(4), 0.1 * np.ones(4)
    faint = report.spectrum._replace(negative_size=size, negative_share=share)
    told = report._replace(spectrum=faint)
    assert told.findings == [] and "at most 0.002 of the noise's variance" in told.verdict[1]
    only(
        report._replace(spectrum=faint._replace(negative_size=20 * size)), "covariance is negative"
    )


class Saturating(nd.schedules.AbstractSchedule):
    """Nothing shrinks, and the noise level is 1 - exp(-t)."""

    def __call__(self, t):
        return jnp.ones_like(t), 1 - jnp.exp(-t)

    def time(self, log_snr):
        return -jnp.log1p(-jnp.exp(-0.5 * log_snr))


# ---- ArviZ and the figure


def test_a_report_goes_to_arviz_and_back_from_disk(report, tmp_path):
    kept = diagnostics.audit_to_arviz(report)
    kept.to_netcdf(tmp_path / "audit.nc")
    newer = int(arviz.__version__.split(".")[0]) >= 1
    reader = xarray.open_datatree if newer else arviz.from_netcdf
    group = reader(tmp_path / "audit.nc")["audit"]
    np.testing.assert_array_equal(group["t"], report.times)
    np.testing.assert_array_equal(group["denoising_residual"], report.denoising.residual)
    np.testing.assert_array_equal(group["offsets_spread"], report.offsets.spread)
    assert float(group["rest_fall"]) == report.rest.fall
    assert group["curl_ratio"].dims == ("level",) and list(group["level"].values) == [1, 2, 3, 4]
    auc = group["membership_auc"].sel(statistic="loss", level=2)
    assert float(auc) == report.membership.auc[2, 1]
    assert group["membership_member_scores"].shape == (3, 4, 600)
    np.testing.assert_array_equal(group["draws_mean_z"], report.draws.mean_z)
    assert group.attrs["num_held_out"] == 400
    assert group.attrs["verdict"].startswith("Nothing to worry about")


def test_a_tree_holds_the_same(report, monkeypatch, tmp_path):
    """What ArviZ 1 uses, whichever version is installed."""
    monkeypatch.setattr(arviz, "__version__", "1.0.0")
    tree = diagnostics.audit_to_arviz(report)
    assert isinstance(tree, xarray.DataTree)
    tree.to_netcdf(tmp_path / "audit.nc", engine="h5netcdf")
    group = xarray.open_datatree(tmp_path / "audit.nc", engine="h5netcdf")["audit"]
    np.testing.assert_array_equal(group["denoising_residual"], report.denoising.residual)
    assert list(group["statistic"].values) == list(auditing.STATISTICS)


def without_energy(report):
    skipped = ("no density", "no held-out examples")
    return report._replace(gradient=None, offsets=None, rest=None, membership=None, skipped=skipped)


def test_arviz_holds_what_was_asked(report):
    names = set(diagnostics.audit_to_arviz(without_energy(report))["audit"].data_vars)
    assert {"curl_ratio", "spectrum_smallest", "draws_scale"} <= names
    assert not any(name.startswith(("gradient", "offsets", "rest", "membership")) for name in names)


def test_the_figure_shows_the_numbers(report):
    figure = plots.plot_audit(report)
    residual, curl, _, normaliser, draws, roc = figure.axes
    share = report.denoising.residual / report.denoising.linear
    assert any(np.array_equal(line.get_ydata(), share) for line in residual.lines)
    assert any(np.allclose(line.get_ydata(), report.curl.ratio, atol=1e-30) for line in curl.lines)
    known = ~np.isnan(report.offsets.value)
    values = [np.asarray(line.get_ydata()) for line in normaliser.lines]
    assert any(np.array_equal(v, report.offsets.value[known]) for v in values)
    assert [0.0] in [list(v) for v in values]  # the stored normaliser
    bars = sum(p.get_height() for p in draws.patches if hasattr(p, "get_height"))
    assert bars == report.draws.mean_z.size
    labels = [text.get_text() for text in roc.get_legend().get_texts()]
    assert labels[1] == (
        f"SimA, AUC {report.membership.chosen_auc[0]:.2f} ± "
        f"{report.membership.chosen_auc_error[0]:.2f}"
    )
    figure = plots.plot_audit(without_energy(report))
    words = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert words == ["a denoiser alone\nhas no density", "no held-out examples"]
    plt.close("all")


def test_bad_input_is_refused_before_anything_is_computed(key):
    with pytest.raises(ValueError, match=r"examples of shape \(2,\)"):
        nd.audit(MIXTURE, DATA[:, :1], key=key)
    with pytest.raises(ValueError, match="`num_draws` must be at least 1"):
        nd.audit(MIXTURE, DATA, key=key, num_draws=0)
    with pytest.raises(ValueError, match="`times` must be a vector"):
        nd.audit(MIXTURE, DATA, key=key, times=[2.0])


@pytest.mark.long
def test_the_digits_prior(float32):
    """A real prior: better than a line, a gradient throughout, and not above suspicion."""
    energy = nd.load_pretrained("digits-8x8")
    data, held_out = (load_digits(part)[0] for part in ("train", "test"))
    found = nd.audit(energy, data, held_out=held_out, key=jax.random.key(0), progress_bar=False)
    assert np.all(found.denoising.residual < 1.01 * found.denoising.linear)
    assert found.denoising.residual[3] < 0.7 * found.denoising.linear[3]
    assert found.curl.ratio.max() < 1e-5 and np.all(found.gradient.violations == 0)
    # The card's disagreement of energies and scores, 2.66 nats, Monte Carlo of about 1 included.
    assert 1.8 < found.offsets.spread[0] < 3
    assert abs(found.offsets.value[0] - energy.log_normalizer) < 1
    assert 0.7 < found.membership.chosen_auc[0] < 0.9  # it saw each digit thousands of times
    words = "\n".join(found.verdict)
    assert abs(found.rest.fall) < 4 * found.rest.fall_error and found.rest.distance > 5
    for phrase in ("fits them too closely", "off against each other", "density and score agree"):
        assert phrase in words
