"""Denoised mean with its covariance along the directions informed by the data (MMPS)."""

import equinox as eqx

from .._arguments import check_counts, plain
from .._typing import Array, Scalar
from ..energies.base import AbstractDenoiser
from ..energies.energy import AbstractEnergy
from .base import AbstractTwist, added_variance

__all__ = ["MatrixFree"]


class MatrixFree(AbstractTwist):
    r"""`Moments` without its matrix: $\mathcal{N}(\hat x, C)$ with $C$ known along a few directions.

    $C = \tau^2\, \partial \hat x / \partial u$ is found, example by example, along the first directions that
    conjugate gradients take from the data (Krylov vectors, see `bridge.krylov`), and is a number times the
    identity at right angles to them. The likelihood is averaged over it by products alone, so images of
    thousands of coordinates are in reach. Exact, as `Moments` is, for Gaussian priors and at most
    `directions` linear Gaussian data an example; with more data an approximation, which weights make up for.

    The directions are found with all other sites at a typical value, so moves of those need no network
    evaluation. Drifts leave out how $C$ changes with $u$; densities, and with them weights and accept steps,
    are exact.

    Attributes:
        directions: Their number; each costs a derivative of the denoiser.

    References:
        Rozet et al. (2024), Learning Diffusion Priors from Observations by Expectation Maximization,
        NeurIPS, for moment matching posterior sampling by conjugate gradients.
    """

    directions: int = eqx.field(static=True, converter=plain, default=4)

    def __check_init__(self):
        check_counts(self, "Try 4, or `Tweedie()` for none.", directions=1)

    @property
    def num_directions(self) -> int:
        return self.directions

    def evaluations(self, energy: AbstractDenoiser) -> int:
        """The denoised mean, its derivatives along the directions, and along a random one for the rest."""
        del energy
        return 2 + self.directions

    def __call__(self, energy: AbstractEnergy, u: Array, t: Scalar) -> tuple[Scalar, Array]:
        log_density, score = energy.log_density_and_score(u, t)
        return log_density, u + added_variance(energy, t) * score
