"""Priors from imperfect data: expectation-maximisation (EM) over noisy, masked or blurred examples."""

from .data import UnknownNoise as UnknownNoise
from .fit import fit_imperfect as fit_imperfect
from .result import ImperfectResult as ImperfectResult
