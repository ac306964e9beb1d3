"""Learned diffusion priors inside NumPyro models: posterior, evidence and diagnostics."""

from . import schedules as schedules
from .energies import AbstractDenoiser as AbstractDenoiser
from .energies import AbstractEnergy as AbstractEnergy
from .energies import Gaussian as Gaussian
from .energies import GaussianMixture as GaussianMixture
