"""Restoration and ensemble Kalman steps: as published with their known bias, and with weights without it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from assertions import assert_unbiased
from closed_form import two_dimensional
from scipy.stats import multivariate_normal

import numpyro_diffusion as nd
from numpyro_diffusion.samplers.split.blocks import added_noise, ladder
from numpyro_diffusion.schemes import DDNM, DDRM, DiffPIR, EnsembleKalman, Full, RePaint
from numpyro_diffusion.schemes.levels import Level
from numpyro_diffusion.schemes.restoration import spectrum

MEAN, COVARIANCE = np.array([0.5, -1.0]), np.array([[1.0, 0.7], [0.7, 0.8]])
OPERATOR, DATA, SIGMA = np.array([[1.0, 0.4]]), np.array([1.9]), 0.4
PRIOR = nd.Gaussian(MEAN, COVARIANCE)
CLOCKS = jnp.linspace(1.0, 0.0, 7)


def model(y):
    x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
    numpyro.sample("y", dist.Normal(jnp.asarray(OPERATOR) @ x, SIGMA).to_event(1), obs=y)


BRIDGE = nd.from_model(model, DATA, twist=nd.twists.BlackBox(), bridge_type=nd.bridge.PathBridge)
NOISE = [float(BRIDGE.noise(clock)["x"]) for clock in CLOCKS]
FLOOR = COVARIANCE + NOISE[-1] ** 2 * np.eye(2)
EVIDENCE = OPERATOR @ FLOOR @ OPERATOR.T + SIGMA**2 * np.eye(1)
GAIN = FLOOR @ OPERATOR.T @ np.linalg.inv(EVIDENCE)
POSTERIOR = MEAN + GAIN @ (DATA - OPERATOR @ MEAN), FLOOR - GAIN @ OPERATOR @ FLOOR


@eqx.filter_jit
def measure(transport, cloud, clock):
    return transport.measure(None, BRIDGE, cloud, clock, 1.0)


def levels(transport):
    rows = Level.by_hand(CLOCKS, jnp.ones(7), {"x": jnp.ones((6, 2))})
    if not transport.needs_curvature:
        return rows
    # The cloud of the prior at each level, a pilot's at best.
    x = np.random.default_rng(2).multivariate_normal(MEAN, COVARIANCE, 400)
    white = np.random.default_rng(3).normal(size=x.shape)
    clouds = ({"x": jnp.asarray(x + s * white)} for s in NOISE[:-1])
    measured = [
        measure(transport, cloud, clock) for cloud, clock in zip(clouds, CLOCKS, strict=False)
    ]
    return rows._replace(curvature=jnp.stack(measured))


@eqx.filter_jit
def paths(transport, rows, keys):
    """Ends of whole paths from noise to data, and the log ratios of the prior's steps to theirs."""

    def one(key):
        def step(carry, row):
            z, key, total = carry
            key, key_step = jax.random.split(key)
            seen = BRIDGE.see(z, row.clock)
            z, log_ratio = transport(key_step, BRIDGE, z, None, seen, row)
            return (z, key, total + log_ratio), None

        z = BRIDGE.sample_base(key)
        return jax.lax.scan(step, (z, key, jnp.zeros(())), rows)[0]

    z, _, total = jax.vmap(one)(keys)
    return z["x"], total


def run(method, published, size=20_000):
    transport = nd.Twisted(6, proposal=method, covariance=Full()).kernels(BRIDGE).transport
    transport = transport.unweighed() if published else transport.as_published()
    keys = jax.random.split(jax.random.key(1), size)
    return [np.asarray(part) for part in paths(transport, levels(transport), keys)]


def denoised(u, s):
    return u - s**2 * np.linalg.solve(COVARIANCE + s**2 * np.eye(2), u - MEAN)


def ddrm(u, s, to, eta=0.85, eta_b=1.0):
    """As in the paper, coordinate by coordinate."""
    left, values, right = np.linalg.svd(OPERATOR)
    x, y, mean, variance = right @ denoised(u, s), left.T @ DATA, np.zeros(2), np.zeros(2)
    for i in range(2):
        if i >= len(values):
            mean[i] = x[i] + (1 - eta**2) ** 0.5 * to * ((right @ u)[i] - x[i]) / s
            variance[i] = eta**2 * to**2
        elif to < SIGMA / values[i]:
            mean[i] = x[i] + (1 - eta**2) ** 0.5 * to * (y[i] - values[i] * x[i]) / SIGMA
            variance[i] = eta**2 * to**2
        else:
            mean[i] = (1 - eta_b) * x[i] + eta_b * y[i] / values[i]
            variance[i] = to**2 - SIGMA**2 / values[i] ** 2 * eta_b**2
    return right.T @ mean, right.T @ np.diag(variance) @ right


