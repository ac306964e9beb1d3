"""Chains of an MCMC kernel a chunk of steps at a time, by one program, however chains are mapped."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.util import is_prng_key

from .. import _faq
from .._prng import check_key
from .._typing import PyTree

__all__ = ["check_by_chain", "over_chains", "several_steps"]


def check_by_chain(num_chains: int, rng_key: Any, init_params: Any) -> None:
    """Refuse what is neither a key nor one for each chain, and values to start from of another number.

    Raises:
        TypeError: If there is no key.
        ValueError: If numbers of chains differ.
    """
    if not isinstance(rng_key, jax.Array) or is_prng_key(rng_key):
        check_key(rng_key)
        lengths = {}
    else:
        lengths = {"keys": len(rng_key)}
    if num_chains > 1:
        for path, leaf in jax.tree_util.tree_flatten_with_path(init_params)[0]:
            lengths[f"init_params{jax.tree_util.keystr(path)}"] = (*jnp.shape(leaf), 0)[0]
    for name, length in lengths.items():
        if length != num_chains:
            raise ValueError(
                f"expected one for each of the {num_chains} chains along the first axis of `{name}`; got "
                f"{length}. Give as many, or another `num_chains`. {_faq.shapes}"
            )


def several_steps(
    sampler: Any,
    row: Callable[[Any], PyTree],
    args: tuple,
    kwargs: dict[str, Any],
    size: int,
    state: Any,
    each: Any,
    count: Any,
) -> tuple[Any, PyTree]:
    """`count` of `size` rows, one after every `each` steps: one program for warm-up and draws."""

    def body(k, carry):
        state, rows = carry
        state = jax.lax.fori_loop(0, each, lambda _, s: sampler.sample(s, args, kwargs), state)
        return state, jax.tree.map(lambda whole, one: whole.at[k].set(one), rows, row(state))

    shapes = jax.eval_shape(row, state)
    rows = jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), shapes)
    return jax.lax.fori_loop(0, count, body, (state, rows))


def over_chains(steps: Callable, method: Any, num_chains: int, together: bool) -> Callable:
    """The same for all chains: `(states, each, count) -> (states, rows)`, rows by chain and draw.

    Args:
        steps: `several_steps` of a kernel.
        method: The `chain_method` of `MCMC`.
        num_chains: Number of chains.
        together: Whether all chains are one state of the kernel.
    """
    if together:
        many = jax.jit(steps)
        first = lambda leaf: leaf[None] if num_chains == 1 else jnp.swapaxes(leaf, 0, 1)

        def call(state, each, count):
            state, rows = many(state, each, count)
            return state, jax.tree.map(first, rows)

        return call
    if method == "parallel":
        return jax.pmap(steps, in_axes=(0, None, None))
    if not isinstance(method, str):
        return jax.jit(lambda state, *numbers: method(lambda one: steps(one, *numbers))(state))
    many = jax.jit(steps)

    def one_by_one(states, each, count):
        chains = [
            many(jax.tree.map(lambda leaf, i=i: leaf[i], states), each, count)
            for i in range(num_chains)
        ]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *chains)

    return one_by_one
