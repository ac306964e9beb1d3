"""Noise schedules: how much signal and how much noise a level holds."""

from .standard import AbstractSchedule as AbstractSchedule
from .standard import Cosine as Cosine
from .standard import RectifiedFlow as RectifiedFlow
from .standard import ReverseMoments as ReverseMoments
from .standard import VarianceExploding as VarianceExploding
from .standard import VariancePreserving as VariancePreserving
from .standard import log_snr_grid as log_snr_grid
from .standard import reverse_moments as reverse_moments
from .tabulated import Tabulated as Tabulated
from .tabulated import from_betas as from_betas