def ddnm(u, s, to):
    """As in the paper, for one datum, with all steps in units of the data."""
    left, values, right = np.linalg.svd(OPERATOR)
    a, sigma = 1 - (to / s) ** 2, to * (1 - (to / s) ** 2) ** 0.5
    x, free = denoised(u, s), np.full(2, sigma**2)
    share = 1.0 if sigma >= a * SIGMA / values[0] else values[0] * sigma / (a * SIGMA)
    x = x - share * right.T[:, :1] @ left.T @ (OPERATOR @ x - DATA) / values[0]
    free[0] -= (a * SIGMA * share / values[0]) ** 2
    return a * x + (to / s) ** 2 * u, right.T @ np.diag(free) @ right


def diffpir(u, s, to, strength=1.0, zeta=0.3):
    rho = strength * SIGMA**2 / s**2
    left = OPERATOR.T @ OPERATOR + rho * np.eye(2)
    x = np.linalg.solve(left, OPERATOR.T @ DATA + rho * denoised(u, s))
    noise = (u - x) / s
    return x + to * (1 - zeta) ** 0.5 * noise, zeta * to**2 * np.eye(2)


def replaced(u, s, to):
    right = np.linalg.svd(OPERATOR)[2]
    known = np.outer(right[0], right[0])
    datum = right[0] * float(np.linalg.pinv(OPERATOR)[:, 0] @ right[0]) * DATA[0]
    a = 1 - (to / s) ** 2
    own = np.eye(2) - known
    return datum + own @ (u + a * (denoised(u, s) - u)), to**2 * (known + a * own)


def affine(step, s, to):
    at = lambda u: step(u, s, to)[0]
    shift = at(np.zeros(2))
    return np.stack([at(e) - shift for e in np.eye(2)], 1), shift, step(np.zeros(2), s, to)[1]


def law(step, repeats=1):
    """Mean and covariance at the end: all steps are affine."""
    mean, variance = (np.asarray(v) for v in PRIOR.data_moments(jnp.asarray(PRIOR.t_max)))
    covariance = np.diag(variance)
    for s, to in zip(NOISE[:-1], NOISE[1:], strict=True):
        slope, shift, noise = affine(step, s, to)
        for i in range(repeats):
            mean, covariance = slope @ mean + shift, slope @ covariance @ slope.T + noise
            if i < repeats - 1:
                covariance = covariance + (s**2 - to**2) * np.eye(2)
    return mean, covariance


def assert_moments(x, mean, covariance):
    gap = x - mean
    second = gap[:, :, None] * gap[:, None] - covariance
    values = np.concatenate([gap, second.reshape(len(x), 4)], 1)
    error = values.std(0) / len(x) ** 0.5
    assert (np.abs(values.mean(0)) < 4 * error).all(), values.mean(0) / error


@pytest.mark.parametrize(
    ("method", "step", "repeats"),
    [
        (DDRM(), ddrm, 1),
        (DDRM(0.6, 0.8), lambda u, s, to: ddrm(u, s, to, 0.6, 0.8), 1),
        (DDNM(), ddnm, 1),
        (DiffPIR(zeta=0.3), diffpir, 1),
        (DiffPIR(3.0), lambda u, s, to: diffpir(u, s, to, 3.0, 1.0), 1),
        (RePaint(4), replaced, 4),
    ],
    ids=["DDRM", "DDRM-0.6-0.8", "DDNM", "DiffPIR", "DiffPIR-3", "RePaint"],
)
def test_the_published_steps_have_a_known_bias(method, step, repeats):
    x, total = run(method, published=True)
    mean, covariance = law(step, repeats)
    assert_moments(x, mean, covariance)
    assert (total == 0).all()
    off = np.linalg.solve(POSTERIOR[1], covariance) - np.eye(2)
    assert np.abs(off).max() > 0.3  # which is not the posterior's


