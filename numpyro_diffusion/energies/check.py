r"""Numerical checks that an energy is a density whose gradient is its score.

A sampler that is handed values from one distribution and gradients from another gives wrong answers without a
sign of trouble, so this is worth the second it takes, once, for every energy from outside.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._prng import check_key
from .._typing import Array, PRNGKey, Scalar
from ..schedules import AbstractSchedule
from .energy import AbstractEnergy

__all__ = ["check_energy", "check_has_density"]


# Two quadrature rules on [-1, 1]: their difference tells how well either integrates.
RULES = [np.polynomial.legendre.leggauss(order) for order in (12, 20)]


@eqx.filter_jit
def measure(energy: AbstractEnergy, x: Array, t: Scalar, direction: Array):
    """Energy, score, denoised value; energies at both ends and slopes at the nodes of a segment."""
    # All points in one batch, so that the energy is compiled once.
    nodes = np.concatenate([[0.0, -1.0, 1.0], *(nodes for nodes, _ in RULES)])
    at = lambda r: energy.energy_and_score(x + r * direction, t)
    values, scores = jax.vmap(at)(jnp.asarray(nodes, x.dtype))
    slopes = jax.vmap(lambda score: jnp.sum(score * direction))(scores[3:])
    coarse = len(RULES[0][0])
    x_hat = energy.denoise(x, t)
    return values[0], scores[0], x_hat, values[1:3], [slopes[:coarse], slopes[coarse:]]


@eqx.filter_jit
def _segment(schedule: AbstractSchedule, x: Array, t: Scalar, key: PRNGKey):
    """Signal, noise and a random direction of about the noise level in length."""
    alpha_t, sigma_t = schedule(t)
    return alpha_t, sigma_t, 0.5 * sigma_t * jax.random.normal(key, x.shape, x.dtype)


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
    key = check_key(key)
    if not isinstance(energy, AbstractEnergy):
        raise TypeError(
            f"`check_energy` expects an energy; got {type(energy).__name__}. A score alone has no "
            f"density to check; wrap a callable energy in `EnergyFunction`. {_faq.score_only}"
        )
    name, x = type(energy).__name__, jnp.asarray(x)
    t = jnp.asarray(t, x.dtype)
    form = jax.eval_shape(energy.energy, x, t)
    if form.shape != () or form.dtype != x.dtype:
        raise ValueError(
            f"the energy of `{name}` must have shape () and the type {x.dtype} of `x`; got "
            f"{form.shape} and {form.dtype}. Sum over the example; do not fix types "
            f"inside. {_faq.network}"
        )
    alpha_t, sigma_t, direction = _segment(energy.schedule, x, t, key)
    found = measure(energy, x, t, direction)
    precision = float(jnp.finfo(x.dtype).eps)
    # From here on in NumPy and 64 bits, which compile nothing.
    seen = jax.tree.map(
        lambda a: np.asarray(a).astype(float), (x, alpha_t, sigma_t, direction, found)
    )
    x, alpha_t, sigma_t, direction, (value, score, x_hat, ends, slopes) = seen
    for what, got in (("energy", value), ("score", score)):
        if not np.all(np.isfinite(got)):
            raise ValueError(
                f"the {what} of `{name}` is not finite at t = {float(t):.4g}: got {got}. Look for a "
                f"division by a vanishing sigma or a logarithm of zero. {_faq.inconsistent}"
            )

    coarse, fine = (float(w @ each) for (_, w), each in zip(RULES, slopes, strict=True))
    rise = float(ends[1] - ends[0]) + 0.0  # no minus zero
    discrepancy = abs(rise + fine)
    # An energy is a sum over the example; its terms may be far larger than the sum itself, and a
    # rounded position moves each of them by its slope.
    size = abs(float(value)) + float(RULES[1][1] @ np.abs(slopes[1])) + x.size
    moved = float(np.sum(np.abs(score) * (np.abs(x) + np.abs(direction))))
    rounding = precision * (64 * size + 8 * moved)
    if not discrepancy <= rounding + 10 * abs(fine - coarse):
        raise ValueError(
            f"the energy of `{name}` and its score disagree at t = {float(t):.4g}: along one segment "
            f"the energy rises by {rise:.6g} nats and the score says {-fine:.6g} (discrepancy "
            f"{discrepancy:.2g}, rounding {rounding:.2g}). Metropolis steps would accept wrongly; let "
            f"`jax.grad` of the energy be the score. {_faq.inconsistent}"
        )

    error = float(np.max(np.abs(x_hat - (x + sigma_t**2 * score) / alpha_t)))
    terms = float(np.max(np.abs(x) + sigma_t**2 * np.abs(score)) / alpha_t)
    if not error <= 256 * precision * math.sqrt(x.size) * terms:
        raise ValueError(
            f"`{name}.denoise` is not Tweedie's formula of its score at t = {float(t):.4g}: they "
            f"differ by {error:.2g}. Drop the override of `denoise`. {_faq.inconsistent}"
        )
    return discrepancy


def check_has_density(name: str, energy: object) -> None:
    """Refuse a score alone."""
    if not isinstance(energy, AbstractEnergy):
        remedy = "A score alone has no density, so there is no integral to normalise."
        if isinstance(getattr(energy, "energy", None), AbstractEnergy):
            remedy = "Pass its `energy`, which is one in standard units."
        raise TypeError(
            f"`{name}` expects an energy; got {type(energy).__name__}. {remedy} {_faq.score_only}"
        )
