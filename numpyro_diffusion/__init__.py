"""Learned diffusion priors inside NumPyro models: posterior, evidence and diagnostics."""

from . import schedules as schedules
from .energies import AbstractDenoiser as AbstractDenoiser
from .energies import AbstractEnergy as AbstractEnergy
from .energies import EnergyFunction as EnergyFunction
from .energies import Gaussian as Gaussian
from .energies import GaussianMixture as GaussianMixture
from .energies import ScoreFunction as ScoreFunction
from .energies import check_energy as check_energy
from .ppl import DiffusionPrior as DiffusionPrior
from .twists import AbstractTwist as AbstractTwist
from .twists import Identity as Identity
from .twists import Tweedie as Tweedie
