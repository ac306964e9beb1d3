r"""The prior block of a split Gibbs sampler, and that of the other sites."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ..._finite import NonFinite, either, looked_at, non_finite
from ..._typing import Array, Position, PRNGKey, Scalar
from ...bridge import Bridge, PathBridge
from ...smc.moves import Move
from ...smc.preconditioner import Preconditioner

__all__ = [
    "added_noise",
    "checked",
    "clock_at",
    "denoised",
    "ladder",
    "looked",
    "moved",
    "near",
    "reverse_steps",
    "seen_by_rest",
    "watched",
]

_Values = dict[str, Array]


def clock_at(bridge: Bridge, noise: Scalar | float) -> Scalar:
    r"""Clock at which the noise added to the prior has this standard deviation, in units of the data.

    With several sites of different schedules, on average of the logarithm.
    """
    ends = [bridge.noise(jnp.asarray(c)) for c in (0.0, 1.0)]
    clean, noisy = (jnp.stack([jnp.log(s[n]) for n in bridge.diffusion_sites]) for s in ends)
    wanted = 0.5 * jnp.log(noise**2 + jnp.exp(2 * clean))
    return jnp.clip(jnp.mean(wanted - clean) / jnp.mean(noisy - clean), 0.0, 1.0)


def added_noise(bridge: Bridge, clock: Scalar) -> dict[str, Scalar]:
    r"""$\tau = (s_c^2 - s_0^2)^{1/2}$ by site: the noise between the prior and a clock."""
    here, end = bridge.noise(clock), bridge.noise(jnp.zeros(()))
    gap = lambda n: jnp.maximum(here[n] ** 2 - end[n] ** 2, 0.0)
    return {n: jnp.where(clock <= 0, 0.0, jnp.sqrt(gap(n))) for n in bridge.diffusion_sites}


def ladder(bridge: Bridge, clock: Scalar, num_steps: int, power: float = 2.0) -> Array:
    r"""Clocks from here down to 0, where the added noise is $\tau (1 - k / n)^p$: dense near the prior."""
    logs = [jnp.log(noise) for noise in added_noise(bridge, clock).values()]
    shares = (1 - jnp.arange(1, num_steps) / num_steps) ** power
    inner = jax.vmap(lambda share: clock_at(bridge, jnp.exp(sum(logs) / len(logs)) * share))(shares)
    return jnp.concatenate([jnp.reshape(clock, 1), inner, jnp.zeros(1, inner.dtype)])


def denoised(bridge: Bridge, u: _Values, clock: Scalar) -> _Values:
    r"""Mean of the prior's variable given the noised one, $u + \tau^2 \nabla \log p_c(u)$."""
    # Not `x_hat`: what the likelihood sees on the way is the twist's business.
    score, noise = bridge.score(u, clock), added_noise(bridge, clock)
    return {n: u[n] + (noise[n] ** 2 * score[n]).astype(u[n].dtype) for n in u}


def reverse_steps(key: PRNGKey, bridge: Bridge, u: _Values, clocks: Array) -> _Values:
    r"""Reverse-diffusion steps from the noised value at the first of the clocks to the prior's.

    $u_s = u_t + (1 - r)(\hat x - u_t) + \tau_t (1 - r)^{1/2} \xi$ with $r = \tau_s^2 / \tau_t^2$: the
    distribution of the variable at `t_min` given $u_t$, up to an error of order one over the number of
    steps. The noise is that of an Euler-Maruyama step in the variance. Unlike that of ancestral steps it
    counts what $\hat x$ leaves open, and is right where the prior is wider than the noise.
    """

    def step(u, level):
        clock, following, key = level
        noisy, clean = added_noise(bridge, clock), added_noise(bridge, following)
        x_hat = denoised(bridge, u, clock)
        keys = dict(zip(u, jax.random.split(key, len(u)), strict=True))

        def one(n):
            # In 32 bits the last clocks may all round to 0.
            share = jnp.where(noisy[n] > 0, clean[n] / jnp.where(noisy[n] > 0, noisy[n], 1), 1.0)
            moved = 1 - share**2
            noise = noisy[n] * jnp.sqrt(moved) * jax.random.normal(keys[n], u[n].shape, u[n].dtype)
            return (u[n] + moved * (x_hat[n] - u[n]) + noise).astype(u[n].dtype)

        return {n: one(n) for n in u}, None

    keys = jax.random.split(key, len(clocks) - 1)
    return jax.lax.scan(step, u, (clocks[:-1], clocks[1:], keys))[0]


