"""Energies: learned or in closed form, and their algebra."""

from .algebra import Composed as Composed
from .base import AbstractDenoiser as AbstractDenoiser
from .base import AbstractEnergy as AbstractEnergy
from .check import check_energy as check_energy
from .denoiser import NetworkDenoiser as NetworkDenoiser
from .foreign import EnergyFunction as EnergyFunction
from .foreign import ScoreFunction as ScoreFunction
from .forms import AutoencoderEnergy as AutoencoderEnergy
from .forms import ScalarEnergy as ScalarEnergy
from .forms import SquaredEnergy as SquaredEnergy
from .gaussian import Gaussian as Gaussian
from .gaussian import GaussianMixture as GaussianMixture
from .network import InnerProductEnergy as InnerProductEnergy
from .network import ProperEnergy as ProperEnergy
from .preconditioned import AbstractNetworkEnergy as AbstractNetworkEnergy
