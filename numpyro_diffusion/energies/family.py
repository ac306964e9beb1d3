r"""Families of distributions $p(x \mid \theta)$ whose normalisers are known from a table."""

from collections.abc import Callable
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._typing import Array, Scalar
from .base import replaced
from .checks import is_traced
from .energy import AbstractEnergy
from .parts import AbstractWrapper

__all__ = ["Family", "NormalizerTable"]

_SLACK = 1e-5  # of the range: rounding of a value at an end


class NormalizerTable(eqx.Module):
    r"""$L(\theta, c) = \log \int e^{-E(x, t(c); \theta)} dx$ as polynomials in $\theta$, by clock $c$.

    Chebyshev polynomials of the place of each coordinate in its range, or of that of its logarithm; linear in
    the clock from one of `clocks` to the next. Outside the range the value is NaN.

    Attributes:
        low: Least value of each coordinate.
        high: Greatest value.
        logarithmic: Whether its logarithm is what polynomials are in.
        degrees: Degree of each coordinate's polynomials.
        clocks: From 0, `t_min`, to 1, `t_max`.
        coefficients: Shape `(num_clocks, num_terms)`.
        covariance: Of the coefficients at clock 0, shape `(num_terms, num_terms)`.
        nodes: Where the normaliser was found, shape `(num_nodes, num_coordinates)`.
        values: What was found there, in nats.
        standard_errors: Of `values`.
        misfit: Root mean square of the errors of the fit at the nodes, in standard errors; about 1 or less.
    """

    low: tuple[float, ...] = eqx.field(static=True)
    high: tuple[float, ...] = eqx.field(static=True)
    logarithmic: tuple[bool, ...] = eqx.field(static=True)
    degrees: tuple[int, ...] = eqx.field(static=True)
    clocks: Array
    coefficients: Array
    covariance: Array
    nodes: Array
    values: Array
    standard_errors: Array
    misfit: float = eqx.field(static=True)

    def reaches(self, theta: Any) -> bool:
        """Whether a known value is inside the range."""
        low, high, value = np.asarray(self.low), np.asarray(self.high), np.atleast_1d(theta)
        slack = _SLACK * (high - low)
        return bool(np.all((value >= low - slack) & (value <= high + slack)))

    def features(self, theta: Array) -> Array:
        """Products of Chebyshev polynomials, shape `(num_terms,)`; NaN outside the range."""
        theta = jnp.atleast_1d(theta)
        product, inside = jnp.ones(1, theta.dtype), True
        rows = zip(self.low, self.high, self.logarithmic, self.degrees, strict=True)
        for value, (low, high, logarithmic, degree) in zip(theta, rows, strict=True):
            slack = _SLACK * (high - low)
            inside &= (value >= low - slack) & (value <= high + slack)
            value = jnp.clip(value, low - slack, high + slack)
            if logarithmic:
                value, low, high = jnp.log(jnp.maximum(value, 0.5 * low)), np.log(low), np.log(high)
            place = (2 * value - low - high) / (high - low)
            terms = [jnp.ones_like(place), place]
            while len(terms) <= degree:
                terms.append(2 * place * terms[-1] - terms[-2])
            product = jnp.outer(product, jnp.stack(terms[: degree + 1])).ravel()
        return jnp.where(inside, product, jnp.nan)

    def __call__(self, theta: Array, clock: Scalar | float = 0.0) -> Scalar:
        r"""$L(\theta, c)$ in nats, shape `()`."""
        features = self.features(theta)
        each = self.coefficients.astype(features.dtype) @ features
        return jnp.interp(jnp.asarray(clock, each.dtype), self.clocks.astype(each.dtype), each)

    def standard_error(self, theta: Array) -> Scalar:
        r"""Standard error of $L(\theta, 0)$ in nats, shape `()`."""
        features = self.features(theta)
        variance = features @ self.covariance.astype(features.dtype) @ features
        return jnp.sqrt(jnp.maximum(variance, 0.0))

    def posterior_error(self, draws: Any, values: Any = None) -> np.ndarray:
        r"""What the error of the table adds to posterior means, as standard errors.

        To first order a change $\delta$ of the coefficients moves the posterior mean of $f$ by
        $-\mathrm{Cov}(f, \phi(\theta))\, \delta$, with $\phi$ the terms of the polynomial. An error that all
        parameters share drops out.

        Args:
            draws: Of the parameter under the posterior, shape `(num,)` or `(num, num_coordinates)`.
            values: $f$ at the draws, shape `(num, ...)`; the parameter itself by default.
        """
        draws = jnp.asarray(draws)
        features = np.asarray(jax.vmap(self.features)(draws.reshape(len(draws), -1)), float)
        f = np.asarray(draws if values is None else values, float).reshape(len(draws), -1)
        shape = np.shape(draws if values is None else values)[1:]
        slopes = (f - f.mean(0)).T @ (features - features.mean(0)) / len(f)
        variance = np.einsum("ij,jk,ik->i", slopes, np.asarray(self.covariance, float), slopes)
        return np.sqrt(variance).reshape(shape)


