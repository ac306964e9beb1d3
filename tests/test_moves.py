"""Moves leave a law as it is, and move; one starts from an evaluation at hand as from a new one."""

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.bridge import DensitySite
from numpyro_diffusion.schemes.levels import Level
from numpyro_diffusion.smc import moves
from numpyro_diffusion.smc.preconditioner import Preconditioner

# Unequal, correlated, anisotropic: near enough for particles to change modes.
TARGET = nd.GaussianMixture(
    [0.3, 0.7],
    [[-1.2, 0.5], [1.0, -3.0]],
    [[[0.6, 0.5], [0.5, 1.5]], [[0.3, -0.4], [-0.4, 4.0]]],
)
T = jnp.asarray(TARGET.t_min)
SCALE = Preconditioner({"a": jnp.array(0.9), "b": jnp.array([2.0])})


def barker() -> moves.Move:
    return moves.from_blackjax(blackjax.barker_proposal, lambda step, z: {"step_size": step})


def mass(z):
    """Not constant, so that leapfrog steps would be no valid move."""
    return jnp.diag(jnp.stack([1.0 + z["a"] ** 2, 1.0 + 0.5 * jnp.sin(z["b"][0])]))


def dynamic() -> moves.Move:
    parameters = lambda step, z: {"step_size": step, "inverse_mass_matrix": jnp.ones(2)}
    return moves.from_blackjax(blackjax.dynamic_hmc, parameters, evaluations=None)


# Steps that accept about half of the time, so that an error in the acceptance would show.
CASES = {
    "mala": (moves.mala(), 0.35),
    "hmc": (moves.hmc(3), 0.9),
    "random_walk": (moves.random_walk(), 0.9),
    "barker": (barker(), 0.8),
    "nuts": (moves.nuts(3), 0.9),
    "adjusted_mclmc": (moves.adjusted_mclmc(3), 0.9),
    "dynamic_hmc": (dynamic(), 0.9),
    "elliptical_slice": (moves.elliptical_slice({"a": 0.3, "b": -1.0}, 2.0), 1.0),
    "sequence": (
        moves.sequence(moves.hmc(2), moves.random_walk(), moves.mala()),
        np.array([0.8, 0.9, 0.35]),
    ),
    "mixture": (
        moves.mixture(moves.random_walk(), moves.mala(), weights=[1, 2]),
        np.array([0.9, 0.35]),
    ),
    "on_sites": (
        moves.sequence(
            moves.on_sites(moves.random_walk(), "b"),
            moves.on_sites(moves.sequence(moves.mala(), moves.random_walk()), ["a"]),
        ),
        np.array([1.2, 0.6, 1.0]),
    ),
}
SLOW = {
    "rmhmc": (moves.rmhmc(mass, 2), 1.1),
    "slice_sampling": (moves.slice_sampling(), 1.0),
}
_parameters = [pytest.param(*case, id=name) for name, case in CASES.items()]
_parameters += [pytest.param(*c, id=n, marks=pytest.mark.long) for n, c in SLOW.items()]
each_move = pytest.mark.parametrize(("move", "step_size"), _parameters)


def log_density(z):
    return TARGET.log_density(jnp.concatenate([z["a"][None], z["b"]]), T)


def as_position(x):
    return {"a": x[0], "b": x[1:]}


def as_points(z):
    return np.concatenate([z["a"][:, None], z["b"]], 1)


@each_move
def test_a_move_leaves_its_target_as_it_is(move, step_size):
    count, rounds = 20_000, 12
    keys = jax.random.split(jax.random.key(1), count)
    alpha_t, _ = TARGET.schedule(T)
    start = jax.vmap(lambda key: as_position(TARGET.draw(key, T) / alpha_t))(keys)

    def run(key, z):
        state = move.init(z, log_density, SCALE)
        one = lambda state, key: move.step(key, state, log_density, step_size, SCALE)
        state, acceptance = jax.lax.scan(one, state, jax.random.split(key, rounds))
        return SCALE.to_model(state.position), jnp.mean(acceptance)

    end, acceptance = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(2), count), start)
    assert 0.2 < float(jnp.mean(acceptance)) < (0.93 if move.target_acceptance < 1 else 1.01)
    before, after = as_points(start), as_points(end)
    for i in range(2):
        assert np.corrcoef(before[:, i], after[:, i])[0, 1] < 0.8
    modes = lambda x: np.asarray(
        jax.vmap(lambda x: TARGET.component_log_densities(x, T))(x)
    ).argmax(1)
    assert np.mean(modes(alpha_t * before) != modes(alpha_t * after)) > 0.02

    w, m, S = (np.asarray(a) for a in ([0.3, 0.7], TARGET.means, covariances()))
    mean = w @ m
    for x in (before, after):  # exact draws pass, so moved ones have to
        centred = x - mean
        products = np.einsum("ni,nj->nij", centred, centred)
        covariance = np.einsum("k,kij->ij", w, S + np.einsum("ki,kj->kij", m - mean, m - mean))
        for values, expected in (
            (x, mean),
            (products, covariance),
            (centred**3, third_moments(w, m - mean, S)),
            (x[:, 0] < 0.0, w @ norm.cdf(0.0, m[:, 0], np.sqrt(S[:, 0, 0]))),
        ):
            error = np.std(values, 0) / np.sqrt(count)
            assert np.all(abs(np.mean(values, 0) - expected) < 4 * error)


