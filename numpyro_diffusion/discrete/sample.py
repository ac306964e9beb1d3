r"""Importance-weighted denoising: each step chooses among candidates with weights $e^{-E}$."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._arguments import check_instance, whole_number, whole_or_none
from .._records import record, record_page
from .._typing import Array, PRNGKey
from ..smc import log_mean_exp
from .energies import ResidualEnergy, check_energy_function
from .masked import MaskedDiffusion, reveals

__all__ = ["TokenDraw", "check_window", "sample_tokens", "within"]


class TokenDraw(NamedTuple):
    r"""A draw of `sample_tokens`.

    Attributes:
        x: The example, integers of shape `(num_tokens,)`.
        log_normalizers: By step the log of the mean of $e^{-E}$ over the candidates, an estimate of
            $\log Z(x_t)$; 0 where the energy was not used. Shape `(steps,)`.
    """

    x: Array
    log_normalizers: Array

    __repr__ = record
    _repr_html_ = record_page


def sample_tokens(
    key: PRNGKey,
    model: MaskedDiffusion,
    energy: ResidualEnergy | None = None,
    *,
    candidates: int = 2,
    steps: int | None = None,
    window: tuple[float, float] = (0.0, 1.0),
) -> TokenDraw:
    r"""Draw ONE example by importance-weighted denoising.

    A step draws `candidates` examples from $p_\theta(x_0 \mid x_t)$, keeps one with probability
    proportional to $e^{-E(x_0, x_t)}$, and reveals some of its tokens. Without an energy this is the
    sampler of the masked diffusion, exactly. With one it is a heuristic for finitely many candidates: as
    they become many, a step follows $p_\theta e^{-E} / Z(x_t)$. For weights that make up for the rest see
    `masked_chain`.

    Args:
        key: PRNG key.
        model: The masked diffusion.
        energy: The residual energy; none by default.
        candidates: Candidates a step; with 1 the energy makes no difference.
        steps: Steps from all masked to none, no more than tokens; one a token by default.
        window: The energy is used while the share of masked tokens lies within; 1 is the first step.

    Raises:
        ValueError: If a number is out of range.
        TypeError: If an argument is of another kind.

    References:
        Xu et al. (2025), arXiv 2410.21357, algorithm 1, with weights as its equations have them. In the
        code that came with it the sign of the energy is the other in sampling than in training.
    """
    candidates = whole_number("candidates", candidates, 1)
    steps = whole_or_none("steps", steps, 1)
    check_instance("model", model, MaskedDiffusion, "MaskedDiffusion(...)", optional=False)
    check_energy_function(energy)
    ends = reveals(model.num_tokens, steps)
    uses = within(ends[:-1], model.num_tokens, check_window(window)) & (energy is not None)
    key_order, key = jax.random.split(key)
    rank = jax.random.permutation(key_order, model.num_tokens)

    def step(x, level):
        key, end, uses = level
        keys = jax.random.split(key)
        draws = _candidates(keys[0], model.log_probs(x), candidates)
        log_weights = jnp.where(uses, _log_weights(energy, draws, x), 0.0)
        best = draws[jax.random.categorical(keys[1], log_weights)]
        return jnp.where((rank < end) & (x == model.mask), best, x), log_mean_exp(log_weights)

    levels = jax.random.split(key, len(uses)), jnp.asarray(ends[1:]), jnp.asarray(uses)
    return TokenDraw(*jax.lax.scan(step, model.all_masked, levels))


def _candidates(key: PRNGKey, log_probs: Array, num: int) -> Array:
    return jax.random.categorical(key, log_probs, shape=(num, len(log_probs)))


def _log_weights(energy: ResidualEnergy | None, draws: Array, x_t: Array) -> Array:
    """Log weights of candidates, minus their energies; low energy is more probable."""
    if energy is None:
        return jnp.zeros(len(draws))
    return -jax.vmap(lambda x: energy(x, x_t))(draws)


def within(revealed: np.ndarray, num_tokens: int, window: tuple[float, float]) -> np.ndarray:
    """Whether the share of tokens that are masked lies in the window."""
    share = 1 - revealed / num_tokens
    return (window[0] <= share) & (share <= window[1])


def check_window(window: tuple[float, float]) -> tuple[float, float]:
    """Two shares of masked tokens, in order."""
    low, high = window
    if not 0 <= low < high <= 1:
        raise ValueError(
            f"`window` is a range of shares of masked tokens, such as (0.4, 0.6), within [0, 1]; got "
            f"{window}. {_faq.numbers}"
        )
    return float(low), float(high)
