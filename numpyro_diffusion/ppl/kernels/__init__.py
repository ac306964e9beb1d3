"""Kernels for NumPyro's `MCMC` and `HMCGibbs`."""

from .gibbs import ParticleGibbs as ParticleGibbs
from .marginal import ParticleMarginal as ParticleMarginal
from .move import MoveKernel as MoveKernel
