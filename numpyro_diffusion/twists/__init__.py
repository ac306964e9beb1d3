"""Twists: what the rest of a model sees of a noised diffusion variable."""

from .base import AbstractTwist as AbstractTwist
from .base import added_variance as added_variance
from .identity import Identity as Identity
from .tweedie import Tweedie as Tweedie
