"""Split Gibbs samplers: PnP-DM and DAPS, with the distributions they approach and exact versions."""

from .base import AbstractSplit as AbstractSplit
from .daps import DAPS as DAPS
from .pnp import PnPDM as PnPDM
from .result import SplitResult as SplitResult
from .run import split_gibbs as split_gibbs
