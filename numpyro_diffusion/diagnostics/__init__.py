r"""Diagnostics of a run: errors, warnings, tables, a verdict in words, and the ArviZ object.

Independent clouds of particles take the place of chains. Everything here reads a finished
`SMCResult` whose leaves lead with an axis of clouds, or the audit of a prior, and nothing here changes a
number.
"""

from .audit import audit_to_arviz as audit_to_arviz
from .citation import citation as citation
from .crps import crps as crps
from .crps import crps_sum as crps_sum
from .evidence import cloud_shares as cloud_shares
from .evidence import log_evidence_error as log_evidence_error
from .evidence import log_increment_error as log_increment_error
from .evidence import reservations as reservations
from .export import array_arguments as array_arguments
from .export import to_arviz as to_arviz
from .names import real_parts as real_parts
from .names import variable_names as variable_names
from .table import probability_table as probability_table
from .table import r_hat as r_hat
from .table import summary_table as summary_table
from .tails import pareto_k as pareto_k
from .tails import tail_shape as tail_shape
from .words import non_finite as non_finite
from .words import verdict as verdict
