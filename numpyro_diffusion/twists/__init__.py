"""Twists: approximations of the likelihood at noisy levels."""

from .base import AbstractTwist as AbstractTwist
from .base import added_variance as added_variance
from .base import denoised_mean as denoised_mean
from .black_box import BlackBox as BlackBox
from .by_dimension import ByDimension as ByDimension
from .identity import Identity as Identity
from .low_rank import LowRank as LowRank
from .matrix_free import MatrixFree as MatrixFree
from .moments import Moments as Moments
from .noised_observation import NoisedObservation as NoisedObservation
from .tweedie import Tweedie as Tweedie
from .widened import Widened as Widened
