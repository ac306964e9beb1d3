"""Log densities that are NaN or +inf: one guard for all samplers.

No weight and no acceptance is right where a log density is +inf: a sampler that leaves such places out, or
stays there, answers with another distribution. So every sampler counts them by site and refuses a result. NaN
counts as a density of 0, which may be meant, and is warned of.
"""

from .flags import NonFinite as NonFinite
from .flags import either as either
from .flags import looked_at as looked_at
from .flags import non_finite as non_finite
from .flags import settled as settled
from .sightings import Sightings as Sightings
from .words import in_words as in_words
from .words import outside as outside
from .words import places as places
from .words import replica_words as replica_words
from .words import report_chains as report_chains
from .words import share_places as share_places
from .words import speak_up as speak_up
