"""Factors of distributions: rewards, constraints, ratios and couplings, softened at noisy levels."""

from ..energies import AbstractFactor as AbstractFactor
from ..energies import Noised as Noised
from .coupling import Coupling as Coupling
from .coupling import hinge as hinge
from .coupling import log_repulsion as log_repulsion
from .coupling import squared_distance as squared_distance
from .mmd import MMD as MMD
from .mmd import mmd_squared as mmd_squared
from .mmd_kernels import RBF as RBF
from .mmd_kernels import AbstractKernel as AbstractKernel
from .mmd_kernels import InverseMultiquadric as InverseMultiquadric
from .mmd_kernels import Polyharmonic as Polyharmonic
from .mmd_kernels import Polynomial as Polynomial
from .mmd_witness import witness as witness
from .mmd_witness import witness_flow as witness_flow
from .power import LawFactor as LawFactor
from .ratio import Ratio as Ratio
from .restrict import Restrict as Restrict
from .tilt import Tilt as Tilt
from .value import AbstractValue as AbstractValue
from .value import ExactValue as ExactValue
from .value import LearnedValue as LearnedValue
from .value import MonteCarloValue as MonteCarloValue
from .value import TweedieValue as TweedieValue
