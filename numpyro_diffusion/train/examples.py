"""Training examples and their weights, as they must be."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .. import _faq
from .._numbers import real_array
from .._typing import Array

__all__ = ["check_batch", "check_examples", "check_weights"]


def check_weights(weights: Any, num: int) -> Array:
    """Weights of examples, at most 1 and some above 0, or an error that says what to do."""
    sizes = real_array("weights", weights, f"of shape ({num},), one an example", finite=False)
    if sizes.shape != (num,) or not (np.isfinite(sizes) & (sizes >= 0)).all() or sizes.max() == 0:
        raise ValueError(
            f"`weights` must be {num} finite numbers, not negative and not all 0, one an example; got "
            f"shape {sizes.shape}. For weights exp(r), subtract the largest r first. {_faq.finite}"
        )
    return jnp.asarray(sizes / sizes.max())


def check_examples(data: Any, shape: tuple[int, ...], what: str, numpy: Any = jnp) -> Any:
    """Floating, finite examples of the right shape, or an error that says what to do."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(data)):
        raise TypeError(
            f"`{what}` must be numbers that are known; got traced ones. Call this outside of `jit`, `vmap` "
            f"and `grad`. {_faq.examples}"
        )
    try:
        array = np.asarray(data)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`{what}` must be one array; its parts differ in shape or kind. {_faq.examples}"
        ) from error
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(
            f"`{what}` must be floating; got {array.dtype}. Convert and scale it to order one, "
            f"e.g. `images / 8.0 - 1.0` for grey values 0 to 16. {_faq.real_numbers}"
        )
    if array.shape[1:] != shape or len(array) == 0:
        raise ValueError(
            f"`{what}` must have shape (num, {', '.join(map(str, shape))}) with num >= 1 to match the "
            f"energy; got {array.shape}. Put examples along the first axis. {_faq.examples}"
        )
    bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1))
    if len(bad):
        raise ValueError(
            f"`{what}` must be finite; {len(bad)} of {len(array)} examples are not (first: "
            f"{bad[0]}). Drop or impute them. {_faq.finite}"
        )
    return numpy.asarray(array)


def check_batch(model: Any, data: Any, what: str = "data") -> Array:
    """Examples that a loss is asked about, traced or not: floating, and of the shape of the model.

    Another shape would be broadcast, and the loss a number of something else.

    Raises:
        TypeError: If the model has no shape, or examples are not floating.
        ValueError: If shapes disagree, or there is no example.
    """
    if not isinstance(getattr(model, "shape", None), tuple):
        raise TypeError(
            f"a loss is one of an energy or a denoiser; got {model!r:.60}. {_faq.examples}"
        )
    data, shape = jnp.asarray(data), model.shape
    if not jnp.issubdtype(data.dtype, jnp.floating):
        raise TypeError(
            f"`{what}` must be floating; got {data.dtype}. Convert and scale it. {_faq.examples}"
        )
    if data.shape[1:] != shape or data.ndim == 0 or len(data) == 0:
        raise ValueError(
            f"`{what}` must have shape (num, {', '.join(map(str, shape))}) with num >= 1 to match the "
            f"energy; got {data.shape}. Put examples along the first axis. {_faq.examples}"
        )
    return data
