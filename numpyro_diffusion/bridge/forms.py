"""The two forms of a bridge: over densities, and in path space over scores."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from .. import _faq
from .._typing import Array, Scalar
from ..energies import AbstractDenoiser, AbstractEnergy
from .base import Bridge
from .site_forms import DensitySite, PathSite

__all__ = ["DensityBridge", "PathBridge", "check_bridge_type"]


class DensityBridge(Bridge):
    r"""A bridge of densities: the prior is $e^{-E(\cdot, t)}$ at every level."""

    sites: dict[str, DensitySite]
    site_type: ClassVar = DensitySite
    prior_type: ClassVar = AbstractEnergy
    prior: ClassVar[str] = "exp(-E(x, t_min))"

    @property
    def exact_prior(self) -> bool:
        if self.cloud is not None or self.proposal is not None:
            return True
        return bool(self.sites) and all(site.exact for site in self.sites.values())

    @property
    def log_normalizer_error(self) -> float | None:
        errors = [site.log_normalizer_error for site in self.sites.values()]
        if None in errors:
            return None
        return sum(error**2 for error in errors if error is not None) ** 0.5

    def score(self, u: dict[str, Array], clock: Scalar) -> dict[str, Array]:
        return jax.grad(lambda u: self.see(u, clock).log_density)(u)


class PathBridge(Bridge):
    """A bridge in path space: the prior is the distribution of a reverse sampler, known by its steps alone.

    It has scores and no density of the prior, so that denoisers are enough, and no normaliser.
    """

    sites: dict[str, PathSite]
    site_type: ClassVar = PathSite
    prior_type: ClassVar = AbstractDenoiser
    prior: ClassVar[str] = "the distribution of the reverse sampler"
    exact_prior: ClassVar[bool] = False
    log_normalizer_error: ClassVar[float] = 0.0

    def score(self, u: dict[str, Array], clock: Scalar) -> dict[str, Array]:
        return self.see(u, clock).scores

    def log_factors(self, x: dict[str, Array]) -> Scalar:
        """Log of what multiplies the sampler's distribution, at clean values; no sampler is evaluated."""
        return sum((site.log_factors(x[n]) for n, site in self.sites.items()), jnp.zeros(()))


def check_bridge_type(bridge_type: Any) -> None:
    """Refuse what is no type of bridge.

    Raises:
        TypeError: If it is neither of the two.
    """
    if bridge_type not in (DensityBridge, PathBridge):
        raise TypeError(
            "`bridge_type` is `nd.bridge.DensityBridge`, or `nd.bridge.PathBridge` for priors that are the "
            f"distributions of reverse samplers; got {bridge_type!r}. A scheme names its own: "
            f"`scheme.bridge_type`. {_faq.bridge_type}"
        )
