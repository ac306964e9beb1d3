r"""The likelihood block of a split Gibbs sampler: independence Metropolis with a Laplace proposal.

The target is $p(y \mid v, \theta) \exp(-|v - x|^2 / 2 \rho^2)$. It is drawn from by an independence sampler,
a Gaussian with the gradient $g$ and the negative second derivative $F$ of the log likelihood at $x$,

$$v' \sim \mathcal{N}\big(x + P^{-1} g,\ P^{-1}\big), \qquad P = \rho^{-2} I + F,$$

with a Metropolis test. For linear Gaussian data this is the target, and every draw is accepted.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ..._finite import NonFinite, looked_at
from ..._typing import Array, PRNGKey, Scalar
from .blocks import near

__all__ = ["draw_seen"]


def draw_seen(
    key: PRNGKey,
    num_draws: int,
    seen: dict[str, Array],
    centre: dict[str, Array],
    noise: dict[str, Scalar],
    log_likelihood: Callable[[dict[str, Array]], Scalar],
    look: Callable[[dict[str, Array]], NonFinite],
) -> tuple[dict[str, Array], Scalar, Array, NonFinite]:
    """A few draws in a row, each from a proposal that looks at `centre` alone.

    Args:
        key: PRNG key.
        num_draws: Their number.
        seen: Where to start.
        centre: The value near by.
        noise: How near, by site.
        log_likelihood: Of what is seen.
        look: By site, whether it is NaN or +inf; asked of proposals where it is not finite.

    Returns:
        The last draw, the mean acceptance, the log likelihood of each draw, and what was met on the way.
    """
    at, unravel = ravel_pytree(centre)
    flat, _ = ravel_pytree(seen)
    precision, _ = ravel_pytree(
        {n: jnp.broadcast_to(1 / noise[n] ** 2, centre[n].shape) for n in seen}
    )
    precision = precision.astype(at.dtype)
    value = lambda v: log_likelihood(unravel(v))
    slope, bend = jax.grad(value)(at), -jax.hessian(value)(at)
    bend = jnp.nan_to_num(0.5 * (bend + bend.T), posinf=0.0, neginf=0.0)
    # Within units of the noise, where the prior's side is round; directions that bend up are left alone.
    unit = 1 / jnp.sqrt(precision)
    values, vectors = jnp.linalg.eigh(unit[:, None] * bend * unit)
    spread = 1 / jnp.sqrt(1 + jnp.maximum(values, 0.0))
    mean = vectors @ (spread**2 * (vectors.T @ (unit * jnp.nan_to_num(slope))))

    def excess(v):
        """Log density of the target less that of the proposal."""
        white = (vectors.T @ ((v - at) / unit - mean)) / spread
        log_density = value(v)
        gap = log_density + near(unravel(v), centre, noise) + 0.5 * jnp.sum(white**2)
        # +inf stays: a chain goes there at once, and is seen to stand there.
        return jnp.where(jnp.isnan(gap), -jnp.inf, gap), log_density

    def one(carry, key):
        v, gap, log_density = carry
        key_draw, key_accept = jax.random.split(key)
        white = jax.random.normal(key_draw, v.shape, v.dtype)
        new = at + unit * (mean + vectors @ (spread * white))
        new_gap, new_log_density = excess(new)
        # A start of density 0 is left at once.
        ratio = jnp.where(jnp.isneginf(gap), jnp.inf, new_gap - gap)
        accept = jnp.log(jax.random.uniform(key_accept)) < ratio
        pick = lambda a, b: jnp.where(accept, a, b)
        carry = pick(new, v), pick(new_gap, gap), pick(new_log_density, log_density)
        met = looked_at(~jnp.isfinite(new_log_density), lambda: look(unravel(new)))
        return carry, (jnp.minimum(1.0, jnp.exp(ratio)), carry[2], met)

    keys = jax.random.split(key, num_draws)
    (v, _, _), (acceptance, values, met) = jax.lax.scan(one, (flat, *excess(flat)), keys)
    return unravel(v), jnp.mean(acceptance), values, jax.tree.map(lambda flag: flag.any(0), met)
