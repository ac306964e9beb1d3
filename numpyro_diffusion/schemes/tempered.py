r"""Likelihood tempering: an SMC sampler from exact draws of the prior to the posterior.

Where the prior has exact draws the cloud starts from them; otherwise it is brought down from noise as in
`Annealed`, without a likelihood. Then the likelihood fades in,
$\gamma_\beta \propto e^{-E(x, t_{\min})}\, p(\theta)\, p(y \mid x, \theta)^\beta$ with $\beta$ from 0 to 1.
"""

from typing import ClassVar

import equinox as eqx

from .._arguments import check_counts, plain
from ..bridge import Bridge
from ..smc import Claims
from ..smc.moves import Move, hmc, mala
from ..twists import AbstractTwist, Identity
from .checks import check_choices
from .kernels import Kernels
from .levels import Level
from .path import Path, prior_first
from .transport import Carry, Draws
from .tuned import TunedScheme, Tuning

__all__ = ["LikelihoodTempered"]


class LikelihoodTempered(TunedScheme):
    r"""A cloud of the prior, then likelihood tempering at `t_min`, with steps chosen by a pilot.

    The evidence counts the weights of the second part only, so the prior's normaliser cancels: the
    energy need not be normalised. Modes keep the prior's weights until the data speak. The weak point:
    at `t_min` the moves meet the prior at its sharpest, and modes that few draws of the prior hit are
    found by few particles; `Annealed` is better when data are far more precise than the prior.

    Attributes:
        move: Joint move of all sites. Steps are long here, so moves are too.
        num_moves: Joint moves a level; `None` for the pilot's choice at each level, by their
            autocorrelation.
        other_move: Move of the non-diffusion sites; costs no network evaluation.
        num_other_moves: Such moves a level.
        levels: `None` for the pilot's choice, or the frozen levels of an earlier run.
        conditional_ess: Share of the effective sample size that each level may keep, in (0, 1).
        preconditioner_rank: Directions along which coordinates move together that moves know of, beside
            the scale of every coordinate; the pilot measures them.
        num_pilot: Particles of the pilot cloud.
        max_levels: Give up, and say why, when the pilot needs more levels than this.
        exact_draws: Start from exact draws of the prior where its energy has them.
        num_draws: As many of them a particle, of which the likelihood chooses one (see `Draws`). Draws
            and likelihoods are cheap there, since no network is evaluated.

    References:
        Jasra, Stephens, Doucet & Tsagaris (2011), Inference for Lévy-driven stochastic volatility models
        via adaptive SMC, Scandinavian Journal of Statistics, for tempering with adaptive steps.
    """

    move: Move = eqx.field(default_factory=lambda: hmc(4))
    num_moves: int | None = eqx.field(static=True, converter=plain, default=3)
    other_move: Move = eqx.field(default_factory=mala)
    num_other_moves: int = eqx.field(static=True, converter=plain, default=2)
    levels: Level | None = None
    conditional_ess: float = eqx.field(static=True, default=0.5)
    preconditioner_rank: int = eqx.field(static=True, converter=plain, default=0)
    num_pilot: int = eqx.field(static=True, converter=plain, default=256)
    max_levels: int = eqx.field(static=True, converter=plain, default=400)
    exact_draws: bool = eqx.field(static=True, default=True)
    num_draws: int = eqx.field(static=True, converter=plain, default=16)

    def __check_init__(self):
        check_counts(self, num_draws=1)
        if isinstance(self.levels, int):
            raise TypeError(
                "`levels` of `LikelihoodTempered` is `None` or frozen levels, since an even grid of noise "
                f"levels says nothing of the likelihood; got {self.levels}."
            )
        at_the_prior = isinstance(self.levels, Level) and float(self.levels.clock[0]) == 0
        check_choices(
            self,
            num_moves=self.num_moves,
            num_other_moves=self.num_other_moves,
            least_moves=1,
            preconditioner_rank=self.preconditioner_rank,
            start=0.0 if at_the_prior else 1.0,
        )

    twist: ClassVar[AbstractTwist] = Identity()  # the likelihood is silent at noisy levels

    @property
    def path(self) -> Path:
        """The noise falls under the prior, and then the likelihood fades in."""
        return prior_first

    @property
    def tuning(self) -> Tuning:
        """The pilot cloud that tunes it."""
        return Tuning(self.num_pilot, self.conditional_ess, self.max_levels)

    def kernels(self, bridge: Bridge) -> Kernels:
        """Moves and weights over a bridge."""
        counts = self.num_moves, self.num_other_moves
        exact = self.exact_draws and bridge.exact_prior
        rank = self.preconditioner_rank
        transport = Draws(self.num_draws) if exact else Carry()
        moves = self.move, self.other_move
        return Kernels(bridge, *moves, transport, *counts, from_prior=exact, rank=rank)

    def claims(self, bridge: Bridge) -> Claims:
        """The model's own posterior; an evidence from which the prior's normaliser has dropped out."""
        evidence = "p(y) under the prior as normalised by its own cloud"
        return Claims(bridge.target, evidence, normalized=True)
