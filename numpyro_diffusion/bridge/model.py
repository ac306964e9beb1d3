"""The side of a model that a bridge asks: other sites and data, given the diffusion sites."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp

from .._typing import Array, Position, PRNGKey
from .labels import LabelsGiven
from .observed import Observed
from .terms import Rest

__all__ = ["AbstractModel"]


class AbstractModel(eqx.Module):
    """The other sites and the data of a model, given values of its diffusion sites. No network is evaluated.

    Attributes:
        diffusion: Names of the diffusion sites.
        others: Names of the other latent sites.
        discrete: Names of the discrete latent sites, which are summed out and no part of a position.
    """

    diffusion: eqx.AbstractVar[tuple[str, ...]]
    others: eqx.AbstractVar[tuple[str, ...]]
    discrete: eqx.AbstractVar[tuple[str, ...]]

    @property
    def drivers(self) -> tuple[str, ...]:
        """Other sites on which an energy depends: what is seen is outdated if they move."""
        return ()

    @property
    def choices(self) -> tuple[str, ...]:
        """Other sites that are unconstrained uniform variables, of which discrete choices are made."""
        return ()

    def sites_at(self, sites: dict[str, Any], z: Position) -> dict[str, Any]:
        """The diffusion sites under the energies that the other sites give them."""
        del z
        return sites

    @abc.abstractmethod
    def rest(self, z: Position, x_hat: dict[str, Array]) -> Rest:
        """Densities of the other sites at `z`, unconstrained, and of the data."""

    @abc.abstractmethod
    def draw_others(self, x: dict[str, Array], key: PRNGKey) -> Position:
        """The other sites from their prior, unconstrained."""

    def discrete_given(self, z: Position, key: PRNGKey) -> LabelsGiven:
        """The discrete sites given all others and the data; of a model without any, nothing."""
        del z, key
        return LabelsGiven({}, {}, jnp.asarray(True))

    @abc.abstractmethod
    def constrain(self, z: Position) -> dict[str, Array]:
        """Values of all latent and deterministic sites; `z` holds the discrete ones, too."""

    @abc.abstractmethod
    def target(self, prior: str) -> str:
        """Name the posterior under a prior, in one sentence."""

    def laws(self, z: Position) -> Callable[[Position], Observed] | None:
        """Distributions of the data given clean values; `None` where only a log likelihood is known."""
        del z
        return None
