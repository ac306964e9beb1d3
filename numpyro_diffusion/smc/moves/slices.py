r"""Elliptical slice sampling."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ... import _faq
from ..._typing import Array, Position, Scalar
from ..._written import alike, call, written
from .base import Move
from .placed import Place, PlacedMove

__all__ = ["elliptical_slice"]

_MOST = 50  # the bracket shrinks by a half each time, on average


class EllipticalSlice(PlacedMove):
    """Slice sampling on ellipses through the position and a draw of a Gaussian."""

    mean: Any
    scale: Any
    evaluations = None  # type: ignore[assignment]
    target_acceptance = 1.0  # type: ignore[assignment]
    name = "elliptical_slice"  # type: ignore[assignment]

    def __repr__(self) -> str:
        pairs = (("mean", self.mean, 0.0), ("scale", self.scale, 1.0))
        return call("elliptical_slice", {n: written(v) for n, v, own in pairs if not alike(v, own)})

    @property
    def keeps_gradient(self) -> bool:
        """No: it uses none."""
        return False

    @property
    def targets(self) -> np.ndarray:
        """It rejects nothing."""
        return np.ones(1)

    def gaussian(self, z: Position) -> tuple[Position, Position]:
        """Mean and standard deviation of each coordinate."""
        return _like(self.mean, z, "mean"), _like(self.scale, z, "scale")

    def walk(self, key, place, logdensity_fn, step_sizes, preconditioner):
        """Shrink a bracket of angles until a point on the ellipse is above the slice."""
        del step_sizes, preconditioner
        mean, scale = self.gaussian(place.z)
        key_draw, key_height, key_angle, key_shrink = jax.random.split(key, 4)
        leaves, structure = jax.tree.flatten(place.z)
        keys = structure.unflatten(list(jax.random.split(key_draw, len(leaves))))
        draw = jax.tree.map(
            lambda k, s, leaf: s * jax.random.normal(k, leaf.shape, leaf.dtype),
            keys,
            scale,
            place.z,
        )

        def log_gaussian(z):
            terms = jax.tree.map(lambda x, m, s: jnp.sum(((x - m) / s) ** 2), z, mean, scale)
            return -0.5 * sum(jax.tree.leaves(terms))

        def at(angle):
            c, s = jnp.cos(angle), jnp.sin(angle)
            return jax.tree.map(lambda x, m, d: m + c * (x - m) + s * d, place.z, mean, draw)

        height = (
            place.value
            - log_gaussian(place.z)
            + jnp.log(jax.random.uniform(key_height, dtype=place.value.dtype))
        )
        angle = 2 * jnp.pi * jax.random.uniform(key_angle, dtype=place.value.dtype)

        def look(angle):
            z = at(angle)
            value = logdensity_fn(z)
            return value, value - log_gaussian(z) > height

        def unfinished(carry):
            i, _, _, _, _, found = carry
            return ~found & (i < _MOST)

        def shrink(carry):
            i, low, high, angle, _, _ = carry
            low, high = jnp.where(angle < 0, angle, low), jnp.where(angle < 0, high, angle)
            key = jax.random.fold_in(key_shrink, i)
            angle = low + (high - low) * jax.random.uniform(key, dtype=low.dtype)
            return i + 1, low, high, angle, *look(angle)

        start = (0, angle - 2 * jnp.pi, angle, angle, *look(angle))
        _, _, _, angle, value, found = jax.lax.while_loop(unfinished, shrink, start)
        moved = jax.tree.map(lambda new, old: jnp.where(found, new, old), at(angle), place.z)
        one = jnp.ones((), place.value.dtype)
        return Place(moved, jnp.where(found, value, place.value), None), one, one[None]


def _like(value: Any, z: Position, what: str) -> Position:
    """One number for all coordinates, or values by site."""
    if not isinstance(value, dict):
        return jax.tree.map(lambda leaf: jnp.full_like(leaf, value), z)
    if set(value) != set(z):
        raise ValueError(
            f"`{what}` of `elliptical_slice` is given for the sites {sorted(value)}, but the move moves "
            f"{sorted(z)}. Name all of them, or restrict the move: "
            f"`on_sites(elliptical_slice(...), [...])`. {_faq.moves}"
        )
    return {n: jnp.broadcast_to(jnp.asarray(value[n], z[n].dtype), z[n].shape) for n in z}


def elliptical_slice(
    mean: Scalar | float | dict[str, Array] = 0.0, scale: Scalar | float | dict[str, Array] = 1.0
) -> Move:
    r"""Elliptical slice sampling: no gradient, no step size, no rejection.

    The density is taken apart into a Gaussian $\mathcal{N}(m, s^2)$ over unconstrained coordinates and the
    rest, which plays the likelihood. It is valid for any Gaussian and good where the Gaussian is the prior:
    for sites with standard normal priors, those of `nd.NoiseReparam` among them, leave both arguments out.

    Args:
        mean: One number, or values by site.
        scale: Standard deviations, likewise.

    Raises:
        ValueError: For a scale that is not above 0.

    References:
        Murray, Adams & MacKay (2010), Elliptical slice sampling, AISTATS. Nishihara, Murray & Adams (2014),
        Parallel MCMC with generalized elliptical slice sampling, JMLR, for other densities.
    """
    for leaf in jax.tree.leaves(scale):
        if not np.all(np.asarray(leaf) > 0) or not np.all(np.isfinite(np.asarray(leaf))):
            raise ValueError(
                f"`scale` holds standard deviations, above 0 and finite; got {leaf}. {_faq.moves}"
            )
    for leaf in jax.tree.leaves(mean):
        if not np.all(np.isfinite(np.asarray(leaf))):
            raise ValueError(f"`mean` holds finite numbers; got {leaf}. {_faq.moves}")
    return EllipticalSlice(mean, scale)
