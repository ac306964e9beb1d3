"""Representations: a line that makes the same object when typed; results in a few lines; notebooks."""

import html
import inspect
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion import (
    diagnostics,
    energies,
    moves,
    schedules,
    schemes,
    twists,
)
from numpyro_diffusion._written import alike
from numpyro_diffusion.plots import plot_run
from numpyro_diffusion.plots.summary import as_png

NAMES: dict = {}
for room in (nd, energies, schedules, schemes, twists, moves):
    NAMES |= vars(room)


def metric(z):
    return jnp.eye(2)


TYPED = [
    "Annealed()",
    "Annealed(moves=hmc(4))",
    "Annealed(moves=3, levels=20, pilot=512)",
    "Annealed(moves=Moves(num='pilot', rank=2))",
    "Annealed(moves=Moves(joint=nuts(3), num_other=5), pilot=Pilot(conditional_ess=0.9))",
    "Annealed(transport=ProbabilityFlow())",
    "LikelihoodTempered(exact_draws=False, num_draws=8)",
    "BlackJAXTempered(pilot=64)",
    "DataTempered(moves=mala())",
    "ReverseDiffusion(covariance=Full(), inflation=1.2)",
    "ReverseDiffusion(covariance=Isotropic())",
    "Twisted(levels=50, inflation=1.0000001, conjugate=True)",
    "Twisted(proposal=DDRM(eta=0.5))",
    "ScoreComposition(correction=DriftLite(num_probes=3))",
    "unweighted(Twisted(levels=50))",
    "unresampled(Twisted())",
    "Moves()",
    "Moves(joint=hmc(2), num=1)",
    "Pilot(num_particles=64)",
    "adjusted_mclmc(3)",
    "slice_sampling()",
    "sequence(hmc(2), on_sites(mala(), ['x', 'y']))",
    "mixture(hmc(2), barker(), weights=(0.25, 0.75))",
    "elliptical_slice(scale={'a': 2.0})",
    "rmhmc(metric, 4)",
    "Tweedie()",
    "Tweedie(reuse_score=True)",
    "Widened(scale=0.5)",
    "ByDimension(most=2)",
    "MatrixFree(directions=7)",
    "VariancePreserving(beta_min=0.2)",
    "Cosine()",
    "Tabulated()",
    "Gaussian()",
    "Gaussian(mean=[1.0, 2.5], covariance=[[2.0, 0.3], [0.3, 0.7]], schedule=Cosine(), t_max=0.9)",
    "GaussianMixture(weights=[0.25, 0.75])",
    "Box(low=[0.0, -1.0], high=[1.0, 1.5])",
    "Composed(energies=(Gaussian(),), powers=(0.5,))",
    "EnergyFunction(fn=metric, shape=(2,), variance=[4.0, 4.0])",
]


@pytest.mark.parametrize("text", TYPED)
def test_typed_back(text):
    names = NAMES | {"metric": metric}
    made = eval(text, names)  # noqa: S307
    assert repr(made) == text
    again = eval(repr(made), names)  # noqa: S307
    assert alike(again, made)
    assert jax.tree.structure(again) == jax.tree.structure(made)


def test_alike_tells_differences():
    assert not alike(nd.Annealed(moves=moves.hmc(4)), nd.Annealed())
    assert not alike(nd.Gaussian([0.5, -1.1]), nd.Gaussian())
    assert not alike(nd.Widened(0.5), nd.Widened())
    assert not alike(1, True) and not alike(np.zeros(2), np.zeros(3)) and not alike("a", None)


def test_what_is_long_has_its_shape_and_one_line():
    assert repr(nd.Gaussian(np.arange(9.0), np.eye(9))) == (
        "Gaussian(mean=<float64 (9,)>, covariance=<float64 (9, 9)>)"
    )
    text = repr(nd.InnerProductEnergy())
    assert re.fullmatch(r"InnerProductEnergy\(net=<ResidualMLP, [\d,]+ numbers>\)", text)
    assert "<lambda>" in repr(nd.ScoreFunction(lambda x, t: x, 2))
    told = []
    jax.jit(lambda m: told.append(repr(nd.Gaussian(m))) or m)(jnp.zeros(2))
    assert told == ["Gaussian(mean=<float64 (2,)>, covariance=<float64 (2, 2)>)"]


