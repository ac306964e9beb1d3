"""Samplers of a bridge beside SMC: replica exchange, split Gibbs, nested sampling, projected Langevin."""

from . import projections as projections
from .nested import NestedResult as NestedResult
from .nested import nested_sampling as nested_sampling
from .replica import ReplicaResult as ReplicaResult
from .replica import replica_exchange as replica_exchange
from .split import DAPS as DAPS
from .split import PnPDM as PnPDM
from .split import SplitResult as SplitResult
from .split import split_gibbs as split_gibbs
