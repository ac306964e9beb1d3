"""Samplers: each turns a bridge into a Feynman-Kac model."""

from .annealed import Annealed as Annealed
