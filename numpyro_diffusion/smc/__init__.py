"""Sequential Monte Carlo: a particle library that knows nothing of diffusion models.

A Feynman-Kac model says how one particle starts, moves and is weighted; the engine runs clouds of them, with
adaptive resampling or waste-free. MCMC moves are BlackJAX's.
"""

from . import moves as moves
from .claims import Claims as Claims
from .engine import resample_equal as resample_equal
from .engine import run_smc as run_smc
from .feynman_kac import FeynmanKac as FeynmanKac
from .feynman_kac import from_kernels as from_kernels
from .feynman_kac import unresampled as unresampled
from .feynman_kac import unweighted as unweighted
from .onward import onward as onward
from .pure import sample as sample
from .result import SMCResult as SMCResult
from .result import Trace as Trace
from .weights import SMCState as SMCState
from .weights import conditional_ess as conditional_ess
from .weights import effective_sample_size as effective_sample_size
from .weights import log_mean_exp as log_mean_exp
