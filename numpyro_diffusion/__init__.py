"""Learned diffusion priors inside NumPyro models: posterior, evidence and diagnostics."""

# ArviZ 1.x registers NumPyro as a lazy module. Were a submodule imported before NumPyro itself has
# loaded, Python 3.13 would load `numpyro.distributions` twice and lose attributes on the way.
from numpyro import __version__ as _numpyro_version  # noqa: F401

from . import auditing as auditing
from . import bridge as bridge
from . import density as density
from . import diagnostics as diagnostics
from . import initial as initial
from . import moves as moves
from . import nets as nets
from . import plots as plots
from . import schedules as schedules
from . import teachers as teachers
from .auditing import AuditReport as AuditReport
from .auditing import audit as audit
from .bridge import Bridge as Bridge
from .bridge import from_energy as from_energy
from .density import HorizonReport as HorizonReport
from .density import Normalizer as Normalizer
from .density import adjacent_normalizer as adjacent_normalizer
from .density import elbo_vs_horizon as elbo_vs_horizon
from .density import thermodynamic_normalizer as thermodynamic_normalizer
from .energies import AbstractDenoiser as AbstractDenoiser
from .energies import AbstractEnergy as AbstractEnergy
from .energies import AutoencoderEnergy as AutoencoderEnergy
from .energies import EnergyFunction as EnergyFunction
from .energies import Gaussian as Gaussian
from .energies import GaussianMixture as GaussianMixture
from .energies import InnerProductEnergy as InnerProductEnergy
from .energies import ProperEnergy as ProperEnergy
from .energies import ScalarEnergy as ScalarEnergy
from .energies import ScoreFunction as ScoreFunction
from .energies import SquaredEnergy as SquaredEnergy
from .energies import check_energy as check_energy
from .feynman_kac import FeynmanKac as FeynmanKac
from .feynman_kac import from_kernels as from_kernels
from .initial import StandardNormal as StandardNormal
from .initial import fit_gaussian as fit_gaussian
from .initial import fit_mixture as fit_mixture
from .io import load as load
from .io import save as save
from .ppl import DiffusionPrior as DiffusionPrior
from .ppl import noised as noised
from .ppl.bridge import from_model as from_model
from .ppl.smc import SMC as SMC
from .pretrained import digits_split as digits_split
from .pretrained import load_pretrained as load_pretrained
from .schemes import AbstractScheme as AbstractScheme
from .schemes import Annealed as Annealed
from .schemes import LikelihoodTempered as LikelihoodTempered
from .schemes import ReverseDiffusion as ReverseDiffusion
from .schemes import Twisted as Twisted
from .schemes import prior_normalizer as prior_normalizer
from .smc import SMCResult as SMCResult
from .smc import effective_sample_size as effective_sample_size
from .smc import run_smc as run_smc
from .train import FitResult as FitResult
from .train import distill as distill
from .train import fit as fit
from .twists import AbstractTwist as AbstractTwist
from .twists import ByDimension as ByDimension
from .twists import Identity as Identity
from .twists import Moments as Moments
from .twists import Tweedie as Tweedie
from .twists import Widened as Widened
