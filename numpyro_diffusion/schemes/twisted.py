r"""The twisted diffusion sampler (TDS): weights in path space, for which a denoiser is enough.

The prior is the distribution of a reverse sampler, $\prod_k p(u_{k-1} \mid u_k)$. Its steps are steered by a
twist $\psi_k(u_k, \theta)$ of the likelihood and weighed by

$$w = \frac{\psi_{k-1}(u_{k-1}, \theta)}{\psi_k(u_k, \theta)}
\frac{p(u_{k-1} \mid u_k)}{M(u_{k-1} \mid u_k, \theta)}$$

(see `Guided`). No density is used, so a score network without energy will do, and no normaliser either.
"""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._arguments import plain
from ..bridge import Bridge, PathBridge
from ..smc import Claims
from .checks import check_choices, check_has_diffusion
from .conjugate import Conjugate
from .covariance import AbstractMeasured, Diagonal
from .guided import Guided, sampler_curvature
from .kernels import Kernels
from .levels import Level
from .restoration import AbstractProposal
from .settings import MOVES, PILOT, Moves, Pilot
from .tuned import TunedScheme

__all__ = ["Twisted"]

_MOVES = MOVES.but(0)


class Twisted(TunedScheme):
    r"""Twisted diffusion sampler over diffusion sites and other sites together.

    The weighted particles follow the posterior under *the distribution of the reverse sampler with these
    levels*, which differs from that of $e^{-E(\cdot, t_{\min})}$ by an error of order one over their number.
    The evidence is that of this distribution, normalised by construction.

    Attributes:
        levels: Number of steps of the sampler, equal in log-SNR; or the frozen levels of an earlier
            run with the same number.
        covariance: Of the sampler's own steps: `Isotropic()`, `Diagonal()` or `Full()`, measured once in
            as many draws as the pilot has, without data. `Full()` is for few steps where the prior ties
            coordinates together: for a Gaussian the distribution of the sampler is then that of its scores
            at any number of steps.
        inflation: Factor on the variance of a proposal.
        conjugate: Whether steps are conditioned on linear Gaussian data in closed form, as read off the model
            (`from_model`), in the place of a pull along the gradient of the likelihood. For few hundred data.
        proposal: Steps steered otherwise: `schemes.DDRM()`, `DDNM()`, `DiffPIR()` or `EnsembleKalman()`; with
            `schemes.unweighted` as they were published, `RePaint()` among them.
        moves: Of the non-diffusion sites, `Moves(num=0, other=..., num_other=...)`; there are no joint moves.
        pilot: The cloud that tunes their steps, or its number of particles.

    Where the data allow little and the end of that is sharp, weights have heavier tails than those of
    `ReverseDiffusion`: under bounded noise of four data the evidence has a standard deviation of 0.17 nat
    with four clouds of 1,000 particles, there 0.05 (`benchmarks/zeros.py`). Prefer a scheme that takes the
    density where there is one.

    The likelihood sees the denoised mean; with `twist=nd.Widened()`, `nd.twists.Moments()` or
    `nd.twists.MatrixFree()` also how far that may be off.

    References:
        Wu, Trippe, Naesseth, Blei & Cunningham (2023), Practical and Asymptotically Exact Conditional
        Sampling in Diffusion Models, NeurIPS.
    """

    levels: int | Level = eqx.field(default=100, converter=plain)
    covariance: AbstractMeasured = eqx.field(default_factory=Diagonal)
    inflation: float = 1.0
    conjugate: bool = eqx.field(static=True, default=False)
    moves: Moves = eqx.field(default=_MOVES, converter=_MOVES.but)
    pilot: Pilot = eqx.field(default=PILOT, converter=PILOT.but)
    proposal: AbstractProposal | None = None

    def __check_init__(self):
        check_choices(self, inflation=self.inflation, joint_moves=False)
        if not isinstance(self.covariance, AbstractMeasured):
            raise ValueError(
                "`Twisted` expects a covariance that is the same for all particles, since its steps are the"
                " prior: `Isotropic()`, `Diagonal()` or `Full()`; got "
                f"{self.covariance!r}. {_faq.covariances}"
            )
        if self.proposal is None:
            return
        if not isinstance(self.proposal, AbstractProposal):
            raise TypeError(
                "`proposal` of `Twisted` is `None` for a pull along the gradient of the "
                "likelihood, or one such as"
                f" `nd.schemes.DDRM()`; got {self.proposal!r}. {_faq.kinds}"
            )
        if self.conjugate:
            raise ValueError(
                "`Twisted` has one proposal: set `conjugate=True`, or give a `proposal`, not "
                f"both. {_faq.together}"
            )

    bridge_type: ClassVar[type[Bridge]] = PathBridge

    @property
    def num_levels(self) -> int:
        if isinstance(self.levels, Level):
            falls = np.asarray(self.levels.next_clock) < np.asarray(self.levels.clock)
            return int(np.sum(falls))  # the rest are at the clean end
        return self.levels

    def kernels(self, bridge: Bridge) -> Kernels:
        """Proposals and weights over a bridge, which must have a diffusion site."""
        check_has_diffusion(self, bridge)
        if bridge.powers:
            raise ValueError(
                f"`Twisted` weighs against the steps of one reverse sampler; sites "
                f"{sorted(bridge.powers)} have "
                "compositions, whose summed scores sample another distribution. Use "
                "`ScoreComposition`, or a scheme "
                f"that needs energies. {_faq.compositions}"
            )
        if self.conjugate and bridge.laws({}) is None:
            raise ValueError(
                "`Twisted(conjugate=True)` reads operator and noise off a NumPyro model; the bridge of"
                " `from_energy` has a log likelihood alone. Use `from_model`, or "
                f"`conjugate=False`. {_faq.operator}"
            )
        clocks = jnp.linspace(1.0, 0.0, self.num_levels + 1)
        curvature = sampler_curvature(bridge, clocks, self.pilot.num_particles, self.covariance)
        transport = Guided(clocks[:-1], curvature, self.inflation)
        if self.conjugate:
            transport = Conjugate(transport)
        elif self.proposal is not None:
            transport = self.proposal.over(transport, bridge)
        return Kernels(bridge, self.moves, transport)

    def claims(self, bridge: Bridge) -> Claims:
        """The posterior under the sampler's distribution, and the evidence of that distribution."""
        target = f"{bridge.target}, with {self.num_levels} steps"
        return Claims(target, "p(y) under the distribution of the reverse sampler", normalized=True)
