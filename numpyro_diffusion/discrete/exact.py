"""Exact probabilities of a masked diffusion over few tokens, by enumeration."""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._arguments import check_instance, whole_numbers, whole_or_none
from .._typing import Array
from .energies import ResidualEnergy, check_energy_function
from .masked import MaskedDiffusion, reveals
from .sample import check_window, within

__all__ = ["all_examples", "log_mass"]

_MOST = 2**22  # pairs of a set of tokens that are seen and an example


def all_examples(num_tokens: int, num_values: int) -> np.ndarray:
    """All examples in order, integers of shape `(num_values**num_tokens, num_tokens)`."""
    num_tokens, num_values = whole_numbers(1, num_tokens=num_tokens, num_values=num_values)
    grid = np.indices((num_values,) * num_tokens, np.int32)
    return grid.reshape(num_tokens, -1).T


def log_mass(
    model: MaskedDiffusion,
    energy: ResidualEnergy | None = None,
    *,
    steps: int | None = None,
    window: tuple[float, float] = (0.0, 1.0),
) -> Array:
    r"""Log mass of every example under the chain of `masked_chain`, by a sum over all orders of revealing.

    Over sets of tokens that are seen, the mass of what is seen is passed on to larger sets,

    $$\mu(x_{S \cup B}) \mathrel{+}= \binom{D - |S|}{|B|}^{-1} \mu(x_S)
    \sum_{x_R} p_\theta(x_B, x_R \mid x_S)\, e^{-E} ,$$

    with $B$ what a step reveals and $R$ what remains masked. Without an energy masses are probabilities.
    With one they add up to the chain's normaliser, which is 1 where each $Z(x_t)$ is.

    Args:
        model: The masked diffusion.
        energy: The residual energy; none by default.
        steps: Steps; one a token by default.
        window: As of `masked_chain`.

    Returns:
        Log masses, one axis a token: shape `(num_values,) * num_tokens`.

    Raises:
        ValueError: If there are more than 2^22 pairs of a set of tokens and an example.
    """
    steps = whole_or_none("steps", steps, 1)
    check_instance("model", model, MaskedDiffusion, "MaskedDiffusion(...)", optional=False)
    check_energy_function(energy)
    size, values = model.num_tokens, model.num_values
    if 2**size * values**size > _MOST:
        raise ValueError(
            f"expected few tokens to enumerate, at most 2^22 pairs of a set of tokens and an example; got "
            f"{2 * values}^{size}. Sample instead: `sample_tokens`, `masked_chain`, "
            f"`sample_posterior`. {_faq.many_values}"
        )
    ends = reveals(size, steps)
    uses = within(ends[:-1], size, check_window(window)) & (energy is not None)
    examples = jnp.asarray(all_examples(size, values))
    mass: dict[tuple[int, ...], Any] = {(): np.ones((1,) * size)}
    for before, after, used in zip(ends[:-1], ends[1:], uses, strict=True):
        passed: dict[tuple[int, ...], Any] = {}
        for seen, mass_seen in mass.items():
            hidden = [i for i in range(size) if i not in seen]
            is_seen = jnp.isin(jnp.arange(size), jnp.asarray(seen, int))
            kernel = _kernel(model, energy if used else None, examples, is_seen)
            joint = mass_seen * np.exp(np.asarray(kernel, float)).reshape((values,) * size)
            blocks = list(itertools.combinations(hidden, int(after - before)))
            for block in blocks:
                rest = tuple(i for i in hidden if i not in block)
                now = tuple(sorted((*seen, *block)))
                part = joint.sum(rest, keepdims=True) / len(blocks)
                passed[now] = passed.get(now, 0.0) + part
        mass = passed
    with np.errstate(divide="ignore"):
        return jnp.log(mass[tuple(range(size))])


@eqx.filter_jit
def _kernel(model, energy, examples, is_seen) -> Array:
    r"""$\log p_\theta(x_0 \mid x_t) - E(x_0, x_t)$ of all examples, each with the same tokens seen."""

    def one(x):
        x_t = jnp.where(is_seen, x, model.mask)
        value = model.log_prob_given(x, x_t)
        return value if energy is None else value - energy(x, x_t)

    return jax.lax.map(one, examples, batch_size=1024)
