"""Bad input is refused with what was expected, what came, and what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_diffusion as nd

energy = nd.GaussianMixture()
FAST = nd.Annealed(levels=4, num_pilot=32, num_moves=1, num_other_moves=1)


def observed(x, y, mask=True):
    numpyro.sample("y", dist.Normal(x, 0.5).mask(mask).to_event(1), obs=y)


def diffusion(y):
    observed(numpyro.sample("x", nd.DiffusionPrior(energy)), y)


def discrete(y):
    x = numpyro.sample("x", nd.DiffusionPrior(energy))
    k = numpyro.sample("k", dist.Bernoulli(0.3))
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


def score_only(y):
    score = nd.ScoreFunction(lambda x, t: -x, shape=(2,))
    observed(numpyro.sample("x", nd.DiffusionPrior(score)), y)


def varying(y):
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
    observed(numpyro.sample("x", nd.DiffusionPrior(_scaled_energy(scale))), y)


def _scaled_energy(scale):
    return nd.EnergyFunction(lambda p, x, t: 0.5 * jnp.sum(x**2) / p, shape=(2,), params=scale)


def nothing(y):
    numpyro.sample("y", dist.Normal(0.0, 1.0).expand([2]).to_event(1), obs=y)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (discrete, ValueError, "`k` is discrete.*Sum it out"),
        (improper, ValueError, "`shift` has no sampler.*proper one"),
        (subsampled, ValueError, "`data` subsamples 1 of 2.*whole plate"),
        (masked, ValueError, "`x` is masked.*mask the observed"),
        (scaled, ValueError, "`x` is under a `scale`.*power"),
        (score_only, TypeError, "`x` has the score-only prior.*[Dd]istil"),
        (varying, ValueError, "energy of site `x` depends.*one fixed energy"),
        (nothing, ValueError, "no latent site"),
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


def test_two_sites_of_one_name():
    def twice(y):
        numpyro.sample("x", nd.DiffusionPrior(energy))
        diffusion(y)

    with pytest.raises((ValueError, AssertionError), match="x"):
        nd.from_model(twice, jnp.zeros(2))


def test_numbers_out_of_range():
    with pytest.raises(ValueError, match="`num_chains` must be at least 1; got 0"):
        nd.SMC(diffusion, num_chains=0)
    with pytest.raises(ValueError, match="`num_particles` must be at least 2; got 1"):
        nd.SMC(diffusion, num_particles=1)
    with pytest.raises(ValueError, match=r"in \(0, 1\); got 1.5"):
        nd.Annealed(conditional_ess=1.5)
    with pytest.raises(ValueError, match="at least one move"):
        nd.Annealed(num_moves=0)
    with pytest.raises(ValueError, match="`levels` must be at least 1"):
        nd.Annealed(levels=0)
    with pytest.raises(TypeError, match="expects an AbstractEnergy; got int"):
        nd.from_energy(3)


def test_levels_in_the_wrong_order():
    model = FAST(nd.from_energy(energy), jax.random.key(0))
    levels = jax.tree.map(np.asarray, model.levels)
    backwards = levels._replace(clock=levels.next_clock, next_clock=levels.clock)
    with pytest.raises(ValueError, match="from noise .* to data .*data-to-noise order"):
        nd.Annealed(levels=backwards)
    with pytest.raises(ValueError, match="leave no gap"):
        nd.Annealed(levels=jax.tree.map(lambda leaf: leaf[1:], levels))
    with pytest.raises(ValueError, match="power must pass"):
        nd.Annealed(levels=levels._replace(next_power=0.5 * levels.next_power))


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
    with pytest.raises((RuntimeError, FloatingPointError), match="weight 0"):
        smc.run(jax.random.key(0), jnp.zeros(2))


def test_too_few_levels_say_so():
    scheme = nd.Annealed(max_levels=3, num_pilot=32, num_moves=1, conditional_ess=0.999)
    with pytest.raises(RuntimeError, match="3 levels did not suffice.*raise"):
        scheme(nd.from_energy(energy, lambda x: -50 * jnp.sum((x - 1) ** 2)), jax.random.key(0))
