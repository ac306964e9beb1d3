"""Small backbones: the learned part of a network energy."""

from .mlp import Linear as Linear
from .mlp import ResidualBlock as ResidualBlock
from .mlp import ResidualMLP as ResidualMLP
