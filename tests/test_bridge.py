"""Bridges end in the user's own density, and their parts are what they claim to be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer.util import potential_energy

import numpyro_diffusion as nd
from numpyro_diffusion.bridge import DensitySite, log_density
from numpyro_diffusion.schedules import VarianceExploding

# Unlike in shape, law and schedule.
PLANE = nd.GaussianMixture()
GRID = nd.Gaussian(
    np.linspace(-1, 1, 3), np.diag([0.5, 1.0, 2.0]) + 0.2, schedule=VarianceExploding(0.01, 50.0)
)
Y = jnp.array([0.7, -0.4, 1.3])
prior = nd.DiffusionPrior


def plain(y=Y):
    x = numpyro.sample("x", prior(PLANE))
    numpyro.sample("y", dist.Normal(x.sum(), 0.3).expand([3]), obs=y)


def plate_of_sites(y=Y):
    with numpyro.plate("images", 3):
        x = numpyro.sample("x", prior(PLANE))
        numpyro.sample("y", dist.Normal(x[:, 0] * x[:, 1], 0.5), obs=y)


def nested_plates(y=Y):
    with numpyro.plate("columns", 3, dim=-1), numpyro.plate("rows", 2, dim=-2):
        x = numpyro.sample("x", prior(PLANE))
        level = numpyro.sample("level", dist.Gamma(2.0, 1.5))
        numpyro.sample("y", dist.Normal(x[..., 0], level), obs=jnp.stack([y, 2 * y]))


def two_sites(y=Y):
    a = numpyro.sample("a", prior(PLANE))
    b = numpyro.sample("b", prior(GRID).expand([2]).to_event(1))
    offset = numpyro.sample("offset", dist.Normal(a[0], 2.0))
    numpyro.sample("y", dist.Normal(a[1] * b[0] - b[1] + offset, 0.5).to_event(1), obs=y)


def constrained(y=Y):
    x = numpyro.sample("x", prior(PLANE))
    sigma = numpyro.sample("sigma", dist.HalfNormal(0.5))
    share = numpyro.sample("share", dist.Beta(2.0, 3.0))
    mix = numpyro.sample("mix", dist.Dirichlet(jnp.array([1.0, 2.0, 0.5])))
    bound = numpyro.sample("bound", dist.Uniform(-sigma, 3.0 + x[0] ** 2))
    numpyro.sample("y", dist.Normal(share * x[1] + mix * bound, sigma).to_event(1), obs=y)


def factor_and_deterministic(y=Y):
    x = numpyro.sample("x", prior(PLANE))
    total = numpyro.deterministic("total", x.sum())
    numpyro.factor("soft", -0.5 * (total - 1.0) ** 2)
    numpyro.sample("y", dist.Poisson(jnp.exp(total)), obs=2)


def masked(y=Y):
    x = numpyro.sample("x", prior(PLANE))
    with numpyro.plate("data", 3), handlers.mask(mask=jnp.array([True, False, True])):
        numpyro.sample("y", dist.Normal(x[0], 0.4), obs=y.at[1].set(jnp.nan))
    inner = dist.Normal(x, 0.2).mask(jnp.array([False, True])).to_event(1)
    numpyro.sample("w", inner, obs=jnp.array([jnp.inf, 0.3]))


def scaled(y=Y):
    x = numpyro.sample("x", prior(PLANE))
    with handlers.scale(scale=3.5):
        numpyro.sample("y", dist.Normal(x[0], 0.4).expand([3]), obs=y)


def observed_diffusion(y=Y):
    """A datum under the prior, and a latent site that shares its level."""
    level = numpyro.sample("level", dist.Normal())
    numpyro.sample("x", prior(PLANE), obs=jnp.array([0.4, -0.2]))
    numpyro.sample("y", dist.Normal(level, 1.0), obs=y[0])


def without_diffusion(y=Y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
    sigma = numpyro.sample("sigma", dist.LogNormal(mean, 0.5))
    numpyro.sample("y", dist.StudentT(4.0, mean, sigma).expand([3]), obs=y)


def transformed_latent(y=Y):
    x = numpyro.sample("x", prior(PLANE))
    affine = dist.transforms.AffineTransform(1.0, jnp.array([2.0, 0.3]))
    v = numpyro.sample("v", dist.TransformedDistribution(dist.Normal(x, 1.0).to_event(1), affine))
    numpyro.sample("y", dist.Normal(v.sum(), 0.5), obs=y[0])


def sample_shape(y=Y):
    x = numpyro.sample("x", prior(PLANE), sample_shape=(3,))
    numpyro.sample("y", dist.Normal(x[:, 0], 0.5).to_event(1), obs=y)


def time_series(y=Y):
    x = numpyro.sample("x", prior(PLANE))

    def step(state, datum):
        state = numpyro.sample("state", dist.Normal(0.8 * state + x[0], 0.5))
        numpyro.sample("y", dist.Normal(state, 0.3), obs=datum)
        return state, None

    scan(step, x[1], y)


MODELS = [
    plain,
    plate_of_sites,
    nested_plates,
    two_sites,
    constrained,
    factor_and_deterministic,
    masked,
    scaled,
    observed_diffusion,
    without_diffusion,
    transformed_latent,
    sample_shape,
    time_series,
]
each_model = pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)


@functools.cache
def bridge_of(model):
    return nd.from_model(model)


def position(bridge, seed=3):
    """A position that is no draw of anything."""
    shapes = jax.eval_shape(lambda key: bridge.sample_base(key), jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.8 * rng.normal(size=leaf.shape)), shapes)


def at(bridge, z, clock, power=1.0):
    return log_density(bridge, z, jnp.asarray(clock), jnp.asarray(power))[0]


@each_model
def test_the_end_is_the_users_own_potential_energy(model):
    bridge = bridge_of(model)
    z = position(bridge)
    ours = jax.jit(jax.value_and_grad(lambda z: -at(bridge, z, 0.0)))(z)
    theirs = jax.jit(jax.value_and_grad(lambda z: potential_energy(model, (), {}, z)))(z)
    assert set(ours[1]) == set(theirs[1]) == {*bridge.diffusion_sites, *bridge.other_sites}
    assert np.isfinite(float(ours[0]))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("model", [plate_of_sites, two_sites, constrained, masked, scaled])
def test_between_the_ends_it_is_the_noised_model(model):
    """`noised` does not temper the likelihood; what ours does is divided out."""
    bridge = bridge_of(model)
    z, clock = position(bridge), jnp.asarray(0.3)

    @jax.jit
    def values(z):
        value, (_, rest, _) = log_density(bridge, z, clock, jnp.asarray(1.0))
        g = bridge.exponent(z, clock)
        norm = (1 - g) * rest.log_peak + 0.5 * rest.num_data * jnp.log(g)
        return value, value + (1 - g) * rest.log_likelihood - norm

    value, untempered = values(z)
    times = bridge.times(clock)
    if len(set(map(float, times.values()))) > 1:
        # Sites of different schedules stand at different times: noise them one after the other.
        noisy = model
        for name, t in times.items():
            noisy = _noised_alone(noisy, name, t)
    else:
        noisy = nd.noised(model, next(iter(times.values())))
    params = {f"{n}_noised" if n in bridge.diffusion_sites else n: v for n, v in z.items()}
    expected = -potential_energy(noisy, (), {}, params)
    np.testing.assert_allclose(untempered, expected, rtol=1e-9)
    assert abs(float(value - expected)) > 1e-3  # the exponent does something


def _noised_alone(model, name, t):
    from numpyro_diffusion.ppl import NoisedReparam

    return handlers.reparam(model, config={name: NoisedReparam(t)})


@each_model
def test_exponent_tempers_the_noisy_end_only(model):
    bridge = bridge_of(model)
    z = position(bridge)
    others = {**position(bridge, 9), **{n: z[n] for n in bridge.other_sites}}
    exponent = jax.jit(lambda z, clock: bridge.exponent(z, clock))
    values = [float(exponent(z, c)) for c in (1.0, 0.5, 0.0)]
    assert values[2] == 1.0
    assert 0 < values[0] <= values[1] <= 1
    if bridge.diffusion_sites:  # known before a network is asked, and the same for all its values
        assert float(exponent(others, 0.5)) == values[1]


def test_exponent_is_that_of_a_gaussian_datum():
    """For a scalar of variance v seen through noise s: 1 / (1 + rho v / 2 s^2)."""
    energy, clock = nd.Gaussian([0.5], [[1.7]]), jnp.asarray(0.4)
    bridge = nd.from_energy(energy, lambda x: -0.5 * jnp.sum((x - 0.2) ** 2) / 0.3**2)
    noise = lambda t: float(energy.schedule.noise_level(jnp.asarray(t))) ** 2
    prior_variance = 1.7 + noise(energy.t_min)
    added = noise(bridge.times(clock)["x"]) - noise(energy.t_min)
    rho = added / (prior_variance + added)
    value = bridge.exponent({"x": jnp.zeros(1)}, clock)
    np.testing.assert_allclose(value, 1 / (1 + 0.5 * rho * prior_variance / 0.3**2), rtol=1e-2)


def test_information_is_the_largest_eigenvalue():
    """Of the data's precision in units of the prior's deviations, for two sites and every sigma."""
    grid, plane = (
        jnp.array([[1.0, -0.3, 0.2], [0.1, 0.4, -2.0]]),
        jnp.array([[0.3, 1.5], [0.7, -0.2]]),
    )

    def model(grid, plane, y):
        a, b = numpyro.sample("a", prior(GRID)), numpyro.sample("b", prior(PLANE))
        sigma = numpyro.sample("sigma", dist.HalfNormal(0.5))
        numpyro.sample("y", dist.Normal(grid @ a + plane @ b, sigma).to_event(1), obs=y)

    bridge = nd.from_model(model, grid, plane, jnp.array([0.2, 0.9]))
    clock, sites = jnp.asarray(0.6), [DensitySite(GRID), DensitySite(PLANE)]
    columns = jnp.concatenate([grid * sites[0].scale, plane * sites[1].scale], 1)
    rho = sum(site.residual(clock) for site in sites) / 2
    for sigma in (0.02, 1.7):
        z = {"a": jnp.zeros(3), "b": jnp.ones(2), "sigma": jnp.log(sigma)}
        kappa = jnp.linalg.norm(columns, 2) ** 2 / sigma**2
        expected = 1 / (1 + 0.5 * kappa * rho)
        np.testing.assert_allclose(bridge.exponent(z, clock), expected, rtol=1e-3)


@pytest.mark.parametrize(
    "log_likelihood", [lambda x: 0 * x.sum(), lambda x: jnp.log(x.sum() > 9.0)]
)
def test_no_tempering_where_the_information_is_unknown(log_likelihood):
    bridge = nd.from_energy(PLANE, log_likelihood)
    assert bridge.exponent({"x": jnp.zeros(2)}, jnp.asarray(0.7)) == 1.0


SCALAR = nd.Gaussian([0.5], [[1.7]])


def seen_through(sigma: float, unit: float = 1.0):
    def model(y):
        x = numpyro.sample("x", prior(SCALAR))
        numpyro.sample("y", dist.Normal(unit * x, unit * sigma).to_event(1), obs=unit * y)

    return model


@pytest.mark.parametrize("y", [-3.0, 0.6])
def test_a_tempered_gaussian_likelihood_is_a_density_of_the_data(y):
    """It is the Gaussian of the larger variance, norm included: no noise level is favoured."""
    z = {"x": jnp.array([0.4])}
    for sigma in (0.01, 2.0):
        bridge = nd.from_model(seen_through(sigma), jnp.array([y]))
        for clock in (0.9, 0.4, 0.05):
            value = at(bridge, z, clock, 1.0) - at(bridge, z, clock, 0.0)
            x_hat = bridge.see(z, jnp.asarray(clock)).x_hat["x"]
            wider = sigma / jnp.sqrt(bridge.exponent(z, jnp.asarray(clock)))
            expected = dist.Normal(x_hat, wider).log_prob(y).sum()
            np.testing.assert_allclose(value, expected, rtol=1e-9)
            assert wider > sigma


def test_units_of_the_data_change_the_evidence_alone():
    bridges = [nd.from_model(seen_through(0.2, unit), jnp.array([0.3])) for unit in (1.0, 1000.0)]
    for clock in (0.0, 0.3, 0.8):
        first, second = (at(b, {"x": jnp.array([0.1])}, clock) for b in bridges)
        np.testing.assert_allclose(first - second, np.log(1000.0), rtol=1e-9)


DATA = jnp.array([1.0, 2.0, 4.0])
MVN = dist.MultivariateNormal(jnp.arange(3.0), jnp.diag(jnp.array([0.5, 1.0, 3.0])))
SEEN = jnp.array([True, False, True])
LOG_NORMAL = -0.5 * np.log(2 * np.pi)
COUNTS = dist.Poisson(2.0).expand([3])
EXP = dist.TransformedDistribution(MVN, dist.transforms.ExpTransform())


@pytest.mark.parametrize(
    ("observed", "log_peak", "num_data"),
    [
        (dist.Normal(1.0, 0.5).expand([3]), 3 * (LOG_NORMAL + np.log(2)), 3),
        (dist.Normal(1.0, 0.5).expand([3]).mask(SEEN), 2 * (LOG_NORMAL + np.log(2)), 2),
        (dist.Normal(1.0, 0.5).mask(SEEN).to_event(1), 2 * (LOG_NORMAL + np.log(2)), 2),
        (MVN, 3 * LOG_NORMAL - 0.5 * np.log(1.5), 3),
        (MVN.mask(False), 0.0, 0),
        (dist.Laplace(0.0, 2.0).expand([3]).to_event(1), -3 * np.log(4.0), 3),
        (COUNTS, COUNTS.log_prob(DATA).sum(), 0),
        (dist.Cauchy(0.0, 1.0).expand([3]), 0.0, 0),
        (EXP, EXP.log_prob(DATA), 0),
    ],
    ids=[
        "normal",
        "masked",
        "masked_event",
        "event",
        "unseen",
        "laplace",
        "counts",
        "cauchy",
        "exp",
    ],
)
def test_peak_of_observed_sites(observed, log_peak, num_data):
    """Where a law that may be 0 gives no peak, it is the largest value that was found, as for factors."""

    def model():
        x = numpyro.sample("x", prior(PLANE))
        numpyro.sample("y", observed, obs=DATA)
        numpyro.factor("f", jnp.maximum(-(x[0] ** 2), -0.5) + 1e4)

    bridge = nd.from_model(model)
    rest = bridge.rest({"x": jnp.zeros(2)}, {"x": jnp.zeros(2)})
    np.testing.assert_allclose(rest.log_peak - 1e4, log_peak, atol=1e-3)
    assert rest.num_data == num_data


def test_peak_is_scaled_with_its_site():
    def model():
        numpyro.sample("x", prior(PLANE))
        with handlers.scale(scale=0.5):
            numpyro.sample("y", dist.Normal(0.0, 2.0).expand([4]), obs=jnp.ones(4))

    rest = nd.from_model(model).rest({"x": jnp.zeros(2)}, {"x": jnp.zeros(2)})
    np.testing.assert_allclose(rest.log_peak, 2 * (LOG_NORMAL - np.log(2)), rtol=1e-9)
    assert rest.num_data == 2


@pytest.mark.parametrize("model", [plain, two_sites, constrained, nested_plates])
def test_carry_is_a_map_with_its_determinant(model):
    bridge = bridge_of(model)
    z, clock, following = position(bridge), jnp.asarray(0.7), jnp.asarray(0.45)
    flat, unflatten = jax.flatten_util.ravel_pytree(z)

    def carried(flat):
        return jax.flatten_util.ravel_pytree(bridge.carry(unflatten(flat), clock, following)[0])[0]

    log_det = jnp.linalg.slogdet(jax.jacobian(carried)(flat))[1]
    np.testing.assert_allclose(bridge.carry(z, clock, following)[1], log_det, rtol=1e-9)
    there, _ = bridge.carry(z, clock, following)
    back, _ = bridge.carry(there, following, clock)
    for name in z:
        np.testing.assert_allclose(back[name], z[name], rtol=1e-9)
        if name in bridge.other_sites:
            np.testing.assert_array_equal(there[name], z[name])


def test_carry_follows_the_noised_law_of_a_gaussian():
    """Between the marginals of a Gaussian with independent coordinates: weights stay constant."""
    energy = nd.Gaussian([0.5, -1.0], np.diag([0.3, 2.0]))
    bridge = nd.from_energy(energy)
    z, c, d = {"x": jnp.array([0.9, 0.4])}, jnp.asarray(0.8), jnp.asarray(0.2)
    moved, log_det = bridge.carry(z, c, d)
    increment = at(bridge, moved, d) - at(bridge, z, c) + log_det
    np.testing.assert_allclose(increment, 0.0, atol=1e-9)
    np.testing.assert_allclose(at(bridge, z, 1.0), bridge.log_base(z), rtol=1e-9)


@pytest.mark.parametrize("model", [two_sites, constrained])
def test_base_draws_have_the_base_density(model):
    bridge, one, zero = bridge_of(model), jnp.asarray(1.0), jnp.asarray(0.0)

    def density(others, z):
        value, (_, rest, _) = log_density(bridge, {**z, **others}, one, zero)
        return rest.log_prior, value - rest.log_prior

    def of_draw(key):
        z = bridge.sample_base(key)
        others = {n: z[n] for n in bridge.other_sites}
        score, diffusion = jax.grad(density, has_aux=True)(others, z)
        return diffusion - bridge.log_base(z), score

    log_weight, score = jax.jit(jax.vmap(of_draw))(jax.random.split(jax.random.key(2), 4000))
    # Importance weights average to the ratio of normalisers, here 1.
    w = np.exp(log_weight)
    assert np.all(np.isfinite(w)) and 0 < w.std() < 0.2
    assert abs(w.mean() - 1) < 3.5 * w.std() / len(w) ** 0.5
    # Stein's identity: the mean score of a law over its own draws is 0 in every coordinate.
    for leaf in jax.tree.leaves(score):
        error = np.std(leaf, 0) / len(leaf) ** 0.5
        assert np.all((0 < error) & (error < 0.1))
        assert np.all(np.abs(np.mean(leaf, 0)) < 4 * error)


@each_model
def test_constrain_gives_the_values_of_the_model(model):
    bridge = bridge_of(model)
    z = position(bridge)
    values = bridge.constrain(z)
    expected = handlers.trace(handlers.substitute(model, data=values)).get_trace()
    names = {n for n, s in expected.items() if s["type"] == "deterministic"}
    names |= {*bridge.diffusion_sites, *bridge.other_sites}
    assert set(values) == names
    for name in bridge.diffusion_sites:
        np.testing.assert_array_equal(values[name], z[name])
    for name in bridge.other_sites:
        fn = expected[name]["fn"]
        assert jnp.all(fn.support(values[name]))
        unconstrained = dist.biject_to(fn.support).inv(values[name])
        np.testing.assert_allclose(unconstrained, z[name], rtol=1e-8)


def test_a_transformed_diffusion_site_is_taken_apart():
    """Its noise levels are followed as those of any other, with the transform behind them."""
    slope = jnp.array([2.0, -0.3])

    def model():
        affine = dist.transforms.AffineTransform(jnp.array([1.0, 0.0]), slope)
        x = numpyro.sample("x", dist.TransformedDistribution(prior(PLANE), affine))
        numpyro.sample("y", dist.Normal(x.sum(), 0.5), obs=0.4)

    bridge = nd.from_model(model)
    assert bridge.diffusion_sites == ("x_base",) and bridge.other_sites == ()
    z = position(bridge)
    values = bridge.constrain(z)
    np.testing.assert_allclose(values["x"], jnp.array([1.0, 0.0]) + slope * z["x_base"])
    original = -potential_energy(model, (), {}, {"x": values["x"]})
    expected = original + jnp.sum(jnp.log(jnp.abs(slope)))
    np.testing.assert_allclose(at(bridge, z, 0.0), expected, rtol=1e-9)


def test_missing_data_by_obs_mask():
    """Draws beside seen data keep their law, which integrates to 1; all else is `potential_energy`."""
    seen = jnp.array([True, False, True])

    def model():
        x = numpyro.sample("x", prior(PLANE))
        numpyro.sample("y", dist.Normal(x[0], 0.4).expand([3]), obs=Y, obs_mask=seen)

    bridge = nd.from_model(model)
    z = position(bridge)
    beside = dist.Normal(z["x"][0], 0.4).log_prob(z["y_unobserved"])
    expected = -potential_energy(model, (), {}, z) + jnp.sum(jnp.where(seen, beside, 0.0))
    np.testing.assert_allclose(at(bridge, z, 0.0), expected, rtol=1e-9)
    y = bridge.constrain(z)["y"]
    np.testing.assert_array_equal(y, jnp.where(seen, Y, z["y_unobserved"]))


def test_power_zero_silences_an_infinite_likelihood():
    bridge = nd.from_energy(PLANE, lambda x: jnp.log(jnp.sum(0 * x)))
    z = {"x": jnp.array([0.3, 0.2])}
    assert at(bridge, z, 0.5, 0.0) == PLANE.log_density(z["x"], bridge.times(jnp.asarray(0.5))["x"])
    assert at(bridge, z, 0.5, 1.0) == -jnp.inf


@pytest.mark.parametrize("twist", [nd.Tweedie(), nd.twists.Identity()])
def test_from_energy_is_the_energy_and_the_likelihood(twist):
    log_likelihood = lambda x: -jnp.sum((x - 0.3) ** 4)
    bridge = nd.from_energy(PLANE, log_likelihood, twist=twist)
    u, t_min = jnp.array([0.3, -1.2]), jnp.asarray(PLANE.t_min)
    expected = PLANE.log_density(u, t_min) + log_likelihood(u)
    np.testing.assert_allclose(at(bridge, {"x": u}, 0.0), expected, rtol=1e-12)
    t = bridge.times(jnp.asarray(0.6))["x"]
    log_p, x_hat = twist(PLANE, u, t)
    g = bridge.exponent({"x": u}, jnp.asarray(0.6))
    top = (
        bridge.rest({}, {"x": u}).edges["likelihood"].log_peak
    )  # its quartic tail looks like a step
    assert -0.1 < top <= 0  # the largest of some points
    tempered = g * log_likelihood(x_hat) + (1 - g) * top
    np.testing.assert_allclose(at(bridge, {"x": u}, 0.6), log_p + tempered, rtol=1e-12)
    assert bridge.diffusion_sites == ("x",) and bridge.other_sites == ()


def test_clock_is_linear_in_log_snr_and_exact_at_both_ends():
    for energy in (PLANE, GRID):
        site, schedule = DensitySite(energy), energy.schedule
        times = jax.vmap(site.time)(jnp.linspace(1, 0, 9))
        np.testing.assert_array_equal(times[jnp.array([0, -1])], [energy.t_max, energy.t_min])
        steps = np.diff(jax.vmap(schedule.log_snr)(times))
        np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
        assert steps[0] > 0


def test_normaliser_of_the_prior_reaches_the_bridge():
    """An error is shared by a whole batch, and unknown if one site's is."""
    known = nd.EnergyFunction(
        PLANE.energy, (2,), log_normalizer=0.7, log_normalizer_error=0.02, t_min=PLANE.t_min
    )
    unknown = nd.EnergyFunction(PLANE.energy, (2,))

    def model(first, second):
        with numpyro.plate("batch", 3):
            numpyro.sample("a", prior(first))
        numpyro.sample("b", prior(second))

    error = nd.from_model(model, known, known).log_normalizer_error
    np.testing.assert_allclose(error, np.hypot(3 * 0.02, 0.02))
    assert nd.from_model(model, known, unknown).log_normalizer_error is None
    assert nd.from_energy(known / 0.5).log_normalizer_error is None
    u = {"x": jnp.array([0.1, 0.2])}
    gap = at(nd.from_energy(PLANE), u, 0.0) - at(nd.from_energy(known), u, 0.0)
    np.testing.assert_allclose(gap, 0.7)
