r"""Base of network energies: the Gaussian of the data, corrected by a network (EDM preconditioning).

In data units, with noise level $s = \sigma_t / \alpha_t$, a Gaussian prior $\mathcal{N}(m, S)$ noised
to level $s$ has the energy $\tfrac12 |w|^2$ of its whitened coordinate $w$, and a network $F(w)$
corrects it by terms scaled so that $F$ is of order one at every level. Because noise is isotropic it
stays isotropic in the eigenbasis of $S$, where the preconditioning is one number a coordinate:
directions in which the data hardly vary are right from the start, and the network learns only what is
not Gaussian.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._typing import Array, Scalar
from ..nets import ResidualMLP
from ..schedules import AbstractSchedule, VariancePreserving
from .checks import horizon_of, refuse_traced
from .columns import check_columns
from .conditional import AbstractConditional
from .coordinates import cast_floats, check_net, fitted_gaussian
from .normal import recomposed
from .standardized import Standardized

__all__ = ["AbstractNetworkEnergy"]

OFFSET_UNIT = 10.0  # nats a unit of `offset`, so that one learning rate suits it and the network


class AbstractNetworkEnergy(AbstractConditional):
    r"""Energy of a backbone $F(w, c_{noise})$ in preconditioned coordinates.

    With $v = B^\top (x_t/\alpha_t - m)$, $s = \sigma_t/\alpha_t$ and, for each coordinate of standard
    deviation $d$: $w = v / \sqrt{s^2 + d^2}$, $\kappa = d / s$, $c_{noise} = \tfrac14 \log s$,

    $$E(x_t, t) = \text{form}(w, F, \kappa) + \tfrac12 \sum_i \log 2\pi (s^2 + d_i^2) + n \log \alpha_t
      + b(t).$$

    With $F = 0$ and $b = 0$ the distribution is $\mathcal{N}(m, B\,\mathrm{diag}(d^2)B^\top)$, noised
    exactly and normalised; $n \log \alpha_t$ makes it a density of $x_t$. Weights are cast to the type of
    `x`.

    Args:
        net: Backbone, `net(w, c_noise) -> F` with `w` and `F` of shape `shape`; an `eqx.Module`. Under a
            condition it is called as `net(w, c_noise, condition)`. The default is a small untrained
            `ResidualMLP`.
        mean: $m$, of the shape of one example, in data units.
        covariance: $S = B\,\mathrm{diag}(d^2)B^\top$, of shape `(n, n)` over flattened examples; or
            `(n,)`, the variances alone, which keeps the coordinates as they are ($B = I$, for backbones
            that need to see an image).
        schedule: Noise schedule.
        t_min: Time at which the prior is read. Its noise should be about the resolution of the data.
        t_max: Time at which sampling starts, where noise drowns the data.
        offset: Coefficients of $b(t)$, a cosine series in the log noise level (in tens of nats). It
            moves no score; it lets energies of different levels be compared.
        log_normalizer: Known $L(t_{\min})$ in nats, or `None`.
        log_normalizer_error: Its standard error.

    Attributes:
        condition: What the distribution is conditioned on, see `given`; `None` for no condition.
        label_normalizers: $L(t_{\min})$ under each label, shape `(num_labels,)`, or `None`; see
            `with_label_normalizers`.
        label_normalizer_errors: Their standard errors.

    Raises:
        ValueError: If shapes disagree or a variance is not positive.
    """

    net: Callable[..., Array]
    mean: Array
    scales: Array
    basis: Array | None
    offset: Array
    schedule: AbstractSchedule
    t_min: float = eqx.field(static=True)
    t_max: float = eqx.field(static=True)
    log_normalizer: float | None = eqx.field(static=True, default=None)
    log_normalizer_error: float = eqx.field(static=True, default=0.0)
    condition: Array | None = None
    label_normalizers: Array | None = None
    label_normalizer_errors: tuple[float, ...] | None = eqx.field(static=True, default=None)

    def __init__(
        self,
        net: Callable[..., Array] | None = None,
        mean=(0.5, -1.0),
        covariance=((1.0, 0.6), (0.6, 0.8)),
        schedule: AbstractSchedule | None = None,
        t_min: float | None = None,
        t_max: float | None = None,
        offset=(0.0,) * 12,
        log_normalizer: float | None = None,
        log_normalizer_error: float = 0.0,
    ):
        refuse_traced(mean=mean, covariance=covariance)
        mean, covariance = np.asarray(mean), np.asarray(covariance)
        if covariance.shape not in ((mean.size,), (mean.size, mean.size)):
            raise ValueError(
                f"`covariance` must have shape ({mean.size},) or ({mean.size}, {mean.size}) to match a "
                f"mean of shape {mean.shape}; got {covariance.shape}. It is over flattened "
                f"examples. {_faq.covariances}"
            )
        for what, numbers in (("mean", mean), ("covariance", covariance), ("offset", offset)):
            if not np.isfinite(numbers).all():
                raise ValueError(
                    f"`{what}` must be finite. Look for missing values in the data. {_faq.finite}"
                )
        values, vectors = covariance, None
        if covariance.ndim == 2:
            values, vectors = np.linalg.eigh(covariance)
        if not values.min() > 0:
            raise ValueError(
                f"`covariance` must be positive definite; its smallest variance is "
                f"{values.min():.3g}. Floor the variances at the square of the data's "
                f"resolution. {_faq.covariances}"
            )
        self.net = ResidualMLP(None, mean.shape, width=32) if net is None else net
        check_net(self.net, mean.shape)
        self.mean = jnp.asarray(mean, jnp.result_type(float))
        self.scales = jnp.asarray(np.sqrt(values), self.mean.dtype)
        self.basis = None if vectors is None else jnp.asarray(vectors, self.mean.dtype)
        self.offset = jnp.asarray(offset, self.mean.dtype)
        self.schedule = VariancePreserving() if schedule is None else schedule
        self.t_min, self.t_max = horizon_of(self.schedule, t_min, t_max)
        self.log_normalizer, self.log_normalizer_error = log_normalizer, log_normalizer_error
        self.condition = self.label_normalizers = self.label_normalizer_errors = None

    def _written(self):
        squares = self.scales**2
        matrix = squares if self.basis is None else recomposed(squares, self.basis)
        return super()._written() | {"covariance": matrix}

    @classmethod
    def from_data(
        cls,
        net: Callable[..., Array],
        data,
        *,
        noise_min: float,
        noise_max: float,
        diagonal: bool = False,
        schedule: AbstractSchedule | None = None,
        standardize: bool = False,
    ) -> Any:
        """An untrained energy, preconditioned with the mean and covariance of data.

        Warns of columns that a diffusion takes badly: constant ones, those that the least noise hides, units
        far apart, few values with gaps between them.

        Args:
            net: Backbone, as above.
            data: Examples of shape `(num, *shape)`.
            noise_min: Noise level at `t_min`, in data units: the resolution at which the prior is a
                density. Standard deviations are floored at a tenth of it.
            noise_max: Noise level at `t_max`: several times the largest distance in the data.
            diagonal: Keep the coordinates (variances alone) instead of turning to the eigenbasis.
            schedule: Noise schedule.
            standardize: Learn the columns in standard deviations from their means, and return a
                `Standardized` distribution, with the units of the data. Noise levels are then in standard
                deviations.

        Raises:
            ValueError: If data are not finite, `noise_max` is below their standard deviation, noise levels
                are not ordered, or `net` does not fit them.
        """
        units = None
        if standardize:
            units = Standardized.units_of(data)
            data = (np.asarray(data, np.float64) - units[0]) / units[1]
        mean, covariance = fitted_gaussian(data, noise_min, noise_max, diagonal)
        check_columns(np.asarray(data), noise_min, noise_max)
        schedule = VariancePreserving() if schedule is None else schedule
        times = [float(schedule.time(jnp.asarray(-2 * np.log(s)))) for s in (noise_min, noise_max)]
        energy = cls(net, mean, covariance, schedule, *times)
        return energy if units is None else Standardized(energy, *map(jnp.asarray, units))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.mean.shape

    @abc.abstractmethod
    def form(self, w: Array, f: Array, kappa: Array) -> Scalar:
        r"""$\text{form}(w, F, \kappa)$, all of shape `(n,)`; $\tfrac12 |w|^2$ where $F = 0$."""

    def whitened(self, x: Array, t: Scalar) -> tuple[Array, Scalar]:
        r"""$w$ of shape `(n,)`, and the noise level $s$."""
        mean, scales, basis = cast_floats((self.mean, self.scales, self.basis), x.dtype)
        alpha_t, sigma_t = (jnp.asarray(c, x.dtype) for c in self.schedule(t))
        s = sigma_t / alpha_t
        u = (x / alpha_t - mean).ravel()
        v = u if basis is None else basis.T @ u
        return v / jnp.sqrt(s**2 + scales**2), s

    def backbone(self, w: Array, s: Scalar) -> Array:
        """$F$ of shape `(n,)`, under the condition."""
        told = () if self.condition is None else (self.condition,)
        net = cast_floats(self.net, w.dtype)
        return net(w.reshape(self.shape), 0.25 * jnp.log(s), *told).ravel()

    def energy(self, x: Array, t: Scalar) -> Scalar:
        scales, offset = cast_floats((self.scales, self.offset), x.dtype)
        w, s = self.whitened(x, t)
        alpha_t = jnp.asarray(self.schedule(t)[0], x.dtype)
        log_volume = 0.5 * jnp.sum(jnp.log(2 * jnp.pi * (s**2 + scales**2)))
        energy = self.form(w, self.backbone(w, s), scales / s) + log_volume
        energy += x.size * jnp.log(alpha_t) + self._offset(jnp.log(s), offset)
        return energy + self.label_term(t, jnp.mean(self.scales**2), x.dtype)

    def _offset(self, log_s: Scalar, coefficients: Array) -> Scalar:
        ends = jnp.asarray([self.t_min, self.t_max], log_s.dtype)
        low, high = jnp.log(jax.vmap(self.schedule.noise_level)(ends))
        place = (log_s - low) / (high - low)
        orders = jnp.arange(len(coefficients), dtype=log_s.dtype)
        return OFFSET_UNIT * jnp.sum(coefficients * jnp.cos(jnp.pi * orders * place))

    def moments(self, t: Scalar) -> tuple[Array, Array]:
        alpha_t, sigma_t = self.schedule(t)
        variance = self.scales**2 if self.basis is None else self.basis**2 @ self.scales**2
        return alpha_t * self.mean, alpha_t**2 * variance.reshape(self.shape) + sigma_t**2
