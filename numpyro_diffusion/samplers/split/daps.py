r"""Decoupled annealing posterior sampling (DAPS), and the Gibbs sampler that it approximates."""

import equinox as eqx
import jax
import jax.numpy as jnp

from ... import _faq
from ..._arguments import check_counts, plain
from ..._finite import either
from ..._typing import Array, Position, PRNGKey
from ...bridge import Bridge
from ...smc import Claims
from ...smc.moves import Move, hmc, mala
from .base import NO_EVIDENCE, AbstractSplit, Clock, Prior, SplitState, Tuning, uses_energy
from .blocks import (
    added_noise,
    checked,
    clock_at,
    denoised,
    ladder,
    looked,
    moved,
    near,
    seen_by_rest,
    watched,
)
from .data import draw_seen

__all__ = ["DAPS", "flow"]


class DAPS(AbstractSplit):
    r"""Clean, noise a little less, clean again: down a ladder of noise levels $\tau_k$ in every sweep.

    At each level $u = x + \tau_k \xi$, and then $x$ given $u$, the data and $\theta$. Were that draw exact,
    this would be a Gibbs sampler whose $x$ has the exact posterior at every level.

    *With the score* it is the published heuristic: $p_0(x \mid u)$ is taken for a Gaussian around
    $\hat x(u)$, the end of the probability flow from $u$, with standard deviation $\tau_k$,

    $$x \sim \mathcal{N}\big(x; \hat x(u), \tau_k^2\big)\, p(y \mid x, \theta) .$$

    Draws follow a distribution of no name, and no weight is known for them. Since a sweep begins at the
    noisiest level, each is as good as independent of the one before.

    *With the energy* $x$ makes moves of $p_0(x)\, \mathcal{N}(u; x, \tau_k^2)\, p(y \mid x, \theta)$ from
    where it is. That leaves the exact posterior as it is, at any levels and any number of moves. Modes far
    apart are as hard to change as for the moves alone.

    Attributes:
        noise_level: $\tau$ of the last level, in units of the data.
        first_noise_level: That of the first; by default the noisiest of the prior with the score, and ten
            times `noise_level` with the energy.
        num_levels: Equal in log-SNR; by default 50 with the score and 5 with the energy.
        prior: `"energy"`, `"score"`, or `None` for the energy where the bridge has one.
        flow_steps: Steps of the probability flow at each level; of one step the end is the denoised mean.
        num_data_moves: Draws of $x$ a level with the score.
        move: Move of $x$ with the energy.
        num_moves: Such moves a level.
        other_move: Move of the other sites; costs no network evaluation.
        num_other_moves: Such moves a level.

    References:
        Zhang et al. (2025), Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing, CVPR.
        Lee, Shen & Tian (2021), Structured Logconcave Sampling with a Restricted Gaussian Oracle, COLT, for
        the exact form.
    """

    noise_level: float = 0.1
    first_noise_level: float | None = None
    num_levels: int | None = eqx.field(static=True, converter=plain, default=None)
    prior: Prior | None = eqx.field(static=True, default=None)
    flow_steps: int = eqx.field(static=True, converter=plain, default=4)
    num_data_moves: int = eqx.field(static=True, converter=plain, default=4)
    move: Move = eqx.field(default_factory=hmc)
    num_moves: int = eqx.field(static=True, converter=plain, default=2)
    other_move: Move = eqx.field(default_factory=mala)
    num_other_moves: int = eqx.field(static=True, converter=plain, default=4)

    def __check_init__(self):
        check_counts(self, flow_steps=1, num_data_moves=1, num_moves=1, num_other_moves=1)
        first = self.noise_level if self.first_noise_level is None else self.first_noise_level
        if not 0 < self.noise_level <= first:
            raise ValueError(
                "`DAPS` expects 0 < noise_level <= first_noise_level; got "
                f"{self.noise_level} and {first}. {_faq.schedules}"
            )
        if self.num_levels is not None:
            check_counts(self, "`None` chooses.", num_levels=1)

    def _levels(self, bridge: Bridge) -> int:
        default = 5 if uses_energy(self, bridge) else 50
        return default if self.num_levels is None else self.num_levels

    def _clocks(self, bridge: Bridge) -> Array:
        end, first = clock_at(bridge, self.noise_level), self.first_noise_level
        if first is not None:
            begin = clock_at(bridge, first)
        elif uses_energy(self, bridge):
            begin = clock_at(bridge, 10 * self.noise_level)
        else:
            begin = jnp.ones(())
        return begin + (end - begin) * jnp.linspace(0.0, 1.0, self._levels(bridge))

    def init(self, bridge: Bridge, z: Position) -> SplitState:
        seen = {name: z[name] for name in bridge.diffusion_sites}
        one, tuning = jnp.ones(()), Tuning.at(z, self._levels(bridge))
        acceptance = {"prior": one, "data": one, "other": one}
        return SplitState(z, seen, jnp.zeros(()), tuning, acceptance, watched(bridge, z, seen))

    def sweep(self, key: PRNGKey, bridge: Bridge, state: SplitState, clock: Clock) -> SplitState:
        gain, tuning, energy = clock.gain, state.tuning, uses_energy(self, bridge)
        inner = self._exact if energy else self._heuristic
        scale = tuning.scale(bridge.other_sites)

        def level(carry, inputs):
            z, other_step = carry
            key, clock, log_step = inputs
            key_noise, key_x, key_other = jax.random.split(key, 3)
            noise, x = added_noise(bridge, clock), {n: z[n] for n in bridge.diffusion_sites}
            keys = dict(zip(x, jax.random.split(key_noise, len(x)), strict=True))
            white = {n: jax.random.normal(keys[n], x[n].shape, x[n].dtype) for n in x}
            u = {n: (x[n] + noise[n] * white[n]).astype(x[n].dtype) for n in x}
            x, accepted, met, possible = inner(key_x, bridge, z, x, u, clock, log_step, tuning)
            z, other_accepted = {**z, **x}, jnp.ones(())
            if bridge.other_sites:
                values, other_accepted, flags, _ = moved(
                    key_other,
                    self.other_move,
                    self.num_other_moves,
                    {n: z[n] for n in bridge.other_sites},
                    lambda values: seen_by_rest(bridge, {**z, **values}, x),
                    other_step,
                    scale,
                    lambda values: looked(bridge, {**z, **values}, x, False),
                )
                met = either(met, flags)
                z = {**z, **values}
                error = other_accepted - self.other_move.target_acceptance
                other_step = other_step + gain * error / self._levels(bridge)
            return (z, other_step), (accepted, other_accepted, met, possible)

        keys = jax.random.split(key, self._levels(bridge))
        levels = keys, self._clocks(bridge), tuning.prior
        (z, other_step), (accepted, other, met, possible) = jax.lax.scan(
            level, (state.position, tuning.other), levels
        )
        acceptance = dict(state.acceptance, other=jnp.mean(other))
        acceptance["prior" if energy else "data"] = jnp.mean(accepted)
        if energy:
            error = accepted - self.move.target_acceptance
            tuning = tuning._replace(prior=tuning.prior + gain * error)
        tuning = tuning._replace(other=other_step).learned(z, gain)
        seen = {n: z[n] for n in bridge.diffusion_sites}
        met = either(jax.tree.map(lambda flag: flag.any(0), met), watched(bridge, z, seen))
        if not energy:
            flags, fits = checked(bridge, z)
            met, possible = either(met, flags), possible & fits
        # What data or prior rule out does not count: a chain may not have found what is possible yet.
        possible = possible[-1] & jnp.isfinite(seen_by_rest(bridge, z, seen))
        log_weight = jnp.where(possible, 0.0, -jnp.inf)
        return SplitState(z, seen, log_weight, tuning, acceptance, met)

    def _heuristic(self, key, bridge, z, x, u, clock, log_step, tuning):
        del x, log_step, tuning
        x_hat = flow(bridge, u, ladder(bridge, clock, self.flow_steps, 7.0))
        value = lambda x: seen_by_rest(bridge, z, x)
        noise = added_noise(bridge, clock)
        look = lambda x: looked(bridge, z, x, False)
        x, accepted, _, met = draw_seen(key, self.num_data_moves, x_hat, x_hat, noise, value, look)
        return x, accepted, met, jnp.asarray(True)

    def _exact(self, key, bridge, z, x, u, clock, log_step, tuning):
        noise = added_noise(bridge, clock)

        def log_density(x):
            prior = bridge.see({**z, **x}, jnp.zeros(())).log_density
            return prior + seen_by_rest(bridge, z, x) + near(x, u, noise)

        scale = tuning.scale(bridge.diffusion_sites, noise)
        look = lambda x: looked(bridge, z, x)
        return moved(key, self.move, self.num_moves, x, log_density, log_step, scale, look)

    def claims(self, bridge: Bridge) -> Claims:
        exact = uses_energy(self, bridge)
        return Claims(self.seen_target(bridge), NO_EVIDENCE, exact, weighted=False)

    def seen_target(self, bridge: Bridge) -> str:
        if uses_energy(self, bridge):
            return bridge.target
        return (
            f"what DAPS with {self._levels(bridge)} levels and {self.flow_steps} flow steps leads to; "
            f"exact draws of x given u would make it: {bridge.target}"
        )

    def evaluations(self, bridge: Bridge) -> int | None:
        if uses_energy(self, bridge):
            if self.move.evaluations is None:
                return None
            return self._levels(bridge) * (1 + self.num_moves * self.move.evaluations)
        return self._levels(bridge) * self.flow_steps + 1  # at the draw


def flow(bridge: Bridge, u: dict[str, Array], clocks: Array) -> dict[str, Array]:
    r"""Integrate the probability flow from a noised value to its end, by first-order steps.

    $u_s = \hat x + (\tau_s / \tau_t)(u_t - \hat x)$, exact while $\hat x$ stays as it is.
    """

    def step(u, level):
        clock, following = level
        noisy, clean = added_noise(bridge, clock), added_noise(bridge, following)
        x_hat = denoised(bridge, u, clock)

        def toward(n):
            # The last clocks may all round to 0.
            share = jnp.where(noisy[n] > 0, clean[n] / jnp.where(noisy[n] > 0, noisy[n], 1), 1.0)
            return (x_hat[n] + share * (u[n] - x_hat[n])).astype(u[n].dtype)

        return {n: toward(n) for n in u}, None

    return jax.lax.scan(step, u, (clocks[:-1], clocks[1:]))[0]
