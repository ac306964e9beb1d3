r"""Bounds and estimates of the difference between two densities of one learned model.

With an exact score the density of the energy, of the reverse diffusion and of the probability flow are one.
With model error they are not: the energy may be normalised to anything its gradient allows, the flow and
the diffusion end in different distributions, and the score formula is a lower bound of the diffusion's. A
paper may print any of them, so it matters how far apart they are.
"""

import math
from collections.abc import Mapping

import jax

from .._prng import key_or_zero, lean
from .._typing import PRNGKey
from ..energies import AbstractDenoiser, AbstractEnergy
from .compare import common_error
from .estimate import (
    EVALUATIONS_AT_ONCE,
    AbstractLogDensity,
    check_prior,
    estimates_at,
    report_nan,
)
from .flow import FlowDensity
from .formula import ScoreFormula
from .normalized import NormalizedEnergy
from .paired import Comparison, compared
from .paths import check_data, noised_to_t_min
from .trace import ExactDivergence, Hutchinson

__all__ = ["density_certificate"]

EXACT_UP_TO = 16  # dimensions in which a divergence takes a derivative a coordinate


def density_certificate(
    prior: AbstractDenoiser,
    data,
    key: PRNGKey | None = None,
    *,
    estimators: Mapping[str, AbstractLogDensity] | None = None,
    batch_size: int = EVALUATIONS_AT_ONCE,
) -> Comparison:
    r"""The log densities of one model side by side, averaged over data, and their differences.

    At data noised to `t_min`, the distribution that all of them are of. Let $p$ be the distribution of the
    data and $g$ the model's score. Then

    * the score formula $\ell$ is a lower bound of the log density of the reverse diffusion (SDE) at every
      point, and $\mathbb{E}_p[\log p - \ell] = \tfrac12 \int \mathbb{E} |g - \nabla \log p_r|^2 dr$: whatever
      it is short of the truth is the error of the score, and the divergence of the data from the SDE is
      smaller still;
    * the probability flow (ODE) and the normalised energy obey no such bound. Where their means are above the
      formula's by more than the error, they claim more than the score certifies; where below, they are worse
      models of these data.

    `spread` is what no constant removes: where it is large, ratios of densities between points, such as
    mode and label probabilities, depend on which density is asked.

    Args:
        prior: Denoiser or energy.
        data: Clean examples of shape `(num, *shape)`, best held-out ones.
        key: PRNG key; by default the same noises at every call.
        estimators: What to compare, by name. By default the score formula, the probability flow, and the
            energy where its normaliser is known; the normaliser's error is in the errors.
        batch_size: Evaluations of the network held in memory at once.

    Raises:
        TypeError: If `prior` is not a denoiser.
        ValueError: If data or numbers cannot be used.
        FloatingPointError: If an estimate is NaN.

    References:
        Li & Yan (2024), arXiv 2408.16765, section 4.1. Song et al. (2021), Maximum likelihood training of
        score-based diffusion models, NeurIPS.
    """
    check_prior("density_certificate", prior)
    data = check_data(prior, data, batch_size=batch_size)
    estimators = default_estimators(prior) if estimators is None else estimators
    key_noise, key_points = jax.random.split(key_or_zero(key))
    u = noised_to_t_min(prior, data, key_noise)
    keys = jax.random.split(lean(key_points), len(u))
    points = []
    for estimator in estimators.values():
        points.append(estimates_at(estimator, prior, u, keys, int(batch_size)))
        report_nan(estimator, points[-1].value, (len(u),))
    laws = [estimator.law for estimator in estimators.values()]
    common = [common_error(estimator, prior) for estimator in estimators.values()]
    return compared(tuple(estimators), laws, points, common)


def default_estimators(prior: AbstractDenoiser) -> dict[str, AbstractLogDensity]:
    """The densities that a prior has."""
    few = math.prod(prior.shape) <= EXACT_UP_TO
    flow = FlowDensity(ExactDivergence() if few else Hutchinson(8))
    found: dict[str, AbstractLogDensity] = {"score formula": ScoreFormula(), "flow": flow}
    if isinstance(prior, AbstractEnergy) and prior.log_normalizer is not None:
        found["energy"] = NormalizedEnergy()
    return found
