"""Flags of log densities that are NaN or +inf, by site."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._typing import Scalar

__all__ = ["NonFinite", "either", "looked_at", "non_finite", "settled"]


class NonFinite(NamedTuple):
    """Indicators of NaN and of +inf log densities, by site: flags, shares or counts, all of one shape."""

    nan: dict[str, Any]
    infinite: dict[str, Any]


def non_finite(sites: Mapping[str, Scalar]) -> NonFinite:
    """Flags of the log densities of some sites."""
    return NonFinite(
        {name: jnp.isnan(value) for name, value in sites.items()},
        {name: jnp.isposinf(value) for name, value in sites.items()},
    )


def looked_at(wrong: Scalar, look: Callable[[], NonFinite]) -> NonFinite:
    """Result of `look` where something is wrong; nothing elsewhere, and at no cost.

    A loop of one round or none: of several chains in one program it is run only if one of them is wrong.
    """
    none = jax.tree.map(lambda flag: jnp.zeros(flag.shape, bool), jax.eval_shape(look))
    return jax.lax.while_loop(
        lambda carry: carry[0],
        lambda carry: (jnp.zeros_like(carry[0]), look()),
        (jnp.asarray(wrong), none),
    )[1]


def settled(flags: NonFinite, early: Scalar) -> NonFinite:
    """Drop NaN found early in warm-up, where steps that are still too long end anywhere."""
    return flags._replace(nan=jax.tree.map(lambda flag: flag & ~early, flags.nan))


def either(*flags: NonFinite) -> NonFinite:
    """Union of several indicators of the same sites."""
    return jax.tree.map(lambda *each: jnp.stack(each).any(0), *flags)
