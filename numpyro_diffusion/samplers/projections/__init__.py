"""Projections onto feasible sets, and projected Langevin sampling."""

from .langevin import ProjectedDraws as ProjectedDraws
from .langevin import projected_langevin as projected_langevin
from .sets import AbstractProjection as AbstractProjection
from .sets import Ball as Ball
from .sets import Box as Box
from .sets import Simplex as Simplex
from .velocity import VelocityBall as VelocityBall
