"""Small neural networks: backbones of learned energies."""

from .applied import Applied as Applied
from .condition import AbstractCondition as AbstractCondition
from .condition import Labels as Labels
from .condition import Vectors as Vectors
from .convolve import convolve as convolve
from .mlp import Linear as Linear
from .mlp import NoiseLevel as NoiseLevel
from .mlp import ResidualBlock as ResidualBlock
from .mlp import ResidualMLP as ResidualMLP
from .mlp import Scaled as Scaled
from .precision import LowPrecision as LowPrecision
from .scalar import ScalarHead as ScalarHead
from .unet import Convolution as Convolution
from .unet import ImageBlock as ImageBlock
from .unet import UNet as UNet