@pytest.mark.parametrize(
    "method",
    [DDRM(), DDRM(eta_b=0.7), DDNM(), DiffPIR(), DiffPIR(3.0, zeta=0.9), EnsembleKalman()],
    ids=["DDRM", "DDRM-0.7", "DDNM", "DiffPIR", "DiffPIR-0.9", "EnsembleKalman"],
)
def test_weights_of_whole_paths_give_posterior_and_evidence(method):
    """With a matrix of covariance six steps are the prior; their weights are products of six ratios."""
    x, total = run(method, published=False, size=40_000)
    log_weights = total + multivariate_normal.logpdf(x @ OPERATOR.T - DATA, None, SIGMA**2)
    assert total.std() > 0.1
    batches = log_weights.reshape(40, -1)
    top = batches.max()
    found = np.log(np.mean(np.exp(batches - top), 1)) + top
    assert_unbiased(found, multivariate_normal.logpdf(DATA, OPERATOR @ MEAN, EVIDENCE))
    weights = np.exp(log_weights - log_weights.max())
    gap = x - POSTERIOR[0]
    second = gap[:, :, None] * gap[:, None] - POSTERIOR[1]
    values = np.concatenate([gap, second.reshape(len(x), 4)], 1) * weights[:, None] / weights.mean()
    error = values.std(0) / len(x) ** 0.5
    assert (error < 0.08).all(), error  # enough of them to tell
    assert (np.abs(values.mean(0)) < 4 * error).all(), values.mean(0) / error


@pytest.mark.parametrize(("rows", "rank"), [(1, 1), (3, 2), (6, 4), (6, 3)])
def test_data_along_singular_vectors(rows, rank):
    """Fewer data than coordinates, more, and such that repeat each other: least squares and its errors."""
    rng = np.random.default_rng(rows)
    operator = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, 4))
    residual = rng.normal(size=rows)
    vectors, datum, deviation = map(np.asarray, spectrum(jnp.asarray(operator), residual))
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(4), atol=1e-12)
    seen = np.isfinite(deviation)
    assert seen.sum() == rank and (datum[~seen] == 0).all()
    np.testing.assert_allclose(vectors.T @ datum, np.linalg.pinv(operator) @ residual, atol=1e-8)
    information = vectors.T @ np.diag(1 / deviation**2) @ vectors
    np.testing.assert_allclose(information, operator.T @ operator, atol=1e-10)


def test_many_steps_of_ddrm_shrink_what_is_not_seen():
    """The share (1 + sqrt(1 - eta^2)) / 2 of a Gaussian's variance."""
    eta, deviation = 0.85, 1.3
    noise, variance = np.geomspace(50.0, 1e-3, 4000), 2500.0
    for s, to in zip(noise[:-1], noise[1:], strict=True):
        gain = deviation**2 / (deviation**2 + s**2)
        slope = gain + (1 - eta**2) ** 0.5 * to / s * (1 - gain)
        variance = slope**2 * variance + eta**2 * to**2
    limit = 0.5 * (1 + (1 - eta**2) ** 0.5)
    np.testing.assert_allclose(variance / deviation**2, limit, rtol=0.01)
    assert abs(limit - 0.763) < 1e-3


def test_a_derivative_by_regression():
    """Of a Gaussian and linear data it is the derivative itself."""
    transport = nd.Twisted(6, proposal=EnsembleKalman(1e-9)).kernels(BRIDGE).transport
    rng = np.random.default_rng(0)
    u = rng.normal(size=(50, 2)) * 3
    clock = CLOCKS[3]
    back = measure(transport, {"x": jnp.asarray(u)}, clock)
    x_hat = lambda u: BRIDGE.sites["x"].see(nd.Tweedie(), u, clock)[1]
    jacobian = OPERATOR @ np.asarray(jax.jit(jax.jacfwd(x_hat))(jnp.zeros(2)))
    np.testing.assert_allclose(back, jacobian.T, rtol=1e-6)


