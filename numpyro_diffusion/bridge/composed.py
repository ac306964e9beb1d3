r"""Compositions of scores without a density: their parts, and their Gaussian integral at high noise."""

import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._typing import Array, Scalar
from ..energies import AbstractDenoiser, AbstractEnergy, Composed, ComposedDenoiser, added_variance

__all__ = ["log_integral", "powers", "scores", "value_and_score"]


def powers(sampler: AbstractDenoiser) -> tuple[float, ...]:
    """Exponents of the parts; empty for a single distribution.

    Raises:
        ValueError: If one is a function of the time.
    """
    if not isinstance(sampler, Composed | ComposedDenoiser):
        return ()
    if any(callable(power) for power in sampler.powers):
        raise ValueError(
            "powers that change with the time weigh by densities, which scores do not give. Use "
            "numbers, or a "
            f"scheme that needs energies, such as `ReverseDiffusion`. {_faq.compositions}"
        )
    return tuple(float(power) for power in sampler.powers)  # pyright: ignore[reportArgumentType]


def value_and_score(sampler: AbstractDenoiser, u: Array, t: Scalar) -> tuple[Scalar, Array]:
    r"""$\log p_t(u)$ of an energy, 0 of what has none, and $\nabla_u \log p_t(u)$, from one evaluation."""
    if not isinstance(sampler, AbstractEnergy):
        return jnp.zeros(()), sampler.data_score(u, t)
    own = type(sampler)
    if own.data_score is AbstractEnergy.data_score and own.score is AbstractEnergy.score:
        return sampler.log_density_and_score(u, t)
    return sampler.log_density(u, t), sampler.data_score(u, t)


def scores(sampler: AbstractDenoiser, u: Array, t: Scalar) -> tuple[Scalar, Array, Array]:
    r"""$\sum_i \beta_i \log p_{i,t}(u)$ of those parts that are energies, $\nabla_u \log p_{i,t}(u)$ of all
    parts, and the denoised mean of the composition.
    """
    assert isinstance(sampler, Composed | ComposedDenoiser)
    values, parts = zip(*(value_and_score(e, u, t) for e in sampler.energies), strict=True)
    each, beta = jnp.stack(parts), powers(sampler)
    value = sum((b * v for b, v in zip(beta, values, strict=True)), jnp.zeros(()))
    total = jnp.tensordot(jnp.asarray(beta, u.dtype), each, 1)
    return value, each, u + added_variance(sampler, t).astype(u.dtype) * total


def log_integral(sampler: AbstractDenoiser) -> Scalar | float:
    r"""$\log \int \prod_i p_i^{\beta_i}$ at `t_max`, each $p_i$ the Gaussian of its moments; 0 for one
    distribution.

    In units of the data, less the $d (\sum_i \beta_i - 1) \log \alpha$ by which the product of densities of
    $x_t$ and of $u_t$ differ at `t_min`, so that evidences from scores and from energies compare.
    """
    exponents = powers(sampler)
    if not exponents:
        return 0.0
    assert isinstance(sampler, Composed | ComposedDenoiser)
    t, beta = jnp.asarray(sampler.t_max), np.asarray(exponents)
    alpha_end, _ = sampler.schedule(jnp.asarray(sampler.t_min))
    moments = [e.data_moments(t) for e in sampler.energies]
    m = jnp.stack([jnp.broadcast_to(mean, sampler.shape) for mean, _ in moments])
    v = jnp.stack([jnp.broadcast_to(v, sampler.shape) for _, v in moments])
    along = lambda values: jnp.tensordot(beta, values, 1)
    precision, linear = along(1 / v), along(m / v)
    logs = along(-0.5 * jnp.log(2 * jnp.pi * v) - 0.5 * m**2 / v)
    logs = logs + 0.5 * jnp.log(2 * jnp.pi / precision) + 0.5 * linear**2 / precision
    return jnp.sum(logs) + logs.size * (1 - beta.sum()) * jnp.log(alpha_end)
