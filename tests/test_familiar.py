"""Arguments by the names that other packages give them: what is said, and that nothing else has changed."""

import inspect

import jax
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion._familiar import elsewhere

KEY = jax.random.key(0)


def model(y):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


FUNCTIONS = {
    "SMC": nd.SMC,
    "run_smc": nd.run_smc,
    "replica_exchange": nd.replica_exchange,
    "split_gibbs": nd.samplers.split_gibbs,
    "nested_sampling": nd.samplers.nested_sampling,
    "fit": nd.fit,
}
SAME = {  # what does it here, of what is written by who knows NumPyro, PyMC, BlackJAX, optax
    "SMC": {
        "num_samples": "num_particles",
        "draws": "num_particles",
        "n_particles": "num_particles",
        "num_draws": "num_particles",
        "chains": "num_chains",
        "progressbar": "progress_bar",
        "resampling_fn": "resampling",
        "target_ess": "threshold",
        "init_params": "initial",
        "kernel": "scheme",
    },
    "run_smc": {"rng_key": "key", "num_samples": "num_particles", "num_draws": "num_particles"},
    "replica_exchange": {
        "num_samples": "num_draws",
        "num_warmup": "num_burn_in",
        "tune": "num_burn_in",
        "chains": "num_chains",
        "thin": "thinning",
        "rng_key": "key",
    },
    "split_gibbs": {"draws": "num_draws", "burn_in": "num_burn_in", "kernel": "sampler"},
    "nested_sampling": {"nlive": "num_live", "num_samples": "num_live", "random_seed": "key"},
    "fit": {
        "epochs": "steps",
        "num_steps": "steps",
        "lr": "learning_rate",
        "step_size": "learning_rate",
        "rng_key": "key",
        "validation_data": "validation",
        "loss_fn": "loss",
    },
}


@pytest.mark.parametrize("name, given", [(n, g) for n, same in SAME.items() for g in same])
def test_an_argument_of_others_is_told_what_does_the_same(name, given):
    with pytest.raises(TypeError) as error:
        FUNCTIONS[name](**{given: 1})
    words = str(error.value)
    assert words.startswith(f"`{name}` expects arguments among ") and f"; got `{given}`. " in words
    assert f"What `{given}` is elsewhere is `{SAME[name][given]}` here. More: " in words


@pytest.mark.parametrize(
    "given, sentence",
    [
        ("num_warmup", "since a pilot cloud tunes levels and moves: `pilot` of the scheme."),
        ("tune", "since a pilot cloud tunes levels and moves"),
        ("cores", "What `cores` is elsewhere is `devices` here."),
        ("step_size", "moves are set in the scheme"),
        ("y", "data are arguments of the model, and go to `run`"),
        ("num_particels", "Is `num_particles` meant?"),
        ("colour", "got `colour`. More: "),
    ],
)
def test_where_nothing_does_the_same_the_reason_is_told(given, sentence):
    with pytest.raises(TypeError, match="`SMC` expects arguments among model, scheme, ") as error:
        nd.SMC(model, **{given: 1})
    assert sentence in str(error.value)


def test_sentences_about_schemes_are_told_where_there_are_schemes():
    assert elsewhere("num_warmup", ["key", "bridge", "num_live"]) == ""
    assert "`nd.Annealed" in elsewhere("step_size", ["key", "model"])


def test_too_many_arguments_by_place_are_told_their_names():
    with pytest.raises(
        TypeError, match="2 arguments without their names, model, scheme; got 4. Name"
    ):
        nd.SMC(model, None, 500, 4)
    with pytest.raises(TypeError, match="got 4. Name the others, such as `num_draws=`"):
        nd.samplers.split_gibbs(KEY, None, None, 5)


def test_a_plate_is_told_too():
    with pytest.raises(
        TypeError, match="no argument `num_samples`. What .* is `num_particles` here"
    ):
        nd.ppl.PlateSMC(model, split=("y",), num_samples=10)


def test_what_run_passes_on_to_the_model_is_told_by_a_note():
    smc = nd.SMC(model, num_particles=8, num_chains=1, progress_bar=False)
    for given, sentence in (
        ("num_samples", "What `num_samples` is elsewhere is `num_particles` of `SMC`."),
        ("num_chains", "`num_chains` is an argument of `SMC` itself."),
    ):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{given}'") as error:
            smc.run(KEY, 0.5, **{given: 4})
        [note] = [n for n in error.value.__notes__ if "passed on to the model" in n]
        assert sentence in note and "#keywords" in note
    with pytest.raises(
        TypeError, match="`SMC.run` expects .* What `rng_key` is elsewhere is `key` here"
    ):
        smc.run(rng_key=KEY, y=0.5)


def test_a_model_may_have_arguments_of_these_names():
    def other(y, num_samples, rng_key=None):
        x = numpyro.sample("x", dist.Normal(0.0, num_samples))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)

    smc = nd.SMC(other, num_particles=400, num_chains=2, progress_bar=False)
    smc.run(KEY, y=0.5, num_samples=2.0, rng_key=3)
    exact = dist.Normal(0.0, 5.0**0.5).log_prob(0.5)
    assert abs(smc.log_evidence - exact) < 4 * smc.log_evidence_error + 1e-3


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures_are_their_own(name):
    function = FUNCTIONS[name]
    bare = function.__init__ if inspect.isclass(function) else function
    written = inspect.signature(inspect.unwrap(bare))
    names = [n for n in written.parameters if n != "self"]
    assert list(inspect.signature(function).parameters) == names
    assert (
        "args" not in names
        and "kwargs" not in names
        and bare.__doc__ == inspect.unwrap(bare).__doc__
    )
