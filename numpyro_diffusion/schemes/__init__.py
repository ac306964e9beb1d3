"""Samplers: each turns a bridge into a Feynman-Kac model."""

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
from .normalizer import prior_normalizer as prior_normalizer
from .reverse import ReverseDiffusion as ReverseDiffusion
from .tempered import LikelihoodTempered as LikelihoodTempered
from .transport import Carry as Carry
from .twisted import Twisted as Twisted
