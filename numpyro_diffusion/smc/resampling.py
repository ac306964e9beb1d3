"""Schemes of resampling, by name, and systematic resampling."""

from collections.abc import Callable
from typing import Any

import blackjax.smc.resampling as resampling
import jax
import jax.numpy as jnp

from .. import _faq
from .._typing import Array, PRNGKey

__all__ = ["check_threshold", "scheme_of", "systematic"]

_SMALL = 512


def systematic(key: PRNGKey, weights: Array, num_samples: int) -> Array:
    r"""Indices of an equally weighted cloud: those in whose share of the weight a $(k + u) / n$ falls.

    One uniform number $u$ for all, so that an index with weight $w$ is drawn $\lfloor n w \rfloor$ or
    $\lceil n w \rceil$ times. For up to 512 particles sums and searches are one comparison of all with all,
    a fraction of the compiled program of BlackJAX's, which serves larger clouds.

    Args:
        key: PRNG key.
        weights: Shape `(num,)`, summing to 1.
        num_samples: Number of indices.

    References:
        Kitagawa (1996), Monte Carlo filter and smoother for non-Gaussian nonlinear state space models, JCGS.
    """
    num = weights.shape[0]
    if num * num_samples > _SMALL**2:
        return resampling.systematic(key, weights, num_samples)
    u = jax.random.uniform(key, (), weights.dtype)
    points = (jnp.arange(num_samples, dtype=weights.dtype) + u) / num_samples
    place = jnp.arange(num)
    below = jnp.where(place[:, None] >= place, weights, 0.0)
    ends = jnp.sum(below, 1)
    index = jnp.sum(ends[None, :] < points[:, None], 1)
    return jnp.minimum(index, num - 1)


_SCHEMES: dict[str, Callable] = {
    "systematic": systematic,
    "stratified": resampling.stratified,
    "multinomial": resampling.multinomial,
    "residual": resampling.residual,
}


def scheme_of(resampling: Any) -> Callable[[PRNGKey, Array, int], Array]:
    """The resampler of a name; a function stays as it is.

    Raises:
        ValueError: If there is none of that name.
        TypeError: If it is neither name nor function.

    References:
        Douc, Cappé & Moulines (2005), Comparison of resampling schemes for particle filtering, ISPA.
    """
    if isinstance(resampling, str):
        if resampling not in _SCHEMES:
            raise ValueError(
                f"`resampling` is one of {sorted(_SCHEMES)}, or a function; got "
                f"{resampling!r}. {_faq.choices}"
            )
        return _SCHEMES[resampling]
    if isinstance(resampling, type) or not callable(resampling):
        raise TypeError(
            f"`resampling` is one of {sorted(_SCHEMES)}, or a function `(key, weights, num_samples) -> "
            "indices` such as `blackjax.smc.resampling.stratified`; got "
            f"{type(resampling).__name__}. {_faq.choices}"
        )
    return resampling  # type: ignore[return-value]


def check_threshold(threshold: Any) -> float:
    """A share of the particles in [0, 1].

    Raises:
        ValueError: If it is another number.
        TypeError: If it is no number.
    """
    if isinstance(threshold, bool | str) or threshold is None or jnp.ndim(threshold):
        raise TypeError(
            f"`threshold` is a share of the particles in [0, 1]; got {threshold!r}. {_faq.numbers}"
        )
    if not 0 <= threshold <= 1:
        raise ValueError(
            f"`threshold` is a share of the particles in [0, 1]; got {threshold}. At 0 particles are never "
            f"resampled, at 1 at every level. {_faq.numbers}"
        )
    return threshold
