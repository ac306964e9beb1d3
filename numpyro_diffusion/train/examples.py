"""Training examples and their weights, as they must be."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._typing import Array

__all__ = ["check_examples", "check_weights"]


def check_weights(weights: Any, num: int) -> Array:
    """Weights of examples, at most 1 and some above 0, or an error that says what to do."""
    sizes = np.asarray(weights, float)
    if sizes.shape != (num,) or not (np.isfinite(sizes) & (sizes >= 0)).all() or sizes.max() == 0:
        raise ValueError(
            f"`weights` must be {num} finite numbers, not negative and not all 0, one an example; got "
            f"shape {sizes.shape}. For weights exp(r), subtract the largest r first. {_faq.finite}"
        )
    return jnp.asarray(sizes / sizes.max())


def check_examples(data: Any, shape: tuple[int, ...], what: str, numpy: Any = jnp) -> Any:
    """Floating, finite examples of the right shape, or an error that says what to do."""
    array = np.asarray(data)
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
