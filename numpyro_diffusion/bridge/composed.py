r"""Compositions of scores without a density: their parts, and their Gaussian integral at high noise."""

import jax.numpy as jnp
import numpy as np

from .._typing import Array, Scalar
from ..energies import AbstractDenoiser, Composed, ComposedDenoiser, added_variance

__all__ = ["log_integral", "powers", "scores"]


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
            "scheme that needs energies, such as `ReverseDiffusion`."
        )
    return tuple(float(power) for power in sampler.powers)  # pyright: ignore[reportArgumentType]


def scores(sampler: AbstractDenoiser, u: Array, t: Scalar) -> tuple[Array, Array]:
    r"""$\nabla_u \log p_{i,t}(u)$ of all parts, and the denoised mean of the composition."""
    assert isinstance(sampler, Composed | ComposedDenoiser)
    each = jnp.stack([e.data_score(u, t) for e in sampler.energies])
    total = jnp.tensordot(jnp.asarray(powers(sampler), u.dtype), each, 1)
    return each, u + added_variance(sampler, t).astype(u.dtype) * total


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
