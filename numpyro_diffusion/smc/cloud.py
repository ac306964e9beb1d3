r"""One cloud as a traced function: for `vmap` over many data sets, each with a small cloud of its own.

`run_smc` is driven by the host, level by level, and its clouds share one target. Here a whole run is one
function of JAX, so that thousands of data sets run side by side in one program, and what a level asks of a
data set, such as a matrix to be factorised, is done once for its particles.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._arguments import whole_number
from .._prng import lean
from .._typing import Array, PRNGKey, PyTree, Scalar
from .conditional import systematic
from .weights import clean, effective_sample_size, genealogy_error, log_mean_exp

__all__ = ["CloudModel", "CloudRun", "run_cloud"]


class CloudModel(NamedTuple):
    """A Feynman-Kac model of one particle, with what its cloud computes once a level.

    Attributes:
        init: `key -> (particle, log_weight)`.
        shared: `(particles, weights, level) -> ` what the particles of the cloud share in their next step;
            the weights are normalised. It may look at particles as they are before the step, and weights stay
            right.
        step: `(key, particle, level, shared) -> (particle, log_weight)`; the log weight is the increment.
        levels: Pytree whose leaves have a leading axis of length `num_levels`.
    """

    init: Callable[[PRNGKey], tuple[PyTree, Scalar]]
    shared: Callable[[PyTree, Array, PyTree], Any]
    step: Callable[[PRNGKey, PyTree, PyTree, Any], tuple[PyTree, Scalar]]
    levels: PyTree


class CloudRun(NamedTuple):
    r"""Result of `run_cloud`.

    Attributes:
        particles: With a leading axis.
        log_weights: Not normalised, of shape `(num_particles,)`.
        log_evidence: $\log \hat Z$ in nats; $\hat Z$ is unbiased.
        log_evidence_error: Its standard error, from who descends from whom.
        ess: Effective sample size of the final weights over the number of particles.
    """

    particles: PyTree
    log_weights: Array
    log_evidence: Scalar
    log_evidence_error: Scalar
    ess: Scalar


def run_cloud(
    key: PRNGKey, model: CloudModel, num_particles: int, *, threshold: float = 0.5
) -> CloudRun:
    """Sequential Monte Carlo (SMC) with one cloud, traceable by JAX from end to end.

    Systematic resampling, where the effective sample size falls below a share of the particles. If every
    weight is 0 the evidence is, too: a log evidence of -inf.

    Args:
        key: PRNG key.
        model: What to run.
        num_particles: Particles of the cloud, at least 2.
        threshold: Resample below this share of the effective sample size.
    """
    num_particles = whole_number("num_particles", num_particles, 2)
    key_start, key_levels = jax.random.split(lean(key))
    particles, log_weights = jax.vmap(model.init)(jax.random.split(key_start, num_particles))

    def one_level(carry, row):
        particles, log_weights, log_evidence, ancestors = carry
        key, level = row
        keys = jax.random.split(key, num_particles + 1)
        below = effective_sample_size(log_weights) < threshold * num_particles
        chosen = systematic(jax.nn.softmax(log_weights), jax.random.uniform(keys[-1]))
        index = jnp.where(below, chosen, jnp.arange(num_particles))
        log_evidence = log_evidence + jnp.where(below, log_mean_exp(log_weights), 0.0)
        log_weights = jnp.where(below, 0.0, log_weights)
        particles, ancestors = jax.tree.map(lambda leaf: leaf[index], (particles, ancestors))
        shared = model.shared(particles, jax.nn.softmax(log_weights), level)
        step = lambda key, particle: model.step(key, particle, level, shared)
        particles, gains = jax.vmap(step)(keys[:-1], particles)
        return (particles, clean(log_weights + gains), log_evidence, ancestors), None

    length = jax.tree.leaves(model.levels)[0].shape[0]
    log_weights = clean(log_weights)
    start = particles, log_weights, jnp.zeros((), log_weights.dtype), jnp.arange(num_particles)
    rows = jax.random.split(key_levels, length), model.levels
    particles, log_weights, log_evidence, ancestors = jax.lax.scan(one_level, start, rows)[0]
    return CloudRun(
        particles,
        log_weights,
        log_evidence + log_mean_exp(log_weights),
        genealogy_error(log_weights, ancestors, 1 / num_particles),
        effective_sample_size(log_weights) / num_particles,
    )
