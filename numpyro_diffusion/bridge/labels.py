r"""Sums over discrete sites of a model: labels, which are no part of a position.

Labels $k$ are *shared*, or come in groups of entries of which each log density knows one at most:

$$\sum_c e^{f(c)} \prod_i \sum_v e^{f_i(c, v)} .$$
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .._typing import Array, Scalar

__all__ = ["LabelledData", "LabelsGiven", "Sums", "less"]


class Sums(NamedTuple):
    """Log densities of all values of the labels.

    Attributes:
        shared: Of each joint value of the shared labels, without the groups: shape `(num_shared,)`.
        groups: By group, of each value of each entry: shape `(num_shared, num_values, num_entries)`.
    """

    shared: Array
    groups: tuple[Array, ...]

    @property
    def by_entry(self) -> Array:
        """Of the single value of the shared labels, then of each entry of the groups, summed out."""
        return jnp.concatenate([self.shared, *(_log_sum(g, 1)[0] for g in self.groups)])

    @property
    def by_shared(self) -> Array:
        """Of each joint value of the shared labels, groups summed out."""
        return sum((jnp.sum(_log_sum(g, 1), -1) for g in self.groups), self.shared)

    @property
    def total(self) -> Scalar:
        """All summed out."""
        return _log_sum(self.by_shared, 0)

    def beyond(self, before: "Sums") -> Scalar:
        """`total` less that of a prior; as it is where the prior is 0."""
        return less(self.total, before.total)


class LabelsGiven(NamedTuple):
    """Discrete sites given all others and the data.

    Attributes:
        drawn: A joint draw.
        probabilities: Of the values of each entry, by site, with values as the last axis.
        sound: Whether the model at this draw is what the sum was made of.
    """

    drawn: dict[str, Array]
    probabilities: dict[str, Array]
    sound: Array


class LabelledData(NamedTuple):
    r"""Data that are positive everywhere and depend on labels.

    A noisy level knows the mixture of what it would know if the label were known,
    $\sum_k p(k)\, p_g(y \mid x, k)^\beta$: the shares of the labels are not tempered.

    Attributes:
        prior: Log density of the labels, and of other sites that depend on them.
        log_density: Log density of the data.
        log_peak: What it would be if every datum lay at the centre of its distribution.
        num_data: Number of these data.
    """

    prior: Sums
    log_density: Sums
    log_peak: Sums
    num_data: Sums

    def softened(self, g: Scalar, power: Scalar) -> Scalar:
        r"""Log likelihood to the power `g`, made a density again, and to the power `power`."""

        def one(prior, value, peak, number):
            return prior + power * (g * value + (1 - g) * peak + 0.5 * number * jnp.log(g))

        return Sums(*jax.tree.map(one, *map(tuple, self))).beyond(self.prior)

    @property
    def log_likelihood(self) -> Scalar:
        """Log likelihood with labels summed out."""
        return jax.tree.map(jnp.add, self.prior, self.log_density).beyond(self.prior)

    @property
    def expected(self) -> Scalar:
        """Log likelihood, averaged over labels from their prior: as sharp as the data are on average."""
        rows = jax.lax.stop_gradient(jax.nn.softmax(self.prior.by_shared))
        value = self.log_density.shared
        for prior, each in zip(self.prior.groups, self.log_density.groups, strict=True):
            value = value + jnp.sum(jax.lax.stop_gradient(jax.nn.softmax(prior, 1)) * each, (1, 2))
        return jnp.sum(rows * value)


def less(values: Array, before: Array) -> Array:
    """Log of a ratio; the numerator where the denominator is 0."""
    return values - jnp.where(jnp.isfinite(before), before, 0.0)


def _log_sum(values: Array, axis: int) -> Array:
    """Log of the sum of exponentials; its gradient is finite where some, or all, of them are 0."""
    top = jax.lax.stop_gradient(jnp.max(values, axis, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    total = jnp.sum(jnp.exp(values - top), axis)
    zero = total == 0  # the log of 0 has no gradient
    return jnp.where(zero, -jnp.inf, jnp.log(jnp.where(zero, 1.0, total)) + jnp.squeeze(top, axis))
