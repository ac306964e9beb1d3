"""A level of a bridge as a potential of NumPyro's samplers: exact moments of the noised model."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import AIES, HMC, MCMC, NUTS, SA, BarkerMH
from numpyro.infer.util import potential_energy

import numpyro_diffusion as nd

MEAN, COVARIANCE = np.array([0.5, -1.0]), np.array([[1.0, 0.6], [0.6, 0.8]])
ENERGY = nd.Gaussian(MEAN, COVARIANCE)
Y, SIGMA, OFFSET = 1.5, 0.4, 0.5


def model(y):
    x = numpyro.sample("x", nd.DiffusionPrior(ENERGY))
    b = numpyro.sample("b", dist.Normal(0.0, OFFSET))
    numpyro.deterministic("fit", x[0] + b)
    numpyro.sample("y", dist.Normal(x[0] + b, SIGMA), obs=y)


@pytest.fixture(scope="module")
def bridge():
    return nd.from_model(model, Y)


def moments(bridge, clock, power):
    r"""Mean and covariance of (u, b): a Gaussian prior, and a datum of precision $\beta g / \sigma^2$.

    $u \sim N(m, S + s^2)$; the model sees $\hat x = u + (s^2 - s_0^2)\, \nabla \log p(u)$.
    """
    clock = jnp.asarray(clock)
    s2 = float(bridge.noise(clock)["x"]) ** 2
    added = s2 - float(bridge.noise(jnp.zeros(()))["x"]) ** 2
    wide = COVARIANCE + s2 * np.eye(2)
    shrink = np.eye(2) - added * np.linalg.inv(wide)
    row = np.append(shrink[0], 1.0)  # of x_hat[0] + b in (u, b)
    shift = MEAN[0] - shrink[0] @ MEAN
    z = {"x": jnp.zeros(2), "b": jnp.zeros(())}
    weight = power * float(bridge.exponent(z, clock)) / SIGMA**2
    prior = np.zeros((3, 3))
    prior[:2, :2], prior[2, 2] = np.linalg.inv(wide), OFFSET**-2
    covariance = np.linalg.inv(prior + weight * np.outer(row, row))
    centre = prior @ np.append(MEAN, 0.0) + weight * row * (Y - shift)
    return covariance @ centre, covariance, (row, shift)


def run(kernel, level, num_chains, num_warmup, num_samples, key=0, method="vectorized"):
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method=method,
        postprocess_fn=level.postprocess_fn,
        progress_bar=False,
    )
    starts = level.init_params(jax.random.key(key), num_chains)
    mcmc.run(jax.random.key(key + 1), init_params=starts)
    return {n: np.asarray(v) for n, v in mcmc.get_samples(group_by_chain=True).items()}


def check(draws, bridge, clock, power):
    mean, covariance, (row, shift) = moments(bridge, clock, power)
    z = np.concatenate([draws["x"], draws["b"][..., None]], -1)
    centred = z - mean
    products = np.einsum("cni,cnj->cnij", centred, centred)
    for values, expected in ((z, mean), (products, covariance)):
        by_chain = values.mean(1)
        error = by_chain.std(0) / len(by_chain) ** 0.5
        assert np.all(abs(by_chain.mean(0) - expected) < 4 * error)
        assert np.all(error < 0.2 * np.diag(covariance).max())
    # What the model makes of the denoised value, beside the noised one.
    np.testing.assert_allclose(draws["fit"], z @ row + shift, atol=1e-6)


@pytest.mark.parametrize(("clock", "power"), [(1.0, 1.0), (0.4, 1.0), (0.0, 1.0), (0.4, 0.0)])
def test_hmc_finds_the_moments_of_a_level(bridge, clock, power):
    level = nd.bridge.at_level(bridge, clock, power)
    # At the noisy end sites are of very different widths, which the warm-up learns.
    kernel = HMC(potential_fn=level.potential_fn, trajectory_length=None, num_steps=8)
    check(run(kernel, level, 64, 200, 100), bridge, clock, power)


def test_at_the_end_it_is_the_potential_of_the_model(bridge):
    level = nd.bridge.at_level(bridge)
    z = level.init_params(jax.random.key(0))
    assert float(level.potential_fn(z)) == pytest.approx(
        float(potential_energy(model, (Y,), {}, z)), abs=1e-9
    )
    values = level.postprocess_fn(z)
    assert set(values) == {"x", "b", "fit"}
    np.testing.assert_array_equal(values["x"], z["x"])


# BarkerMH takes no batch of keys. SA never stops adapting: a large memory keeps its bias small.
OTHERS = {
    "NUTS": (NUTS, {}, 64, 150, 100),
    "BarkerMH": (BarkerMH, {}, 8, 400, 1500),
    "SA": (SA, {"adapt_state_size": 100}, 24, 3_000, 2_000),
    "AIES": (AIES, {}, 64, 400, 600),
}


@pytest.mark.long
@pytest.mark.parametrize(
    ("kernel", "options", "num_chains", "num_warmup", "num_samples"), OTHERS.values(), ids=OTHERS
)
def test_other_kernels_of_numpyro(bridge, kernel, options, num_chains, num_warmup, num_samples):
    level = nd.bridge.at_level(bridge, 0.1)
    kernel = kernel(potential_fn=level.potential_fn, **options)
    method = "sequential" if isinstance(kernel, BarkerMH) else "vectorized"
    draws = run(kernel, level, num_chains, num_warmup, num_samples, 3, method)
    if isinstance(kernel, AIES):  # its chains are one ensemble: stretches of time stand for chains
        draws = {n: v.swapaxes(0, 1).reshape(20, -1, *v.shape[2:]) for n, v in draws.items()}
    check(draws, bridge, 0.1, 1.0)


def test_a_clock_may_be_traced(bridge):
    z = nd.bridge.at_level(bridge, 0.3).init_params(jax.random.key(0))
    value = lambda clock, power: nd.bridge.at_level(bridge, clock, power).potential_fn(z)
    traced = jax.jit(jax.vmap(value))(jnp.array([0.3, 0.7]), jnp.array([1.0, 0.5]))
    np.testing.assert_allclose(traced, [value(0.3, 1.0), value(0.7, 0.5)], rtol=1e-9)


def test_a_model_without_noise_and_a_bounded_site():
    def plain(y):
        rate = numpyro.sample("rate", dist.Gamma(3.0, 2.0))
        numpyro.sample("y", dist.Poisson(rate).expand([3]).to_event(1), obs=y)

    level = nd.bridge.at_level(nd.from_model(plain, np.array([1, 0, 4])), 0.0, 0.5)
    # To the power a half the counts are half as many: Gamma(3 + 2.5, 2 + 1.5).
    draws = run(HMC(potential_fn=level.potential_fn), level, 64, 200, 60)["rate"]
    means, expected = draws.mean(1), 5.5 / 3.5
    assert abs(means.mean() - expected) < 4 * means.std() / 8 < 0.2


@pytest.mark.parametrize(
    ("clock", "power", "message"),
    [
        (1.2, 1.0, "`clock` is one number, at least 0 and at most 1"),
        (jnp.array([0.1, 0.2]), 1.0, "`clock` is one number"),
        (float("nan"), 1.0, "`clock` is one number"),
        ("half", 1.0, "`clock` is one number.*got half"),
        (0.1, -1.0, "`power` is one number, at least 0 and finite"),
        (0.1, float("inf"), "`power` is one number"),
    ],
)
def test_levels_out_of_range_are_refused(bridge, clock, power, message):
    with pytest.raises(ValueError, match=message):
        nd.bridge.at_level(bridge, clock, power)


def test_path_space_has_no_potential():
    with pytest.raises(ValueError, match="a bridge in path space.*DensityBridge"):
        nd.bridge.at_level(nd.from_energy(ENERGY, bridge_type=nd.bridge.PathBridge))
    for wrong in (model, None):
        with pytest.raises(TypeError, match="`bridge` must be an instance"):
            nd.bridge.at_level(wrong)  # type: ignore[arg-type]
    level = nd.bridge.at_level(nd.from_energy(ENERGY))
    with pytest.raises(ValueError, match="`num_chains`"):
        level.init_params(jax.random.key(0), 0)
