"""All that touches NumPyro: distributions and handlers."""

from .distributions import DiffusionPrior as DiffusionPrior
from .distributions import NoisedPrior as NoisedPrior
from .handlers import NoisedReparam as NoisedReparam
from .handlers import noised as noised
from .observed import observed_law as observed_law
from .reparam import NoiseReparam as NoiseReparam
