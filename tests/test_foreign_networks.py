"""Networks of Flax and Haiku as backbones: the same function, energy, training and law."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from backbones import DATA, READ, WRITE, by_hand
from flax import linen, nnx
from numpyro import handlers
from numpyro.contrib.module import flax_module, nnx_module

import numpyro_diffusion as nd
from numpyro_diffusion.nets import Applied

POINT, C = jnp.array([0.3, -0.8]), jnp.asarray(0.4)


class Nnx(nnx.Module):
    def __init__(self):
        known = lambda array: lambda *_: jnp.asarray(array)
        options = {"use_bias": False, "param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
        self.read = nnx.Linear(3, 8, kernel_init=known(READ.T), **options)
        self.write = nnx.Linear(8, 2, kernel_init=known(WRITE.T), **options)

    def __call__(self, w, c_noise):
        return self.write(jnp.tanh(self.read(jnp.append(w, c_noise))))


def of_nnx():
    graph, params = nnx.split(Nnx(), nnx.Param)
    return Applied(lambda params, w, c: nnx.merge(graph, params)(w, c), params, (2,))


class Linen(linen.Module):
    @linen.compact
    def __call__(self, both):
        known = lambda array: lambda *_: jnp.asarray(array)
        options = {"use_bias": False, "param_dtype": jnp.float64}
        hidden = jnp.tanh(linen.Dense(8, kernel_init=known(READ.T), **options)(both))
        return linen.Dense(2, kernel_init=known(WRITE.T), **options)(hidden)


def forward(w, c_noise):
    known = lambda array: lambda *_: jnp.asarray(array)
    hidden = jnp.tanh(hk.Linear(8, False, known(READ.T))(jnp.append(w, c_noise)))
    return hk.Linear(2, False, known(WRITE.T))(hidden)


def of_haiku():
    net = hk.without_apply_rng(hk.transform(forward))
    return Applied(net.apply, net.init(jax.random.key(0), POINT, C), (2,))


def of_module(make):
    """A module that keeps its parameters in `numpyro.param`."""

    def backbone(w, c_noise):
        return make()(w, c_noise)

    with handlers.seed(rng_seed=0), handlers.trace() as trace:
        backbone(POINT, C)
    params = {n: site["value"] for n, site in trace.items() if site["type"] == "param"}
    return Applied(lambda p, w, c: handlers.substitute(backbone, p)(w, c), params, (2,))


def linen_module():
    net = flax_module("net", Linen(), input_shape=(3,))
    return lambda w, c_noise: net(jnp.append(w, c_noise))


FOREIGN = {
    "nnx": of_nnx,
    "haiku": of_haiku,
    "nnx_module": lambda: of_module(lambda: nnx_module("net", Nnx())),
    "flax_module": lambda: of_module(linen_module),
}


def energy_of(net):
    return nd.ProperEnergy.from_data(net, DATA, noise_min=0.1, noise_max=20.0)


@pytest.mark.parametrize("name", FOREIGN)
def test_the_same_function_gradient_energy_and_denoiser(name):
    ours, theirs = by_hand(), FOREIGN[name]()
    np.testing.assert_allclose(theirs(POINT, C), ours(POINT, C), rtol=1e-12)
    slope = lambda net: jax.jacobian(lambda w: net(w, C))(POINT)
    np.testing.assert_allclose(slope(theirs), slope(ours), rtol=1e-12)
    t = jnp.asarray(0.3)
    for kind in (lambda net: energy_of(net), lambda net: nd.NetworkDenoiser(energy_of(net))):
        np.testing.assert_allclose(
            kind(theirs).denoise(POINT, t), kind(ours).denoise(POINT, t), rtol=1e-10
        )
    count = lambda net: sum(np.size(leaf) for leaf in jax.tree.leaves(net.params))
    assert count(theirs) == count(ours) == READ.size + WRITE.size
    # All of them are trained: the loss has the same gradient in every parameter.
    slopes = lambda net: jax.grad(lambda p: jnp.sum(net.apply(p, POINT, C) ** 2))(net.params)
    size = lambda net: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(slopes(net)))
    np.testing.assert_allclose(size(theirs), size(ours), rtol=1e-10)


def test_trained_in_flax_and_sampled():
    """Training by `fit` moves the parameters of the other library, to the same weights as by hand."""

    def fitted(net):
        stopping = nd.train.EarlyStopping(check_every=20)
        options = {"steps": 40, "stopping": stopping, "progress_bar": False}
        return nd.fit(jax.random.key(0), energy_of(net), DATA, **options).energy

    ours, theirs = fitted(by_hand()), fitted(of_nnx())
    assert np.abs(np.asarray(ours.net.params["write"]) - WRITE).max() > 0.01
    found = theirs.net.params["write"]["kernel"]
    np.testing.assert_allclose(np.asarray(found[...]).T, ours.net.params["write"], atol=1e-8)

    def model(y):
        x = numpyro.sample("x", nd.DiffusionPrior(theirs))
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    smc = nd.SMC(model, num_particles=500, num_chains=2, progress_bar=False)
    smc.run(jax.random.key(1), np.array([1.0, -1.5]))
    side = np.linspace(-5, 5, 201)
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    log_joint = jax.vmap(lambda u: theirs.log_density(u, theirs.t_min))(jnp.asarray(grid))
    log_joint -= np.sum((grid - [1.0, -1.5]) ** 2, 1) / 0.5
    mean = jax.nn.softmax(log_joint) @ grid
    np.testing.assert_allclose(smc.get_samples()["x"].mean(0), mean, atol=0.06)
