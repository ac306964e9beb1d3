"""Log densities that are NaN or +inf: every sampler names where, and refuses a result after +inf."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.stats import norm
from numpyro.infer import MCMC, NUTS, Gibbs

import numpyro_diffusion as nd
from numpyro_diffusion._finite import NonFinite, Sightings, places
from numpyro_diffusion.schemes.covariance import Line
from numpyro_diffusion.schemes.levels import Level

PRIOR = nd.GaussianMixture([0.6, 0.4], [[-1.0], [1.5]], [[[0.3]], [[0.5]]])
CLOCK, POWER = jnp.array([1.0, 0.7, 0.4, 0.0, 0.0]), jnp.array([0.0, 0.3, 0.6, 1.0, 1.0])


def few(*others, scheme=nd.ReverseDiffusion, num_moves=0):
    """Frozen levels: no pilot to wait for."""
    scales = {"x": jnp.ones((4, 1)), **{name: jnp.ones(4) for name in others}}
    flat = Line(-jnp.ones((4, 1)), jnp.zeros((4, 1)), jnp.zeros(4))
    levels = Level.by_hand(CLOCK, POWER, scales)._replace(curvature={"x": flat})
    return scheme(levels=levels, moves=num_moves)


@pytest.fixture(autouse=True)
def hurried():
    """Small programs: compiling them well takes longer than running them."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def alone(bad, y=None):
    x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
    numpyro.factor("bad", jnp.where(x[0] > 1.0, bad, 0.0))
    numpyro.sample("y", dist.Normal(x[0], 0.4), obs=y)


def with_scale(bad, y=None):
    sigma = numpyro.sample("sigma", dist.LogNormal(-1.0, 0.2))
    x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
    numpyro.factor("bad", jnp.where(x[0] > 1.0, bad, 0.0))
    numpyro.sample("y", dist.Normal(x[0], sigma), obs=y)


KERNELS = {
    "ParticleGibbs": lambda: nd.ParticleGibbs(alone, few(), num_particles=8),
    "ParticleMarginal": lambda: nd.ParticleMarginal(with_scale, few("sigma"), num_particles=8),
    "MoveKernel": lambda: nd.MoveKernel(alone),
    "SplitKernel": lambda: nd.SplitKernel(alone, nd.samplers.PnPDM(noise_level=0.3)),
    "SplitKernel, DAPS": lambda: nd.SplitKernel(
        alone, nd.samplers.DAPS(noise_level=0.3, num_levels=2)
    ),
}


def chains_of(kernel, num_chains=2):
    """Chains whose program is compiled once, whatever the arguments."""
    options = {"num_warmup": 20, "num_samples": 60, "progress_bar": False}
    options |= {"chain_method": "vectorized", "jit_model_args": True}
    return MCMC(kernel, num_chains=num_chains, **options)


def run(chains, bad):
    chains.run(jax.random.key(0), jnp.asarray(bad), y=jnp.asarray(0.6))
    return chains


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_refuse_infinite_densities_and_name_the_place(name):
    chains = chains_of(KERNELS[name]())
    assert np.isfinite(run(chains, -2.0).get_samples()["x"]).all()
    place = f"in `{name.split(',')[0]}` at site `bad`, first in chain [01] at step"
    if "Particle" in name:
        place += r" \d+, particle \d at (level \d \(of 3\)|the start)"
    with pytest.raises(FloatingPointError, match=r"\+inf " + place):
        run(chains, jnp.inf)
    with pytest.warns(UserWarning, match=f"NaN {place}"):
        x = run(chains, jnp.nan).get_samples()["x"]
    assert np.isfinite(x).all()
    if name in ("MoveKernel", "SplitKernel, DAPS"):  # chains that refuse such proposals
        assert (x[:, 0] <= 1.0).all()


@pytest.mark.parametrize("name", ["MoveKernel", "SplitKernel, DAPS"])
def test_an_energy_that_is_nan_is_named(name, monkeypatch):
    """NaN in proposals alone: no chain ever stands there."""
    half = nd.EnergyFunction(lambda x, t: jnp.where(x[0] > 1, jnp.nan, jnp.sum(x**2)), (1,))
    monkeypatch.setitem(globals(), "PRIOR", half)
    with pytest.warns(UserWarning, match="NaN in `.*Kernel` at site `x`, first in chain"):
        x = run(chains_of(KERNELS[name]()), -2.0).get_samples()["x"]
    if name == "MoveKernel":  # it starts where the density is finite
        assert (x[:, 0] <= 1.0).all()


