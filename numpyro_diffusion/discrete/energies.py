r"""Residual energies, which restore the dependence that a factorised denoiser leaves out.

$$p(x_0 \mid x_t) = p_\theta(x_0 \mid x_t)\, e^{-E(x_0, x_t)} / Z(x_t), \qquad
p_\theta(x_0 \mid x_t) = \prod_i p_\theta(x_0^i \mid x_t) .$$

Low energy is more probable. Any function `(x, x_t) -> ()` is a residual energy, such as an
`EnergyNetwork`, which `fit_energy` trains. Like the posterior of the data given $x_t$ it does not depend on
the time.

References:
    Xu, Geffner, Kreis, Nie, Xu, Leskovec, Ermon & Vahdat (2025), Energy-based diffusion language models for
    text generation, ICLR, arXiv 2410.21357.
"""

from collections.abc import Callable

import equinox as eqx

from .._arguments import check_callable, check_instance
from .._numbers import one_number
from .._typing import Array, Scalar
from .masked import MaskedDiffusion

__all__ = ["AutoregressiveEnergy", "ResidualEnergy", "check_energy_function", "energy_at"]

ResidualEnergy = Callable[[Array, Array], Scalar]
"""`(x, x_t) -> ()`: an example without masks, and the same with some, for ONE example."""


class AutoregressiveEnergy(eqx.Module):
    r"""The residual energy of a distribution of known density:
    $E = -\log p_{AR}(x_0) + \log p_\theta(x_0 \mid x_t)$.

    It needs no training. $p_\theta e^{-E}$ is $p_{AR}$ over what agrees with $x_t$, so that $Z(x_t)$ is the
    probability under $p_{AR}$ of what is seen.

    Attributes:
        log_density: $\log p_{AR}$ of ONE example, such as an autoregressive model; it may lack a constant.
        model: The masked diffusion.
    """

    log_density: Callable[[Array], Scalar]
    model: MaskedDiffusion

    def __check_init__(self):
        check_callable("log_density", self.log_density, "`x -> log p(x)`")
        check_instance("model", self.model, MaskedDiffusion, "MaskedDiffusion(...)", optional=False)

    def __call__(self, x: Array, x_t: Array) -> Scalar:
        return self.model.log_prob_given(x, x_t) - self.log_joint(x)

    def log_joint(self, x: Array) -> Scalar:
        r"""$\log p_{AR}(x)$, one number."""
        return one_number("a log density of ONE example", self.log_density(x))


def check_energy_function(energy: ResidualEnergy | None) -> None:
    """Refuse a residual energy that is no function."""
    if energy is not None:
        check_callable("energy", energy, "`(x, x_t) -> energy`")


def energy_at(energy: ResidualEnergy, x: Array, x_t: Array) -> Scalar:
    """The residual energy of ONE candidate; refuses what is not one number."""
    return one_number("a residual energy of ONE example", energy(x, x_t))
