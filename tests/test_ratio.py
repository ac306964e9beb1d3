"""Ratios of densities: a prior carried over to a target, against the closed form of two mixtures."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.train.ratio import transfer_loss

VARIANCE = 0.1
CENTRES = {"source": np.array([0.5, 0.5]), "target": np.array([0.5, -0.5])}
SOURCE, TARGET = (
    nd.GaussianMixture([0.5, 0.5], [c, -c], [VARIANCE * np.eye(2)] * 2) for c in CENTRES.values()
)
T_MIN = jnp.asarray(SOURCE.t_min)


def log_ratio(x):
    """log q / p of clean data."""
    return TARGET.log_density(x, T_MIN) - SOURCE.log_density(x, T_MIN)


def posterior(u, t, num_nodes=40):
    """Points and log weights of the clean variable given a noised one, under the source."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    plane = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
    log_weights = np.log(np.outer(weights, weights).ravel() / (2 * np.pi))
    width = VARIANCE + SOURCE.schedule.noise_level(T_MIN) ** 2
    tau = nd.energies.added_variance(SOURCE, t)
    means = jnp.stack([CENTRES["source"], -CENTRES["source"]])
    log_parts = jax.nn.log_softmax(-0.5 * jnp.sum((u - means) ** 2, 1) / (width + tau))
    centres = (width * u + tau * means) / (width + tau)
    points = centres[:, None] + jnp.sqrt(width * tau / (width + tau)) * plane
    return points.reshape(-1, 2), (log_parts[:, None] + log_weights).ravel()


def soft_mean(u, t):
    """log E_p[q / p | u]."""
    points, log_weights = posterior(u, t)
    return jax.nn.logsumexp(log_weights + jax.vmap(log_ratio)(points))


def mean_of_log(u, t):
    """E_p[log q / p | u], what regression of the logarithm finds."""
    points, log_weights = posterior(u, t, 12)
    return jnp.sum(jnp.exp(log_weights) * jax.vmap(log_ratio)(points))


@eqx.filter_jit
def at(energy, u, t):
    return jax.vmap(lambda u: energy.log_density_and_score(u, t))(u)


@eqx.filter_jit
def draws(energy, keys):
    return jax.vmap(lambda key: energy.draw(key, jnp.zeros(())))(keys)


def test_prior_and_ratio_are_the_target_at_every_level():
    """Score and normalised density of the noised target, from the source and a mean under it."""
    both = SOURCE + nd.factors.Ratio(soft_mean)
    u = jnp.array([[0.3, -0.2], [-0.9, 0.4], [1.1, 0.8]])
    for t in nd.schedules.log_snr_grid(SOURCE.schedule, 5, SOURCE.t_min, SOURCE.t_max):
        (log_p, score), (truth, slope) = at(both, u, t), at(TARGET, u, t)
        np.testing.assert_allclose(log_p, truth, atol=1e-5)
        np.testing.assert_allclose(score, slope, atol=1e-5)


def test_what_is_trusted_is_what_counts_at_last():
    """A ratio that is wrong at every noisy level, and right where the law is read."""
    both = SOURCE + nd.factors.Ratio(lambda u, t: 0.3 * u[0] - 1.0, log_ratio)
    u = jnp.array([[-0.9, 0.4], [0.2, 0.1]])
    for a, b in zip(at(both, u, T_MIN), at(TARGET, u, T_MIN), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)
    t = SOURCE.schedule.time(jnp.asarray(2.0))
    (found, slope), (base, base_slope) = at(both, u, t), at(SOURCE, u, t)
    np.testing.assert_allclose(found - base, 0.3 * u[:, 0] - 1.0, rtol=1e-9)
    np.testing.assert_allclose(slope - base_slope, [[0.3, 0.0]] * 2, atol=1e-9)


class Bent(eqx.Module):
    """The exact ratio of noised laws, and a bent one."""

    by: jax.Array
    offset = 0.0
    scale = np.full(2, 0.77)

    def __call__(self, u, t):
        exact = TARGET.log_density(u, t) - SOURCE.log_density(u, t)
        return (1 + self.by[0]) * exact + self.by[1] * jnp.tanh(u[0])


