"""Bad input is refused with what was expected, what came, and what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.schemes.levels import Level

energy = nd.GaussianMixture()
FAST = nd.Annealed(levels=4, moves=nd.schemes.Moves(num=1, num_other=1), pilot=32)


def levels(count=4, sites=None):
    """A grid of levels, as a pilot would freeze it."""
    ends, power = jnp.linspace(1, 0, count + 1), jnp.ones(count + 1).at[0].set(0)
    scale = {n: jnp.ones((count, *shape)) for n, shape in (sites or {"x": (2,)}).items()}
    return Level.by_hand(ends, power, scale, step_size=0.1)


def observed(x, y, mask=True):
    numpyro.sample("y", dist.Normal(x, 0.5).mask(mask).to_event(1), obs=y)


def diffusion(y):
    observed(numpyro.sample("x", nd.DiffusionPrior(energy)), y)


def unbounded(y):
    x = numpyro.sample("x", nd.DiffusionPrior(energy))
    k = numpyro.sample("k", dist.Poisson(0.3))
    observed(x + k, y)


def improper(y):
    x = numpyro.sample("x", nd.DiffusionPrior(energy))
    shift = numpyro.sample("shift", dist.ImproperUniform(dist.constraints.real, (), ()))
    observed(x + shift, y)


def subsampled(y):
    x = numpyro.sample("x", nd.DiffusionPrior(energy))
    with numpyro.plate("data", 2, subsample_size=1) as index:
        numpyro.sample("y", dist.Normal(x[index], 0.5), obs=y[index])


def masked(y):
    with numpyro.handlers.mask(mask=False):
        x = numpyro.sample("x", nd.DiffusionPrior(energy))
    observed(x, y)


def scaled(y):
    with numpyro.handlers.scale(scale=2.0):
        x = numpyro.sample("x", nd.DiffusionPrior(energy))
    observed(x, y)


def masked_other(y):
    x = numpyro.sample("x", nd.DiffusionPrior(energy))
    with numpyro.handlers.mask(mask=jnp.array([True, False])):
        shift = numpyro.sample("shift", dist.Normal(0.0, 1.0).expand([2]))
    observed(x + shift, y)


def scaled_other(y):
    x = numpyro.sample("x", nd.DiffusionPrior(energy))
    with numpyro.handlers.scale(scale=0.5):
        shift = numpyro.sample("shift", dist.Normal(0.0, 1.0))
    observed(x + shift, y)


def masked_inside(y):
    prior = nd.DiffusionPrior(energy).expand([2]).mask(jnp.array([True, False])).to_event(1)
    observed(numpyro.sample("x", prior)[0], y)


def score_only(y):
    score = nd.ScoreFunction(lambda x, t: -x, shape=(2,))
    observed(numpyro.sample("x", nd.DiffusionPrior(score)), y)


def varying(y):
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
    observed(numpyro.sample("x", nd.DiffusionPrior(_scaled_energy(scale))), y)


def _quadratic(scale, x, t):
    return 0.5 * jnp.sum(x**2) / scale


def _scaled_energy(scale):
    return nd.EnergyFunction(_quadratic, shape=(2,), params=scale)


def chained(y):
    """The energy of one diffusion site depends on the value of another."""
    x = numpyro.sample("x", nd.DiffusionPrior(energy))
    z = numpyro.sample("z", nd.DiffusionPrior(_scaled_energy(1.0 + x[0] ** 2)))
    observed(z, y)


def rebuilt(y):
    fresh = nd.EnergyFunction(lambda x, t: 0.5 * jnp.sum(x**2), shape=(2,))
    observed(numpyro.sample("x", nd.DiffusionPrior(fresh)), y)


def needs_values(y):
    x = numpyro.sample("x", nd.DiffusionPrior(energy))
    numpyro.sample("shift", dist.Normal(0.0, 1.0).expand([len(np.unique(y))]))
    observed(x, y)


def switches_on_values(y):
    x = numpyro.sample("x", nd.DiffusionPrior(energy))
    observed(x if y.sum() < 5 else 2 * x, y)


def stretched(y):
    x = numpyro.sample("x", nd.DiffusionPrior(energy))
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y[:, None])


def too_long(y):
    x = numpyro.sample("x", nd.DiffusionPrior(energy))
    numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=jnp.zeros(3))


def nothing(y):
    numpyro.sample("y", dist.Normal(0.0, 1.0).expand([2]).to_event(1), obs=y)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (unbounded, ValueError, "discrete latent site `k`.*no finite list.*Give it one"),
        (improper, ValueError, "`shift` has no sampler.*proper one"),
        (subsampled, ValueError, "`data` subsamples 1 of 2.*whole plate"),
        (masked, ValueError, "`x` is masked.*mask the observed"),
        (masked_inside, ValueError, "`x` is masked.*mask the observed"),
        (masked_other, ValueError, "`shift` is masked.*mask the observed"),
        (scaled, ValueError, "`x` is under a `scale`.*power"),
        (scaled_other, ValueError, "`shift` is under a `scale`.*Scale the observed"),
        (score_only, TypeError, "`x` has the score-only prior.*[Dd]istil"),
        (varying, ValueError, "energy of site `x` depends.*one fixed energy"),
        (chained, ValueError, "energy of site `z` depends.*one fixed energy"),
        (rebuilt, ValueError, "energy of site `x`.*new functions.*made outside the model"),
        (nothing, ValueError, "no latent site"),
        (needs_values, ValueError, "needs the values of its array arguments.*Pass sizes"),
        (switches_on_values, ValueError, "needs the values of its array arguments.*Pass sizes"),
        (stretched, ValueError, r"`y` expects values of shape \(2,\); got \(2, 1\).*Reshape"),
        (too_long, ValueError, r"`y` expects values of shape \(2,\); got \(3,\).*Reshape"),
    ],
)
def test_models_that_cannot_be_sampled(model, error, message):
    with pytest.raises(error, match=message):
        nd.from_model(model, jnp.zeros(2))


def test_data_that_are_not_finite():
    bad = jnp.array([0.3, jnp.nan])
    with pytest.raises(ValueError, match=r"`y` has 1 values that are not finite.*index \(1,\)"):
        nd.from_model(diffusion, bad)

    def missing(y):
        x = numpyro.sample("x", nd.DiffusionPrior(energy))
        observed(x, y, mask=jnp.array([True, False]))

    nd.from_model(missing, bad)


def test_values_of_an_observed_diffusion_site():
    def model(x, y):
        numpyro.sample("x", nd.DiffusionPrior(energy), obs=x)
        numpyro.sample("y", dist.Normal(numpyro.sample("level", dist.Normal()), 1.0), obs=y)

    nd.from_model(model, jnp.array([1.0, 2.0]), 0.3)
    with pytest.raises(
        TypeError, match="distribution of real numbers; got values of type int.*Convert"
    ):
        nd.from_model(model, jnp.array([1, 2]), 0.3)
    with pytest.raises(ValueError, match=r"`x` expects values of shape \(2,\); got \(3,\)"):
        nd.from_model(model, jnp.zeros(3), 0.3)
    with pytest.raises(ValueError, match=r"`x` has 1 values that are not finite.*index \(0,\)"):
        nd.from_model(model, jnp.array([jnp.inf, 0.0]), 0.3)


def test_two_sites_of_one_name():
    def twice(y):
        numpyro.sample("x", nd.DiffusionPrior(energy))
        diffusion(y)

    with pytest.raises(ValueError, match=r"`x` \(a sample and a sample\): each needs a name"):
        nd.from_model(twice, jnp.zeros(2))


def test_numbers_out_of_range():
    with pytest.raises(ValueError, match="`num_chains` must be at least 1; got 0"):
        nd.SMC(diffusion, num_chains=0)
    with pytest.raises(ValueError, match="`num_particles` must be at least 2; got 1"):
        nd.SMC(diffusion, num_particles=1)
    for name, value in (("num_particles", 2.5), ("num_chains", float("nan")), ("batch_size", "8")):
        with pytest.raises(ValueError, match=f"`{name}` must be an integer of at least .* got"):
            nd.SMC(diffusion, **{name: value})
    assert nd.SMC(diffusion, num_particles=np.int64(8)).num_particles == 8
    with pytest.raises(ValueError, match=r"in \(0, 1\); got 1.5"):
        nd.Annealed(pilot=nd.schemes.Pilot(conditional_ess=1.5))
    with pytest.raises(ValueError, match="`Annealed` goes on by joint moves.* at least 1; got 0"):
        nd.Annealed(moves=0)
    with pytest.raises(ValueError, match='`num` of `Moves` must be an integer.*"pilot"'):
        nd.Annealed(moves="few")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`Twisted` makes no joint moves.*got 1"):
        nd.Twisted(moves=1)
    with pytest.raises(ValueError, match="`levels` must be at least 1"):
        nd.Annealed(levels=0)
    with pytest.raises(ValueError, match="`num_particles` of `Pilot` must be at least 2; got 1"):
        nd.Annealed(pilot=1)
    with pytest.raises(TypeError, match="expects an AbstractEnergy; got int"):
        nd.from_energy(3)
    for make in (nd.from_model, nd.from_energy):
        with pytest.raises(TypeError, match="`bridge_type` is .*PathBridge.*; got True"):
            make(diffusion if make is nd.from_model else energy, bridge_type=True)  # type: ignore


def test_levels_in_the_wrong_order_or_for_another_model():
    good = levels()
    bridge = nd.from_energy(energy)
    assert nd.Annealed(levels=good)(bridge).levels is good
    backwards = good._replace(clock=good.next_clock, next_clock=good.clock)
    with pytest.raises(ValueError, match="from noise .* to data .*data-to-noise order"):
        nd.Annealed(levels=backwards)
    with pytest.raises(ValueError, match="leave no gap"):
        nd.Annealed(levels=jax.tree.map(lambda leaf: leaf[1:], good))
    for power, next_power in ((0, 0.5), (1, 1)):
        wrong = good._replace(
            power=good.power.at[0].set(power), next_power=next_power * good.next_power
        )
        with pytest.raises(ValueError, match="power must pass without gaps from 0 .* to 1"):
            nd.Annealed(levels=wrong)
    with pytest.raises(TypeError, match="number, frozen levels or `None`; got float"):
        nd.Annealed(levels=40.0)
    for sites in ({"x": (3,)}, {"x": (2,), "sigma": ()}, {"z": (2,)}):
        with pytest.raises(
            ValueError, match=r"sites of this model are \{'x': \(2,\)\}.*let a pilot"
        ):
            nd.Annealed(levels=levels(sites=sites))(bridge)


def test_arguments_of_another_class():
    with pytest.raises(TypeError, match="`model` must be a NumPyro model.*got GaussianMixture"):
        nd.SMC(energy)
    with pytest.raises(TypeError, match="`scheme` must be an instance of `AbstractScheme`"):
        nd.SMC(diffusion, nd.Annealed)
    with pytest.raises(TypeError, match="`twist` must be an instance of `AbstractTwist`"):
        nd.SMC(diffusion, twist="tweedie")
    for key in (0, None, jax.random.split(jax.random.key(0))):
        with pytest.raises(TypeError, match="`key` must be one PRNG key"):
            nd.SMC(diffusion).run(key, jnp.zeros(2))


def test_before_and_without_a_run():
    smc = nd.SMC(diffusion)
    with pytest.raises(RuntimeError, match="call `run` first"):
        smc.get_samples()
    with pytest.raises(RuntimeError, match="no interrupted run"):
        smc.resume()


def test_likelihood_that_is_zero_everywhere():
    def impossible(y):
        x = numpyro.sample("x", nd.DiffusionPrior(energy))
        numpyro.factor("no", -jnp.inf + 0 * jnp.sum(x))
        observed(x, y)

    smc = nd.SMC(impossible, FAST, num_particles=32, num_chains=2, progress_bar=False)
    with pytest.raises(RuntimeError, match="no pilot particle is possible under `no`"):
        smc.run(jax.random.key(0), jnp.zeros(2))


def test_too_few_levels_say_so():
    scheme = nd.Annealed(moves=1, pilot=nd.schemes.Pilot(32, conditional_ess=0.999, max_levels=3))
    with pytest.raises(RuntimeError, match="3 levels did not suffice.*raise its `max_levels`"):
        scheme(nd.from_energy(energy, lambda x: -50 * jnp.sum((x - 1) ** 2)), jax.random.key(0))


def bare_prior(y):
    observed(numpyro.sample("x", energy), y)


def class_as_prior(y):
    observed(numpyro.sample("x", nd.GaussianMixture), y)


@pytest.mark.parametrize("model", [bare_prior, class_as_prior])
def test_a_prior_without_its_distribution_is_refused_by_name(model):
    words = r'`GaussianMixture` is a prior .*`numpyro.sample\("x", nd.DiffusionPrior\(prior\)\)`'
    with pytest.raises(TypeError, match=words) as caught:
        nd.from_model(model, jnp.zeros(2))
    assert "tensorflow_probability" in str(caught.value.__cause__)
    for kernel in (nd.MoveKernel(model), nd.ParticleGibbs(model)):
        with pytest.raises(TypeError, match=words):
            kernel.init(jax.random.key(0), 0, None, (jnp.zeros(2),), {})


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            0.3,
            "site `sigma`: .* takes a distribution; got the number 0.3. What is known needs no site",
        ),
        (jnp.ones(3), r"got an array of shape \(3,\).*`sigma = ...`"),
        (np.float32(0.3), "got the number 0.3"),
    ],
)
def test_a_number_is_no_distribution(value, words):
    def model(y):
        numpyro.sample("sigma", value)
        diffusion(y)

    with pytest.raises(TypeError, match=words):
        nd.from_model(model, jnp.zeros(2))


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        (
            "prior.safetensors",
            r"got the text 'prior.safetensors'. Read a file first: `nd.load\(path\)`",
        ),
        (
            np.zeros((5, 2)),
            r"got an array of shape \(5, 2\). Train an energy on examples first: `nd.fit`",
        ),
        (lambda x: x, "got function. Wrap a callable energy"),
    ],
)
def test_what_is_no_prior(prior, words):
    with pytest.raises(TypeError, match=words):
        nd.DiffusionPrior(prior)


def plate_of_four(y):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([3]))
    with numpyro.plate("n", 4):
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def product_beside_a_plate(y):
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", nd.DiffusionPrior(energy))
    observed(jnp.ones((2, 2)) @ x, y)


def no_site(y):
    raise KeyError("mine")


@pytest.mark.parametrize(
    ("model", "error", "note"),
    [
        (plate_of_four, ValueError, "at site `y`, after site `z` of shape (3,); plates so far: `n` (size 4)"),
        (product_beside_a_plate, TypeError, "after site `x` of shape (3, 2); plates so far: `n` (size 3)"),
        (no_site, KeyError, "before any site"),
    ],
)  # fmt: skip
def test_an_error_of_the_model_says_where_it_was_raised(model, error, note):
    with pytest.raises(error) as caught:
        nd.from_model(model, jnp.zeros(4))
    ours = [text for text in caught.value.__notes__ if "JAX" not in text]
    assert ours == [f"While tracing the model: {note}."]