def model(y):
    x = numpyro.sample("x<b>", nd.DiffusionPrior(nd.Gaussian()))
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    picture = numpyro.sample("picture", dist.Normal(jnp.zeros((1, 8, 9)), 1.0).to_event(3))
    numpyro.sample("y", dist.Normal(x[0] + picture[0, 0, 0], 0.1 + scale), obs=y)


@pytest.fixture(scope="module")
def smc():
    scheme = nd.Annealed(levels=3, moves=1, pilot=16)
    smc = nd.SMC(model, scheme, num_particles=16, num_chains=2, threshold=0.7, progress_bar=False)
    assert smc._repr_html_() is None  # nothing to show but its repr
    return smc.run(jax.random.key(0), 0.3)


ROOMS = [nd, *(getattr(nd, name) for name in nd.__all__ if inspect.ismodule(getattr(nd, name)))]
RECORDS = sorted(
    {
        each
        for room in ROOMS
        for each in vars(room).values()
        if inspect.isclass(each) and issubclass(each, tuple) and hasattr(each, "_fields")
    },
    key=lambda each: each.__qualname__,
)
SEVERAL_LINES = {"AuditReport", "SMCResult"}  # tested below and in test_audit.py
# What functions of this package hand to each other, one particle or point at a time.
WITHIN = {
    "Curvature", "Edge", "LabelledData", "LabelsGiven", "Observed", "Potential", "Rest", "Seen", "Sums",
    "Noised", "ReverseMoments", "Particle", "Retrace", "LowRank", "Contrast", "NonFinite", "Claims",
}  # fmt: skip


@pytest.mark.parametrize("record", RECORDS, ids=lambda each: each.__qualname__)
def test_records_of_many_numbers_take_one_line(record):
    if record.__name__ in SEVERAL_LINES or record.__name__ in WITHIN:
        return
    many = {"x<b>": np.zeros((50, 50))}
    made = record(*[many] * len(record._fields))
    assert "\n" not in repr(made) and len(repr(made)) <= 62 * len(record._fields)
    assert repr(made).startswith(f"{record.__name__}({record._fields[0]}=") and "(50, 50)" in repr(
        made
    )
    if hasattr(record, "verdict"):  # which reads a history: see below
        return
    page = made._repr_html_()
    assert page.count("<tr>") >= len(record._fields) and "x<b>" not in page


def test_results_say_their_numbers():
    history = {name: np.linspace(3.0, 1.0, 3) for name in ("validation_loss", "train_loss")}
    fitted = nd.train.FitResult(nd.Gaussian(), {"step": np.arange(3)} | history, 2, 1.0, "steps")
    assert repr(fitted) == (
        "FitResult(energy=Gaussian(), history={'step': [0, 1, 2], 'validation_loss': [3.0, 2.0, 1.0], "
        "'train_loss': [3.0, 2.0, 1.0]}, best_step=2, best_loss=1, stopped='steps', ess=None)"
    )
    assert fitted.verdict in fitted._repr_html_()
    draws = nd.samplers.NestedResult(-3.25, 0.125, {"x": np.zeros((90, 2))}, np.zeros(90), 1200)
    assert repr(draws) == (
        "NestedResult(log_evidence=-3.25, log_evidence_error=0.125, positions={'x': <float64 (90, 2)>}, "
        "log_weights=<float64 (90,)>, num_evaluations=1200)"
    )


def test_objects_of_many_parts_take_one_line(smc):
    assert repr(nd.samplers.DAPS()) == "DAPS()"
    assert repr(nd.samplers.PnPDM(noise_level=0.5)) == "PnPDM(noise_level=0.5)"
    assert repr(nd.train.UnknownNoise(0.5)) == "UnknownNoise(start=0.5)"
    plate = nd.ppl.PlateSMC(model, split=("y",))
    assert repr(plate) == "PlateSMC(model=model, scheme=Annealed(), split=('y',))"
    assert repr(nd.ppl.Sampler(smc)) == f"Sampler({smc!r})"
    assert repr(smc.bridge) == (
        "<DensityBridge of the diffusion sites ['x<b>'] and the other sites ['scale', 'picture'], with "
        "Tweedie()>"
    )
    assert "init=<BoundMethod, " in repr(smc.scheme(smc.bridge)) and "levels=<Level, " in repr(
        smc.scheme(smc.bridge)
    )


def test_the_sampler_in_one_line(smc):
    assert repr(smc) == (
        "SMC(model, Annealed(moves=1, levels=3, pilot=16), num_particles=16, num_chains=2, threshold=0.7, "
        "progress_bar=False)"
    )
    assert repr(nd.SMC(model, max_seconds=3.0)) == (
        "SMC(model, Annealed(), num_particles=512, num_chains=4, max_seconds=3.0)"
    )