@pytest.mark.slow
def test_without_resampling_the_weights_are_there():
    """And without weights there is no evidence, for the same scheme."""
    scheme = nd.Twisted(6, proposal=DiffPIR(), covariance=Full(), pilot=64)
    result = nd.run_smc(
        jax.random.key(2), nd.schemes.unresampled(scheme)(BRIDGE), 500, num_chains=40
    )
    truth = multivariate_normal.logpdf(DATA, OPERATOR @ MEAN, EVIDENCE)
    assert_unbiased(result.log_evidence, truth)
    result = nd.run_smc(jax.random.key(2), nd.schemes.unweighted(scheme)(BRIDGE), 20_000)
    assert not result.exact and np.isnan(result.log_evidence)
    assert_moments(np.asarray(result.positions["x"]), *law(lambda *at: diffpir(*at, 1.0, 1.0)))


def opaque(matrix, x):
    shape = jax.ShapeDtypeStruct((matrix.shape[0],), x.dtype)
    return jax.pure_callback(
        lambda x: (x @ np.asarray(matrix).T).astype(x.dtype), shape, x, vmap_method="expand_dims"
    )


@pytest.mark.slow
def test_an_operator_of_another_language_with_an_unknown_noise_level():
    """Nothing is differentiated: a callback has no derivative. The joint posterior by quadrature."""
    problem = two_dimensional()

    def model(y):
        x = numpyro.sample("x", nd.DiffusionPrior(problem.prior))
        sigma = numpyro.sample("sigma", dist.HalfNormal(0.5))
        numpyro.sample("y", dist.Normal(opaque(problem.operator, x), sigma).to_event(1), obs=y)

    check_mixture(model, problem.data, problem.exact(), EnsembleKalman(), nd.twists.BlackBox(), 60)


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "steps"),
    [(DDRM(), 20), (DDNM(), 60), (DiffPIR(), 60)],
    ids=["DDRM", "DDNM", "DiffPIR"],
)
def test_weights_on_an_asymmetric_mixture(method, steps):
    problem = two_dimensional()
    model = lambda y: problem.model(jnp.asarray(problem.operator), y)
    check_mixture(model, problem.data, problem.exact(), method, nd.Widened(), steps)


def check_mixture(model, data, exact, method, twist, steps):
    bridge = nd.from_model(model, data, twist=twist, bridge_type=nd.bridge.PathBridge)
    scheme = nd.Twisted(steps, proposal=method)
    result = nd.run_smc(jax.random.key(1), scheme(bridge), 2000, num_chains=8)
    assert result.exact and result.log_evidence.shape == (8,)
    weights = np.asarray(jax.nn.softmax(result.log_weights, -1))
    x, sigma = np.asarray(result.positions["x"]), np.exp(np.asarray(result.positions["sigma"]))
    found = np.concatenate(
        [
            np.einsum("cn,cni->ci", weights, x),
            np.einsum("cn,cn->c", weights, sigma)[:, None],
            np.asarray(result.log_evidence)[:, None],
        ],
        1,
    )
    truth = [*exact.mean, exact.sigma_mean, exact.log_evidence]
    scale = np.array([*exact.variance**0.5, exact.sigma_sd, 1.0])
    error = found.std(0, ddof=1) / 8**0.5
    gap = np.abs(found.mean(0) - truth)
    # The steps are the prior, up to an error of order one over their number.
    assert (gap < 4 * error + 4 / steps * scale).all(), (gap / scale, error / scale)
    assert (error < 0.2 * scale).all()


