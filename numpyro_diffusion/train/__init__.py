"""Training: denoising losses and one loop that fits an energy to data."""

from .anchors import Anchors as Anchors
from .anchors import anchor_loss as anchor_loss
from .anchors import make_anchors as make_anchors
from .anchors import score_log_density as score_log_density
from .consistency import consistency_loss as consistency_loss
from .consistency import step_errors as step_errors
from .distill import distill as distill
from .distill import distillation_loss as distillation_loss
from .distill import from_teacher as from_teacher
from .fit import FitResult as FitResult
from .fit import TrainingDiverged as TrainingDiverged
from .fit import fit as fit
from .fit_recovery import RecoveryResult as RecoveryResult
from .fit_recovery import fit_recovery as fit_recovery
from .fokker_planck import fokker_planck_loss as fokker_planck_loss
from .initializer import Initializer as Initializer
from .level_normalizer import LevelNormalizer as LevelNormalizer
from .level_normalizer import fit_normalizer as fit_normalizer
from .losses import denoising_loss as denoising_loss
from .losses import energy_loss as energy_loss
from .losses import level_loss as level_loss
from .losses import log_normal as log_normal
from .losses import uniform_log_snr as uniform_log_snr
from .recovery import RecoveryReport as RecoveryReport
from .recovery import recovery_loss as recovery_loss
from .recovery import recovery_process as recovery_process
