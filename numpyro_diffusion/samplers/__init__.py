"""Samplers beside SMC: replica exchange, split Gibbs, nested sampling, Langevin, ensemble Kalman."""

from . import projections as projections
from .ensemble import EnsembleDraws as EnsembleDraws
from .ensemble import ensemble_kalman as ensemble_kalman
from .langevin import annealed_langevin as annealed_langevin
from .langevin import unadjusted_langevin as unadjusted_langevin
from .langevin_chains import LangevinDraws as LangevinDraws
from .nested import NestedResult as NestedResult
from .nested import nested_sampling as nested_sampling
from .replica import ReplicaResult as ReplicaResult
from .replica import replica_exchange as replica_exchange
from .split import DAPS as DAPS
from .split import PnPDM as PnPDM
from .split import SplitResult as SplitResult
from .split import split_gibbs as split_gibbs