def test_ensemble_kalman_has_the_moments_of_its_mean_field():
    """Large ensembles of a Gaussian: affine steps with coefficients that mean and covariance say."""
    guidance, num_steps, flow_steps = 0.4, 10, 3
    clocks = np.asarray(ladder(BRIDGE, jnp.ones(()), num_steps, 7.0))
    noise = lambda c: float(added_noise(BRIDGE, jnp.asarray(c))["x"])
    start = lambda: (np.asarray(v) for v in PRIOR.data_moments(jnp.asarray(PRIOR.t_max)))

    def flow(clocks):
        slope = np.eye(2)
        for a, b in zip(map(noise, clocks[:-1]), map(noise, clocks[1:]), strict=True):
            gain = np.linalg.solve(FLOOR + a**2 * np.eye(2), FLOOR).T
            slope = (b / a * np.eye(2) + (1 - b / a) * gain) @ slope
        return slope

    mean, variance = start()
    covariance = np.diag(variance)
    for i, (clock, following) in enumerate(zip(clocks[:-1], clocks[1:], strict=True)):
        if 1 <= i < num_steps - 1:
            ahead = np.asarray(ladder(BRIDGE, jnp.asarray(clock), flow_steps, 7.0))
            row = OPERATOR @ flow(ahead) / SIGMA
            error = row @ (mean - MEAN) + (OPERATOR @ MEAN - DATA) / SIGMA
            spread = row @ covariance @ row.T
            length = np.sqrt(np.trace((spread + np.outer(error, error)) @ spread))
            step = guidance / length * covariance @ row.T
            mean, slope = mean - step @ error, np.eye(2) - step @ row
            covariance = slope @ covariance @ slope.T
        slope = flow([clock, following])
        mean, covariance = MEAN + slope @ (mean - MEAN), slope @ covariance @ slope.T
    draws = jax.vmap(
        lambda key: nd.samplers.ensemble_kalman(
            key, BRIDGE, num_particles=400, num_steps=num_steps, flow_steps=flow_steps, guidance=guidance
        ).positions["x"]
    )(jax.random.split(jax.random.key(4), 40))  # fmt: skip
    x = np.asarray(draws) - mean
    second = np.einsum("cni,cnj->cij", x, x) / x.shape[1]
    values = np.concatenate([x.mean(1), (second - covariance).reshape(len(x), 4)], 1)
    error = values.std(0, ddof=1) / len(x) ** 0.5
    scale = np.array(
        [*np.diag(covariance) ** 0.5, *np.outer(*2 * [np.diag(covariance) ** 0.5]).ravel()]
    )
    assert (error < 0.05 * scale).all()
    # What is of order one over the size of an ensemble comes on top.
    assert (np.abs(values.mean(0)) < 4 * error + 0.02 * scale).all(), values.mean(0) / scale
    assert np.abs(covariance / POSTERIOR[1] - 1).max() > 0.3
    result = nd.samplers.ensemble_kalman(jax.random.key(4), BRIDGE, num_particles=400, num_steps=10)
    assert not result.exact and "400 particles" in result.target


def test_refusals():
    for change in (lambda scheme: scheme, nd.schemes.unresampled):
        with pytest.raises(ValueError, match="`RePaint` have no weights of use.*conjugate=True"):
            change(nd.Twisted(2, proposal=RePaint(2), pilot=8))(BRIDGE)
    with pytest.raises(TypeError, match=r"`proposal` of `Twisted`.*got 'DDRM'"):
        nd.Twisted(proposal="DDRM")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not both"):
        nd.Twisted(proposal=DDRM(), conjugate=True)
    with pytest.raises(ValueError, match="`eta` of `DDRM`.*got 1.5"):
        DDRM(eta=1.5)
    with pytest.raises(ValueError, match="`strength` of `DiffPIR`"):
        DiffPIR(strength=0.0)
    with pytest.raises(ValueError, match="`zeta` of `DiffPIR`"):
        DiffPIR(zeta=0.0)
    with pytest.raises(ValueError, match="`ridge`"):
        EnsembleKalman(ridge=0.0)
    bare = nd.from_energy(PRIOR, lambda x: -jnp.sum(x**2), bridge_type=nd.bridge.PathBridge)
    for method in (DDRM(), EnsembleKalman()):
        with pytest.raises(ValueError, match="reads .* off a NumPyro model.*Use `from_model`"):
            nd.Twisted(proposal=method)(bare)
    with pytest.raises(ValueError, match="log likelihood alone"):
        nd.samplers.ensemble_kalman(jax.random.key(0), bare)
    with pytest.raises(
        ValueError, match="`idle` must be a finite number of at least 0 and below 0.5"
    ):
        nd.samplers.ensemble_kalman(jax.random.key(0), BRIDGE, idle=0.5)

    def two(y):
        x = numpyro.sample("x", nd.DiffusionPrior(PRIOR))
        z = numpyro.sample("z", nd.DiffusionPrior(PRIOR))
        numpyro.sample("y", dist.Normal(x[0] + z[0], SIGMA), obs=y)

    bridge = nd.from_model(two, 1.0, bridge_type=nd.bridge.PathBridge)
    with pytest.raises(ValueError, match=r"one diffusion variable.*\['x', 'z'\].*conjugate"):
        nd.Twisted(proposal=DDNM())(bridge)
