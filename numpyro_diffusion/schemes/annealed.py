r"""Annealed importance sampling (AIS) with resampling, along the noise levels of a diffusion energy.

At each level a particle is moved by kernels that leave $\gamma_{c, \beta}$ invariant and is then
carried to the next level and weighed there:

$$\log w = \log \gamma_{c', \beta'}(T z) - \log \gamma_{c, \beta}(z) + \log |\det T|.$$

The weighted particles follow the user's posterior as their number grows, for any levels, any moves and
any error of the energy at the levels in between; these change the variance only.
"""

import equinox as eqx

from .._arguments import plain
from ..bridge import Bridge
from ..smc import Claims
from .checks import check_choices
from .kernels import Kernels
from .levels import Level
from .settings import MOVES, PILOT, Moves, Pilot
from .transport import AbstractTransport, Carry
from .tuned import TunedScheme

__all__ = ["Annealed"]


class Annealed(TunedScheme):
    r"""Annealed sampler over the noise levels of an energy, with HMC or MALA moves.

    A pilot cloud chooses the levels (so that each costs the same share of effective sample size), the
    step sizes and the scale of every coordinate; these are then frozen, which keeps the evidence
    unbiased.

    Attributes:
        moves: Within the levels; a number alone is that of joint moves, a move alone the joint one.
        transport: From level to level: the linear map `Carry()`, or `ProbabilityFlow()`, which costs an
            evaluation a coordinate.
        levels: `None` for the pilot's choice, a number for equal steps in log-SNR, or frozen levels.
        pilot: The cloud that chooses levels and step sizes; a number stands for so many particles.

    References:
        Neal (2001), Annealed importance sampling. Del Moral, Doucet & Jasra (2006), Sequential Monte
        Carlo samplers, JRSS B. Thornton et al. (2025), arXiv 2502.12786, for energies of diffusions.
    """

    moves: Moves = eqx.field(default=MOVES, converter=MOVES.but)
    transport: AbstractTransport = eqx.field(default_factory=Carry)
    levels: int | Level | None = eqx.field(default=None, converter=plain)
    pilot: Pilot = eqx.field(default=PILOT, converter=PILOT.but)

    def __check_init__(self):
        check_choices(self, joint_moves=True)

    def kernels(self, bridge: Bridge) -> Kernels:
        """Moves and weights over a bridge."""
        return Kernels(bridge, self.moves, self.transport)

    def claims(self, bridge: Bridge) -> Claims:
        """The model's own posterior; an evidence that holds the normaliser unless it is known."""
        return Claims(bridge.target)
