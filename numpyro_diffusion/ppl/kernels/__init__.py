"""Kernels for NumPyro's own `MCMC` and `Gibbs`."""

from .gibbs import ParticleGibbs as ParticleGibbs
from .marginal import ParticleMarginal as ParticleMarginal
from .move import MoveKernel as MoveKernel