def test_a_gradient_that_is_nan_is_named():
    """Half of the space is lost on the way there: the joint density, since the step ends nowhere."""

    def model(bad, y=None):
        del bad
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.factor("root", jnp.where(x < 0.5, jnp.sqrt(0.5 - x), 0.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)

    with pytest.warns(UserWarning, match="NaN in `MoveKernel` at site `joint density`"):
        x = run(chains_of(nd.MoveKernel(model)), 0.0).get_samples()["x"]
    assert np.isfinite(x).all()


def test_a_place_of_infinite_density_that_is_rare_is_found():
    """3 % of the prior."""

    def model(bad, y=None):
        del y
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.factor("rare", jnp.where(x > 1.88, bad, 0.0))

    with pytest.raises(FloatingPointError, match=r"\+inf in `MoveKernel` at site `rare`"):
        run(chains_of(nd.MoveKernel(model)), jnp.inf)


def test_draws_after_an_infinite_density_are_no_numbers():
    """A loop of the user's own may look at the draws alone."""
    kernel, args = KERNELS["ParticleGibbs"](), (jnp.asarray(jnp.inf),)
    kwargs = {"y": jnp.asarray(0.6)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kernel.init(jax.random.key(1), 0, None, (jnp.asarray(0.0),), kwargs)

    @jax.jit
    def draws(key):
        state = kernel.start(key, None, args, kwargs)
        step = lambda state, _: (new := kernel.step(state, args, kwargs), new.z["x"])
        return jax.lax.scan(step, state, None, 40)[1]

    x = np.asarray(draws(jax.random.key(0)))[:, 0]
    first = int(np.argmax(np.isnan(x)))
    assert np.isnan(x[first:]).all() and np.isfinite(x[:first]).all()


def test_a_block_of_gibbs_refuses_too():
    particles = nd.ParticleGibbs(with_scale, few("sigma"), num_particles=8)
    with pytest.raises(FloatingPointError, match="in `ParticleGibbs` at site `bad`"):
        run(chains_of(Gibbs([(particles, ["x"]), (NUTS(with_scale), None)]), 1), jnp.inf)


def bridge(bad, bridge_type=nd.bridge.DensityBridge):
    likelihood = lambda x: norm.logpdf(0.6, x[0], 0.4) + jnp.where(x[0] > 1.0, bad, 0.0)
    return nd.from_energy(PRIOR, likelihood, bridge_type=bridge_type)


BY_BRIDGE = {
    "replica_exchange": (
        lambda key, bad: nd.replica_exchange(
            key, bridge(bad), few(scheme=nd.Annealed, num_moves=1), num_draws=40, num_burn_in=0
        ),
        r"\d+ of 160 proposals at replica \d \(of \d\)",
    ),
    "split_gibbs": (
        lambda key, bad: nd.samplers.split_gibbs(
            key,
            bridge(bad),
            nd.samplers.PnPDM(noise_level=0.3),
            num_draws=60,
            num_burn_in=10,
            num_chains=2,
        ),
        r"\d+ of (120 draws|20 warm-up sweeps), first in chain [01] at (draw|warm-up sweep) \d+",
    ),
    "split_gibbs, DAPS": (
        lambda key, bad: nd.samplers.split_gibbs(
            key,
            bridge(bad),
            nd.samplers.DAPS(noise_level=0.3, num_levels=2),
            num_draws=60,
            num_burn_in=10,
            num_chains=2,
        ),
        r"\d+ of (120 draws|20 warm-up sweeps), first in chain [01] at (draw|warm-up sweep) \d+",
    ),
    "split_gibbs, DAPS with the score": (
        lambda key, bad: nd.samplers.split_gibbs(
            key,
            bridge(bad, nd.bridge.PathBridge),
            nd.samplers.DAPS(noise_level=0.3, num_levels=2),
            num_draws=60,
            num_burn_in=10,
            num_chains=2,
        ),
        r"\d+ of (120 draws|20 warm-up sweeps), first in chain [01] at (draw|warm-up sweep) \d+",
    ),
    "run_smc": (
        lambda key, bad: nd.run_smc(key, few()(bridge(bad), key), 100, num_chains=2),
        r"\d+ of 200 particles at level \d \(of 4\)",
    ),
}


@pytest.mark.parametrize("name", BY_BRIDGE)
def test_samplers_of_bridges_refuse_infinite_densities_and_warn_of_nan(name, key):
    sample, place = BY_BRIDGE[name]
    with pytest.raises(FloatingPointError, match=r"\+inf .*site `likelihood`: " + place) as error:
        sample(key, jnp.inf)
    assert error.value.result is not None
    with pytest.warns(UserWarning, match="NaN .*site `likelihood`: " + place) as caught:
        found = sample(key, jnp.nan)
    assert caught[0].filename == __file__
    if name != "replica_exchange":
        assert (
            not np.isnan(found.log_weights).any() and np.isfinite(found.log_weights).any(-1).all()
        )


@pytest.mark.parametrize(("bad", "what"), [(jnp.nan, "NaN"), (jnp.inf, r"\+inf")])
def test_nested_sampling_names_the_site(bad, what, key):
    with pytest.raises(
        FloatingPointError, match=what + r" at site `likelihood` for \d+ of 50 draws"
    ):
        nd.nested_sampling(key, bridge(bad), num_live=50)


BROKEN = nd.EnergyFunction(lambda x, t: jnp.sum(jnp.where(x > 1, jnp.sqrt(1 - x), x**2)), (1,))
DATA = np.linspace(-2, 2, 41)[:, None]
OF_ENERGIES = {
    "thermodynamic_normalizer": lambda key: nd.normalizers.thermodynamic_normalizer(
        BROKEN, DATA, key
    ),
    "adjacent_normalizer": lambda key: nd.normalizers.adjacent_normalizer(BROKEN, DATA, key),
    "elbo_vs_horizon": lambda key: nd.density.elbo_vs_horizon(BROKEN, DATA, key, [0.5, 0.9]),
    "projected_langevin": lambda key: nd.samplers.projections.projected_langevin(
        key, BROKEN, lambda x: x, num_samples=50, num_steps=20
    ),
    "ScoreFormula": lambda key: nd.normalizers.pointwise_normalizer(BROKEN, DATA, key),
    "FlowDensity": lambda key: nd.density.probability_flow(BROKEN, DATA, key),
}


@pytest.mark.parametrize("name", OF_ENERGIES)
def test_estimates_of_an_energy_that_is_nan_are_refused(name, key):
    """NaN for x > 1."""
    with pytest.raises(FloatingPointError, match=rf"`{name}` .* (first|1 point)"):
        OF_ENERGIES[name](key)


def test_an_energy_that_is_nan_where_its_score_is_not_is_refused(key):
    energy = nd.EnergyFunction(lambda x, t: jnp.where(x[0] > 1, jnp.nan, jnp.sum(x**2)), (1,))
    with pytest.raises(
        FloatingPointError, match="`pointwise_normalizer` met NaN or .* of 41 examples"
    ):
        nd.normalizers.pointwise_normalizer(energy, DATA, key)


@pytest.mark.parametrize(
    "sampler", [nd.samplers.PnPDM(noise_level=0.3), nd.samplers.DAPS(noise_level=0.3, num_levels=2)]
)
def test_draws_that_are_impossible_have_no_weight(sampler, key):
    """A chain that starts where the energy is NaN, and finds the way out or is refused."""
    energy = nd.EnergyFunction(lambda x, t: jnp.where(x[0] > 1, jnp.nan, jnp.sum(x**2)), (1,))
    ends = {"num_draws": 40, "num_burn_in": 0, "num_chains": 2}
    bridge = nd.from_energy(energy, lambda x: -jnp.sum(x**2))
    with pytest.warns(UserWarning, match="NaN in `split_gibbs` at site `x`: .*of 80 draws"):
        found = nd.samplers.split_gibbs(
            key, bridge, sampler, **ends, initial={"x": jnp.full((2, 1), 1.2)}
        )
    impossible = np.asarray(found.positions["x"])[..., 0] > 1
    np.testing.assert_array_equal(np.isneginf(found.log_weights), impossible)
    assert impossible.any() or isinstance(sampler, nd.samplers.DAPS)  # which has moved on at once
    far = {"x": jnp.full((2, 1), 50.0)}
    with (
        pytest.raises(FloatingPointError, match="every draw of chain 0 has weight 0"),
        pytest.warns(),
    ):
        nd.samplers.split_gibbs(key, bridge, sampler, **ends, initial=far)


def test_a_split_chain_that_never_meets_the_data_is_refused(key):
    nowhere = nd.from_energy(PRIOR, lambda x: jnp.where(x[0] < 40.0, -jnp.inf, 0.0))
    with pytest.raises(FloatingPointError, match="every draw of chain 0 has weight 0"):
        nd.samplers.split_gibbs(
            key, nowhere, nd.samplers.PnPDM(noise_level=0.3), num_draws=20, num_burn_in=5
        )


def test_the_first_sighting_is_kept_by_level_and_particle():
    flags = np.zeros((3, 4), bool)
    none = Sightings.none(NonFinite({"y": flags}, {"y": flags}), "Chain", 2)
    assert not bool(none.add(NonFinite({"y": flags}, {"y": flags}), jnp.asarray(1)).ruined)
    once, twice = flags.copy(), ~flags
    once[2, 3] = True
    with pytest.raises(
        FloatingPointError, match="first in chain 0 at step 5, particle 3 at level 2"
    ):
        jax.jit(
            lambda s: s.add(NonFinite({"y": flags}, {"y": once}), 5).add(
                NonFinite({"y": flags}, {"y": twice}), 6
            )
        )(none)


def test_places_in_words():
    assert places({"a": 0}, {"a": np.zeros(3)}, 10, 3) == ""
    words = places({"a": 2}, {"a": [0, 1, 4], "b": [0, 0, 0]}, 10, 7)
    assert words == (
        "site `a`: 2 of 10 particles at the start and 4 of 10 particles at level 3 (of 7), the worst of 2 "
        "levels from 2 to 3"
    )


CUT = nd.EnergyFunction(lambda x, t: 0.5 * jnp.sum(x**2) + jnp.where(x[0] > 1, jnp.nan, 0.0), (1,))
BY_SCORE = {
    "Twisted": (
        lambda key, path: nd.run_smc(key, nd.Twisted(levels=50)(path), 1000, num_chains=4),
        r"\d+ of 4000 particles at level 50 \(of 51\)",
    ),
    "PnPDM": (
        lambda key, path: nd.samplers.split_gibbs(
            key, path, nd.samplers.PnPDM(noise_level=0.3), num_draws=300, num_burn_in=20
        ),
        r"\d+ of 1200 draws, first in chain \d at draw \d+",
    ),
    "DAPS": (
        lambda key, path: nd.samplers.split_gibbs(
            key, path, nd.samplers.DAPS(noise_level=0.3), num_draws=60, num_burn_in=20
        ),
        r"\d+ of 240 draws, first in chain \d at draw \d+",
    ),
}


@pytest.mark.parametrize("name", BY_SCORE)
def test_samplers_that_use_the_score_alone_look_at_the_value_too(name, key):
    """NaN for x > 1, where the score is a number: weight 0 there, as in samplers that use the density."""
    sample, place = BY_SCORE[name]
    likelihood = lambda x: norm.logpdf(0.6, x[0], 0.4)
    path = nd.from_energy(CUT, likelihood, bridge_type=nd.bridge.PathBridge)
    with pytest.warns(UserWarning, match=r"NaN .*site `x`: " + place):
        found = sample(key, path)
    weights = jax.nn.softmax(found.log_weights.ravel())
    x = found.positions["x"][..., 0].ravel()
    assert x[weights > 0].max() <= 1.0 < x.max()
    if name == "DAPS":  # a heuristic
        return
    mean, sd = 0.6 / 1.16, 0.4 / 1.16**0.5  # of the posterior without the cut
    end = (1 - mean) / sd
    error = 0.005 if name == "Twisted" else 0.02
    exact = mean - sd * float(norm.pdf(end) / norm.cdf(end))
    assert abs(float(weights @ x) - exact) < 4 * error
    if name == "Twisted":
        exact = float(norm.logpdf(0.6, 0.0, 1.16**0.5) + norm.logcdf(end))
        assert abs(float(jnp.mean(found.log_evidence)) - exact) < 0.06
