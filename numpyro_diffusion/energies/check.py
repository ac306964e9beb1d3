r"""A check that an energy is what it says: a density whose gradient is the score.

A sampler that is handed values from one law and gradients from another gives wrong answers without a
sign of trouble, so this is worth the second it takes, once, for every energy from outside.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, PRNGKey, Scalar
from .base import AbstractEnergy

__all__ = ["check_energy"]


def check_energy(energy: AbstractEnergy, x: Array, t: Scalar, key: PRNGKey) -> float:
    r"""Check that density and gradient of an energy agree at one example.

    Along a segment of random direction through `x`, of about the noise level in length,
    $E(b) - E(a) = -\int_a^b \nabla \log p_t(x) \cdot dx$. The left side sees only values and the right
    side only scores (by Gauss-Legendre quadrature), and no step size needs to be small, so the check
    bites in float32 too. Values and scores must be finite, of the right shape and of the type of
    `x`, and `denoise` must be Tweedie's formula.

    Args:
        energy: The energy.
        x: One example, of shape `energy.shape`.
        t: Time, shape `()`.
        key: Chooses the direction.

    Returns:
        The discrepancy of the two sides in nats.

    Raises:
        TypeError: If `energy` is not an energy.
        ValueError: With the measured discrepancy, if anything disagrees.
    """
    if not isinstance(energy, AbstractEnergy):
        raise TypeError(
            f"`check_energy` expects an energy; got {type(energy).__name__}. A score alone has no "
            "density to check; wrap a callable energy in `EnergyFunction`."
        )
    name, x = type(energy).__name__, jnp.asarray(x)
    t = jnp.asarray(t, x.dtype)
    alpha_t, sigma_t = energy.schedule(t)
    value, score = eqx.filter_jit(energy.energy_and_score)(x, t)
    for what, got, shape in (("energy", value, ()), ("score", score, energy.shape)):
        if got.shape != shape or got.dtype != x.dtype:
            raise ValueError(
                f"the {what} of `{name}` must have shape {shape} and the type {x.dtype} of `x`; got "
                f"{got.shape} and {got.dtype}. Sum over the example; do not fix types inside."
            )
        if not bool(jnp.all(jnp.isfinite(got))):
            raise ValueError(
                f"the {what} of `{name}` is not finite at t = {float(t):.4g}: got {got}. Look for a "
                "division by a vanishing sigma or a logarithm of zero."
            )

    direction = 0.5 * sigma_t * jax.random.normal(key, x.shape, x.dtype)
    at = lambda r: x + r * direction
    ends = jnp.array([-1, 1], x.dtype)
    values, _ = eqx.filter_vmap(lambda r: energy.energy_and_score(at(r), t))(ends)
    slope = eqx.filter_jit(
        eqx.filter_vmap(lambda r: jnp.sum(energy.energy_and_score(at(r), t)[1] * direction))
    )
    integrals, size = [], 0.0
    for order in (12, 20):  # their difference tells how well either integrates
        nodes, weights = np.polynomial.legendre.leggauss(order)
        slopes = np.asarray(slope(jnp.asarray(nodes, x.dtype)), float)
        integrals.append(float(weights @ slopes))
        size = float(weights @ np.abs(slopes))
    rise = float(values[1]) - float(values[0])
    discrepancy = abs(rise + integrals[1])
    precision = float(jnp.finfo(x.dtype).eps)
    # An energy is a sum over the example of terms that may be far larger than the sum itself.
    rounding = precision * (abs(float(value)) + size + x.size) * 64
    rounding += precision * float(jnp.sum(jnp.abs(score) * (jnp.abs(x) + jnp.abs(direction)))) * 8
    if not discrepancy <= rounding + 10 * abs(integrals[1] - integrals[0]):
        raise ValueError(
            f"the energy of `{name}` and its score disagree at t = {float(t):.4g}: along one segment "
            f"the energy rises by {rise:.6g} nats and the score says {-integrals[1]:.6g} (discrepancy "
            f"{discrepancy:.2g}, rounding {rounding:.2g}). Metropolis steps would accept wrongly; let "
            "`jax.grad` of the energy be the score."
        )

    x_hat = eqx.filter_jit(energy.denoise)(x, t)
    tweedie = (x + sigma_t**2 * score) / alpha_t
    error = float(jnp.max(jnp.abs(x_hat - tweedie)))
    terms = jnp.abs(x) + sigma_t**2 * jnp.abs(score)
    if not error <= 256 * precision * math.sqrt(x.size) * float(jnp.max(terms) / alpha_t):
        raise ValueError(
            f"`{name}.denoise` is not Tweedie's formula of its score at t = {float(t):.4g}: they "
            f"differ by {error:.2g}. Drop the override of `denoise`."
        )
    return discrepancy
