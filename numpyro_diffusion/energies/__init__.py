"""Energies: learned or in closed form, and their algebra."""

from .algebra import Composed as Composed
from .algebra import ComposedDenoiser as ComposedDenoiser
from .algebra import cfg as cfg
from .base import AbstractDenoiser as AbstractDenoiser
from .base import AbstractEnergy as AbstractEnergy
from .check import check_energy as check_energy
from .denoiser import NetworkDenoiser as NetworkDenoiser
from .factored import Factored as Factored
from .factored import FactoredDenoiser as FactoredDenoiser
from .factors import AbstractFactor as AbstractFactor
from .factors import Noised as Noised
from .foreign import EnergyFunction as EnergyFunction
from .foreign import ScoreFunction as ScoreFunction
from .forms import AutoencoderEnergy as AutoencoderEnergy
from .forms import ScalarEnergy as ScalarEnergy
from .forms import SquaredEnergy as SquaredEnergy
from .gaussian import Gaussian as Gaussian
from .gaussian import GaussianMixture as GaussianMixture
from .joint import Joint as Joint
from .mixture import Mixture as Mixture
from .network import InnerProductEnergy as InnerProductEnergy
from .network import ProperEnergy as ProperEnergy
from .noise import added_variance as added_variance
from .noise import denoised_mean as denoised_mean
from .preconditioned import AbstractNetworkEnergy as AbstractNetworkEnergy
