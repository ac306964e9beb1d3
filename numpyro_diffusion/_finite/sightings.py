"""Record of NaN and +inf met by a Markov chain, which speaks up on the host."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .._typing import Array, Scalar
from .flags import NonFinite
from .words import speak_up

__all__ = ["Sightings"]


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
