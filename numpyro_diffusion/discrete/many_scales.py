"""Random-walk Metropolis with a step size that is drawn anew for each proposal."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ..smc.moves import Move
from ..smc.moves.placed import Place, PlacedMove

__all__ = ["many_scales"]

_HALVINGS = 7


class _ManyScales(PlacedMove):
    """Random walks of all lengths between twice a scale and a 64th of it."""

    scale: Any
    evaluations = 1  # type: ignore[assignment]
    target_acceptance = 1.0  # type: ignore[assignment]
    name = "many_scales"  # type: ignore[assignment]

    @property
    def keeps_gradient(self) -> bool:
        """No: it uses none."""
        return False

    @property
    def targets(self) -> np.ndarray:
        """It is not tuned."""
        return np.ones(1)

    def walk(self, key, place, logdensity_fn, step_sizes, preconditioner):
        """Propose, and accept with the ratio of the densities: a mixture of symmetric kernels is one."""
        del preconditioner
        key_draw, key_size, key_accept = jax.random.split(key, 3)
        flat, restore = ravel_pytree(place.z)
        power = jax.random.uniform(key_size, dtype=flat.dtype, minval=-_HALVINGS, maxval=1.0)
        length = step_sizes[0] * 2.0**power / flat.size**0.5
        scales, _ = ravel_pytree(self.scale)
        new = restore(flat + length * scales * jax.random.normal(key_draw, flat.shape, flat.dtype))
        value = logdensity_fn(new)
        ratio = jnp.where(jnp.isnan(value), -jnp.inf, value - place.value)
        accepted = jnp.log(jax.random.uniform(key_accept, dtype=flat.dtype)) < ratio
        z, value = jax.tree.map(
            lambda a, b: jnp.where(accepted, a, b), (new, value), (place.z, place.value)
        )
        rate = jnp.minimum(1.0, jnp.exp(ratio))
        return Place(z, value, None), rate, rate[None]


def many_scales(scale: Any) -> Move:
    r"""Random-walk Metropolis whose proposals are of all sizes: nothing to tune.

    The standard deviation of a proposal is $2^u s / \sqrt d$ with $u$ uniform in $[-7, 1]$, $s$ the scale
    of each of $d$ coordinates. It costs a few times the moves of a step size that fits, whichever fits.

    Args:
        scale: By site, such as standard deviations of the prior.
    """
    return _ManyScales(scale)
