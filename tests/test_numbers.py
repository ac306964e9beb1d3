"""Numbers, arrays and keys that are none: every public function that takes a key refuses what is no key, and
what is refused says what was expected, what came and what to do."""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_counts import PARTS, likely

import numpyro_diffusion as nd
from numpyro_diffusion._numbers import number, one_number, real_array
from numpyro_diffusion.density import DensityField, bellman_sample, fit_density_field
from numpyro_diffusion.samplers import annealed_langevin, unadjusted_langevin
from numpyro_diffusion.samplers.projections import Ball, Box, Simplex
from numpyro_diffusion.train import block_means, coreset, denoising_loss, robust_loss

KEY = jax.random.key(0)
PRIOR = nd.Gaussian([0.0], [[1.0]])
ROWS = np.random.default_rng(0).normal(size=(50, 2))
# Layers of networks, and losses of another first argument.
NOT_ASKED = {
    "Convolution", "ImageBlock", "Linear", "NoiseLevel", "ResidualBlock", "TokenPosterior", "nested",
    "energy_log_ratio",
}  # fmt: skip


def keyed():
    """Public functions and networks with an argument `key`."""
    import importlib

    found = {}
    for part in [nd, *(importlib.import_module(f"numpyro_diffusion.{name}") for name in PARTS)]:
        for name, entry in vars(part).items():
            home = getattr(entry, "__module__", None) or ""
            kind = inspect.isfunction(entry) or (
                isinstance(entry, type) and issubclass(entry, eqx.Module)
            )
            if not kind or name.startswith("_") or not home.startswith("numpyro_diffusion"):
                continue
            if name not in NOT_ASKED and "key" in inspect.signature(entry).parameters:
                found[f"{home}.{name}"] = entry
    return found


KEYED = keyed()


@pytest.mark.parametrize("name", KEYED, ids=lambda name: name.rpartition(".")[2])
def test_what_is_no_key_is_refused_by_name(name):
    entry = KEYED[name]
    parameters = inspect.signature(entry).parameters.values()
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in free]
    given = {n: 2 if "num" in n or n in ("width", "length") else likely(n) for n in needed}
    with pytest.raises(TypeError, match=r"`key` must be one PRNG key, such as .*; got 0\."):
        entry(**{**given, "key": 0})


def test_many_functions_take_a_key():
    assert len(KEYED) > 70


@pytest.mark.parametrize("value", ["1", None, True, np.nan, np.inf, 1j, [1.0], np.ones(2), -1, 0])
def test_no_number_of_a_range(value):
    with pytest.raises(ValueError, match="`rate` must be a finite number above 0; got .*Try 1"):
        number("rate", value, above=0, remedy="Try 1.")


def test_numbers_of_any_kind_are_taken():
    for value in (2, 2.0, np.float32(2), np.array(2), jnp.float32(2)):
        assert number("rate", value, above=0, most=2) == 2.0
    assert jax.jit(lambda x: number("rate", x, above=0, traced=True))(2.0) == 2.0
    with pytest.raises(ValueError, match="a traced number.*outside of `jit`"):
        jax.jit(lambda x: number("rate", x))(2.0)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (["a"], TypeError, "<U1"),
        ([[1, 2], [3]], TypeError, "list whose parts differ in shape"),
        (np.ones(2) + 1j, TypeError, "complex128"),
        (None, TypeError, "NoneType"),
        ([1.0, np.nan], ValueError, r"shape \(2,\) with 1 NaN or infinite"),
    ],
)
def test_no_real_numbers(value, error, message):
    with pytest.raises(
        error, match=f"`rows` must be finite real numbers of shape .num,.; got {message}"
    ):
        real_array("rows", value, "of shape (num,)")


def test_one_number_of_a_function():
    assert one_number("a reward", 3).dtype == jnp.result_type(float)
    for value, error in ((jnp.ones(1), ValueError), ("a", TypeError), (1j, TypeError)):
        with pytest.raises(error, match="a reward is (one|a real) number.*got"):
            one_number("a reward", value)


