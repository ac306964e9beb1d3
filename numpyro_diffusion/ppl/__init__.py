"""The NumPyro side: distributions, handlers, models as bridges, samplers and MCMC kernels."""

from .amortised import AmortisedProposal as AmortisedProposal
from .amortised import fit_proposal as fit_proposal
from .choices import ChoiceEvidences as ChoiceEvidences
from .choices import choice_evidences as choice_evidences
from .distributions import DiffusionPrior as DiffusionPrior
from .distributions import NoisedPrior as NoisedPrior
from .handlers import NoisedReparam as NoisedReparam
from .handlers import noised as noised
from .mcmc import CheckpointedMCMC as CheckpointedMCMC
from .observed import observed_law as observed_law
from .plates import PlateResult as PlateResult
from .plates import PlateSMC as PlateSMC
from .reparam import NoiseReparam as NoiseReparam
from .sampler import Sampler as Sampler
from .start import ProposalDiagnostics as ProposalDiagnostics
