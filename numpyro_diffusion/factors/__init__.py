"""Factors of laws: rewards, constraints, ratios and couplings, softened at noisy levels."""

from .coupling import Coupling as Coupling
from .coupling import hinge as hinge
from .coupling import log_repulsion as log_repulsion
from .coupling import squared_distance as squared_distance
from .power import LawFactor as LawFactor
from .restrict import Restrict as Restrict
