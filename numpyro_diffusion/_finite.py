"""Log densities that are NaN or +inf: one guard for all samplers.

No weight and no acceptance is right where a log density is +inf: a sampler that leaves such places out, or
stays there, answers with another distribution. So every sampler counts them by site and refuses a result. NaN
counts as a density of 0, which may be meant, and is warned of.
"""

import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ._typing import Array, Scalar

__all__ = [
    "NonFinite",
    "Sightings",
    "either",
    "in_words",
    "looked_at",
    "non_finite",
    "places",
    "replica_words",
    "settled",
    "report_chains",
    "share_places",
    "speak_up",
]

_KINDS = {"nan": "NaN", "infinite": "+inf"}
_PACKAGE = str(Path(__file__).parent)


class NonFinite(NamedTuple):
    """Indicators of NaN and of +inf log densities, by site: flags, shares or counts, all of one shape."""

    nan: dict[str, Any]
    infinite: dict[str, Any]


def non_finite(sites: Mapping[str, Scalar]) -> NonFinite:
    """Flags of the log densities of some sites."""
    return NonFinite(
        {name: jnp.isnan(value) for name, value in sites.items()},
        {name: jnp.isposinf(value) for name, value in sites.items()},
    )


def looked_at(wrong: Scalar, look: Callable[[], NonFinite]) -> NonFinite:
    """Result of `look` where something is wrong; nothing elsewhere, and at no cost.

    A loop of one round or none: of several chains in one program it is run only if one of them is wrong.
    """
    none = jax.tree.map(lambda flag: jnp.zeros(flag.shape, bool), jax.eval_shape(look))
    return jax.lax.while_loop(
        lambda carry: carry[0],
        lambda carry: (jnp.zeros_like(carry[0]), look()),
        (jnp.asarray(wrong), none),
    )[1]


def settled(flags: NonFinite, early: Scalar) -> NonFinite:
    """Drop NaN found early in warm-up, where steps that are still too long end anywhere."""
    return flags._replace(nan=jax.tree.map(lambda flag: flag & ~early, flags.nan))


def either(*flags: NonFinite) -> NonFinite:
    """Union of several indicators of the same sites."""
    return jax.tree.map(lambda *each: jnp.stack(each).any(0), *flags)


def places(
    start: Mapping[str, Any],
    later: Mapping[str, Any],
    total: int,
    planned: int,
    *,
    what: str = "particles",
    where: str = "level",
) -> str:
    """Counts by site, at the start and by level, in words; empty if all are 0.

    Args:
        start: Counts at the start, shape `()`.
        later: Counts by level, shape `(num_levels,)`.
        total: Of how many.
        planned: Number of levels.
        what: What is counted.
        where: What a level is called; they count from 1.
    """
    sentences = []
    for site in {**start, **later}:
        found = []
        if int(start.get(site, 0)):
            found.append(f"{int(start[site])} of {total} {what} at the start")
        by_level = np.asarray(later.get(site, np.zeros(0)), int)
        levels = np.flatnonzero(by_level) + 1
        if len(levels):
            worst = int(np.argmax(by_level))
            place = f"{by_level[worst]} of {total} {what} at {where} {worst + 1} (of {planned})"
            if len(levels) > 1:
                place += f", the worst of {len(levels)} {where}s from {levels[0]} to {levels[-1]}"
            found.append(place)
        if found:
            sentences.append(f"site `{site}`: " + " and ".join(found))
    return "; ".join(sentences)


def share_places(
    start: Mapping[str, Any], later: Mapping[str, Any], log_weights: Any, planned: int
) -> str:
    """`places` for shares of the particles of each cloud, shape `(num_chains,)` and by level."""
    total, each = np.size(log_weights), np.shape(log_weights)[-1]

    def counts(share, ndim):
        share = np.asarray(share, float)
        share = share if share.ndim == ndim else share[None]
        return np.rint(each * share).astype(int).sum(0)

    starts = {name: counts(share, 1) for name, share in start.items()}
    return places(starts, {n: counts(share, 2) for n, share in later.items()}, total, planned)


def in_words(result: Any, kind: str) -> str:
    """Describe where a run of clouds met NaN (`"nan"`) or +inf (`"infinite"`); empty if nowhere."""
    start = getattr(result.initial_info, kind, {})
    later = getattr(getattr(result.trace, "info", None), kind, {})
    planned = jax.tree.leaves(result.levels)[0].shape[0]
    return share_places(start, later, result.log_weights, planned)


def replica_words(result: Any, kind: str) -> str:
    """Describe where a run of replica exchange met NaN (`"nan"`) or +inf (`"infinite"`); empty if nowhere."""
    num_replicas = np.size(result.swap_acceptance)
    counts = getattr(result.non_finite, kind)
    total = result.num_proposals
    return places({}, counts, total, num_replicas, what="proposals", where="replica")


