"""MCMC moves: kernels of BlackJAX behind one interface, and moves made of moves."""

from .adapted import from_blackjax as from_blackjax
from .base import BlackJAXMove as BlackJAXMove
from .base import Move as Move
from .composed import mixture as mixture
from .composed import sequence as sequence
from .hamiltonian import adjusted_mclmc as adjusted_mclmc
from .hamiltonian import hmc as hmc
from .hamiltonian import nuts as nuts
from .hamiltonian import rmhmc as rmhmc
from .kernels import barker as barker
from .kernels import mala as mala
from .kernels import random_walk as random_walk
from .kernels import slice_sampling as slice_sampling
from .restricted import on_sites as on_sites
from .slices import elliptical_slice as elliptical_slice
