"""Random bits from small programs: JAX's Threefry generator, unrolled where it compiles to loops.

On CPUs every draw, split and fold of a key becomes a loop of many compiled kernels. Here the same twenty
rounds are one expression. The bits are the same.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl

from . import _faq
from ._typing import Array, PRNGKey

__all__ = ["alike", "check_key", "lean", "threefry"]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


@partial(jax.jit, inline=False)
def _threefry(first: Array, second: Array, count: Array) -> tuple[Array, Array]:
    """Threefry-2x32 of 20 rounds of the counter `(0, count)` under the key `(first, second)`.

    References:
        Salmon et al. (2011), Parallel random numbers: as easy as 1, 2, 3, SC11.
    """
    whole = lambda number: jnp.broadcast_to(number, count.shape)
    keys = (first, second, first ^ second ^ _PARITY)
    wide = [whole(key) for key in keys]
    left = {by: whole(np.uint32(by)) for by in sum(_ROTATIONS, ())}
    right = {by: whole(np.uint32(32 - by)) for by in left}
    x, y = wide[0], count + wide[1]
    for group in range(5):
        for by in _ROTATIONS[group % 2]:
            x = x + y
            turned = jax.lax.shift_left(y, left[by]) | jax.lax.shift_right_logical(y, right[by])
            y = x ^ turned
        x = x + wide[(group + 1) % 3]
        y = y + whole(keys[(group + 2) % 3] + np.uint32(group + 1))
    return x, y


def _counts(shape: tuple[int, ...]) -> Array:
    return jax.lax.iota(np.uint32, int(np.prod(shape))).reshape(shape)


def _seed(seed: Array) -> Array:
    return jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))


def _split(key: Array, shape: tuple[int, ...]) -> Array:
    return jnp.stack(_threefry(key[0], key[1], _counts(shape)), -1)


def _fold_in(key: Array, data: Any) -> Array:
    return jnp.stack(_threefry(key[0], key[1], jnp.asarray(data).astype(np.uint32)))


def _random_bits(key: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
    high, low = _threefry(key[0], key[1], _counts(shape))
    if bit_width == 64:
        return (high.astype(np.uint64) << np.uint64(32)) | low.astype(np.uint64)
    return (high ^ low).astype(np.dtype(f"uint{bit_width}"))


_UNROLLED = define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="threefry2x32_unrolled",
    tag="fry_unrolled",
)


def check_key(key: Any) -> PRNGKey:
    """The key; refuses anything else, such as the seed it would be made from."""
    dtype, axes = getattr(key, "dtype", None), len(getattr(key, "shape", ()))
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if axes != (0 if typed else 1) or not (typed or dtype == np.uint32):
        raise TypeError(
            f"`key` must be one PRNG key, such as `jax.random.key(0)`; got {key!r}. {_faq.keys}"
        )
    return key


def lean(key: PRNGKey) -> PRNGKey:
    """A key, or an array of keys, with the same bits from a smaller program; other generators stay.

    Not for training: XLA merges the unrolled rounds into every kernel that draws, and a step of `fit`, which
    draws much, then compiles far more slowly.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if jax.default_backend() != "cpu" or str(jax.random.key_impl(key)) != "threefry2x32":
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_UNROLLED)


def alike(key: PRNGKey, other: PRNGKey) -> PRNGKey:
    """A key in the form that another has: what `lean` did is undone."""
    if not jnp.issubdtype(other.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(key)
    if key.dtype == other.dtype:
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=jax.random.key_impl(other))


def threefry(key: PRNGKey) -> PRNGKey:
    """A key of one kind whatever the generator of `key`, since a settled program knows one kind."""
    new = lean(key)
    if str(jax.random.key_impl(new)).startswith("threefry2x32"):
        return new
    words = jax.random.bits(key, (2,), np.uint32)
    return lean(jax.random.wrap_key_data(words, impl="threefry2x32"))
