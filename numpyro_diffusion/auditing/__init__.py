"""Audit of a learned prior: one measurement a file, and `audit`, which makes them all."""

from .curl import Curl as Curl
from .curl import curl_ratio as curl_ratio
from .denoising import Denoising as Denoising
from .denoising import denoising_residual as denoising_residual
from .draws import Draws as Draws
from .draws import compare_draws as compare_draws
from .draws import many_draws as many_draws
from .draws import noised_to_prior as noised_to_prior
from .gradient import Agreement as Agreement
from .gradient import gradient_agreement as gradient_agreement
from .levels import level_times as level_times
from .membership import STATISTICS as STATISTICS
from .membership import Membership as Membership
from .membership import membership_audit as membership_audit
from .report import AuditReport as AuditReport
from .report import audit as audit
from .rest import Rest as Rest
from .rest import rest_of_data as rest_of_data
from .roc import auc_and_error as auc_and_error
from .roc import roc_curve as roc_curve
from .roc import true_positive_rate as true_positive_rate
from .spectrum import Spectrum as Spectrum
from .spectrum import posterior_spectrum as posterior_spectrum
from .spread import Offsets as Offsets
from .spread import normalizer_spread as normalizer_spread
from .words import findings as findings
