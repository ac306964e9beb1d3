"""Rewards: soft values against closed forms, the tilted laws they lead to, and training with weights."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.train.sources import Examples
from numpyro_diffusion.train.value import value_loss

BASE = nd.Gaussian([0.0], [[1.0]])
GRID = np.linspace(-9, 9, 4001)
REWARDS = {
    "linear": lambda x: 1.5 * x[0],
    "curved": lambda x: -2.0 * (x[0] - 1.0) ** 2,
}
LAWS = {"linear": (1.5, 1.0, 1.125), "curved": (0.8, 0.2, -1.2047)}  # mean, variance, log constant


def posterior(u, t):
    """Mean and variance of the clean variable given a noised one."""
    tau = nd.energies.added_variance(BASE, t)
    width = 1.0 + BASE.schedule.noise_level(jnp.asarray(BASE.t_min)) ** 2
    return width * u[0] / (width + tau), width * tau / (width + tau)


def exact_value(name):
    """log E[exp(r) | u] in closed form."""

    def value(u, t):
        m, v = posterior(u, t)
        if name == "linear":
            return 1.5 * m + 0.5 * 1.5**2 * v
        return -0.5 * jnp.log1p(4 * v) - 2 * (m - 1) ** 2 / (1 + 4 * v)

    return value


def tilted(name, value=None, **options):
    return nd.factors.Tilt(REWARDS[name], value=value, **options)


def above(law, u, t):
    """What the factor adds to the log density of the base at a level, and its slope."""
    log_h = lambda u: law.log_density(u, t) - law.base.log_density(u, t)
    return jax.value_and_grad(log_h)(u)


@eqx.filter_jit
def on_levels(laws, u, times):
    return [jax.vmap(lambda t, law=law: above(law, u, t))(times) for law in laws]


def test_values_are_what_they_say():
    times = nd.schedules.log_snr_grid(BASE.schedule, 6, BASE.t_min, BASE.t_max)[::-1]
    u = jnp.array([0.7])
    for name, reward in REWARDS.items():
        many = nd.factors.MonteCarloValue(2000)
        values = [
            None,
            nd.factors.MonteCarloValue(8),
            many,
            nd.factors.ExactValue(exact_value(name)),
        ]
        laws = [BASE + tilted(name, value) for value in values]
        (tweedie, _), (few, _), (mc, mc_slope), (exact, slope) = on_levels(laws, u, times)
        m, v = (np.asarray(a) for a in jax.vmap(lambda t: posterior(u, t))(times))
        for found in (tweedie, few, mc, exact):
            np.testing.assert_allclose(found[0], reward(u), rtol=1e-12)
        np.testing.assert_allclose(tweedie, [reward(one) for one in m[:, None]], rtol=1e-7)
        np.testing.assert_allclose(mc, exact, atol=0.06)
        np.testing.assert_allclose(mc_slope, slope, atol=0.06)
        gap = 0.5 * 1.5**2 * v if name == "linear" else 0 * v
        assert np.all(np.abs(few - exact)[2:] < np.abs(exact - tweedie)[2:] + 1e-9)
        if name == "linear":
            np.testing.assert_allclose(exact - tweedie, gap, rtol=1e-6, atol=1e-9)


def test_a_black_box_keeps_its_weight_and_is_asked_for_no_gradient():
    count = lambda x: jax.pure_callback(
        lambda x: np.floor(2 * x).sum(-1), jax.ShapeDtypeStruct((), x.dtype), x,
        vmap_method="expand_dims",
    )  # fmt: skip
    law = BASE + nd.factors.Tilt(count, 0.5, differentiable=False)
    u, t = jnp.array([0.7]), jnp.asarray(BASE.t_min)
    value, slope = eqx.filter_jit(law.log_density_and_score)(u, t)
    base, base_slope = BASE.log_density_and_score(u, t)
    np.testing.assert_allclose(value - base, np.floor(1.4) / 0.5, rtol=1e-10)
    np.testing.assert_allclose(slope, base_slope, rtol=1e-10)
    with pytest.raises(ValueError, match="one number"):
        (BASE + nd.factors.Tilt(lambda x: x)).energy(u, t)
    with pytest.raises(ValueError, match="`alpha` must be a finite number above 0"):
        nd.factors.Tilt(alpha=0.0)


def test_the_loss_of_a_value_is_least_at_the_soft_mean():
    """Against the mean of the reward, which regression of it would give: the gap of a Bregman loss."""
    x = jax.random.normal(jax.random.key(0), (40_000, 1))

    class Given(eqx.Module):
        shift: float
        offset = 0.0

        def __call__(self, u, t):
            return exact_value("linear")(u, t) - self.shift * 0.5 * 1.5**2 * posterior(u, t)[1]

    loss = eqx.filter_jit(
        lambda shift: value_loss(Given(shift), jax.random.key(1), x, REWARDS["linear"], BASE)
    )
    slope = eqx.filter_jit(eqx.filter_grad(lambda s: loss(s)))
    at = {shift: float(loss(jnp.asarray(shift))) for shift in (-0.5, 0.0, 1.0)}
    assert at[0.0] < min(at[-0.5], at[1.0]) - 0.05
    assert abs(float(slope(jnp.asarray(0.0)))) < 0.1 * abs(float(slope(jnp.asarray(1.0))))


def test_weights_of_examples():
    """Drawn as often as they say, to within one of each; held-out ones too; and their effective size."""
    weights = np.array([0.0, 1.0, 2.0, 5.0])
    source = nd.train.sources.as_source(np.arange(4.0)[:, None], (1,), None, weights)
    assert isinstance(source, Examples)
    drawn = np.asarray(source.draw(jax.random.key(0), 80, None).examples)[:, 0]
    assert np.all(np.abs(np.bincount(drawn.astype(int), minlength=4) - 10 * weights) <= 1)
    assert np.any(np.diff(drawn) < 0)
    np.testing.assert_allclose(source.ess, 64 / 30)
    for wrong in ([1.0, 1.0], [1.0, -1.0, 1.0, 1.0], [0.0] * 4, [np.inf, 1.0, 1.0, 1.0]):
        with pytest.raises(ValueError, match="finite numbers, not negative"):
            nd.train.sources.as_source(np.zeros((4, 1)), (1,), None, wrong)
    with pytest.raises(TypeError, match="array of data"):
        nd.train.sources.as_source(lambda key: jnp.zeros(1), (1,), None, weights)


def moments_of(found):
    """Mean and variance over all clouds, each weighted by its evidence, and log mean evidence."""
    log_weights = np.asarray(found.log_weights) + np.asarray(found.log_evidence)[:, None]
    weights = np.exp(log_weights - log_weights.max())
    x = np.asarray(found.positions["x"])[..., 0]
    mean = np.sum(weights * x) / weights.sum()
    variance = np.sum(weights * (x - mean) ** 2) / weights.sum()
    return mean, variance, np.log(np.mean(np.exp(np.asarray(found.log_evidence))))


def sampled(law, num_levels=40, wrapper=lambda scheme: scheme):
    scheme = nd.ReverseDiffusion(levels=num_levels, moves=0, pilot=64)
    model = wrapper(scheme)(nd.from_energy(law), jax.random.key(0))
    return nd.run_smc(jax.random.key(1), model, num_particles=4000, num_chains=2)


@pytest.mark.long
def test_the_law_and_its_constant_with_weights_and_the_known_bias_without():
    """A curved reward: what the reverse diffusion led by the denoised mean comes to is known as well."""
    law = BASE + tilted("curved", nd.factors.MonteCarloValue(32))
    mean, variance, log_constant = moments_of(sampled(law))
    truth = LAWS["curved"]
    assert abs(mean - truth[0]) < 0.02 and abs(variance - truth[1]) < 0.03
    assert abs(log_constant - truth[2]) < 0.02
    # Its drift is linear: with 1 + tau = e^l, dm = -m - 4 (m e^-l - 1) and dv = -(2 + 8 e^-l) v + e^l.
    x = np.asarray(sampled(BASE + tilted("curved"), 200, nd.schemes.unweighted).positions["x"])
    assert abs(x.mean() - (1 - np.exp(-4.0))) < 0.03 and abs(x.var() - 0.125) < 0.02


BOTH = nd.GaussianMixture([0.5, 0.5], [[-0.75], [0.75]], [[[1.0]], [[1.0]]])
CLASS = nd.Gaussian([0.75], [[1.0]])


def guided_moments(law):
    """Mean, variance and log constant by quadrature."""
    t = jnp.asarray(law.t_min)
    log_p = eqx.filter_jit(jax.vmap(lambda u: law.log_density(u, t)))(GRID[:, None])
    p = np.exp(np.asarray(log_p))
    total = np.trapezoid(p, GRID)
    mean = np.trapezoid(p * GRID, GRID) / total
    return mean, np.trapezoid(p * (GRID - mean) ** 2, GRID) / total, np.log(total)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("w", "truth"), [(1.0, (1.0864, 0.7687, 0.3226)), (4.0, (1.5300, 0.5507, 1.7895))]
)
def test_guidance_with_weights_is_the_tilted_law(w, truth):
    law = nd.cfg(BOTH, CLASS, 1 + w)
    exact = guided_moments(law)
    np.testing.assert_allclose(exact, truth, atol=1e-3)
    scheme = nd.ReverseDiffusion(levels=100, pilot=64)
    model = scheme(nd.from_energy(law), jax.random.key(0))
    found = moments_of(nd.run_smc(jax.random.key(1), model, num_particles=4000, num_chains=2))
    assert np.all(np.abs(np.subtract(found, exact)) < [0.03, 0.04, 0.03]), found


@pytest.mark.long
@pytest.mark.parametrize(("w", "cost"), [(0.5, 1.551), (1.0, 1.346), (2.0, 1.184), (4.0, 1.090)])
def test_guidance_without_weights_lowers_the_mean_cost(w, cost):
    """Of 1 / p(c | x), from 2; and what it draws is another law than the tilted one."""
    law = nd.cfg(BOTH, CLASS, 1 + w)
    x = np.asarray(sampled(law, 100, nd.schemes.unweighted).positions["x"])
    np.testing.assert_allclose(np.mean(1 + np.exp(-1.5 * x)), cost, atol=0.03)
    assert x.mean() - guided_moments(law)[0] > 0.05
    if w == 1:
        np.testing.assert_allclose([x.mean(), x.var()], [1.222, 0.723], atol=0.03)


@pytest.mark.long
def test_training_with_weights_learns_the_tilted_law():
    """Weights exp(1.5 x) on draws of N(0, 1): N(1.5, 1), noised, by a tenth of the examples."""
    data = np.random.default_rng(5).normal(size=(100_000, 1))
    net = nd.nets.ResidualMLP(jax.random.key(0), (1,), width=32, depth=1)
    start = nd.InnerProductEnergy.from_data(net, data, noise_min=0.3, noise_max=10.0)
    fitted = nd.fit(
        jax.random.key(1), start, data, weights=np.exp(1.5 * data[:, 0]), steps=1200,
        batch_size=512, loss=nd.train.denoising_loss, progress_bar=False,
    )  # fmt: skip
    assert abs(fitted.ess / 90_000 - np.exp(-(1.5**2))) < 0.025
    t = jnp.asarray(start.t_min)
    log_p = eqx.filter_jit(jax.vmap(lambda u: fitted.energy.log_density(u, t)))(GRID[:, None])
    p = np.exp(np.asarray(log_p) - np.max(log_p))
    mean = np.sum(p * GRID) / p.sum()
    variance = np.sum(p * (GRID - mean) ** 2) / p.sum()
    assert abs(mean - 1.5) < 0.05 and abs(variance - 1.09) < 0.08


@pytest.mark.long
def test_a_learned_value():
    """Right where particles of the tilted law go, at every level."""
    name, exact = "curved", exact_value("curved")
    value = nd.train.fit_soft_value(
        jax.random.key(0), BASE, REWARDS[name], steps=800, progress_bar=False
    )
    times = nd.schedules.log_snr_grid(BASE.schedule, 9, BASE.t_min, BASE.t_max)[::-1]

    @eqx.filter_jit
    @jax.vmap
    def errors(t):
        width = jnp.sqrt(LAWS[name][1] + nd.energies.added_variance(BASE, t))
        u = LAWS[name][0] + width * jnp.linspace(-2, 2, 21)
        return jax.vmap(lambda u: value.net(u[None], t) - exact(u[None], t))(u)

    found = np.asarray(errors(times))
    assert np.all(np.sqrt(np.mean(found**2, 1)) < 0.1)
