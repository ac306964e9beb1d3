"""What a scheme is, and what all share: tune unless the levels are frozen, then make the model."""

import abc
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import numpy as np

from .._arguments import check_counts, whole_number
from .._typing import Position, PRNGKey
from ..bridge import Bridge
from ..feynman_kac import FeynmanKac, unweighted
from ..twists import AbstractTwist
from .kernels import Kernels, Particle
from .levels import Level, check_fit, check_levels
from .path import Path, likelihood_first, prior_first
from .pilot import tune

__all__ = ["AbstractScheme", "Claims", "Weights", "check_choices", "check_has_diffusion"]

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


class AbstractScheme(eqx.Module):
    """A sampler: from a bridge to a Feynman-Kac model.

    Attributes:
        path_space: Whether its prior is the law of a reverse sampler, known by its steps alone.
        levels: `None` for the pilot's choice, a number for equal steps in log-SNR, or frozen levels.
        conditional_ess: Share of the effective sample size that each level may keep.
        num_pilot: Particles of the pilot cloud.
        max_levels: The pilot gives up beyond this.
    """

    path_space: eqx.AbstractClassVar[bool]
    levels: eqx.AbstractVar[int | Level | None]
    conditional_ess: eqx.AbstractVar[float]
    num_pilot: eqx.AbstractVar[int]
    max_levels: eqx.AbstractVar[int]

    @property
    @abc.abstractmethod
    def twist(self) -> AbstractTwist:
        """What the likelihood sees at noisy levels, unless the user says otherwise."""

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
                num_particles=self.num_pilot,
                conditional_ess=self.conditional_ess,
                max_levels=self.max_levels,
                num_levels=levels,
                path=claims.path,
                progress_bar=progress_bar,
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
        weights = getattr(self, "weights", "exact")
        if weights == "importance":
            return model._replace(resamples=False)
        return unweighted(model) if weights == "none" else model

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
    ) -> float:
        """Network evaluations a particle and level: one for the weight and those of its moves.

        One more where moves of other sites come in between.

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
        weight = see + kernels.transport.evaluations(bridge)
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


def check_choices(scheme: AbstractScheme, least_moves: int, start: float = 1.0) -> None:
    """Refuse what no scheme can use."""
    name, levels = type(scheme).__name__, scheme.levels
    least = {"num_pilot": 2, "max_levels": 1, "num_other_moves": 1, "preconditioner_rank": 0}
    check_counts(scheme, "", **{field: n for field, n in least.items() if hasattr(scheme, field)})
    if getattr(scheme, "num_moves", None) is not None:
        check_counts(scheme, "`None` for the pilot's choice.", num_moves=least_moves)
    weights = getattr(scheme, "weights", "exact")
    if weights not in ("exact", "importance", "none"):
        raise ValueError(
            f"`weights` of `{name}` is 'exact', 'importance' for weights without resampling, or 'none' for "
            f"the heuristic; got {weights!r}."
        )
    if not 0 < scheme.conditional_ess < 1:
        raise ValueError(
            "`conditional_ess` is the share that a level keeps, in (0, 1); got "
            f"{scheme.conditional_ess}. Try 0.9."
        )
    inflation = getattr(scheme, "inflation", 1.0)
    if isinstance(inflation, float | int) and inflation < 1:
        raise ValueError(
            f"`inflation` widens the proposals, so it is at least 1; got {inflation}. Narrow proposals "
            "give rare huge weights."
        )
    if isinstance(levels, Level):
        check_levels(levels, start)
    elif isinstance(levels, bool) or not (levels is None or isinstance(levels, int)):
        raise TypeError(
            f"`levels` of `{name}` is a number, frozen levels or `None`; got {type(levels).__name__}. "
            "The levels of an earlier run are in its `result.levels`."
        )
    elif levels is not None:
        whole_number("levels", levels, 1)


def check_has_diffusion(scheme: AbstractScheme, bridge: Bridge) -> None:
    """Refuse a model that has nothing to propose for."""
    if not bridge.diffusion_sites:
        raise ValueError(
            f"`{type(scheme).__name__}` needs a diffusion site, and the model has none. Use `Annealed`, "
            "which is then likelihood tempering."
        )
