r"""The prior's normaliser from an SMC run on the prior alone."""

import math

import jax
import numpy as np

from .. import _faq
from .._arguments import whole_numbers, whole_or_none
from .._typing import PRNGKey
from ..bridge import from_energy
from ..energies import AbstractEnergy
from ..schemes.annealed import Annealed
from ..schemes.base import AbstractScheme, check_scheme
from ..smc import SMCResult, log_mean_exp, run_smc
from .thermodynamic import Normalizer

__all__ = ["prior_normalizer"]


def prior_normalizer(
    energy: AbstractEnergy,
    key: PRNGKey,
    *,
    scheme: AbstractScheme | None = None,
    num_particles: int = 1000,
    num_chains: int = 4,
    batch_size: int | None = None,
) -> Normalizer:
    r"""$L(t_{\min}) = \log \int e^{-E(x, t_{\min})} dx$ by a run of the sampler without data.

    It needs no data, and no model error enters: $\hat Z$ is an unbiased estimate of the integral of the
    energy as it is, at any number of levels. `energy.with_log_normalizer(value, standard_error)` takes
    the result, and `save` stores it.

    Args:
        energy: The prior. A stored `log_normalizer` is not looked at.
        key: PRNG key.
        scheme: The sampler; `Annealed()` by default.
        num_particles: Particles a cloud.
        num_chains: Independent clouds, at least 2: their spread is the error. It is the larger of that
            and of the clouds' own, from their genealogies.
        batch_size: Particles that step at once, to bound memory.

    Raises:
        TypeError: If `energy` is a denoiser alone, or `scheme` is no scheme.
        ValueError: If the scheme knows no density of the prior, or a number is out of range.
        PilotError: If the prior is too hard for the allowed number of levels.
    """
    check_scheme(scheme)
    num_particles, num_chains = whole_numbers(2, num_particles=num_particles, num_chains=num_chains)
    batch_size = whole_or_none("batch_size", batch_size, 1, "`None` takes all.")
    scheme = Annealed() if scheme is None else scheme
    key_pilot, key_run = jax.random.split(key)
    bridge = from_energy(energy, twist=scheme.twist)
    model = scheme(bridge, key_pilot)
    if model.claims.normalized:
        raise ValueError(
            f"the evidence of `{type(scheme).__name__}` is free of the prior's normaliser, so it cannot "
            f"tell what that is. Use `Annealed()` or `ReverseDiffusion()`. {_faq.needs_normaliser}"
        )
    result = run_smc(key_run, model, num_particles, num_chains=num_chains, batch_size=batch_size)
    value, error = summed_up(result)
    stored = energy.log_normalizer or 0.0  # was taken off on the way
    levels = result.num_levels_run
    a_level = scheme.evaluations_per_level(bridge, result.levels)
    total = None if a_level is None else (1 + a_level * levels) * num_particles * num_chains
    return Normalizer(
        value + stored,
        error,
        f"{type(scheme).__name__}, {num_chains} clouds of {num_particles} particles, {levels} levels",
        None if total is None else round(total),
    )


def summed_up(result: SMCResult) -> tuple[float, float]:
    """Log evidence of several clouds together, and its standard error: theirs, or that of their spread."""
    log_z = np.asarray(result.log_evidence, float)
    ratio = np.exp(log_z - log_z.max())
    across = ratio.std(ddof=1) / ratio.mean()
    own = np.sqrt(np.mean(np.asarray(result.log_evidence_error, float) ** 2))
    error = float(max(across, own)) / math.sqrt(len(log_z))
    return float(log_mean_exp(result.log_evidence)), error
