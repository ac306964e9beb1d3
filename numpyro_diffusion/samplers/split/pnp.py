r"""Plug-and-play diffusion models (PnP-DM, also DPnP): a split Gibbs sampler."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from ... import _faq
from ..._arguments import check_counts, plain
from ..._finite import either
from ..._typing import Position, PRNGKey, Scalar
from ...bridge import Bridge
from ...smc import Claims
from ...smc.moves import Move, hmc, mala
from .base import NO_EVIDENCE, AbstractSplit, Clock, Prior, SplitState, Tuning, uses_energy
from .blocks import (
    added_noise,
    checked,
    clock_at,
    ladder,
    looked,
    moved,
    near,
    reverse_steps,
    seen_by_rest,
    watched,
)
from .data import draw_seen

__all__ = ["PnPDM"]


class PnPDM(AbstractSplit):
    r"""Split Gibbs sampler: one copy of the variable for the prior, one for the data.

    $$\pi(x, v, \theta) \propto p_0(x)\, \mathcal{N}(v; x, \rho^2)\, p(\theta, y \mid v) .$$

    A sweep draws the other sites $\theta$ given $v$, then $x$ given $v$ from the prior's side, then $v$ given
    $x$ from the data's. Both copies of the diffusion variable are off by $O(\rho^2)$, each in its own way:

    $$x \sim p_0(x)\, (p(y \mid \cdot) * \mathcal{N}_\rho)(x), \qquad
      v \sim (p_0 * \mathcal{N}_\rho)(v)\, p(y \mid v),$$

    so that $v$ and $\theta$ follow the model's own posterior with a prior that is blurred by $\rho$. Weights
    $p(\theta, y \mid x) / p(\theta, y \mid v)$ turn the distribution of $x$ and $\theta$ into the posterior
    without blur, since the extended distribution $p_0(x)\, p(\theta, y \mid x)\, \mathcal{N}(v; x, \rho^2)$
    has it as a marginal; they are averaged over the draws of $v$ in a sweep. Where data see $x$ itself with
    Gaussian noise $\sigma$ their variance is finite for $\rho^2 \leq \sigma^2 / 2$ whatever the prior, and
    infinite from $\rho = \sigma$ on.

    From the score alone, $x$ given $v$ is a discretised reverse diffusion from noise level $\rho$: an error
    of order one over `num_steps` comes on top, which no weight knows of.

    Attributes:
        noise_level: $\rho$, in units of the data. A chain moves about $\rho$ a sweep, so it takes some
            (posterior standard deviation / $\rho$)$^2$ sweeps to forget.
        first_noise_level: That at the beginning of the warm-up, ten times `noise_level` by default; it falls
            geometrically over the first half.
        weights: `"exact"` for the posterior, `"none"` for the distribution of $x$ as it is.
        prior: `"energy"`, `"score"`, or `None` for the energy where the bridge has one.
        num_steps: Reverse steps from $\rho$ to the prior, with the score.
        move: Move of $x$ with the energy.
        num_moves: Such moves a sweep.
        data_move: Move of $v$; `None` for the Gaussian with the second derivatives of the likelihood, exact
            for linear Gaussian data, which is a matrix over all coordinates.
        num_data_moves: Draws of $v$ a sweep; they cost no network evaluation.
        other_move: Move of the other sites; costs no network evaluation either.
        num_other_moves: Such moves a sweep.

    References:
        Wu et al. (2024), Principled Probabilistic Imaging using Diffusion Models as Plug-and-Play Priors,
        NeurIPS. Xu & Chi (2024), Provably Robust Score-Based Diffusion Posterior Sampling for Plug-and-Play
        Image Reconstruction, NeurIPS. Vono, Dobigeon & Chainais (2019), Split-and-augmented Gibbs sampler,
        IEEE TSP.
    """

    noise_level: float = 0.2
    first_noise_level: float | None = None
    weights: Literal["exact", "none"] = eqx.field(static=True, default="exact")
    prior: Prior | None = eqx.field(static=True, default=None)
    num_steps: int = eqx.field(static=True, converter=plain, default=20)
    move: Move = eqx.field(default_factory=hmc)
    num_moves: int = eqx.field(static=True, converter=plain, default=2)
    data_move: Move | None = None
    num_data_moves: int = eqx.field(static=True, converter=plain, default=4)
    other_move: Move = eqx.field(default_factory=mala)
    num_other_moves: int = eqx.field(static=True, converter=plain, default=8)

    def __check_init__(self):
        check_counts(self, num_steps=1, num_moves=1, num_data_moves=1, num_other_moves=1)
        first = self.noise_level if self.first_noise_level is None else self.first_noise_level
        if not 0 < self.noise_level <= first:
            raise ValueError(
                "`PnPDM` expects 0 < noise_level <= first_noise_level; got "
                f"{self.noise_level} and {first}. Try a half of the noise of the "
                f"data. {_faq.schedules}"
            )
        if self.weights not in ("exact", "none"):
            raise ValueError(
                f"`weights` of `PnPDM` is 'exact', or 'none' for draws that are off by the blur; got "
                f"{self.weights!r}. {_faq.choices}"
            )

    def init(self, bridge: Bridge, z: Position) -> SplitState:
        uses_energy(self, bridge)
        seen = {name: z[name] for name in bridge.diffusion_sites}
        one = jnp.ones(())
        acceptance = {"prior": one, "data": one, "other": one}
        return SplitState(
            z, seen, jnp.zeros(()), Tuning.at(z), acceptance, watched(bridge, z, seen)
        )

    def sweep(self, key: PRNGKey, bridge: Bridge, state: SplitState, clock: Clock) -> SplitState:
        key_other, key_prior, key_data = jax.random.split(key, 3)
        z, seen, tuning, gain = state.position, state.seen, state.tuning, clock.gain
        level = self._level(bridge, clock)
        noise = added_noise(bridge, level)
        rest = lambda z, seen: seen_by_rest(bridge, z, seen)
        acceptance, met = dict(state.acceptance), []

        others = {name: z[name] for name in bridge.other_sites}
        if others:
            others, accepted, flags, _ = moved(
                key_other,
                self.other_move,
                self.num_other_moves,
                others,
                lambda values: rest({**z, **values}, seen),
                tuning.other,
                tuning.scale(bridge.other_sites),
                lambda values: looked(bridge, {**z, **values}, seen, False),
            )
            met.append(flags)
            error = accepted - self.other_move.target_acceptance
            tuning = tuning._replace(other=tuning.other + gain * error)
            acceptance["other"] = accepted
            z = {**z, **others}

        x, possible = {name: z[name] for name in bridge.diffusion_sites}, jnp.asarray(True)
        if uses_energy(self, bridge):
            x, accepted, flags, possible = moved(
                key_prior,
                self.move,
                self.num_moves,
                x,
                lambda x: bridge.see({**z, **x}, jnp.zeros(())).log_density + near(x, seen, noise),
                tuning.prior[0],
                tuning.scale(bridge.diffusion_sites, noise),
                lambda x: looked(bridge, {**z, **x}, seen),
            )
            met.append(flags)
            error = accepted - self.move.target_acceptance
            tuning = tuning._replace(prior=tuning.prior + gain * error)
            acceptance["prior"] = accepted
        else:
            x = reverse_steps(key_prior, bridge, seen, ladder(bridge, level, self.num_steps))
            flags, possible = checked(bridge, {**z, **x})
            met.append(flags)
        z = {**z, **x}

        seen, accepted, values, flags, tuning = self._see(
            key_data, z, x, seen, noise, tuning, gain, rest, bridge
        )
        met = either(*met, flags, watched(bridge, z, seen))
        acceptance["data"] = accepted
        log_weight = jnp.zeros(())
        if self.weights == "exact":
            log_weight = rest(z, x) + jax.nn.logsumexp(-values) - jnp.log(self.num_data_moves)
            # A chain that has not found the support of the data, or of the prior, says nothing of it yet.
            log_weight = jnp.where(possible & jnp.isfinite(log_weight), log_weight, -jnp.inf)
        return SplitState(z, seen, log_weight, tuning.learned(z, gain), acceptance, met)

    def _level(self, bridge: Bridge, clock: Clock) -> Scalar:
        first = 10 * self.noise_level if self.first_noise_level is None else self.first_noise_level
        begin, end = clock_at(bridge, first), clock_at(bridge, self.noise_level)
        return begin + clock.annealed * (end - begin)

    def _see(self, key, z, x, seen, noise, tuning: Tuning, gain, rest, bridge):
        """What the data see, its acceptance, log likelihoods of its draws, what was met, and the tuning."""
        value = lambda seen: rest(z, seen)
        look = lambda seen: looked(bridge, z, seen, False)
        if self.data_move is None:
            draws = draw_seen(key, self.num_data_moves, seen, x, noise, value, look)
            return *draws, tuning
        move, scale = self.data_move, tuning.scale(tuple(x), noise)

        def one(seen, key):
            density = lambda seen: value(seen) + near(seen, x, noise)
            seen, accepted, met, _ = moved(key, move, 1, seen, density, tuning.data, scale, look)
            return seen, (accepted, value(seen), met)

        keys = jax.random.split(key, self.num_data_moves)
        seen, (accepted, values, met) = jax.lax.scan(one, seen, keys)
        met = jax.tree.map(lambda flag: flag.any(0), met)
        accepted = jnp.mean(accepted)
        error = accepted - move.target_acceptance
        tuning = tuning._replace(data=tuning.data + gain * error)
        return seen, accepted, values, met, tuning

    def claims(self, bridge: Bridge) -> Claims:
        weighted = self.weights == "exact"
        law = "" if weighted else f", its likelihood blurred by {self.noise_level:g}"
        target = f"{bridge.target}{law}{self._steps(bridge)}"
        return Claims(target, NO_EVIDENCE, uses_energy(self, bridge), weighted=weighted)

    def seen_target(self, bridge: Bridge) -> str:
        return f"{bridge.target}, its prior blurred by {self.noise_level:g}{self._steps(bridge)}"

    def _steps(self, bridge: Bridge) -> str:
        return "" if uses_energy(self, bridge) else f", with {self.num_steps} reverse steps"

    def evaluations(self, bridge: Bridge) -> int | None:
        if uses_energy(self, bridge):
            if self.move.evaluations is None:
                return None
            return 1 + self.num_moves * self.move.evaluations
        return self.num_steps + 1  # at the draw
