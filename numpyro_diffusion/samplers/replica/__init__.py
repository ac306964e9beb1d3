"""Replica exchange (parallel tempering) along the noise levels."""

from .bennett import bennett as bennett
from .exchange import replica_exchange as replica_exchange
from .result import ReplicaResult as ReplicaResult
