"""Schemes of moves, transport and weights: tune unless the levels are frozen, then make the model."""

import abc
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import numpy as np

from .._typing import Position, PRNGKey
from ..bridge import Bridge
from ..smc import FeynmanKac, unweighted
from .base import AbstractScheme
from .kernels import CHOICE_MOVES, Kernels
from .levels import Level, check_fit
from .particle import Particle
from .path import Path, likelihood_first, prior_first
from .pilot import tune

__all__ = ["Claims", "TunedScheme", "Tuning", "Weights"]

Weights = Literal["exact", "importance", "none"]


class Claims(NamedTuple):
    """What a scheme says of its results, and the path on which they come about.

    Attributes:
        target: The law that the weighted particles approach.
        evidence: What the log evidence is the logarithm of.
        normalized: Whether that is free of the prior's normaliser.
        path: In which order the likelihood fades in and the noise falls.
    """

    target: str
    evidence: str = "the integral of the target, less the prior's normaliser where that is known"
    normalized: bool = False
    path: Path = likelihood_first


class Tuning(NamedTuple):
    """The pilot cloud that tunes a scheme before the run.

    Attributes:
        num_particles: Of the cloud.
        conditional_ess: Share of the effective sample size that each level may keep. Of no use where the
            number of levels is given, nor is the next.
        max_levels: The pilot gives up beyond this.
    """

    num_particles: int = 256
    conditional_ess: float = 0.97
    max_levels: int = 400


class TunedScheme(AbstractScheme):
    """A scheme of moves, a transport and weights, whose levels a pilot cloud chooses.

    Attributes:
        levels: `None` for the pilot's choice, a number for equal steps in log-SNR, or frozen levels.
        weights: `"exact"`; `"importance"` for the same without resampling; or `"none"` to leave them out.
    """

    levels: eqx.AbstractVar[int | Level | None]
    weights = "exact"  # without an annotation, as in `AbstractScheme`

    @property
    def tuning(self) -> Tuning:
        """The pilot cloud that tunes it."""
        return Tuning()

    @abc.abstractmethod
    def kernels(self, bridge: Bridge) -> Kernels:
        """Moves, transport and weights over a bridge."""

    @abc.abstractmethod
    def claims(self, bridge: Bridge) -> Claims:
        """What the results will be."""

    def __call__(
        self, bridge: Bridge, key: PRNGKey | None = None, *, progress_bar: bool = False
    ) -> FeynmanKac:
        """Tune with a pilot cloud unless the levels are frozen, and return the Feynman-Kac model.

        Args:
            bridge: The densities; in path space for a scheme in path space, and only then.
            key: PRNG key of the pilot; a fixed one if left out.
            progress_bar: Show the pilot's progress.

        Raises:
            ValueError: If the bridge is not what the scheme needs, or frozen levels do not fit.
            PilotError: If the model is too hard for the allowed number of levels.
        """
        self._check_bridge(bridge)
        kernels, claims, levels = self.kernels(bridge), self.claims(bridge), self.levels
        if isinstance(levels, Level):
            check_fit(levels, bridge)
            _check_start(levels, kernels)
        else:
            levels = tune(
                jax.random.key(0) if key is None else key,
                kernels,
                num_levels=levels,
                path=claims.path,
                progress_bar=progress_bar,
                **self.tuning._asdict(),
            )
        # Levels that made a cloud of the prior do not count for an evidence that begins with it.
        begins = int(np.argmax(np.asarray(levels.clock) == 0)) if claims.path is prior_first else 0
        model = FeynmanKac(
            kernels.init,
            kernels.step,
            levels,
            _position,
            target=claims.target,
            evidence=claims.evidence,
            evidence_from=begins,
            normalized=claims.normalized,
            rejuvenate=kernels.rejuvenate if kernels.has_joint_moves else None,
            advance=kernels.advance,
        )
        if self.weights == "importance":
            return model._replace(resamples=False)
        return unweighted(model) if self.weights == "none" else model

    def _check_bridge(self, bridge: Bridge) -> None:
        name = type(self).__name__
        if self.path_space and not bridge.path_space:
            raise ValueError(
                f"`{name}` needs a bridge in path space: make it with `from_model(..., path_space=True)` "
                "or `from_energy(..., path_space=True)`."
            )
        if bridge.path_space and not self.path_space:
            raise ValueError(
                f"`{name}` weighs particles with the density of the prior, and a bridge in path space has "
                "none, so the prior would be left out. Make the bridge without `path_space`, or use "
                "`Twisted`."
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
        num_moves = kernels.num_moves
        if levels is not None:
            num_moves = float(np.mean(np.asarray(levels.num_moves)))
        if num_moves is None:
            raise ValueError("the pilot chose the number of moves; give `levels=result.levels`.")
        moves = num_moves * kernels.move.evaluations * see
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
            "scheme. Let a pilot choose new ones."
        )
    start = float(np.asarray(levels.clock)[0])
    if kernels.bridge.diffusion_sites and (start == 0) != kernels.from_prior:
        raise ValueError(
            f"the frozen levels begin at clock {start:g}, but the particles start from "
            f"{'exact draws of the prior' if kernels.from_prior else 'noise'}. Set `exact_draws` as in the "
            "run that made them."
        )
