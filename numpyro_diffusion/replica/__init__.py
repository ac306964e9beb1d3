"""Replica exchange: chains at all noise levels at once, which trade places."""

from .bennett import bennett as bennett
from .exchange import replica_exchange as replica_exchange
from .result import ReplicaResult as ReplicaResult
