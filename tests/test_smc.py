"""The engine against a Kalman filter, and its promises: invariance, resumption, honest errors."""

import signal

import blackjax.smc.resampling as resampling
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.smc import engine as smc

# A random walk seen through noise: x_0 ~ N(0.5, 1), x_k = 0.9 x_{k-1} + N(0, 0.7^2), y_k = x_k + N(0, 0.8^2).
FIRST, DECAY, DRIFT, NOISE = 0.4, 0.9, 0.7, 0.8
DATA = np.array([0.9, -0.3, 1.7, 2.4, 0.1, -1.8, -0.9, 0.2, 1.5, 3.1, 2.2])


# The bootstrap filter: one level a datum after `FIRST`.
MODEL = nd.from_kernels(
    lambda key: {"x": 0.5 + jax.random.normal(key)},
    lambda key, p, y: {"x": DECAY * p["x"] + DRIFT * jax.random.normal(key)},
    lambda p, new, y: norm.logpdf(y, new["x"], NOISE),
    jnp.asarray(DATA),
    log_initial=lambda p: norm.logpdf(FIRST, p["x"], NOISE),
)


def kalman(data=DATA):
    """Log likelihood and the filtered mean and variance at the end."""
    mean, variance, log_likelihood = 0.5, 1.0, 0.0
    for k, y in enumerate([FIRST, *data]):
        if k:
            mean, variance = DECAY * mean, DECAY**2 * variance + DRIFT**2
        total = variance + NOISE**2
        log_likelihood += float(norm.logpdf(y, mean, total**0.5))
        mean, variance = mean + variance / total * (y - mean), variance * NOISE**2 / total
    return log_likelihood, mean, variance


@pytest.fixture(scope="module", params=["systematic", "multinomial"])
def clouds(request):
    """64 clouds of 500 particles, whose spread is the true error."""
    return nd.run_smc(
        jax.random.key(1),
        MODEL,
        500,
        num_chains=64,
        levels_per_chunk=4,
        resampling=getattr(resampling, request.param),
    )


def weighted_mean(values, log_weights):
    return jnp.sum(jax.nn.softmax(log_weights) * values, -1)


def within(values, expected, errors=3.5):
    """The mean over clouds hits `expected` within some of its standard errors."""
    values = np.asarray(values)
    gap = abs(values.mean(0) - expected)
    return np.all(gap < errors * values.std(0, ddof=1) / np.sqrt(len(values)))


def test_evidence_is_unbiased(clouds):
    log_likelihood, _, _ = kalman()
    ratio = np.exp(np.asarray(clouds.log_evidence) - log_likelihood)
    assert ratio.std() < 0.3
    assert within(ratio, 1.0)


def test_particles_follow_the_filter(clouds):
    _, mean, variance = kalman()
    x = clouds.positions["x"]
    means = weighted_mean(x, clouds.log_weights)
    assert np.std(means) < 0.1
    assert within(means, mean)
    assert within(weighted_mean((x - mean) ** 2, clouds.log_weights), variance)


def test_a_cloud_knows_its_own_error(clouds):
    """The genealogical error of one cloud against the spread of 64; a spread is known to 9 %."""
    true = float(jnp.std(clouds.log_evidence, ddof=1))
    own = float(jnp.sqrt(jnp.mean(clouds.log_evidence_error**2)))
    # Multinomial resampling adds noise of its own, which this estimate overstates.
    assert 0.75 * true < own < 1.6 * true


def test_history_adds_up(clouds):
    trace = clouds.trace
    assert trace.ess.shape == (64, len(DATA))
    start = clouds.log_evidence - jnp.sum(trace.log_evidence_increment, -1)
    log_first = norm.logpdf(FIRST, 0.5, (1.0 + NOISE**2) ** 0.5)
    assert within(jnp.exp(start - log_first), 1.0)
    np.testing.assert_allclose(
        trace.ess[:, -1] * 500, nd.smc.effective_sample_size(clouds.log_weights), rtol=1e-9
    )
    # A level is resampled exactly if the one before it fell below half.
    np.testing.assert_array_equal(trace.resampled[:, 1:], trace.ess[:, :-1] < 0.5)
    np.testing.assert_array_equal(clouds.state.num_resampled, trace.resampled.sum(-1))
    assert 2 <= int(trace.resampled.sum(-1).min()) < len(DATA)
    families = [len(np.unique(a)) for a in np.asarray(clouds.state.ancestors)]
    np.testing.assert_array_equal(trace.unique_ancestors[:, -1], families)
    assert np.all(np.diff(trace.unique_ancestors, axis=-1) <= 0)


