"""Plates of many independent objects under shared sites, sampled object by object."""

from .plate_smc import PlateSMC as PlateSMC
from .result import PlateResult as PlateResult
