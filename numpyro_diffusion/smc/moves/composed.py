r"""Moves made of moves: one after another, one at random, or of some sites given the others.

Each leaves a density as it is if its parts do. Every part has a step size of its own, which a pilot tunes to
the part's own acceptance rate.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ... import _faq
from ..._arguments import check_instance
from .base import Move
from .placed import PlacedMove, made

__all__ = ["checked_parts", "mixture", "sequence", "summed"]


def _targets(parts: Sequence[Move]) -> np.ndarray:
    return np.concatenate([np.ravel(part.targets) for part in parts])


def summed(counts: Sequence[int | None]) -> int | None:
    """The sum of some counts; `None` if one is not known."""
    return None if any(count is None for count in counts) else sum(counts)  # type: ignore


class _Several(PlacedMove):
    parts: tuple[Move, ...]

    @property
    def num_parts(self) -> int:
        """Of all parts together."""
        return sum(part.num_parts for part in self.parts)

    @property
    def targets(self) -> np.ndarray:
        """Acceptance rate of each part."""
        return _targets(self.parts)

    @property
    def target_acceptance(self) -> float:
        """Mean over the parts, where they share one step size."""
        return float(np.mean(self.targets))

    @property
    def _name(self) -> str:
        return ", ".join(part.name for part in self.parts)

    def slices(self) -> list[slice]:
        """Where the step sizes of each part stand."""
        ends = np.cumsum([part.num_parts for part in self.parts])
        return [slice(end - p.num_parts, end) for end, p in zip(ends, self.parts, strict=True)]


class Cycle(_Several):
    """Moves one after another."""

    @property
    def name(self) -> str:
        """For printing."""
        return f"sequence({self._name})"

    def __repr__(self) -> str:
        return f"sequence({', '.join(map(repr, self.parts))})"

    @property
    def keeps_gradient(self) -> bool:
        """As the last part."""
        return self.parts[-1].keeps_gradient

    @property
    def evaluations(self) -> int | None:
        """Of all parts, and one more before each that needs a gradient after one that keeps none."""
        after = [self.parts[-1], *self.parts[:-1]]
        pairs = zip(self.parts, after, strict=True)
        anew = sum(part.keeps_gradient and not before.keeps_gradient for part, before in pairs)
        return summed([*(part.evaluations for part in self.parts), anew])

    def walk(self, key, place, logdensity_fn, step_sizes, preconditioner):
        """A step of each."""
        total, each = jnp.zeros(()), []
        for i, (part, where) in enumerate(zip(self.parts, self.slices(), strict=True)):
            key_part = jax.random.fold_in(key, i)
            place, accepted, by_part = made(
                part, key_part, place, logdensity_fn, step_sizes[where], preconditioner
            )
            total = total + accepted
            each.append(by_part)
        return place, total / len(self.parts), jnp.concatenate(each)


class Mixture(_Several):
    """One of several moves, drawn for every step whatever the state."""

    weights: tuple[float, ...] = eqx.field(static=True)

    @property
    def name(self) -> str:
        """For printing."""
        return f"mixture({self._name})"

    def __repr__(self) -> str:
        even = len(set(self.weights)) == 1
        weights = "" if even else f", weights={self.weights}"
        return f"mixture({', '.join(map(repr, self.parts))}{weights})"

    @property
    def keeps_gradient(self) -> bool:
        """If all parts do."""
        return all(part.keeps_gradient for part in self.parts)

    @property
    def evaluations(self) -> int | None:
        """Of all parts: in a cloud each is computed for every particle, and one of them is chosen."""
        anew = sum(part.keeps_gradient and not self.keeps_gradient for part in self.parts)
        return summed([*(part.evaluations for part in self.parts), anew])

    def walk(self, key, place, logdensity_fn, step_sizes, preconditioner):
        """A step of one of them."""
        key_choice, key_part = jax.random.split(key)
        log_weights = jnp.log(jnp.asarray(self.weights, jnp.result_type(float)))
        chosen = jax.random.categorical(key_choice, log_weights)

        def branch(i, where):
            def run(place):
                new, accepted, by_part = made(
                    self.parts[i], key_part, place, logdensity_fn, step_sizes[where], preconditioner
                )
                steer = jnp.asarray(self.targets, by_part.dtype).at[where].set(by_part)
                new = new if self.keeps_gradient else new._replace(gradient=None)
                return new, accepted, steer

            return run

        branches = [branch(i, where) for i, where in enumerate(self.slices())]
        return jax.lax.switch(chosen, branches, place)


def checked_parts(who: str, parts: tuple) -> tuple[Move, ...]:
    """The parts of a composed move, if they are moves and there is one.

    Raises:
        ValueError: If there is none.
        TypeError: If one is no move.
    """
    if not parts:
        raise ValueError(
            f"`{who}` expects at least one move, such as `nd.moves.hmc()`; got none. {_faq.moves}"
        )
    for part in parts:
        if part is None:
            raise TypeError(
                f"`{who}` expects moves, such as `nd.moves.hmc()`; got None. {_faq.moves}"
            )
        check_instance(f"a part of `{who}", part, Move, "nd.moves.hmc()", optional=False)
    return tuple(parts)


def sequence(*parts: Move) -> Move:
    """Moves one after another: a cycle of kernels.

    Args:
        *parts: Moves, compositions among them.

    Example:
        >>> nd.Annealed(moves=nd.moves.sequence(nd.moves.hmc(), nd.moves.random_walk()))

    References:
        Tierney (1994), Markov chains for exploring posterior distributions, Annals of Statistics.
    """
    return Cycle(checked_parts("sequence", parts))


def mixture(*parts: Move, weights: Sequence[float] | None = None) -> Move:
    """One of several moves at random, drawn anew for every particle and step.

    In a cloud all of them are computed for every particle, so that `sequence`, which uses what it computes,
    is the better choice there; a chain of `MoveKernel` computes the one.

    Args:
        *parts: Moves, compositions among them.
        weights: Probability of each, up to a factor; equal if left out. They may not depend on the state.

    References:
        Tierney (1994), Markov chains for exploring posterior distributions, Annals of Statistics.
    """
    moves = checked_parts("mixture", parts)
    share = np.ones(len(moves)) if weights is None else np.asarray(weights, float)
    if share.shape != (len(moves),) or not np.all((share > 0) & np.isfinite(share)):
        raise ValueError(
            f"`weights` are {len(moves)} numbers above 0, one for each move; got "
            f"{weights}. {_faq.moves}"
        )
    return Mixture(moves, tuple(float(w) for w in share / share.sum()))
