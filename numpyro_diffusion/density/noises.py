r"""Noises of the score-based density formula: random, antithetic, or by quadrature."""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats

from .. import _faq
from .._arguments import check_counts, plain
from .._typing import Array, PRNGKey
from .._written import one_line

__all__ = ["AbstractNoises", "GaussHermite", "Mirrored"]

MOST_NODES = 1_000_000
SPREAD_OUT = 3  # dimensions in which an even sequence is better than orthogonal directions


class AbstractNoises(eqx.Module):
    """Choice of the noises that are added at each time. The formula adds their mirror images too."""

    __repr__ = one_line

    @abc.abstractmethod
    def num_noises(self, dimension: int) -> int:
        """Pairs of mirrored noises a time, in `dimension` coordinates."""

    @abc.abstractmethod
    def __call__(self, key: PRNGKey, num_times: int, like: Array) -> tuple[Array, Array]:
        """Noises `(num_times, num_noises, *like.shape)` and weights `(num_noises,)` that sum to 1."""

    @property
    @abc.abstractmethod
    def random(self) -> bool:
        """True if different noises are independent draws, so that a standard error can be estimated from
        them.
        """


class Mirrored(AbstractNoises):
    r"""Random noises and their mirror images, spread evenly over directions, lengths and times.

    Each of the `num_pairs` columns has one normal draw a time. Seen alone every draw is standard normal; in
    a column they cover each other's gaps. In up to 3 dimensions they are the normal quantiles of a shifted
    Kronecker sequence, beyond that orthogonal directions with spread lengths, so that most of the
    variance, a quadratic form in the noise that changes little with time, averages out. Columns are
    independent, and their spread is the standard error, with `num_pairs - 1` degrees of freedom.

    Attributes:
        num_pairs: Columns; at least 2.

    References:
        Owen (2013), Monte Carlo theory, methods and examples, chapters 15 and 17. Yu et al. (2016),
        Orthogonal random features, NeurIPS.
    """

    num_pairs: int = eqx.field(static=True, converter=plain, default=8)

    def __check_init__(self):
        check_counts(self, "Its error is from the spread over pairs.", num_pairs=2)

    def num_noises(self, dimension):
        del dimension
        return self.num_pairs

    def __call__(self, key, num_times, like):
        column = _spread_out if like.size <= SPREAD_OUT else _orthogonal
        keys = jax.random.split(key, self.num_pairs)
        noises = jax.vmap(lambda key: column(key, num_times, like.size, like.dtype))(keys)
        noises = jnp.swapaxes(noises, 0, 1).reshape(num_times, self.num_pairs, *like.shape)
        return noises, jnp.full(self.num_pairs, 1 / self.num_pairs, like.dtype)

    @property
    def random(self):
        return True


def _kronecker(num: int, dimension: int) -> np.ndarray:
    """A sequence in the unit cube with even gaps, shape `(num, dimension)`."""
    # The real root of x^(dimension + 1) = x + 1, which is the golden ratio in one dimension.
    root = 2.0
    for _ in range(60):
        root = (1 + root) ** (1 / (dimension + 1))
    return np.arange(num)[:, None] / root ** np.arange(1, dimension + 1) % 1


def _shifted(key: PRNGKey, num: int, dimension: int, dtype) -> Array:
    shift = jax.random.uniform(key, (dimension,), dtype)
    tiny = jnp.finfo(dtype).eps
    return jnp.clip((jnp.asarray(_kronecker(num, dimension), dtype) + shift) % 1, tiny, 1 - tiny)


def _spread_out(key: PRNGKey, num: int, dimension: int, dtype) -> Array:
    return jax.scipy.special.ndtri(_shifted(key, num, dimension, dtype))


def _orthogonal(key: PRNGKey, num: int, dimension: int, dtype) -> Array:
    """Normal draws whose directions are orthogonal within blocks, and whose lengths are spread."""
    key_directions, key_lengths = jax.random.split(key)
    size = min(num, dimension)
    blocks = jax.random.normal(key_directions, (-(-num // size), dimension, size), dtype)
    directions = jnp.swapaxes(jnp.linalg.qr(blocks)[0], 1, 2).reshape(-1, dimension)[:num]
    u = _shifted(key_lengths, num, 1, dtype)
    # Quantiles of the chi law, tabulated in the logit of the probability.
    logits = np.linspace(-37, 37, 8193)
    lengths = scipy.stats.chi.ppf(scipy.special.expit(logits), dimension)
    lengths[logits > 0] = scipy.stats.chi.isf(scipy.special.expit(-logits[logits > 0]), dimension)
    logit = jnp.log(u) - jnp.log1p(-u)
    return directions * jnp.interp(logit, jnp.asarray(logits, dtype), jnp.asarray(lengths, dtype))


class GaussHermite(AbstractNoises):
    r"""The mean over the noise by a product of Gauss-Hermite rules: nothing random, for $d \le 3$ or so.

    Attributes:
        num: Nodes a dimension, even. The cost is $\tfrac12 \text{num}^d$ pairs a time.

    Raises:
        ValueError: If `num` is not even and positive, or where it is used, the product has more than a
            million nodes.
    """

    num: int = eqx.field(static=True, converter=plain, default=32)

    def __check_init__(self):
        check_counts(self, num=2)
        if self.num % 2:
            raise ValueError(
                f"`num` of `GaussHermite` must be even; got {self.num}. {_faq.numbers}"
            )

    def num_noises(self, dimension):
        count = self.num**dimension // 2
        if count > MOST_NODES:
            raise ValueError(
                f"`GaussHermite({self.num})` has {self.num}^{dimension} nodes in {dimension} dimensions, too "
                "many. Use random noises, `Mirrored(num_pairs)`, beyond 3 "
                f"dimensions. {_faq.numbers}"
            )
        return count

    def __call__(self, key, num_times, like):
        del key
        count = self.num_noises(like.size)
        nodes, shares = np.polynomial.hermite_e.hermegauss(self.num)
        grid = np.stack(np.meshgrid(*[nodes] * like.size, indexing="ij"), -1)
        weights = math.prod(np.meshgrid(*[shares / shares.sum()] * like.size, indexing="ij"))
        # The first half in order is the mirror image of the second: an even rule has no node at 0.
        noises = grid.reshape(-1, *like.shape)[count:]
        weights = 2 * np.asarray(weights).ravel()[count:]
        noises = jnp.broadcast_to(jnp.asarray(noises, like.dtype), (num_times, *noises.shape))
        return noises, jnp.asarray(weights, like.dtype)

    @property
    def random(self):
        return False