def test_without_resampling_it_is_importance_sampling(key):
    result = nd.run_smc(key, MODEL, 500, num_chains=64, levels_per_chunk=4, threshold=0.0)
    log_likelihood, mean, _ = kalman()
    assert not result.trace.resampled.any()
    assert np.all(result.trace.unique_ancestors == 500)
    np.testing.assert_allclose(result.log_evidence, nd.smc.log_mean_exp(result.log_weights))
    # There the genealogical error is the plain standard error of a mean of weights.
    w = np.exp(np.asarray(result.log_weights))
    plain = w.std(-1, ddof=1) / w.mean(-1) / np.sqrt(500)
    np.testing.assert_allclose(result.log_evidence_error, plain, rtol=1e-3)
    assert within(np.exp(result.log_evidence - log_likelihood), 1.0)


def test_resampling_at_every_level(key):
    result = nd.run_smc(key, MODEL, 500, num_chains=64, levels_per_chunk=4, threshold=1.0)
    assert result.trace.resampled.all()
    assert within(np.exp(result.log_evidence - kalman()[0]), 1.0)


def assert_same(one, other, rtol=0.0):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        a, b = (
            jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
            for x in (a, b)
        )
        np.testing.assert_allclose(a, b, rtol=rtol)


def numbers(result):
    """What a run computes, apart from names and settings."""
    return result[:6], result.state


def test_batches_give_the_same_numbers(key):
    """Whatever the batch is, particle `i` of cloud `c` has its own key."""
    whole = nd.run_smc(key, MODEL, 60, num_chains=3, levels_per_chunk=4)
    for batch_size in (7, 1000):
        batched = nd.run_smc(
            key, MODEL, 60, num_chains=3, batch_size=batch_size, levels_per_chunk=4
        )
        assert_same(numbers(whole), numbers(batched), rtol=1e-12)


def test_clouds_are_independent_and_one_needs_no_axis(key):
    three = nd.run_smc(key, MODEL, 60, num_chains=3, levels_per_chunk=4)
    keys = jax.random.split(key, 3)
    for c in range(3):
        alone = nd.run_smc(keys[c], MODEL, 60, levels_per_chunk=4)
        assert alone.log_evidence.shape == () and alone.positions["x"].shape == (60,)
        assert_same(
            jax.tree.map(lambda leaf, c=c: leaf[c], numbers(three)), numbers(alone), rtol=1e-12
        )
    one = nd.run_smc(key, MODEL, 60, num_chains=1, levels_per_chunk=4)
    assert one.log_weights.shape == (1, 60) and one.trace.ess.shape == (1, len(DATA))


def test_the_same_key_gives_the_same_numbers(key):
    run = lambda key, chunk: nd.run_smc(key, MODEL, 60, levels_per_chunk=chunk)
    first = run(key, 4)
    assert_same(numbers(first), numbers(run(key, 4)))
    assert_same(numbers(first), numbers(run(key, 8)), rtol=1e-12)
    assert abs(float(first.log_evidence - run(jax.random.key(5), 4).log_evidence)) > 1e-6


def interrupt_after(monkeypatch, chunks):
    """Let a run be interrupted after some chunks of levels."""
    real, count = smc.run_chunk, 0

    def run_chunk(*args):
        nonlocal count
        count += 1
        if count > chunks:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(smc, "run_chunk", run_chunk)


def interrupted(*args, **options):
    """What an interrupted run has done so far."""
    with pytest.raises(KeyboardInterrupt) as caught:
        nd.run_smc(*args, **options)
    assert "levels are done" in caught.value.__notes__[0]
    return caught.value.result


@pytest.mark.parametrize("num_chains", [None, 3])
@pytest.mark.parametrize("chunks", [0, 2])
def test_an_interrupted_run_goes_on_to_the_same_numbers(key, monkeypatch, num_chains, chunks):
    options = {"num_chains": num_chains, "levels_per_chunk": 4}
    whole = nd.run_smc(key, MODEL, 60, **options)
    with monkeypatch.context() as patch:
        interrupt_after(patch, chunks)
        part = interrupted(key, MODEL, 60, **options)
    assert not part.completed and part.num_levels_run == 4 * chunks
    again = nd.run_smc(key, MODEL, 60, state=part, **options)
    assert again.completed and again.num_levels_run == len(DATA)
    assert_same(numbers(whole), numbers(again))


