"""Factors of laws: rewards, constraints, ratios and couplings, softened at noisy levels."""

from .power import LawFactor as LawFactor
from .restrict import Restrict as Restrict
