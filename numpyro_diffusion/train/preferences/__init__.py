"""Fine-tuning by pairs of which one is preferred: DPO and DMPO."""

from .fit import PreferenceResult as PreferenceResult
from .fit import fit_preferences as fit_preferences
from .log_ratio import denoising_log_ratio as denoising_log_ratio
from .log_ratio import energy_log_ratio as energy_log_ratio
from .losses import DMPO as DMPO
from .losses import DPO as DPO
