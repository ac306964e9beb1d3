r"""Masked (absorbing) diffusion over tokens, with a denoiser that takes the tokens for independent.

A token keeps its value or is masked: at time $t$ each is masked with probability $t$,

$$q(x_t \mid x_0) = \prod_i \big[(1 - t)\, 1(x_t^i = x_0^i) + t\, 1(x_t^i = m)\big] .$$

What is known of the data at $x_t$ does not depend on $t$, so neither does the denoiser,
$p_\theta(x_0 \mid x_t) = \prod_i p_\theta(x_0^i \mid x_t)$, which leaves tokens that are not masked as they
are.
Backwards the masked tokens are revealed in random order, some at a step. With as many steps as tokens
that is the process in continuous time, seen at its jumps.

References:
    Austin, Johnson, Ho, Tarlow & van den Berg (2021), Structured denoising diffusion models in discrete
    state-spaces, NeurIPS, arXiv 2107.03006. Sahoo et al. (2024), Simple and effective masked diffusion
    language models, NeurIPS, arXiv 2406.07524.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._arguments import check_callable, check_counts, whole_number
from .._typing import Array, PRNGKey, Scalar

__all__ = ["MaskedDiffusion", "reveals"]


class MaskedDiffusion(eqx.Module):
    r"""A masked diffusion over `num_tokens` tokens of `num_values` values each.

    Tokens are integers 0, ..., `num_values - 1`; `num_values` itself is the mask.

    Attributes:
        denoiser: `x_t -> logits`: of integers of shape `(num_tokens,)` to numbers of shape
            `(num_tokens, num_values)`, the log probabilities of each token up to a constant. Such as
            `TokenNetwork(key, num_tokens, num_values)`.
        num_tokens: Length of an example.
        num_values: Values of a token, the mask not among them.

    Raises:
        TypeError: If the denoiser is no function.
        ValueError: If a number is out of range, or the logits have another shape.
    """

    denoiser: Callable[[Array], Array]
    num_tokens: int = eqx.field(static=True)
    num_values: int = eqx.field(static=True)

    def __check_init__(self):
        check_counts(self, num_tokens=1, num_values=2)
        check_callable("denoiser", self.denoiser, "`x_t -> logits`")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return (self.num_tokens,)

    @property
    def mask(self) -> int:
        """The integer that stands for a masked token."""
        return self.num_values

    @property
    def all_masked(self) -> Array:
        """Where the process ends, and sampling starts."""
        return jnp.full(self.shape, self.mask)

    def log_probs(self, x_t: Array) -> Array:
        r"""$\log p_\theta(x_0^i = v \mid x_t)$, shape `(num_tokens, num_values)`; 0 or $-\infty$ where the
        token is seen.
        """
        logits = jnp.asarray(self.denoiser(x_t))
        if logits.shape != (self.num_tokens, self.num_values):
            raise ValueError(
                f"`denoiser` must return logits of shape {(self.num_tokens, self.num_values)}, one row a "
                f"token without the mask; got {logits.shape}. {_faq.network}"
            )
        values = jnp.arange(self.num_values)
        seen = jnp.where(values == x_t[:, None], 0.0, -jnp.inf).astype(logits.dtype)
        return jnp.where((x_t < self.mask)[:, None], seen, jax.nn.log_softmax(logits, -1))

    def log_prob_given(self, x: Array, x_t: Array) -> Scalar:
        r"""$\log p_\theta(x_0 \mid x_t)$ of the tokens that are masked in $x_t$; those seen must agree."""
        return chosen(self.log_probs(x_t), x).sum()

    def draw_given(self, key: PRNGKey, x_t: Array) -> Array:
        r"""A draw from $p_\theta(x_0 \mid x_t)$, token by token."""
        return jax.random.categorical(key, self.log_probs(x_t), axis=-1)

    def hide(self, key: PRNGKey, x: Array) -> tuple[Array, Scalar]:
        """An example with tokens masked at a random time: $x_t$, and how many are masked, 1 at least.

        The number is uniform, as it is where each token is masked with a probability $t$ that is uniform, and
        those masked are chosen at random.
        """
        key_number, key_order = jax.random.split(key)
        number = jax.random.randint(key_number, (), 1, self.num_tokens + 1)
        hidden = jax.random.permutation(key_order, self.num_tokens) < number
        return jnp.where(hidden, self.mask, x), number


def chosen(table: Array, x: Array) -> Array:
    """Entries of a table `(num_tokens, num_values)` at the values of an example, shape `(num_tokens,)`."""
    return jnp.take_along_axis(table, x[:, None], 1)[:, 0]


def reveals(num_tokens: int, steps: int | None = None) -> np.ndarray:
    """How many tokens are revealed before each step and after the last: whole numbers from 0 to all.

    Args:
        num_tokens: Length of an example.
        steps: Steps, no more than tokens; one a token by default.

    Raises:
        ValueError: If there are more steps than tokens.
    """
    num_tokens = whole_number("num_tokens", num_tokens, 1)
    steps = num_tokens if steps is None else whole_number("steps", steps, 1)
    if steps > num_tokens:
        raise ValueError(
            f"`steps` must be at most the number of tokens, {num_tokens}, since each reveals one at "
            f"least; got {steps}. {_faq.numbers}"
        )
    return np.round(np.linspace(0, num_tokens, steps + 1)).astype(np.int32)
