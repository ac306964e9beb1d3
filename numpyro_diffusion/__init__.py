"""Learned diffusion priors inside NumPyro models: posterior, evidence and diagnostics."""

from importlib.metadata import PackageNotFoundError as _NotInstalled
from importlib.metadata import version as _version

# ArviZ 1.x registers NumPyro as a lazy module. Were a submodule imported before NumPyro itself has
# loaded, Python 3.13 would load `numpyro.distributions` twice and lose attributes on the way.
from numpyro import __version__ as _numpyro_version  # noqa: F401

from . import auditing as auditing
from . import bridge as bridge
from . import density as density
from . import diagnostics as diagnostics
from . import discrete as discrete
from . import energies as energies
from . import factors as factors
from . import io as io
from . import nets as nets
from . import normalizers as normalizers
from . import plots as plots
from . import ppl as ppl
from . import pretrained as pretrained
from . import samplers as samplers
from . import schedules as schedules
from . import schemes as schemes
from . import smc as smc
from . import teachers as teachers
from . import train as train
from . import twists as twists
from .auditing import audit as audit
from .bridge import from_energy as from_energy
from .energies import AbstractDenoiser as AbstractDenoiser
from .energies import AbstractEnergy as AbstractEnergy
from .energies import EnergyFunction as EnergyFunction
from .energies import Gaussian as Gaussian
from .energies import GaussianMixture as GaussianMixture
from .energies import InnerProductEnergy as InnerProductEnergy
from .energies import NetworkDenoiser as NetworkDenoiser
from .energies import ProperEnergy as ProperEnergy
from .energies import ScoreFunction as ScoreFunction
from .energies import cfg as cfg
from .energies import check_energy as check_energy
from .io import load as load
from .io import save as save
from .normalizers import prior_normalizer as prior_normalizer
from .ppl import DiffusionPrior as DiffusionPrior
from .ppl import NoiseReparam as NoiseReparam
from .ppl import noised as noised
from .ppl.bridge import from_model as from_model
from .ppl.kernels import MoveKernel as MoveKernel
from .ppl.kernels import ParticleGibbs as ParticleGibbs
from .ppl.kernels import ParticleMarginal as ParticleMarginal
from .ppl.kernels.split import SplitKernel as SplitKernel
from .ppl.model_energy import model_energy as model_energy
from .ppl.smc import SMC as SMC
from .ppl.to_blackjax import to_blackjax as to_blackjax
from .pretrained import load_pretrained as load_pretrained
from .samplers import nested_sampling as nested_sampling
from .samplers import replica_exchange as replica_exchange
from .schemes import AbstractScheme as AbstractScheme
from .schemes import Annealed as Annealed
from .schemes import LikelihoodTempered as LikelihoodTempered
from .schemes import ReverseDiffusion as ReverseDiffusion
from .schemes import ScoreComposition as ScoreComposition
from .schemes import Twisted as Twisted
from .smc import FeynmanKac as FeynmanKac
from .smc import effective_sample_size as effective_sample_size
from .smc import from_kernels as from_kernels
from .smc import moves as moves
from .smc import run_smc as run_smc
from .train import distill as distill
from .train import fit as fit
from .twists import AbstractTwist as AbstractTwist
from .twists import Tweedie as Tweedie
from .twists import Widened as Widened

try:
    __version__ = _version("numpyro-diffusion")
except _NotInstalled:  # a source tree on the path
    __version__ = "0+unknown"

__all__ = [
    "AbstractDenoiser",
    "AbstractEnergy",
    "AbstractScheme",
    "AbstractTwist",
    "Annealed",
    "DiffusionPrior",
    "EnergyFunction",
    "FeynmanKac",
    "Gaussian",
    "GaussianMixture",
    "InnerProductEnergy",
    "LikelihoodTempered",
    "MoveKernel",
    "NetworkDenoiser",
    "NoiseReparam",
    "ParticleGibbs",
    "ParticleMarginal",
    "ProperEnergy",
    "ReverseDiffusion",
    "SMC",
    "ScoreComposition",
    "ScoreFunction",
    "SplitKernel",
    "Tweedie",
    "Twisted",
    "Widened",
    "audit",
    "auditing",
    "bridge",
    "cfg",
    "check_energy",
    "density",
    "diagnostics",
    "discrete",
    "distill",
    "effective_sample_size",
    "energies",
    "factors",
    "fit",
    "from_energy",
    "from_kernels",
    "from_model",
    "io",
    "load",
    "load_pretrained",
    "model_energy",
    "moves",
    "nested_sampling",
    "nets",
    "noised",
    "normalizers",
    "plots",
    "ppl",
    "pretrained",
    "prior_normalizer",
    "replica_exchange",
    "run_smc",
    "samplers",
    "save",
    "schedules",
    "schemes",
    "smc",
    "teachers",
    "to_blackjax",
    "train",
    "twists",
]


def __dir__() -> list[str]:
    """What users type, and no more."""
    return [*__all__, "__version__"]
