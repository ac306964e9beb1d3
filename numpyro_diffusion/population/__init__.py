"""Maximum mean discrepancy (MMD) between populations: as factors of priors and as gradient flows."""

from .kernels import RBF as RBF
from .kernels import AbstractKernel as AbstractKernel
from .kernels import InverseMultiquadric as InverseMultiquadric
from .kernels import Polyharmonic as Polyharmonic
from .kernels import Polynomial as Polynomial
from .mmd import MMD as MMD
from .mmd import mmd_squared as mmd_squared
from .witness import witness as witness
from .witness import witness_flow as witness_flow