def near(u: _Values, centre: _Values, noise: dict[str, Scalar]) -> Scalar:
    r"""$-\sum_n |u_n - c_n|^2 / 2 \tau_n^2$."""
    terms = [-0.5 * jnp.sum(((u[n] - centre[n]) / noise[n]) ** 2) for n in u]
    return sum(terms, jnp.zeros(()))


def seen_by_rest(bridge: Bridge, z: Position, seen: _Values) -> Scalar:
    """Log density of the rest of the model and of the data, given what they see of diffusion sites."""
    rest = bridge.rest(z, seen)
    value = rest.log_prior + rest.log_likelihood
    if isinstance(bridge, PathBridge):  # factors of a denoiser are not in its score
        value = value + bridge.log_factors(seen)
    return value


def watched(bridge: Bridge, z: Position, seen: _Values) -> NonFinite:
    """Indicators of NaN and +inf by site, at the values of the data's block or of the prior's."""
    own = {name: z[name] for name in bridge.diffusion_sites}
    return either(*(looked(bridge, z, x, False) for x in (seen, own)))


def looked(bridge: Bridge, z: Position, seen: _Values, energy: bool = True) -> NonFinite:
    """Indicators of NaN and +inf by site; of diffusion sites only if their energy is evaluated."""
    sites = dict(bridge.rest(z, seen).sites)
    if energy:
        sites |= bridge.see({**z, **seen}, jnp.zeros(())).sites
    else:
        sites |= dict.fromkeys(bridge.diffusion_sites, jnp.zeros(()))
    return non_finite(sites)


def checked(bridge: Bridge, z: Position) -> tuple[NonFinite, Scalar]:
    """Flags by site, and whether the prior's density is finite, at a draw made with the score alone."""
    seen = bridge.see(z, jnp.zeros(()))
    rest = bridge.rest(z, {name: z[name] for name in bridge.diffusion_sites})
    return non_finite({**rest.sites, **seen.sites}), jnp.isfinite(seen.log_density)


def moved(
    key: PRNGKey,
    move: Move,
    num_moves: int,
    values: _Values,
    log_density: Callable[[_Values], Scalar],
    log_step: Scalar,
    scale: Preconditioner,
    look: Callable[[_Values], NonFinite],
) -> tuple[_Values, Scalar, NonFinite, Array]:
    """Values after some moves of a density.

    Returns:
        The values, the moves' mean acceptance, what was met on the way, and whether the density at the end is
        finite. What is refused is met too: `look` is asked of proposals whose density is not finite.
    """

    def finite(values):
        value = log_density(values)
        # +inf stays: a chain goes there at once, and is seen to stand there.
        return jnp.where(jnp.isnan(value), -jnp.inf, value)

    def one(state, key):
        new, accepted, proposal = move.step_and_proposal(
            key, state, finite, jnp.exp(log_step), scale
        )
        # Steps that are too long end nowhere, and no site is to blame.
        somewhere = jnp.isfinite(
            jnp.concatenate(jax.tree.leaves(jax.tree.map(jnp.ravel, proposal.position)))
        )
        wrong = ~jnp.isfinite(proposal.logdensity) & somewhere.all()
        met = looked_at(wrong, lambda: look(scale.to_model(proposal.position)))
        return new, (accepted, met)

    state = move.init(values, finite, scale)
    state, (acceptance, met) = jax.lax.scan(one, state, jax.random.split(key, num_moves))
    met = jax.tree.map(lambda flag: flag.any(0), met)
    end = scale.to_model(state.position)
    return end, jnp.mean(acceptance), met, jnp.isfinite(state.logdensity)
