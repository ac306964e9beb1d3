"""Schemes of moves, transport and weights: tune unless the levels are frozen, then make the model."""

import abc

import equinox as eqx
import jax
import numpy as np

from .. import _faq
from .._typing import Position, PRNGKey
from ..bridge import Bridge
from ..smc import Claims, FeynmanKac
from .base import AbstractScheme
from .kernels import CHOICE_MOVES, Kernels
from .levels import Level, check_fit
from .particle import Particle
from .path import Path, likelihood_first, prior_first
from .pilot import tune
from .settings import MOVES, PILOT

__all__ = ["TunedScheme"]


class TunedScheme(AbstractScheme):
    """A scheme of moves, a transport and weights, whose levels a pilot cloud chooses.

    Attributes:
        levels: `None` for the pilot's choice, a number for equal steps in log-SNR, or frozen levels.
        moves: Within the levels.
        pilot: The cloud that tunes it.
    """

    levels: eqx.AbstractVar[int | Level | None]
    # Without annotations, as in `AbstractScheme`.
    moves = MOVES
    pilot = PILOT
    takes_proposals = False  # whether it may start from the proposal of a bridge

    @property
    def path(self) -> Path:
        """Order in which the likelihood fades in and the noise falls."""
        return likelihood_first

    @abc.abstractmethod
    def kernels(self, bridge: Bridge) -> Kernels:
        """Moves, transport and weights over a bridge."""

    @abc.abstractmethod
    def claims(self, bridge: Bridge) -> Claims:
        """Describe the distribution of the results."""

    def __call__(
        self, bridge: Bridge, key: PRNGKey | None = None, *, progress_bar: bool = False
    ) -> FeynmanKac:
        """Tune with a pilot cloud unless the levels are frozen, and return the Feynman-Kac model.

        Args:
            bridge: The densities, of its `bridge_type`.
            key: PRNG key of the pilot; a fixed one if left out.
            progress_bar: Show the pilot's progress.

        Raises:
            ValueError: If the bridge is not what the scheme needs, or frozen levels do not fit.
            PilotError: If the model is too hard for the allowed number of levels.
        """
        self.check_bridge(bridge)
        return self.run(self.kernels(bridge), key, progress_bar=progress_bar)

    def run(
        self, kernels: Kernels, key: PRNGKey | None = None, *, progress_bar: bool = False
    ) -> FeynmanKac:
        """The call, for kernels that may differ from its own in their transport."""
        bridge, levels = kernels.bridge, self.levels
        if isinstance(levels, Level):
            check_fit(levels, bridge)
            _check_start(levels, kernels)
        else:
            levels = tune(
                jax.random.key(0) if key is None else key,
                kernels,
                self.pilot,
                num_levels=levels,
                path=self.path,
                progress_bar=progress_bar,
            )
        # Levels that made a cloud of the prior do not count for an evidence that begins with it.
        begins = int(np.argmax(np.asarray(levels.clock) == 0)) if self.path is prior_first else 0
        return FeynmanKac(
            kernels.init,
            kernels.step,
            levels,
            _position,
            claims=self.claims(bridge),
            evidence_from=begins,
            rejuvenate=kernels.rejuvenate if kernels.has_joint_moves else None,
            advance=kernels.advance,
        )

    def check_bridge(self, bridge: Bridge) -> None:
        """Refuse a bridge of another type.

        Raises:
            ValueError: If it is one, or starts from a proposal where that is not followed.
        """
        if bridge.proposal is not None and not self.takes_proposals:
            raise ValueError(
                f"the bridge starts from a proposal, and `{type(self).__name__}` from noise or the prior: "
                "its weights would be wrong. Use `nd.schemes.DataTempered()`, or a bridge without "
                f"a proposal. {_faq.exact_draws}"
            )
        if isinstance(bridge, self.bridge_type):
            return
        raise ValueError(
            f"`{type(self).__name__}` needs a `{self.bridge_type.__name__}`; got a "
            f"`{type(bridge).__name__}`. Particles are weighed either by the density of the prior or by a "
            "sampler's steps (path space): make the bridge with `bridge_type=scheme.bridge_type` in "
            f"`from_model` or `from_energy`. {_faq.bridge_type}"
        )

    def evaluations_per_level(
        self, bridge: Bridge, levels: Level | None = None, chain_length: int | None = None
    ) -> float | None:
        """Network evaluations a particle and level: one for the weight and those of its moves.

        One more where moves of other sites come in between. `None` if the transport does not say.

        Args:
            bridge: The densities.
            levels: Those that were run, for the mean over them where a pilot chose the number of moves.
            chain_length: That of a waste-free run. One state of each chain is there without moves; where
                moves of other sites come in between, each of the others is evaluated once more.

        Raises:
            ValueError: If a pilot chooses the number of moves and its levels are not given.
        """
        if not bridge.diffusion_sites:
            return 0
        kernels = eqx.filter_eval_shape(self.kernels, bridge)  # nothing is run for a count
        see = bridge.evaluations
        on_the_way = kernels.transport.evaluations(bridge)
        if on_the_way is None:
            return None
        weight = see + on_the_way + CHOICE_MOVES * len(bridge.choices) * see
        if not kernels.has_joint_moves:
            return weight
        num_moves = kernels.moves.num
        if levels is not None:
            num_moves = float(np.mean(np.asarray(levels.num_moves)))
        if num_moves == "pilot":
            raise ValueError(
                f"the pilot chose the number of moves; give `levels=result.levels`. {_faq.levels}"
            )
        if kernels.moves.joint.evaluations is None:
            return None
        moves = num_moves * kernels.moves.joint.evaluations * see
        if chain_length is None:
            if kernels.from_prior and levels is not None:  # exact draws make no moves
                moves *= 1 - 1 / len(np.asarray(levels.clock))
            return weight + kernels.in_blocks * see + moves
        return weight + (2 * kernels.in_blocks * see + moves) * (1 - 1 / chain_length)


def _position(particle: Particle) -> Position:
    return particle.position


def _check_start(levels: Level, kernels: Kernels) -> None:
    """Refuse frozen levels of another scheme."""
    if kernels.transport.needs_curvature and levels.curvature is None:
        raise ValueError(
            "the frozen levels hold no curvature, which the reverse proposals need: they are of another "
            f"scheme. Let a pilot choose new ones. {_faq.levels}"
        )
    start = float(np.asarray(levels.clock)[0])
    if kernels.bridge.diffusion_sites and (start == 0) != kernels.from_prior:
        raise ValueError(
            f"the frozen levels begin at clock {start:g}, but the particles start from "
            f"{'exact draws of the prior' if kernels.from_prior else 'noise'}. Set `exact_draws` as in the "
            f"run that made them. {_faq.levels}"
        )