def speak_up(nan: str, infinite: str, result: Any = None, *, who: str = "") -> None:
    """Refuse a result after +inf, warn of NaN; says nothing where both are empty.

    Args:
        nan: Where log densities were NaN, in words.
        infinite: Where they were +inf.
        result: What was computed, for the error's attribute `result`.
        who: The sampler, for the message.

    Raises:
        FloatingPointError: If `infinite` is not empty.
    """
    by = f" in `{who}`" if who else ""
    if infinite:
        kept = "" if result is None else " What was computed is in the error's `result`."
        error = FloatingPointError(
            f"log density +inf{by} at {infinite}. No weight is right where a density is infinite, so there "
            f"is no result: bound the likelihood (a noise level that reaches 0?).{kept}"
        )
        error.result = result  # type: ignore[attr-defined]
        if nan:
            error.add_note(f"log density NaN at {nan}.")
        raise error
    if nan:
        warnings.warn(
            f"log density NaN{by} at {nan}. What is there was given weight 0, which is right only if the "
            "density is 0 there.",
            stacklevel=_outside(),
        )


def _outside() -> int:
    """The stack level of the first caller that is not this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    return level


def report_chains(flags: NonFinite, result: Any, *, who: str, what: str = "draw") -> None:
    """Speak up about flags that lead with `(num_chains, num_draws)`, on the host."""
    nan, infinite = (_of_chains(each, what) for each in flags)
    speak_up(nan, infinite, result, who=who)


def _of_chains(flags: Mapping[str, Any], what: str) -> str:
    sentences = []
    for site, flag in flags.items():
        flag = np.asarray(flag, bool)
        if flag.any():
            draw = int(np.argmax(flag.any(0)))
            chain = int(np.argmax(flag[:, draw]))
            sentences.append(
                f"site `{site}`: {flag.sum()} of {flag.size} {what}s, first in chain {chain} at {what} {draw}"
            )
    return "; ".join(sentences)


@jax.tree_util.register_pytree_with_keys_class
class Sightings:
    """Record of NaN and +inf met by a Markov chain, as a field of its state.

    A chain runs inside a compiled program of `MCMC`, which cannot raise. So this speaks up when it
    comes out of one: whenever it is put together again from arrays that are on the host or a device.

    Attributes:
        seen: By kind and site, four integers: how many, and step, level and particle of the first.
        who: The kernel.
        num_levels: Levels of a step; 0 where there is one density alone.
    """

    def __init__(self, seen: NonFinite, who: str, num_levels: int):
        self.seen, self.who, self.num_levels = seen, who, num_levels

    @classmethod
    def none(cls, names: NonFinite, who: str, num_levels: int = 0) -> "Sightings":
        """Before anything was met; `names` is a pytree of the right sites."""
        return cls(jax.tree.map(lambda _: jnp.zeros(4, int), names), who, num_levels)

    def add(self, flags: NonFinite, step: Scalar) -> "Sightings":
        """After a step.

        Args:
            flags: By site, of shape `(num_levels + 1, num_particles)`, or `()`.
            step: Its number.
        """

        def one(old: Array, flag: Array) -> Array:
            table = jnp.atleast_2d(flag)
            level, particle = jnp.divmod(jnp.argmax(table), table.shape[1])
            first = jnp.stack([jnp.asarray(step), level, particle]).astype(old.dtype)
            where = jnp.where((old[0] == 0) & table.any(), first, old[1:])
            return jnp.concatenate([old[:1] + table.sum().astype(old.dtype), where])

        return Sightings(jax.tree.map(one, self.seen, flags), self.who, self.num_levels)

    @property
    def ruined(self) -> Array:
        """True once +inf was met: no later draw means anything."""
        counts = [leaf[..., 0] for leaf in self.seen.infinite.values()]
        return jnp.stack(counts).sum(0) > 0 if counts else jnp.zeros((), bool)

    def spoil(self, draws: Any) -> Any:
        """The draws, NaN once +inf was met: a program of the caller's own may never show this object."""
        return jax.tree.map(lambda leaf: jnp.where(self.ruined, jnp.nan, leaf), draws)

    def words(self, kind: str) -> str:
        """Describe where NaN or +inf was met; empty if nowhere."""
        sentences = []
        for site, leaf in getattr(self.seen, kind).items():
            counts = np.asarray(leaf).reshape(-1, 4)
            if not counts[:, 0].any():
                continue
            chain = int(np.argmax(counts[:, 0] > 0))
            _, step, level, particle = counts[chain]
            # No count: a warning whose words stay the same is shown once.
            place = f"site `{site}`, first in chain {chain} at step {step}"
            if self.num_levels:
                at = f"level {level} (of {self.num_levels})" if level else "the start"
                place += f", particle {particle} at {at}"
            sentences.append(place)
        return "; ".join(sentences)

    def tree_flatten_with_keys(self):
        return ((jax.tree_util.GetAttrKey("seen"), self.seen),), (self.who, self.num_levels)

    def tree_flatten(self):
        return (self.seen,), (self.who, self.num_levels)

    @classmethod
    def tree_unflatten(cls, aux, children):
        new = cls(*children, *aux)
        leaves = jax.tree.leaves(new.seen)
        if all(_readable(leaf) for leaf in leaves):
            speak_up(new.words("nan"), new.words("infinite"), who=new.who)
        return new


def _readable(leaf: Any) -> bool:
    if isinstance(leaf, np.ndarray):
        return _of_one_state(leaf)
    if not isinstance(leaf, jax.Array) or isinstance(leaf, Tracer):
        return False
    return _of_one_state(leaf) and leaf.is_fully_addressable and not leaf.is_deleted()


def _of_one_state(leaf: Any) -> bool:
    """Whether an array is of one state, of one chain or several, and not a history of them."""
    return leaf.dtype.kind == "i" and leaf.shape[-1:] == (4,) and leaf.ndim <= 2
