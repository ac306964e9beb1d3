r"""A distribution as a factor of another: product of experts."""

import equinox as eqx
import jax.numpy as jnp

from .._typing import Scalar
from ..energies import AbstractDenoiser, AbstractEnergy, AbstractFactor, Gaussian, Noised
from ..energies.checks import check_alike

__all__ = ["LawFactor"]


class LawFactor(AbstractFactor):
    r"""$\log h_t(u) = \beta \log p_t(u)$: one distribution, to a power, as a factor of another.

    With energies alone `e1 + 0.5 * e2` says the same, with kernels that know of both. As a factor it tilts
    the distribution of a *reverse sampler*, which has steps and no density: `nd.Twisted()` on
    `nd.from_energy(denoiser + LawFactor(energy, 0.5), bridge_type=nd.bridge.PathBridge)` leads to the
    sampler's distribution times $p^{1/2}$. An energy's normaliser at levels above `t_min` drops out.

    Attributes:
        energy: The distribution.
        power: $\beta$, of either sign.
    """

    energy: AbstractEnergy = eqx.field(default_factory=Gaussian)
    power: float = 1.0

    def check(self, base: AbstractDenoiser) -> None:
        check_alike("an energy and the energy that is its factor", (base, self.energy))

    def log_value(self, noised: Noised) -> Scalar:
        t = jnp.maximum(noised.t, jnp.asarray(self.energy.t_min, noised.u.dtype))
        return self.power * self.energy.log_density(noised.u, t)
