"""Densities from scores, and what the noise levels of an energy say of its density."""

from .adjacent import adjacent_normalizer as adjacent_normalizer
from .estimate import AbstractLogDensity as AbstractLogDensity
from .estimate import DensityEstimate as DensityEstimate
from .flow import FlowDensity as FlowDensity
from .flow import probability_flow as probability_flow
from .flow_map import from_noise as from_noise
from .flow_map import to_noise as to_noise
from .formula import ScoreFormula as ScoreFormula
from .formula import score_formula as score_formula
from .horizon import HorizonReport as HorizonReport
from .horizon import elbo_vs_horizon as elbo_vs_horizon
from .normalizer import Normalizer as Normalizer
from .normalizer import thermodynamic_normalizer as thermodynamic_normalizer
from .rules import GaussHermite as GaussHermite
from .rules import GaussLegendre as GaussLegendre
from .rules import Mirrored as Mirrored
from .rules import Stratified as Stratified
from .trace import ExactDivergence as ExactDivergence
from .trace import Hutchinson as Hutchinson
