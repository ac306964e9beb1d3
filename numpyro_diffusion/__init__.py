"""Learned diffusion priors inside NumPyro models: posterior, evidence and diagnostics."""

from . import nets as nets
from . import schedules as schedules
from .energies import AbstractDenoiser as AbstractDenoiser
from .energies import AbstractEnergy as AbstractEnergy
from .energies import EnergyFunction as EnergyFunction
from .energies import Gaussian as Gaussian
from .energies import GaussianMixture as GaussianMixture
from .energies import InnerProductEnergy as InnerProductEnergy
from .energies import ScoreFunction as ScoreFunction
from .energies import check_energy as check_energy
from .io import load as load
from .io import save as save
from .ppl import DiffusionPrior as DiffusionPrior
from .ppl import noised as noised
from .pretrained import digits_split as digits_split
from .pretrained import load_pretrained as load_pretrained
from .train import FitResult as FitResult
from .train import fit as fit
from .twists import AbstractTwist as AbstractTwist
from .twists import Identity as Identity
from .twists import Tweedie as Tweedie
