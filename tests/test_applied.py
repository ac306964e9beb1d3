"""`nets.Applied`: parameters and a function of them as a backbone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backbones import DATA, READ, WRITE, by_hand

import numpyro_diffusion as nd
from numpyro_diffusion.nets import Applied


def test_is_the_function_of_its_parameters():
    point, c = np.array([0.3, -0.8]), 0.4
    expected = WRITE @ np.tanh(READ @ [*point, c])
    net = by_hand()
    np.testing.assert_allclose(net(jnp.asarray(point), jnp.asarray(c)), expected, rtol=1e-12)
    energy = nd.ProperEnergy.from_data(net, DATA, noise_min=0.1, noise_max=20.0)
    # The parameters are its arrays, and all of them reach the energy.
    slope = jax.grad(lambda net, e: nd.ProperEnergy(net).energy(jnp.asarray(point), e))
    assert energy.net is net
    for leaf in jax.tree.leaves(slope(net, jnp.asarray(0.3))):
        assert np.abs(leaf).max() > 1e-3


def test_refuses_what_is_no_backbone(tmp_path):
    params = {"w": jnp.ones((2, 2))}
    with pytest.raises(TypeError, match="the function comes first"):
        Applied(lambda p, w, c: w, {}, (2,))
    with pytest.raises(TypeError, match="`apply` is a function.*got a dict"):
        Applied(params, params, (2,))
    with pytest.raises(ValueError, match=r"ONE example `w` of shape \(3,\).*w\[None\]"):
        Applied(lambda p, w, c: p["w"] @ w, params, (3,))
    with pytest.raises(ValueError, match=r"of shape \(2,\) to the same shape; it gives \(1, 2\)"):
        Applied(lambda p, w, c: (p["w"] @ w)[None], params, (2,))
    with pytest.raises(ValueError, match="it gives tuple"):
        Applied(lambda p, w, c: (p["w"] @ w, {}), params, (2,))
    with pytest.raises((TypeError, ValueError), match="Applied|function"):
        nd.save(tmp_path / "energy.safetensors", nd.ProperEnergy(by_hand()))
