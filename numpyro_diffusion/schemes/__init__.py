"""Samplers: each turns a bridge into a Feynman-Kac model."""

from ..smc import Claims as Claims
from .annealed import Annealed as Annealed
from .base import AbstractScheme as AbstractScheme
from .composition import ScoreComposition as ScoreComposition
from .corrections import AbstractCorrection as AbstractCorrection
from .corrections import FeynmanKacCorrection as FeynmanKacCorrection
from .corrections import RadonNikodym as RadonNikodym
from .covariance import Diagonal as Diagonal
from .covariance import Full as Full
from .covariance import Isotropic as Isotropic
from .covariance import Local as Local
from .driftlite import DriftLite as DriftLite
from .flow import ProbabilityFlow as ProbabilityFlow
from .heuristics import unresampled as unresampled
from .heuristics import unweighted as unweighted
from .kernels import Kernels as Kernels
from .levels import Level as Level
from .particle import Particle as Particle
from .reverse import ReverseDiffusion as ReverseDiffusion
from .tempered import LikelihoodTempered as LikelihoodTempered
from .transport import AbstractTransport as AbstractTransport
from .transport import Carry as Carry
from .transport import Retrace as Retrace
from .tuned import TunedScheme as TunedScheme
from .tuned import Tuning as Tuning
from .twisted import Twisted as Twisted
