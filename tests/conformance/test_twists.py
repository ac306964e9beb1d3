"""What every twist promises."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd

ENERGY = nd.GaussianMixture()
U = jnp.array([0.8, -1.4])
apply = eqx.filter_jit(lambda twist, energy, u, t: twist(energy, u, t))


@pytest.mark.parametrize("t", [0.01, 0.4, ENERGY.t_max])
def test_it_reports_the_log_density_of_the_energy(twist, t):
    t = jnp.asarray(t)
    log_density, x_hat = apply(twist, ENERGY, U, t)
    np.testing.assert_allclose(log_density, ENERGY.log_density(U, t), rtol=1e-12)
    assert x_hat.shape == U.shape and jnp.all(jnp.isfinite(x_hat))


def test_it_is_the_identity_at_t_min(twist):
    _, x_hat = apply(twist, ENERGY, U, jnp.asarray(ENERGY.t_min))
    np.testing.assert_allclose(x_hat, U, rtol=1e-12)


def test_its_covariance_is_a_root_and_nothing_at_t_min(twist):
    root = twist.covariance_root(ENERGY, U, jnp.asarray(0.4))
    if root is None:
        return
    at_end = twist.covariance_root(ENERGY, U, jnp.asarray(ENERGY.t_min))
    if isinstance(root, nd.twists.LowRank):
        w, v = root.transposed(U), jnp.array([0.3, 1.1])
        inner = jnp.sum(root.times(*w) * v)  # C is symmetric: u . C v = v . C u
        np.testing.assert_allclose(inner, jnp.sum(root.times(*root.transposed(v)) * U), rtol=1e-10)
        assert inner != 0 and np.all(at_end.times(*at_end.transposed(U)) == 0)
        return
    assert root.shape in {U.shape, 2 * U.shape}
    if root.ndim == 2:
        np.testing.assert_allclose(root, root.T, atol=1e-12)
        assert np.linalg.eigvalsh(root).min() >= 0
    assert np.all(at_end == 0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtype_is_kept(twist, dtype):
    energy = jax.tree.map(lambda a: a.astype(dtype) if eqx.is_inexact_array(a) else a, ENERGY)
    out = eqx.filter_eval_shape(twist, energy, U.astype(dtype), jnp.asarray(0.3, dtype))
    assert [one.dtype for one in out] == [dtype, dtype]


def test_jit_vmap_and_grad(twist):
    u = U + jnp.arange(3.0)[:, None]
    t = jnp.asarray(0.3)
    batch = jax.jit(jax.vmap(lambda u: twist(ENERGY, u, t)))(u)
    np.testing.assert_allclose(batch[1][2], apply(twist, ENERGY, u[2], t)[1], rtol=1e-10)
    h, direction = 1e-5, jnp.array([0.6, -0.2])
    see = lambda u: apply(twist, ENERGY, u, t)[1]
    if not twist.takes_gradients:
        assert jnp.all(jax.jvp(see, (U,), (direction,))[1] == 0)
        return
    _, slope = jax.jvp(see, (U,), (direction,))
    rise = (see(U + h * direction) - see(U - h * direction)) / (2 * h)
    np.testing.assert_allclose(slope, rise, rtol=1e-6)


def test_flatten_unflatten_and_repr(twist):
    leaves, structure = jax.tree.flatten(twist)
    assert eqx.tree_equal(jax.tree.unflatten(structure, leaves), twist)
    assert repr(twist).startswith(type(twist).__name__ + "(")
