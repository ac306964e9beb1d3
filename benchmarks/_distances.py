"""Distances between two sets of points."""

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist


def wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    """2-Wasserstein distance of equally many points, by the best assignment."""
    cost = cdist(a, b, "sqeuclidean")
    return float(np.sqrt(cost[linear_sum_assignment(cost)].mean()))


def wasserstein_on_the_line(a: np.ndarray, b: np.ndarray) -> float:
    """The same for equally many numbers."""
    return float(np.sqrt(np.mean((np.sort(a) - np.sort(b)) ** 2)))
