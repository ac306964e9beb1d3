r"""Composed scores without a density, weighted in path space (Feynman-Kac correctors, FKC).

Reverse diffusion with summed scores, $\sum_i \beta_i \nabla \log p_{i,t}$, samples another distribution than
$\prod_i p_i^{\beta_i}$. A correction (see `corrections`) weighs its steps so that they do lead there; a
twist of the likelihood and factors steer them and are weighed as in `Twisted`.
"""

import dataclasses
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from .. import _faq
from .._arguments import plain
from .._typing import Array
from ..bridge import Bridge, PathBridge, Seen
from ..smc import Claims
from .checks import check_choices, check_has_diffusion
from .corrections import AbstractCorrection, RadonNikodym, Step
from .kernels import Kernels
from .levels import Level
from .proposals import shortened, usable
from .settings import MOVES, PILOT, Moves, Pilot
from .transport import AbstractTransport
from .tuned import TunedScheme

__all__ = ["Corrected", "ScoreComposition"]

_MOVES = MOVES.but(0)


class ScoreComposition(TunedScheme):
    r"""Products, powers and ratios of distributions from their scores alone, with weights that make up for
    it.

    The weighted particles follow $\prod_i p_i^{\beta_i}$, times factors and likelihoods, as levels *and*
    particles become many and if the scores are those of noised distributions. Where energies are at hand,
    `ReverseDiffusion` needs neither many levels nor right scores in between. For `nd.from_energy(e1 + e2,
    bridge_type=nd.bridge.PathBridge)`, of energies or of denoisers.

    Attributes:
        levels: Number of steps, equal in log-SNR; or the frozen levels of an earlier run.
        correction: `RadonNikodym()`, `FeynmanKacCorrection()` or `DriftLite()`.
        inflation: Factor on the variance of a draw.
        moves: Of the non-diffusion sites, `Moves(num=0, other=..., num_other=...)`; there are no joint moves.
        pilot: The cloud that tunes their steps, or its number of particles.

    References:
        Skreta et al. (2025), Feynman-Kac Correctors in Diffusion, ICML. He et al. (2025), RNE.
    """

    levels: int | Level = eqx.field(default=200, converter=plain)
    correction: AbstractCorrection = eqx.field(default_factory=RadonNikodym)
    inflation: float = 1.0
    moves: Moves = eqx.field(default=_MOVES, converter=_MOVES.but)
    pilot: Pilot = eqx.field(default=PILOT, converter=PILOT.but)

    def __check_init__(self):
        check_choices(self, inflation=self.inflation, joint_moves=False)

    bridge_type: ClassVar[type[Bridge]] = PathBridge

    def kernels(self, bridge: Bridge) -> Kernels:
        """Steps and weights over a bridge, all of whose diffusion sites are compositions."""
        check_has_diffusion(self, bridge)
        single = sorted(set(bridge.diffusion_sites) - set(bridge.powers))
        if single:
            raise ValueError(
                f"`ScoreComposition` expects compositions, such as `e1 + e2` or `2.0 * e`; sites "
                f"{single} have one part each. Write `1.0 * energy`, or use "
                f"`Twisted`. {_faq.compositions}"
            )
        transport = Corrected(self.correction, self.inflation)
        return Kernels(bridge, self.moves, transport)

    def claims(self, bridge: Bridge) -> Claims:
        """The product of powers of the parts' distributions, as far as weights of finite steps reach it."""
        kind = type(self.correction).__name__
        target = bridge.model.target("the composition of the parts' distributions")
        return Claims(
            f"{target}, up to the error of {kind} weights in finitely many levels",
            "the integral of the composition, of normalised parts",
            normalized=True,
        )


class Corrected(AbstractTransport):
    r"""A corrected step, steered by the twisted likelihood and weighed against the unsteered one.

    $M = \mathcal{N}(m_0 + \Sigma_0 \nabla \log \psi_t,\ \eta \Sigma_0)$ where $M_0 = \mathcal{N}(m_0,
    \Sigma_0)$, and $\log R = c + \log M_0 - \log M$.

    Attributes:
        correction: $M_0$ and $c$.
        inflation: $\eta \ge 1$.
        shortens: Whether steep gradients are shortened; not where there are no weights, as published.
    """

    correction: AbstractCorrection
    inflation: float = 1.0
    shortens: bool = eqx.field(static=True, default=True)
    needs_gradient: ClassVar[bool] = True

    @property
    def needs_curvature(self) -> bool:
        return True

    def measure(self, key, bridge, cloud, clock, power):
        return self.correction.measure(key, bridge, cloud, clock, power)

    def evaluations(self, bridge):
        return self.correction.evaluations(bridge)

    def __call__(self, key, bridge, position, gradient, seen: Seen | None, level):
        assert gradient is not None and seen is not None
        new, log_ratio = dict(position), jnp.zeros(())
        moves = level.next_clock < level.clock
        noisy, clean = bridge.noise(level.clock), bridge.noise(level.next_clock)
        keys = jax.random.split(key, (len(bridge.diffusion_sites), 2))
        for (key_noise, key_probe), name in zip(keys, bridge.diffusion_sites, strict=True):
            u, scores = position[name], seen.scores[name]
            see = lambda u, name=name: bridge.see({**position, name: u}, level.clock).scores[name]
            step = Step(
                u,
                scores,
                jnp.asarray(bridge.powers[name], u.dtype),
                noisy[name],
                clean[name],
                moves,
                lambda direction, see=see, u=u: jax.jvp(see, (u,), (direction,))[1],
                level.curvature[name],
                key_probe,
            )
            mean, variance = self.correction.step(step)
            noise = jax.random.normal(key_noise, u.shape, u.dtype)
            pull = variance * self.guidance(step, gradient[name])
            pull = pull + jnp.sqrt(self.inflation * variance) * noise
            drawn = mean + pull
            terms = noise**2 + jnp.log(self.inflation) - pull**2 / variance
            weight = 0.5 * jnp.sum(terms) + self.correction.log_weight(step, drawn)
            new[name] = jnp.where(moves, drawn, u)
            log_ratio = log_ratio + jnp.where(moves, weight, 0.0)
        return new, log_ratio

    def guidance(self, step: Step, gradient: Array) -> Array:
        """Gradient of the likelihood, shortened as in `Reverse` where it is steep."""
        slope = usable(gradient).ravel()
        if self.shortens:  # of a product the noise is narrower
            slope = shortened(slope, step.noisy / jnp.sqrt(jnp.maximum(step.concentration, 1.0)))
        return slope.reshape(gradient.shape)

    def as_published(self):
        return dataclasses.replace(self, shortens=False)
