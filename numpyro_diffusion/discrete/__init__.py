"""Masked diffusion over tokens: distributions of sequences, allocations and labels, with residual
energies.
"""

from .chain import masked_chain as masked_chain
from .data import AbstractTokenData as AbstractTokenData
from .data import TokenLikelihood as TokenLikelihood
from .data import TokenTable as TokenTable
from .energies import AutoregressiveEnergy as AutoregressiveEnergy
from .exact import all_examples as all_examples
from .exact import log_mass as log_mass
from .fit import fit as fit
from .fit import fit_energy as fit_energy
from .losses import contrastive_loss as contrastive_loss
from .losses import masked_elbo as masked_elbo
from .losses import masked_loss as masked_loss
from .losses import nce_loss as nce_loss
from .masked import MaskedDiffusion as MaskedDiffusion
from .networks import EnergyNetwork as EnergyNetwork
from .networks import TokenNetwork as TokenNetwork
from .posterior import TokenPosterior as TokenPosterior
from .posterior import sample_posterior as sample_posterior
from .prior import DiscreteDiffusionPrior as DiscreteDiffusionPrior
from .sample import TokenDraw as TokenDraw
from .sample import sample_tokens as sample_tokens
