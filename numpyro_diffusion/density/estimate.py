r"""The record of a log density estimate, and its evaluation in batches of points.

With model error there are several "densities of the model", and they differ: that of the score-based
formula, which is the evidence lower bound of the reverse diffusion in continuous time; that of the
probability flow; that of the energy. Each estimate names the one that it is of. All are of the prior, the
distribution at `t_min`, in the units of the data.
"""

import abc
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh

from .. import _faq
from .._arguments import whole_numbers
from .._prng import key_or_zero, lean
from .._records import record, record_page
from .._typing import Array, PRNGKey, Scalar
from .._written import one_line
from ..energies import AbstractDenoiser
from ..smc.spread import Spread, blocks_over

__all__ = ["AbstractLogDensity", "DensityEstimate", "Point", "estimates_at", "report_nan"]

EVALUATIONS_AT_ONCE = 4096


class DensityEstimate(NamedTuple):
    r"""Log densities and how well they are known.

    Attributes:
        value: $\log p(x)$ in nats, one a point: the shape of `x` without the axes of one example.
        standard_error: Standard errors from independent noises, of the same shape; 0 where nothing is random.
            They know nothing of the model's error.
        num_evaluations: Network evaluations spent on each point, of the same shape. A derivative in one
            direction counts as one.
        law: Which density of the model this is.
    """

    value: Array
    standard_error: Array
    num_evaluations: Array
    law: str

    __repr__ = record
    _repr_html_ = record_page


class Point(NamedTuple):
    """Estimate at one point, each part of shape `()`.

    `replicates`, of shape `(k,)`, are independent estimates whose mean is `value`, made with the same noises
    at every call with the same key: differences between priors are far better known than each of them.
    `None` where an estimator has none.
    """

    value: Scalar
    variance: Scalar
    num_evaluations: Scalar
    replicates: Array | None = None


class AbstractLogDensity(eqx.Module):
    r"""An estimator of $\log p(x)$ from a denoiser. Subclasses say how, for ONE example."""

    __repr__ = one_line

    @property
    @abc.abstractmethod
    def law(self) -> str:
        """Name of the density of the model that is estimated."""

    def prepare(self, prior: AbstractDenoiser) -> Any:
        """Quantities that all points share, computed once."""
        del prior

    @abc.abstractmethod
    def point(
        self, prior: AbstractDenoiser, shared: Any, x: Array, key: PRNGKey, at_once: int
    ) -> Point:
        """The estimate at one example, with at most `at_once` evaluations in memory where it can."""

    def size(self, prior: AbstractDenoiser) -> int:
        """About how many evaluations one point holds in memory at once, if nothing bounds them."""
        del prior
        return 1

    def log_density(self, prior: AbstractDenoiser) -> Callable[[Array], Scalar]:
        r"""$\log p$ as a function of one example, with the same noises at every call.

        A deterministic function of `x`, differentiable, is what NUTS, SVI and optimisers need. Its error is
        that of one set of noises, frozen: `standard_error` of a call says how large that is.
        """
        shared, key = self.prepare(prior), jax.random.key(0)
        return lambda x: self.point(prior, shared, x, key, EVALUATIONS_AT_ONCE).value

    def __call__(
        self,
        prior: AbstractDenoiser,
        x,
        key: PRNGKey | None = None,
        *,
        tolerance: float | None = None,
        max_evaluations: int = 100_000,
        batch_size: int = EVALUATIONS_AT_ONCE,
        devices: Sequence[Any] | Mesh | None = None,
    ) -> DensityEstimate:
        r"""Log densities of examples.

        Args:
            prior: Denoiser or energy; of an energy only the score is used.
            x: Examples of shape `(*batch, *shape)`, in the units of the prior.
            key: PRNG key; by default the same noises at every call. Points have noises of their own.
            tolerance: Spend evaluations until each standard error is at most this, in nats.
            max_evaluations: Stop there, a point, whatever the error: it is reported.
            batch_size: Evaluations of the network held in memory at once, on each device.
            devices: Devices, or a mesh of them, over which the points are shared out in equal blocks. Values
                are those of one device but for rounding.

        Raises:
            TypeError: If `prior` is not a denoiser.
            ValueError: If shapes or numbers do not fit, or `tolerance` is asked for under `jit`.
            FloatingPointError: If an estimate is NaN: the model's score was, at the point that is named.
        """
        batch_size, max_evaluations = whole_numbers(
            1, batch_size=batch_size, max_evaluations=max_evaluations
        )
        check_prior(type(self).__name__, prior)
        x, batch = check_points(prior, x)
        key = key_or_zero(key)
        spread = blocks_over(devices, len(x), "points")
        keys = jax.random.split(lean(key), len(x))
        if spread is not None:
            prior, x, keys = spread.everywhere((prior, x, keys))
        at = functools.partial(estimates_at, self, prior, at_once=int(batch_size), spread=spread)
        found = at(x, keys)
        if tolerance is not None:
            found = _until(at, prior, x, key, found, tolerance, max_evaluations)
        report_nan(self, found.value, batch)
        value, variance, evaluations = (part.reshape(batch) for part in found[:3])
        return DensityEstimate(value, jnp.sqrt(variance), evaluations, self.law)


