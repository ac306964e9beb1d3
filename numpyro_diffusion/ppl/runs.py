"""Runs of a model in which its discrete sites have given values."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array

__all__ = ["Enumeration", "Key", "NUM_PLACES"]


Key = tuple[str, str]  # the kind of a term, and its site


NUM_PLACES = 4  # where entries are changed


class Enumeration(NamedTuple):
    """Runs of a model that cover all values of its discrete sites.

    Attributes:
        supports: Values of an entry, by site.
        shapes: Shape of each site.
        shared: By shared site all joint values, of shape `(num_shared, *shape)`.
        groups: Of each group of sites that share their entries, all joint values of one entry, by site.
        owners: By term that depends on discrete sites, of each of its entries the entry of each group on
            which it depends, -1 for none: shape `(num_groups, size)`.
    """

    supports: dict[str, np.ndarray]
    shapes: dict[str, tuple[int, ...]]
    shared: dict[str, np.ndarray]
    groups: tuple[dict[str, np.ndarray], ...]
    owners: dict[Key, np.ndarray]

    @property
    def num_shared(self) -> int:
        """Joint values of the shared sites; 1 if there are none."""
        return max((len(values) for values in self.shared.values()), default=1)

    @property
    def num_values(self) -> list[int]:
        """Joint values of one entry, by group."""
        return [len(next(iter(group.values()))) for group in self.groups]

    @property
    def num_entries(self) -> list[int]:
        """Entries of each group."""
        return [math.prod(self.shapes[next(iter(group))]) for group in self.groups]

    def values(self, shared: Any, each: Any) -> dict[str, Array]:
        """Values of all sites in one run: a joint value of the shared ones, and one of every entry."""
        found = {name: jnp.asarray(values)[shared] for name, values in self.shared.items()}
        for group, count in zip(self.groups, self.num_values, strict=True):
            for name, values in group.items():
                value = jnp.asarray(values)[jnp.minimum(each, count - 1)]
                found[name] = jnp.broadcast_to(value, self.shapes[name])
        return found

    def each_run(self, function: Callable[[dict[str, Array]], Any]) -> Any:
        """A function of the discrete sites in all runs; leaves lead with `(num_shared, num_values)`."""
        count = max(self.num_values, default=1)
        over_values = lambda c: jax.vmap(lambda v: function(self.values(c, v)))(jnp.arange(count))
        return jax.vmap(over_values)(jnp.arange(self.num_shared))
