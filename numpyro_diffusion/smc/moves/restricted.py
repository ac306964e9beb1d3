"""Moves of some sites given the others."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import numpy as np

from ... import _faq
from ..._staging import hoist
from ..preconditioner import Preconditioner
from .base import Move
from .composed import checked_parts, summed
from .placed import Place, PlacedMove, made

__all__ = ["OnSites", "on_sites"]


class OnSites(PlacedMove):
    """A move of some sites given the others."""

    part: Move
    sites: tuple[str, ...] = eqx.field(static=True)

    @property
    def name(self) -> str:
        """For printing."""
        return f"{self.part.name} on {', '.join(self.sites)}"

    def __repr__(self) -> str:
        return f"on_sites({self.part!r}, {list(self.sites)})"

    @property
    def num_parts(self) -> int:
        """Of the move."""
        return self.part.num_parts

    @property
    def targets(self) -> Any:
        """Of the move."""
        return np.ravel(self.part.targets)

    @property
    def target_acceptance(self) -> float:
        """Of the move."""
        return self.part.target_acceptance

    @property
    def keeps_gradient(self) -> bool:
        """No: that in the direction of the other sites changes."""
        return False

    @property
    def evaluations(self) -> int | None:
        """Of the move, and one where it needs a gradient to begin with.

        An upper bound: without diffusion sites among its own the network is evaluated once at most.
        """
        return summed([self.part.evaluations, int(self.part.keeps_gradient)])

    def walk(self, key, place, logdensity_fn, step_sizes, preconditioner):
        """A step of these sites, in units of their own scales."""
        z = place.z
        missing = [name for name in self.sites if not isinstance(z, dict) or name not in z]
        if missing:
            there = sorted(z) if isinstance(z, dict) else "none with names"
            raise ValueError(
                f"`on_sites` names {missing}, but the sites that this move moves are {there}. Beside "
                "diffusion sites, the `joint` move has all sites and the `other` those without a diffusion "
                f"prior; a transformed diffusion site `x` is followed as `x_base`. {_faq.moves}"
            )
        block = {name: z[name] for name in self.sites}
        scale = Preconditioner({name: preconditioner.scale[name] for name in self.sites})
        # What depends on the other sites alone is computed once.
        of_block = hoist(lambda block: logdensity_fn({**z, **block}), block)
        new, accepted, by_part = made(
            self.part, key, Place(block, place.value, None), of_block, step_sizes, scale
        )
        return Place({**z, **new.z}, new.value, None), accepted, by_part


def on_sites(move: Move, sites: str | Sequence[str]) -> Move:
    """A move of some sites given the others, which stay: a block of Gibbs sampling.

    Args:
        move: Of these sites.
        sites: Names of latent sites.

    Example:
        >>> nd.moves.sequence(
        ...     nd.moves.on_sites(nd.moves.hmc(), "x"), nd.moves.on_sites(nd.moves.random_walk(), ["a", "b"])
        ... )
    """
    (part,) = checked_parts("on_sites", (move,))
    names = (sites,) if isinstance(sites, str) else tuple(sites)
    if not names or not all(isinstance(n, str) for n in names) or len(set(names)) < len(names):
        raise ValueError(
            f"`sites` are names of latent sites, each once; got {sites!r}. {_faq.moves}"
        )
    return OnSites(part, names)