def covariances():
    noise = float(TARGET.schedule.noise_level(T))
    stretched = np.einsum(
        "kij,kj,klj->kil", TARGET.eigenvectors, TARGET.eigenvalues, TARGET.eigenvectors
    )
    return stretched + noise**2 * np.eye(2)


def third_moments(w, shifts, S):
    return w @ (shifts**3 + 3 * shifts * np.einsum("kii->ki", S))


@each_move
def test_an_evaluation_at_hand_starts_a_move(move, step_size):
    z = as_position(jnp.array([0.4, -1.1]))
    value, gradient = jax.value_and_grad(log_density)(z)
    fresh = move.init(z, log_density, SCALE)
    known = move.init_known(z, value, gradient, SCALE)
    for a, b in zip(jax.tree.leaves(fresh), jax.tree.leaves(known), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    for a, b in zip(
        jax.tree.leaves(z), jax.tree.leaves(SCALE.to_model(fresh.position)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_a_move_works_in_units_of_the_scale():
    """A narrow coordinate with its scale is moved as its wide twin is."""
    wide = lambda z: -0.5 * jnp.sum((z["x"] - 1.0) ** 2)
    narrow = lambda z: wide({"x": z["x"] / 1e-3})
    move, key = moves.mala(), jax.random.key(0)

    def moved(log_density, scale):
        scale = {"x": jnp.full(2, scale)}
        round_ = Preconditioner(scale)
        state = move.init({"x": scale["x"] * jnp.array([0.3, -0.5])}, log_density, round_)
        state, acceptance = move.step(key, state, log_density, 0.7, round_)
        return round_.to_model(state.position)["x"] / scale["x"], acceptance

    for a, b in zip(moved(wide, 1.0), moved(narrow, 1e-3), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


def test_a_step_into_the_void_is_refused():
    """Beyond an edge the density is -inf, or NaN with a NaN gradient: the particle stays."""
    move, scale = moves.mala(), Preconditioner({"x": jnp.array(1.0)})
    for edge in (lambda z: jnp.where(z["x"] > 0, -jnp.inf, 0.0), lambda z: 0.1 * jnp.log(-z["x"])):
        state = move.init({"x": jnp.array(-0.5)}, edge, scale)
        keys = jax.random.split(jax.random.key(0), 200)
        new, acceptance = jax.vmap(lambda k, s=state, f=edge: move.step(k, s, f, 1.0, scale))(keys)
        x = np.asarray(jax.vmap(scale.to_model)(new.position)["x"])
        assert np.all(x < 0)
        assert np.all(np.isfinite(acceptance)) and np.any(acceptance == 0)
        assert np.any(x != -0.5)


@pytest.mark.parametrize(
    "move", [barker(), moves.hmc(2), moves.random_walk()], ids=lambda m: m.name
)
def test_any_blackjax_kernel_moves_the_annealed_sampler(move):
    energy = nd.Gaussian([0.5, -1.0], [[1.0, 0.6], [0.6, 0.8]])
    y, sigma = 1.5, 0.4
    bridge = nd.from_energy(energy, lambda x: jax.scipy.stats.norm.logpdf(y, x[0], sigma))
    clock = jnp.concatenate([jnp.linspace(1, 0, 30), jnp.zeros(1)])
    scale = jax.vmap(lambda c: jnp.sqrt(DensitySite(energy).moments(c)[1]))(clock[:-1])
    power = jnp.ones(31).at[0].set(0.0)
    levels = Level.by_hand(clock, power, {"x": scale}, step_size=0.4, num_moves=3)
    scheme = nd.Annealed(levels=levels, moves=nd.schemes.Moves(joint=move, num=3))
    assert scheme.evaluations_per_level(bridge) == 1 + 3 * move.evaluations
    result = nd.run_smc(jax.random.key(0), scheme(bridge), 250, num_chains=32)

    noise = float(energy.schedule.noise_level(T)) ** 2
    expected = norm.logpdf(y, 0.5, (1.0 + noise + sigma**2) ** 0.5)
    ratio = np.exp(np.asarray(result.log_evidence) - expected)
    assert ratio.std() < 0.3
    assert abs(ratio.mean() - 1) < 3.5 * ratio.std() / 32**0.5
    gain = np.array([1.0 + noise, 0.6]) / (1.0 + noise + sigma**2)
    means = np.einsum("cn,cni->ci", jax.nn.softmax(result.log_weights, -1), result.positions["x"])
    exact = np.array([0.5, -1.0]) + gain * (y - 0.5)
    assert np.all(abs(means.mean(0) - exact) < 4 * means.std(0) / 32**0.5)
    assert np.all(means.std(0) < 0.2)
    assert 0.2 < float(result.trace.info.acceptance.mean()) < 0.98


def test_names_and_numbers():
    assert barker().name == "barker" and moves.mala().name == "mala"
    assert moves.hmc(6).name == "hmc(6)" and moves.hmc(6).evaluations == 6
    assert moves.hmc(6) == moves.hmc(6) != moves.hmc(5)  # equal moves share a compilation
    with pytest.raises(ValueError, match="`num_integration_steps` must be at least 1; got 0"):
        moves.hmc(0)