@pytest.mark.parametrize("method", ["sample", "kcenter", "herding", "density"])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 1e8), (1e200, 0.0), (1e-200, 0.0)])
def test_a_coreset_is_the_same_in_any_units(method, scale, shift):
    """Distances far from 0 lost their digits, and squares of large features overflowed."""
    plain = coreset(KEY, ROWS, 0.3, method=method)
    moved = coreset(KEY, scale * ROWS + shift, 0.3, method=method)
    np.testing.assert_array_equal(moved.indices, plain.indices)
    np.testing.assert_allclose(moved.weights, plain.weights, rtol=1e-6)
    np.testing.assert_allclose(moved.distance / scale, plain.distance, rtol=1e-6)


def test_fields_know_their_dimension_and_their_digits():
    field = fit_density_field(KEY, ROWS[:, :1])
    with pytest.raises(ValueError, match=r"points of shape \(1,\); got shape \(2,\)"):
        field.push_affine(0.5, np.zeros((1, 2))).value(jnp.zeros(2))
    with pytest.raises(ValueError, match=r"points of shape \(1,\)"):
        bellman_sample(KEY, field, ROWS, num_steps=2)
    if jnp.result_type(float) == np.float32:
        with pytest.raises(ValueError, match="Subtract the mean"):
            fit_density_field(KEY, ROWS + 1e8)
    with pytest.raises(ValueError, match="`data` must vary"):
        fit_density_field(KEY, np.ones((20, 1)))


def test_steps_that_throw_paths_out_are_told():
    narrow = DensityField.of(lambda x: jax.scipy.stats.norm.logpdf(x[0], 0.0, 0.01))
    with pytest.warns(
        UserWarning, match="steps of `bellman_sample` are too large.*Take 15[0-9]{5,}"
    ):
        bellman_sample(KEY, narrow, 0.01 * ROWS[:, :1], time=20.0, num_steps=20)
    with pytest.warns(UserWarning, match="`unadjusted_langevin` are too large"):
        unadjusted_langevin(KEY, PRIOR, step_size=4.5, num_steps=3, num_samples=20)
    with pytest.raises(ValueError, match="below 4.*From 4 on chains diverge"):
        annealed_langevin(KEY, PRIOR, step_size=4.5)


def test_a_likelihood_without_a_slope_is_refused():
    """Chains do not see where it is 0, and would end there as if nothing were."""
    step = lambda x: jnp.where(x[0] > 0, 0.0, -jnp.inf)
    with pytest.raises(
        FloatingPointError, match="ended where the log likelihood is -inf.*Restrict"
    ):
        unadjusted_langevin(KEY, PRIOR, step, num_steps=3, num_samples=20)


@pytest.mark.parametrize(
    ("projection", "x", "nearest"),
    [
        (Ball(1.0), [3e20, 4e20], [0.6, 0.8]),
        (Ball(1e-30), [3e-25, 4e-25], [0.6e-30, 0.8e-30]),
        (Simplex(), [1e8, 1e8], [0.5, 0.5]),
        (Box(-0.5, 0.5), [3, -3], [0.5, -0.5]),
    ],
)
def test_projections_of_points_of_any_size(projection, x, nearest):
    np.testing.assert_allclose(projection(jnp.asarray(x)), nearest, rtol=1e-5)


def test_losses_know_the_shape_of_an_example():
    """Of another shape they were a number of something else."""
    for loss in (denoising_loss, lambda *a: robust_loss(*a, radius=0.1)):
        with pytest.raises(ValueError, match=r"`data` must have shape \(num, 1\).*got \(5,\)"):
            loss(PRIOR, KEY, jnp.ones(5))
        with pytest.raises(TypeError, match="`data` must be floating; got int"):
            loss(PRIOR, KEY, jnp.ones((5, 1), int))


def test_a_radius_beyond_all_numbers_is_no_small_one():
    """Where the ascent's gradient was NaN the loss was that of radius 0."""
    assert not np.isfinite(robust_loss(PRIOR, KEY, jnp.ones((4, 1)), radius=1e300))


def test_block_means_of_integers_and_of_gaps():
    np.testing.assert_allclose(block_means(jnp.arange(5), 2), [0.5, 0.5, 2.5, 2.5, 4.0])
    gaps = block_means(jnp.asarray([1.0, jnp.nan, 2.0, 4.0]), 2)
    np.testing.assert_array_equal(gaps, [np.nan, np.nan, 3.0, 3.0])
