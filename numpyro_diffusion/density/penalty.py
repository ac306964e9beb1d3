r"""A prior as a penalty on the output of a generator: the prior's part of a reverse KL divergence.

$\mathrm{KL}(p_G \| p) = -H(p_G) - \mathbb{E}_{p_G} \log p$. The second part needs scores of $p$ alone, by the
score-based density formula; the first is the generator's own affair: a flow knows its entropy, a GAN's
discriminator stands for it. Without it every generator collapses onto the mode.
"""

import jax
import jax.numpy as jnp

from .._prng import check_key
from .._typing import Array, PRNGKey, Scalar
from ..energies import AbstractDenoiser
from .estimate import AbstractLogDensity
from .formula import ScoreFormula
from .noises import Mirrored
from .times import Stratified

__all__ = ["score_matching_penalty"]


def score_matching_penalty(
    prior: AbstractDenoiser,
    samples: Array,
    key: PRNGKey,
    *,
    estimator: AbstractLogDensity | None = None,
) -> Scalar:
    r"""$-\mathbb{E} \log p(x)$ over samples of a generator, in nats, differentiable in the samples.

    By the score-based density formula that is a weighted score matching loss on noised samples, plus what
    does not depend on the generator: the regulariser of score-matching GANs is a cross-entropy. Unbiased,
    gradient included; the noises of a batch are independent, so few a sample are enough.

    Args:
        prior: Denoiser or energy. Its parameters take part in the derivative unless they are stopped.
        samples: What the generator made, shape `(num, *shape)`.
        key: PRNG key; a new one for every step.
        estimator: `ScoreFormula(Stratified(2), Mirrored(2))` by default, eight evaluations a sample.

    References:
        Li & Yan (2024), arXiv 2408.16765, section on generative adversarial networks.
    """
    key = check_key(key)
    if estimator is None:
        estimator = ScoreFormula(Stratified(2), Mirrored(2))
    shared = estimator.prepare(prior)
    size = estimator.size(prior)
    value = lambda x, key: estimator.point(prior, shared, x, key, size).value
    return -jnp.mean(jax.vmap(value)(samples, jax.random.split(key, len(samples))))