def test_all_terms_of_the_loss_are_least_at_the_ratio():
    """Bent to either side in two directions, the loss grows: that of the source alone, and the rest."""
    keys = jax.random.split(jax.random.key(0), 4000)
    data = jnp.concatenate([draws(e, keys) for e in (SOURCE, TARGET)])
    bends = jnp.array([[0.0, 0.0], [0.4, 0.0], [-0.4, 0.0], [0.0, 0.6], [0.0, -0.6]])

    @eqx.filter_jit
    def losses(by):
        key, options = jax.random.key(1), {"cycle": 1.0, "consistency": 1.0}
        alone, everything = (
            transfer_loss(Bent(by), key, data, log_ratio, SOURCE, **chosen)
            for chosen in ({}, options)
        )
        return jnp.stack([alone, everything - alone])

    least, *others = (np.asarray(losses(by)) for by in bends)
    for plus, minus in (others[:2], others[2:]):
        growth = plus + minus - 2 * least
        assert np.all(growth > 0.02) and np.all(np.abs(plus - minus) < 0.7 * growth)


def variances(found):
    """Weighted variances along both pairs of modes."""
    log_weights = np.asarray(found.log_weights) + np.asarray(found.log_evidence)[:, None]
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    axes = np.stack(list(CENTRES.values())) * 2**0.5
    along = np.asarray(found.positions["x"]) @ axes.T
    mean = np.einsum("cn,cni->i", weights, along)
    return np.einsum("cn,cni->i", weights, (along - mean) ** 2)


def sampled(law, num_particles=2000):
    scheme = nd.ReverseDiffusion(levels=40, moves=0, pilot=64)
    model = scheme(nd.from_energy(law), jax.random.key(0))
    return nd.run_smc(jax.random.key(1), model, num_particles=num_particles, num_chains=2)


@pytest.mark.long
def test_a_learned_ratio_at_every_level():
    """Where noised target examples are, and the law that it leads to with the ratio itself at last."""
    keys = jax.random.split(jax.random.key(5), 6000)
    source, target = draws(SOURCE, keys[:5000]), draws(TARGET, keys[5000:])
    learned = nd.train.fit_ratio(
        jax.random.key(1),
        SOURCE,
        log_ratio,
        source,
        target,
        cycle=1.0,
        steps=800,
        progress_bar=False,
    )
    times = nd.schedules.log_snr_grid(SOURCE.schedule, 8, SOURCE.t_min, SOURCE.t_max)
    exact = lambda u, t: TARGET.log_density(u, t) - SOURCE.log_density(u, t)

    @eqx.filter_jit
    @jax.vmap
    def errors(t):
        noise = jax.random.normal(jax.random.key(2), target.shape)
        u = target + jnp.sqrt(nd.energies.added_variance(SOURCE, t)) * noise
        return jax.vmap(lambda u: learned.log_h(u, t) - exact(u, t))(u)

    rms = np.sqrt(np.mean(np.asarray(errors(times)) ** 2, 1))
    assert np.all(rms < 1.0)
    np.testing.assert_allclose(variances(sampled(SOURCE + learned)), [0.1, 0.6], atol=0.03)


@pytest.mark.long
def test_regression_of_the_logarithm_has_the_known_bias():
    """Led by E[log q / p | u] alone, particles end up too narrow both ways, for (0.1, 0.6)."""
    scheme = nd.schemes.unweighted(nd.ReverseDiffusion(levels=100, moves=0, pilot=64))
    model = scheme(nd.from_energy(SOURCE + nd.factors.Ratio(mean_of_log)), jax.random.key(0))
    found = nd.run_smc(jax.random.key(1), model, num_particles=1000, num_chains=2)
    along = (
        np.asarray(found.positions["x"]).reshape(-1, 2)
        @ (np.stack(list(CENTRES.values())) * 2**0.5).T
    )
    np.testing.assert_allclose(along.var(0) / [0.071, 0.452], 1.0, atol=0.12)


@pytest.mark.long
def test_a_classifier_knows_the_ratio():
    """Few target examples: it leaves out a part of their tails, and gets the rest of the way."""
    keys = jax.random.split(jax.random.key(11), 6000)
    source, target = draws(SOURCE, keys[:5000]), draws(TARGET, keys[5000:])
    net = nd.nets.ResidualMLP(jax.random.key(9), (2,), width=32, depth=1)
    classifier = nd.train.density_ratio_classifier(
        jax.random.key(0), source, target, net=net, steps=800, progress_bar=False
    )
    side = np.linspace(-2.5, 2.5, 201)
    grid = jnp.asarray(np.stack(np.meshgrid(side, side), -1).reshape(-1, 2))
    log_q = eqx.filter_jit(jax.vmap(lambda x: SOURCE.log_density(x, T_MIN) + classifier(x)))(grid)
    q = np.exp(np.asarray(log_q))
    along = np.asarray(grid) @ (np.stack(list(CENTRES.values())) * 2**0.5).T
    found = q @ along**2 / q.sum()
    assert abs(found[0] - 0.1) < 0.06 and abs(found[1] - 0.6) < 0.15
    assert abs(np.log(q.sum() * 0.025**2)) < 0.2