@functools.partial(eqx.filter_jit, donate="none")
def estimates_at(estimator, prior, x, keys, at_once: int, spread: Spread | None = None) -> Point:
    """Estimates at `(n, *shape)`, so many points at once that `at_once` evaluations are in memory."""
    shared = estimator.prepare(prior)
    one = lambda i: estimator.point(prior, shared, x[i], keys[i], at_once)
    size = max(1, at_once // estimator.size(prior))
    return in_batches(one, len(x), size) if spread is None else spread.map(one, len(x), size)


def in_batches(function: Callable[[Array], Any], count: int, size: int) -> Any:
    """`function(i)` of the first `count` integers, stacked, with `size` of them in memory at once."""
    if size >= count:
        return jax.vmap(function)(jnp.arange(count))
    # The last batch is filled up: one of another size would be compiled once more.
    filled = jnp.minimum(jnp.arange(-(-count // size) * size), count - 1)
    found = jax.lax.map(function, filled, batch_size=size)
    return jax.tree.map(lambda part: part[:count], found)


def _until(at, prior, x, key, found, tolerance, max_evaluations) -> Point:
    """More rounds at those points whose standard error is above the tolerance, all rounds averaged."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((prior, x, key))):
        raise ValueError(
            "`tolerance` decides how long to go on from the errors found, which are not known under `jit`, "
            "`grad` or `vmap`. Fix the number of evaluations in the estimator "
            f"instead. {_faq.needs_values}"
        )
    if not tolerance > 0:
        raise ValueError(f"`tolerance` must be positive, in nats; got {tolerance}. {_faq.numbers}")
    sums = [np.array(part, float) for part in found[:3]]
    rounds = np.ones(len(x), int)
    for number in range(1, max_evaluations):
        error, cost = np.sqrt(sums[1]) / rounds, sums[2] / rounds
        todo = np.flatnonzero((error > tolerance) & (sums[2] + cost <= max_evaluations))
        if not len(todo):
            break
        # Few sizes, so few compilations: the next power of two in each block, filled with the first of them.
        spread = at.keywords["spread"]
        blocks = 1 if spread is None else spread.mesh.size
        each = 2 ** math.ceil(math.log2(-(-len(todo) // blocks)))
        filled = np.resize(todo, blocks * each)
        # `fold_in` by a number is the part of that number in a split, a point's key in the first round.
        own = jax.random.fold_in(lean(key), 2**31 - 1 - number)
        keys = jax.random.split(own, len(filled))
        more = at(x[filled], keys)
        for total, part in zip(sums, more[:3], strict=True):
            total[todo] += np.asarray(part)[: len(todo)]
        rounds[todo] += 1
    value, variance, evaluations = sums
    like = lambda values, part: jnp.asarray(values, part.dtype)
    return Point(
        like(value / rounds, found.value),
        like(variance / rounds**2, found.variance),
        like(evaluations, found.num_evaluations),
    )


def check_prior(name: str, prior) -> None:
    if not isinstance(prior, AbstractDenoiser):
        raise TypeError(
            f"`{name}` expects a denoiser or an energy; got {type(prior).__name__}. Wrap a callable score in "
            f"`ScoreFunction`. {_faq.kinds}"
        )


def check_points(prior: AbstractDenoiser, x) -> tuple[Array, tuple[int, ...]]:
    """Examples as `(n, *shape)` and the batch shape that they came in."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(jnp.result_type(float))
    cut = x.ndim - len(prior.shape)
    if cut < 0 or x.shape[cut:] != tuple(prior.shape):
        event = ", ".join(map(str, prior.shape))
        raise ValueError(
            f"expected points of shape (..., {event}); got {x.shape}. Reshape them to that of one example, "
            f"batch axes first. {_faq.shapes}"
        )
    batch = x.shape[:cut]
    if not math.prod(batch):
        raise ValueError(f"expected at least one point; got shape {x.shape}. {_faq.shapes}")
    return x.reshape(-1, *prior.shape), batch


def report_nan(estimator, value: Array, batch: tuple[int, ...]) -> None:
    if isinstance(value, Tracer):
        return
    bad = np.isnan(np.asarray(value))
    if bad.any():
        first = np.unravel_index(int(bad.argmax()), batch) if batch else ()
        raise FloatingPointError(
            f"`{type(estimator).__name__}` found NaN at {int(bad.sum())} of {bad.size} points, the first at "
            f"index {tuple(int(i) for i in first)}: the point, or the model's score near it, is not finite. "
            f"`nd.audit` looks at the score level by level. {_faq.lost}"
        )
