"""Functions of one draw over all draws of a run, as one program that the next call finds compiled."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._staging import brief_jit, settle
from .._typing import Array, PyTree
from .tracing import tracing

__all__ = ["each_draw"]

_AT_ONCE = 256  # which bounds memory


def each_draw(function: Callable[..., PyTree], axes: tuple[int, ...], *draws: PyTree) -> PyTree:
    """Results of a function of one draw, for all draws, with their axes in front.

    The function, such as a run of the user's model, is traced at every call and compiled only if it does
    something else than before; arrays that it reads are data.

    Args:
        function: `(*draw) -> results`.
        axes: Shape of the axes that all leaves of `draws` lead with.
        *draws: Its arguments.
    """
    with tracing:
        program = settle(lambda *given: _batched(function, axes, given), *draws)
    return _run(program, draws)


def _batched(function: Callable[..., PyTree], axes: tuple[int, ...], draws: tuple) -> PyTree:
    count = 1
    for length in axes:
        count *= length
    # Batches of one length, the last filled up, so that the function is compiled once.
    batches = -(-count // _AT_ONCE)
    size = -(-count // batches)

    def rows(leaf: Array) -> Array:
        flat = leaf.reshape(count, *leaf.shape[len(axes) :])
        index = jnp.minimum(jnp.arange(batches * size), count - 1)
        return flat[index].reshape(batches, size, *flat.shape[1:])

    batch = jax.vmap(lambda draw: function(*draw))
    cut = jax.tree.map(rows, draws)
    if batches == 1:
        found = jax.tree.map(lambda leaf: leaf[None], batch(jax.tree.map(lambda a: a[0], cut)))
    else:
        found = jax.lax.map(batch, cut)
    together = lambda leaf: leaf.reshape(batches * size, *leaf.shape[2:])[:count]
    return jax.tree.map(lambda leaf: together(leaf).reshape(*axes, *leaf.shape[2:]), found)


@brief_jit
def _run(program: Any, draws: tuple) -> PyTree:
    return program(*draws)
