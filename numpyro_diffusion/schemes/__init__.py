"""Samplers: each turns a bridge into a Feynman-Kac model."""

from .annealed import Annealed as Annealed
from .base import AbstractScheme as AbstractScheme
from .normalizer import prior_normalizer as prior_normalizer
from .reverse import ReverseDiffusion as ReverseDiffusion
from .tempered import LikelihoodTempered as LikelihoodTempered
from .twisted import Twisted as Twisted