def test_a_result_says_what_it_is_without_its_particles(smc):
    lines = repr(smc.result).splitlines()
    assert len(lines) == 7 and max(map(len, lines)) < 160
    assert lines[1].endswith("2 clouds of 16")
    assert "picture (1, 8, 9), scale (), x<b> (2,)" in lines[3]
    assert f"{float(smc.result.log_evidence[1]):.3f} +- " in lines[4]
    assert smc.result.target in lines[6]
    heuristic = smc.result._replace(claims=smc.result.claims._replace(weighted=False, exact=False))
    assert "no weights" in repr(heuristic) and repr(heuristic).endswith("heuristic")


def test_pages_are_small_and_escaped(smc, monkeypatch):
    page = smc._repr_html_()
    assert len(page) < 200_000 and "x<b>" not in page and "x&lt;b&gt;" in page
    assert diagnostics.verdict(smc.result, smc.bridge)[:60] in html.unescape(page)
    assert page.count("data:image/png;base64,") == 1
    small = smc.result._repr_html_()
    assert "x<b>" not in small and small.count("<polyline") == 2 and len(small) < 20_000
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    without = smc._repr_html_()
    assert "png" not in without and without.count("<polyline") == 2
    with pytest.raises(ImportError) as caught:
        smc.plot()
    assert any("pip install 'numpyro-diffusion[plots]'" in note for note in caught.value.__notes__)


def test_one_figure_shows_levels_and_sites(smc):
    figure = smc.plot()
    titles = [ax.get_title() or ax.get_title("left") for part in figure.subfigs for ax in part.axes]
    assert {"effective sample size", "acceptance, other sites", "picture: mean", "scale"} <= set(
        titles
    )
    axes = {
        ax.get_title() or ax.get_title("left"): ax for part in figure.subfigs for ax in part.axes
    }
    drawn = axes["picture: mean"].images[0].get_array()
    draws = np.asarray(smc.get_samples(group_by_chain=True)["picture"])
    np.testing.assert_allclose(np.asarray(drawn), draws.mean((0, 1))[0], atol=1e-6)
    ess = np.stack([line.get_ydata() for line in axes["effective sample size"].lines])
    np.testing.assert_allclose(ess, smc.result.trace.ess)
    assert as_png(figure, most=10) == ""


def test_modes_of_a_vector_are_seen(smc, rng):
    """Each component of a small site has a histogram, of a longer one a violin; a site is not drawn twice."""
    two = rng.normal(0.0, 0.1, (2, 500, 2)) + rng.choice([-1.0, 1.0], (2, 500, 1))
    draws = {
        "pair": two,
        "pair_base": two,
        "six": np.tile(two, 3),
        "long": np.tile(two, 20),
        "n": two[..., :1],
    }
    figure = plot_run(smc.result, draws)
    axes = {ax.get_title("left"): ax for part in figure.subfigs for ax in part.axes}
    shown = [name for name in axes if name.split("[")[0].split(",")[0] in draws]
    assert shown == ["pair[0]", "pair[1]", "six, by component", "long, by component", "n"]
    for name in ("pair[0]", "n"):
        line = axes[name].lines[0]
        x, height = line.get_xdata(), line.get_ydata()
        assert height[np.abs(x) < 0.2].max() < 0.05 * height.max()  # nothing between modes
    violin = axes["six, by component"].collections[0].get_paths()[0].vertices
    width = lambda low, high: np.ptp(violin[(violin[:, 1] > low) & (violin[:, 1] < high), 0])
    assert width(-0.2, 0.2) < 0.5 * width(0.9, 1.1)
    assert len(axes["long, by component"].lines) == 1
    many = {f"v{i}": two + i for i in range(8)}  # sixteen panels would leave sites out
    figure = plot_run(smc.result, many)
    shown = {ax.get_title("left") for part in figure.subfigs for ax in part.axes}
    assert {f"v{i}, by component" for i in range(8)} <= shown


class Report:
    prior = "Prior<b>"

    def __str__(self):
        return "curl & <spectrum>"


def test_the_page_of_an_audit_is_its_table_escaped():
    page = nd.auditing.AuditReport._repr_html_(Report())  # type: ignore[arg-type]
    assert "Prior&lt;b&gt;" in page and "curl &amp; &lt;spectrum&gt;" in page
