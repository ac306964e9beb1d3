r"""Paths of noised data, and integrals over the noise level along them.

One example $x_0$ with one noise $\epsilon$ makes a path $u_s = x_0 + s \epsilon$ over noise levels $s$. For
the densities $p_s$ of a distribution noised exactly, given $x_0$ and for ANY $x_0$,

$$\frac{d}{d \log s}\, \mathbb{E}_\epsilon[\log p_s(u_s)]
  = \mathbb{E}_\epsilon\big[|s \nabla \log p_s + \epsilon|^2 - |\epsilon|^2\big] ,$$

by the heat equation $\partial_{s^2} \log p = \tfrac12 (\Delta \log p + |\nabla \log p|^2)$ and Stein's
identity. It is the score-based density formula of Li & Yan with its noise term matched, and the integrals
of this package rest on it. Whatever holds for every exact distribution holds for a Gaussian with the moments
of the
data: its own residual of the identity, on the same path, has mean zero and is subtracted to lower the
variance. The mirrored path $-\epsilon$ is averaged in, which removes all that is odd in the noise.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._arguments import whole_number
from .._numbers import several_examples
from .._typing import Array, PRNGKey
from ..energies import AbstractDenoiser

__all__ = [
    "check_data",
    "check_finite",
    "gauss_legendre",
    "log_noise",
    "over_examples",
    "times_at",
]


def log_noise(energy: AbstractDenoiser, times) -> np.ndarray:
    r"""$\log s_t$ at some times, on the host."""
    times = jnp.asarray(times, jnp.result_type(float))
    return np.log(np.asarray(jax.vmap(energy.schedule.noise_level)(times), float))


def times_at(energy: AbstractDenoiser, log_s: np.ndarray) -> Array:
    r"""The times at which the log noise level has these values."""
    return jax.vmap(energy.schedule.time)(jnp.asarray(-2 * log_s, jnp.result_type(float)))


def gauss_legendre(ends: np.ndarray, num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes over consecutive intervals, and weights that integrate from the first end to each other.

    Args:
        ends: Rising, shape `(m + 1,)`.
        num_nodes: About how many in all, shared by length; at least 2 an interval.

    Returns:
        Nodes `(k,)` and weights `(m, k)`: row `j` integrates from `ends[0]` to `ends[j + 1]`.
    """
    widths = np.diff(ends)
    counts = np.maximum(np.ceil(num_nodes * widths / widths.sum()).astype(int), 2)
    nodes, weights = [], np.zeros((len(widths), counts.sum()))
    for j, (start, width, count) in enumerate(zip(ends[:-1], widths, counts, strict=True)):
        places, shares = np.polynomial.legendre.leggauss(count)
        weights[j:, counts[:j].sum() : counts[: j + 1].sum()] = 0.5 * width * shares
        nodes.append(start + 0.5 * width * (places + 1))
    return np.concatenate(nodes), weights


def over_examples(function: Callable, batch_size: int | None, data: Array, keys: PRNGKey):
    """`function(x0, key)` over examples: one `vmap`, or a scan over batches of them."""
    if batch_size is None or batch_size >= len(data):
        return jax.vmap(function)(data, keys)
    return jax.lax.map(lambda one: function(*one), (data, keys), batch_size=batch_size)


def check_finite(name: str, values: np.ndarray, what: str = "examples") -> None:
    """Refuse an estimate that no number can come of.

    Args:
        name: The function, for the message.
        values: Leading with an axis of `what`.
        what: They are.

    Raises:
        FloatingPointError: If one is NaN or +inf; minus infinity may be the log of nothing.
    """
    flags = np.isnan(values) | np.isposinf(values)
    wrong = np.asarray(flags.reshape(len(values), -1).any(1))
    if wrong.any():
        raise FloatingPointError(
            f"`{name}` met NaN or +inf at {int(wrong.sum())} of {len(wrong)} {what}, the first is number "
            f"{int(wrong.argmax())}. Look at energy and score there, at noise levels from "
            f"t_min to t_max: `nd.audit` does. {_faq.lost}"
        )


def check_data(energy: AbstractDenoiser, data, **counts: int | None) -> Array:
    """Data as an array, and counts at least 1; refused where they cannot be used."""
    data = jnp.asarray(several_examples(data, energy.shape), jnp.result_type(float))
    for name, count in counts.items():
        if count is not None:
            whole_number(name, count, 1)
    return data


def noised_to_t_min(energy, data: Array, key: PRNGKey) -> Array:
    """Draws of the distribution at `t_min`, in the units of the data, if the data are clean draws."""
    s = energy.schedule.noise_level(jnp.asarray(energy.t_min, data.dtype))
    return data + s * jax.random.normal(key, data.shape, data.dtype)