class Family(AbstractWrapper, AbstractEnergy):
    r"""$E(x, t; \theta) + L(\theta, t)$: a distribution with parameters that may be latent variables of a
    model.

    Made by `normalizers.tabulate`, saved and loaded like any energy. As it stands it is the distribution at
    the first of its nodes; `given` takes it elsewhere. At `t_min` it is normalised by its table. At noisy
    levels it is roughly normalised, so that a cloud keeps about the prior of $\theta$ there; what is missing
    is weighed.

    Outside the grid of the table nothing is known: plain numbers are refused and traced ones have the
    density NaN, which samplers take for 0 and tell of. Let the prior of the parameter end with the grid.

    Attributes:
        family: From `theta` to an energy that may not be normalised.
        table: Its normalisers.
        theta: Where the distribution is read, of shape `()` or `(num_coordinates,)`.
        log_normalizer: 0.
        log_normalizer_error: The largest standard error of the table at its nodes, in nats.
    """

    family: Callable[[Array], AbstractEnergy]
    table: NormalizerTable
    theta: Array
    log_normalizer: float | None = eqx.field(static=True, default=0.0)
    log_normalizer_error: float = eqx.field(static=True, default=0.0)

    @property
    def member(self) -> AbstractEnergy:
        """The energy at `theta`, not normalised."""
        return self.family(self.theta)

    @property
    def base(self) -> AbstractEnergy:
        return self.member

    def given(self, theta: Any) -> Self:
        r"""The distribution at $\theta$.

        Raises:
            ValueError: If `theta` has another shape than the grid, or is known to be outside of it.
        """
        value = jnp.asarray(theta, jnp.result_type(float))
        if value.shape != self.theta.shape:
            raise ValueError(
                f"`given` expects parameters of shape {self.theta.shape}, as the table has them; got "
                f"{value.shape}. For parameters of each example in a plate, put "
                "`nd.energies.Joint([family.given(v) for v in values])` at one site without the "
                f"plate. {_faq.table_range}"
            )
        if not is_traced(value) and not self.table.reaches(value):
            raise ValueError(
                f"the table of normalisers reaches from {self.table.low} to {self.table.high}; got {value}. "
                "Beyond it nothing is known: tabulate a wider grid, or let the prior of the parameter end "
                f"there, as `dist.Uniform` or `dist.TruncatedNormal` do. {_faq.table_range}"
            )
        return replaced(self, "given", {"theta": value})

    def with_horizon(self, *, t_min: float | None = None, t_max: float | None = None) -> Self:
        """Refused if it moves an end: the table holds for the times that it was made for."""
        if t_min in (None, self.t_min) and t_max in (None, self.t_max):
            return self
        raise ValueError(
            f"the table of a family holds from t_min={self.t_min} to t_max={self.t_max}; got {t_min}, "
            f"{t_max}. Move the ends of its parts, and tabulate again. {_faq.table_range}"
        )

    def energy(self, x: Array, t: Scalar) -> Scalar:
        return self.member.energy(x, t) + self.table(self.theta, self.clock(t)).astype(x.dtype)

    def clock(self, t: Scalar) -> Scalar:
        """How far a time is from `t_min` to `t_max` in log-SNR, from 0 to 1."""
        t = jnp.asarray(t, jnp.result_type(float))
        ends = jnp.asarray([self.t_min, self.t_max], t.dtype)
        clean, noisy = jax.vmap(self.schedule.log_snr)(ends)
        return jnp.clip((clean - self.schedule.log_snr(t)) / (clean - noisy), 0.0, 1.0)
