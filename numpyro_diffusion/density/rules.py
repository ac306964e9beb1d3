r"""Where the score-based formula looks: at which times, with which noises.

Times are $\tau = r / (c^2 + r)$ in $[0, 1)$ with $r$ the variance of the added noise and $c^2$ that of the
data, as in Li & Yan. The integrand is bounded in $\tau$ down to 0, whatever the data.
"""

import abc
import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats

from .._typing import Array, PRNGKey, Scalar
from ..schedules import AbstractSchedule

__all__ = [
    "AbstractNoises",
    "AbstractTimes",
    "GaussHermite",
    "GaussLegendre",
    "Mirrored",
    "Span",
    "Stratified",
]

MOST_NODES = 1_000_000
SPREAD_OUT = 3  # dimensions in which an even sequence is better than orthogonal directions


class Span(NamedTuple):
    """What a rule for times is told of the prior.

    Attributes:
        schedule: The noise schedule.
        t_min: Time at which the prior is read, shape `()`.
        t_max: Time up to which there is a score, shape `()`.
        scale: $c^2$, a typical variance of the data, shape `()`.
    """

    schedule: AbstractSchedule
    t_min: Scalar
    t_max: Scalar
    scale: Scalar

    def added(self, t: Array) -> Array:
        """Variance of the noise that is added from `t_min` to `t`, of the shape of `t`."""
        least, level = self.schedule.noise_level(self.t_min), self.schedule.noise_level(t)
        return (level - least) * (level + least)

    @property
    def end(self) -> Scalar:
        r"""$\tau$ at `t_max`."""
        most = self.added(self.t_max)
        return most / (self.scale + most)

    def variances(self, times: Array, weights: Array) -> tuple[Array, Array]:
        r"""$r$ and weights of $dr$ from $\tau$ and weights of $d\tau$."""
        return self.scale * times / (1 - times), weights * self.scale / (1 - times) ** 2


class AbstractTimes(eqx.Module):
    r"""A quadrature rule over the variance $r$ of the added noise, from 0 to that of `t_max`."""

    num: eqx.AbstractVar[int]

    @abc.abstractmethod
    def __call__(self, key: PRNGKey, num_noises: int, span: Span) -> tuple[Array, Array]:
        r"""Variances $r$ and weights of $dr$, both of shape `(num, num_noises)`.

        Each column is a rule of its own. `key` is for rules that are random.
        """

    def __check_init__(self):
        if isinstance(self.num, bool) or not isinstance(self.num, int) or self.num < 2:
            raise ValueError(
                f"`{type(self).__name__}` expects `num`, its times, to be an integer of at least 2; got "
                f"{self.num!r}."
            )


class Stratified(AbstractTimes):
    r"""One time in each of `num` cells that are equally likely under the arcsine law, all shifted alike.

    $\tau = \sin^2(\pi u / 2)$, $u$ uniform: more times where little noise or little signal is left, which
    lowers the variance.

    Attributes:
        num: Number of cells.
    """

    num: int = eqx.field(static=True, default=16)

    def __call__(self, key, num_noises, span):
        end = span.end
        uniform = jax.random.uniform(key, (1, num_noises), end.dtype)
        last = 2 / jnp.pi * jnp.arcsin(jnp.sqrt(end))
        u = last * (jnp.arange(self.num, dtype=end.dtype)[:, None] + uniform) / self.num
        weights = 0.5 * jnp.pi * jnp.sin(jnp.pi * u) * last / self.num
        return span.variances(jnp.sin(0.5 * jnp.pi * u) ** 2, weights)


class GaussLegendre(AbstractTimes):
    r"""Gauss-Legendre nodes in $\log(1 + M \tau)$ with $M = c^2 / s_{\min}^2$.

    The error of the integral over time is then about the same however fine the structure of the data:
    some 1e-3 nats with 16 nodes, 1e-6 with 32, 1e-8 with 64.

    Attributes:
        num: Number of nodes.
    """

    num: int = eqx.field(static=True, default=32)

    def __call__(self, key, num_noises, span):
        del key
        end, resolution = span.end, span.scale / span.schedule.noise_level(span.t_min) ** 2
        places, shares = np.polynomial.legendre.leggauss(self.num)
        places, shares = (jnp.asarray(v, end.dtype)[:, None] for v in (places, shares))
        length = jnp.log1p(resolution * end)
        v = 0.5 * (places + 1)
        times = jnp.expm1(length * v) / resolution
        weights = 0.5 * shares * length * (times + 1 / resolution)
        ones = jnp.ones((1, num_noises), end.dtype)
        return span.variances(times * ones, weights * ones)


class AbstractNoises(eqx.Module):
    """Which noises are added at each time. Their mirror images are added too, by the formula."""

    @abc.abstractmethod
    def num_noises(self, dimension: int) -> int:
        """Pairs of mirrored noises a time, in `dimension` coordinates."""

    @abc.abstractmethod
    def __call__(self, key: PRNGKey, num_times: int, like: Array) -> tuple[Array, Array]:
        """Noises `(num_times, num_noises, *like.shape)` and weights `(num_noises,)` that sum to 1."""

    @property
    @abc.abstractmethod
    def random(self) -> bool:
        """Whether different noises are independent draws, so that they tell the error."""


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

    num_pairs: int = eqx.field(static=True, default=8)

    def __check_init__(self):
        if isinstance(self.num_pairs, bool) or self.num_pairs < 2:
            raise ValueError(
                f"`Mirrored` expects at least 2 pairs a time, to know its error; got {self.num_pairs!r}."
            )

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
    root = 2.0
    for _ in range(
        60
    ):  # the real root of x^(dimension + 1) = x + 1; the golden ratio in one dimension
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

    num: int = eqx.field(static=True, default=32)

    def __check_init__(self):
        if isinstance(self.num, bool) or self.num < 2 or self.num % 2:
            raise ValueError(
                f"`GaussHermite` expects an even number of nodes, at least 2; got {self.num!r}."
            )

    def num_noises(self, dimension):
        count = self.num**dimension // 2
        if count > MOST_NODES:
            raise ValueError(
                f"`GaussHermite({self.num})` has {self.num}^{dimension} nodes in {dimension} dimensions, too "
                "many. Use random noises, `Mirrored(num_pairs)`, beyond 3 dimensions."
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