def test_an_interrupted_run_holds_the_law_on_the_way(key, monkeypatch):
    interrupt_after(monkeypatch, 1)
    part = interrupted(key, MODEL, 500, num_chains=64, levels_per_chunk=4)
    assert within(np.exp(part.log_evidence - kalman(DATA[:4])[0]), 1.0)
    assert part.trace.ess.shape == (64, 4)


@pytest.mark.parametrize("chunk", [1, 2])
def test_an_interrupt_ends_a_loop_over_runs(key, monkeypatch, chunk):
    """A signal in the first or the last chunk: it waits for the chunk, and then reaches the user."""
    real, calls = smc.run_chunk, []

    def run_chunk(*args):
        calls.append(1)
        if len(calls) == chunk:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(smc, "run_chunk", run_chunk)
    finished, size, handler = 0, -(-len(DATA) // 2), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        for _ in range(3):
            nd.run_smc(key, MODEL, 60, levels_per_chunk=size)
            finished += 1
    result = caught.value.result
    assert finished == 0 and len(calls) == chunk
    assert result.num_levels_run == min(chunk * size, len(DATA))
    assert result.completed == (chunk == 2)
    assert signal.getsignal(signal.SIGINT) is handler


def test_going_on_with_another_size_is_refused(key, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        part = interrupted(key, MODEL, 60, levels_per_chunk=4)
    with pytest.raises(ValueError, match=r"shape \(60,\), but this run has \(2, 60\)"):
        nd.run_smc(key, MODEL, 60, num_chains=2, state=part)


# A walk to the right, and at each level one weight for all.
MARCH = nd.from_kernels(
    lambda key: jax.random.normal(key),
    lambda key, x, weight: x + 1.0,
    lambda x, new, weight: weight - 0.1 * new**2,
    jnp.zeros(11),
)


@pytest.mark.parametrize("weight", [-np.inf, np.nan, np.inf])
def test_a_dead_cloud_is_named_and_what_was_computed_is_kept(key, weight):
    """Level 6 lies inside a chunk: what follows it in the chunk must not revive the cloud."""
    run = lambda model: nd.run_smc(key, model, 50, num_chains=2, levels_per_chunk=4)
    with pytest.raises(
        FloatingPointError, match="cloud 0 has weight 0 at level 6: .* Look at"
    ) as e:
        run(MARCH._replace(levels=jnp.zeros(11).at[5].set(weight)))
    result = e.value.result
    assert not result.completed and result.num_levels_run == 5
    assert result.trace.ess.shape == (2, 6)  # through the death
    assert np.isfinite(result.log_evidence).all() and np.isfinite(result.log_weights).all()
    np.testing.assert_allclose(result.trace.ess[:, :5], run(MARCH).trace.ess[:, :5], rtol=1e-12)


def test_a_cloud_can_be_born_dead(key):
    model = nd.from_kernels(
        lambda key: jax.random.normal(key),
        lambda key, x, level: x,
        lambda x, new, level: 0.0 * x,
        jnp.arange(3),
        log_initial=lambda x: jnp.log(0 * x),
    )
    with pytest.raises(FloatingPointError, match="cloud 0 has weight 0 at level 0") as e:
        nd.run_smc(key, model, 50)
    assert not e.value.result.completed and e.value.result.trace is None


STEEP = nd.from_kernels(
    lambda key: jax.random.normal(key),
    lambda key, x, level: x,
    lambda x, new, level: jnp.where(x > 1.2815515655446004, level, jnp.log(2.0)),
    jnp.zeros(1),
)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number_counts_as_zero(key, value):
    """A tenth of the normal law gets such a weight; the rest keeps its evidence, 0.9 times 2."""
    model = STEEP._replace(levels=jnp.array([value]))
    result = nd.run_smc(key, model, 1000, num_chains=32, levels_per_chunk=1)
    assert within(np.exp(result.log_evidence), 1.8)
    np.testing.assert_allclose(result.trace.conditional_ess[:, 0], result.trace.ess[:, 0])
    assert within(result.trace.ess[:, 0], 0.9)


def test_another_number_of_levels_compiles_nothing(key):
    traced = []

    def log_potential(x, new, level):
        traced.append(1)
        return -(level * new**2)

    def model(num_levels, slope):
        return parts._replace(levels=jnp.full(num_levels, slope))

    parts = nd.from_kernels(
        lambda key: jax.random.normal(key), lambda key, x, level: x, log_potential, jnp.ones(1)
    )
    first = nd.run_smc(key, model(5, 0.1), 50, num_chains=2)
    once = len(traced)
    second = nd.run_smc(jax.random.key(3), model(21, 0.2), 50, num_chains=2)
    assert len(traced) == once > 0
    assert float(first.log_evidence[0]) != float(second.log_evidence[0])


def test_target_levels_and_exactness_are_passed_on(key):
    model = MODEL._replace(claims=nd.smc.Claims("the filter", exact=False))
    result = nd.run_smc(key, model, 60, levels_per_chunk=4)
    assert result.claims is model.claims
    assert result.target == "the filter" and result.exact is False
    np.testing.assert_array_equal(result.levels, DATA)


def test_progress_bar_counts_levels(key, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    nd.run_smc(key, MODEL, 60, levels_per_chunk=4, progress_bar=True)
    assert f"{len(DATA)}/{len(DATA)}" in capsys.readouterr().err


def test_effective_sample_size():
    log_weights = jnp.log(jnp.array([[4.0, 1.0, 1.0, 0.0], [2.0, 2.0, 2.0, 2.0]]))
    sizes = nd.smc.effective_sample_size(log_weights + 900.0)
    np.testing.assert_allclose(sizes, [36 / 18, 4.0])
    assert nd.smc.effective_sample_size(jnp.full(3, -jnp.inf)) == 0


def test_conditional_ess_is_a_share_of_what_counted_before():
    old, new = np.array([0.5, 0.3, 0.2, 0.0]), np.array([1.0, 3.0, 0.5, 9.0])
    share = lambda new: float(nd.smc.conditional_ess(jnp.log(old), jnp.log(jnp.asarray(new))))
    expected = (old @ new) ** 2 / (old @ new**2)
    np.testing.assert_allclose(share(new), expected)
    np.testing.assert_allclose(share(7.0 * new), expected)
    # NaN is a loss, here of the first particle; what had no weight before cannot add any.
    np.testing.assert_allclose(share(np.array([np.nan, 1, 1, 1])), 0.5)
    np.testing.assert_allclose(share(np.array([0.0, 1, 1, np.nan])), 0.5)
    assert share(np.array([0.0, 0, 0, 9])) == 0


def test_resample_equal_is_unbiased_and_systematic(key):
    w = np.array([0.05, 0.62, 0.33])
    keys = jax.random.split(key, 400)
    index = jax.vmap(lambda k: nd.smc.resample_equal(k, jnp.log(w), 10))(keys)
    counts = np.stack([(np.asarray(index) == i).sum(-1) for i in range(3)], -1)
    assert np.all(abs(counts - 10 * w) < 1)  # systematic: never off by one or more
    assert np.all(abs(counts.mean(0) - 10 * w) < 3.5 * 0.5 / 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_particles": 1}, "`num_particles` must be at least 2; got 1"),
        ({"num_chains": 0}, "`num_chains` must be at least 1; got 0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1; got 0"),
        ({"num_particles": 8.5}, "`num_particles` must be an integer of at least 2; got 8.5"),
        ({"num_particles": float("nan")}, "`num_particles` must be an integer .* got nan"),
        ({"num_chains": True}, "`num_chains` must be an integer .* got True"),
        ({"levels_per_chunk": 0}, "`levels_per_chunk` must be at least 1; got 0"),
        ({"threshold": 1.5}, r"in \[0, 1\]; got 1.5"),
        ({"threshold": -0.1}, r"in \[0, 1\]; got -0.1"),
    ],
)
def test_numbers_out_of_range(key, options, message):
    with pytest.raises(ValueError, match=message):
        nd.run_smc(key, MODEL, **options)


def test_weights_that_rounding_has_eaten_do_not_come_back(key):
    """A tenth of the particles falls far below the others and is lifted again by another large number."""

    def log_potential(x, new, level):
        return jnp.where(x < 0.1, level, 0.0) - jnp.float32(1.25)

    model = nd.from_kernels(
        lambda key: jax.random.uniform(key, dtype=np.float32),
        lambda key, x, level: x,
        log_potential,
        jnp.array([-(2.0**21), 2.0**21], np.float32),  # neighbours are a quarter apart there
        log_initial=lambda x: jnp.zeros((), np.float32),
    )
    result = nd.run_smc(key, model, 400, num_chains=16)
    assert result.log_weights.dtype == np.float32
    assert within(np.exp(result.log_evidence - (np.log(0.9) - 2.5)) - 1.0, 0.0)
    whole = nd.run_smc(key, nd.smc.unresampled(model), 400, num_chains=16)
    np.testing.assert_allclose(whole.log_evidence, -2.5, atol=0.05)
