r"""Learned energies: the Gaussian of the data, and what a network makes of it.

In data units, with noise level $s = \sigma_t / \alpha_t$, a Gaussian prior $\mathcal{N}(m, S)$ noised
to level $s$ has the energy $\tfrac12 |w|^2$ of its whitened coordinate $w$, and a network $F(w)$
corrects it by terms scaled so that $F$ is of order one at every level. Because noise is isotropic it
stays isotropic in the eigenbasis of $S$, where the preconditioning is one number a coordinate:
directions in which the data hardly vary are right from the start, and the network learns only what is
not Gaussian. Two energies are built on this. `InnerProductEnergy` is the one of the literature.
`ProperEnergy` completes its square, so that it is a proper law whatever the weights: prefer it where
$e^{-E}$ is to be sampled.
"""

import abc
from collections.abc import Callable
from typing import Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, Scalar
from ..nets import ResidualMLP
from ..schedules import AbstractSchedule, VariancePreserving
from .base import AbstractEnergy

__all__ = ["AbstractNetworkEnergy", "InnerProductEnergy", "ProperEnergy"]

OFFSET_UNIT = 10.0  # nats a unit of `offset`, so that one learning rate suits it and the network


class AbstractNetworkEnergy(AbstractEnergy):
    r"""Energy of a backbone $F(w, c_{noise})$ in preconditioned coordinates.

    With $v = B^\top (x_t/\alpha_t - m)$, $s = \sigma_t/\alpha_t$ and, for each coordinate of standard
    deviation $d$: $w = v / \sqrt{s^2 + d^2}$, $\kappa = d / s$, $c_{noise} = \tfrac14 \log s$,

    $$E(x_t, t) = \text{form}(w, F, \kappa) + \tfrac12 \sum_i \log 2\pi (s^2 + d_i^2) + n \log \alpha_t
      + b(t).$$

    With $F = 0$ and $b = 0$ the law is $\mathcal{N}(m, B\,\mathrm{diag}(d^2)B^\top)$, noised exactly and
    normalised; $n \log \alpha_t$ makes it a density of $x_t$. Weights are cast to the type of `x`.

    Args:
        net: Backbone, `net(w, c_noise) -> F` with `w` and `F` of shape `shape`; an `eqx.Module`. The
            default is a small untrained `ResidualMLP`.
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

    Raises:
        ValueError: If shapes disagree or a variance is not positive.
    """

    net: Callable[[Array, Scalar], Array]
    mean: Array
    scales: Array
    basis: Array | None
    offset: Array
    schedule: AbstractSchedule
    t_min: float = eqx.field(static=True)
    t_max: float = eqx.field(static=True)
    log_normalizer: float | None = eqx.field(static=True, default=None)
    log_normalizer_error: float = eqx.field(static=True, default=0.0)

    def __init__(
        self,
        net: Callable[[Array, Scalar], Array] | None = None,
        mean=(0.5, -1.0),
        covariance=((1.0, 0.6), (0.6, 0.8)),
        schedule: AbstractSchedule | None = None,
        t_min: float | None = None,
        t_max: float | None = None,
        offset=(0.0,) * 12,
        log_normalizer: float | None = None,
        log_normalizer_error: float = 0.0,
    ):
        mean, covariance = np.asarray(mean), np.asarray(covariance)
        if covariance.shape not in ((mean.size,), (mean.size, mean.size)):
            raise ValueError(
                f"`covariance` must have shape ({mean.size},) or ({mean.size}, {mean.size}) to match a "
                f"mean of shape {mean.shape}; got {covariance.shape}. It is over flattened examples."
            )
        values, vectors = covariance, None
        if covariance.ndim == 2:
            values, vectors = np.linalg.eigh(covariance)
        if not (np.isfinite(values).all() and values.min() > 0):
            raise ValueError(
                f"`covariance` must be finite and positive definite; its smallest variance is "
                f"{values.min():.3g}. Floor the variances at the square of the data's resolution."
            )
        self.net = ResidualMLP(None, mean.shape, width=32) if net is None else net
        self.mean = jnp.asarray(mean, jnp.result_type(float))
        self.scales = jnp.asarray(np.sqrt(values), self.mean.dtype)
        self.basis = None if vectors is None else jnp.asarray(vectors, self.mean.dtype)
        self.offset = jnp.asarray(offset, self.mean.dtype)
        self.schedule = VariancePreserving() if schedule is None else schedule
        default_min, default_max = self.schedule.horizon()
        self.t_min = default_min if t_min is None else t_min
        self.t_max = default_max if t_max is None else t_max
        self.log_normalizer, self.log_normalizer_error = log_normalizer, log_normalizer_error

    @classmethod
    def from_data(
        cls,
        net: Callable[[Array, Scalar], Array],
        data,
        *,
        noise_min: float,
        noise_max: float,
        diagonal: bool = False,
        schedule: AbstractSchedule | None = None,
    ) -> Self:
        """An untrained energy, preconditioned with the mean and covariance of data.

        Args:
            net: Backbone, as above.
            data: Examples of shape `(num, *shape)`.
            noise_min: Noise level at `t_min`, in data units: the resolution at which the prior is a
                density. Standard deviations are floored at a tenth of it.
            noise_max: Noise level at `t_max`: several times the largest distance in the data.
            diagonal: Keep the coordinates (variances alone) instead of turning to the eigenbasis.
            schedule: Noise schedule.
        """
        data = np.asarray(data, np.float64)
        if data.ndim < 2 or len(data) < 2 or not np.isfinite(data).all():
            raise ValueError(
                "`data` must hold at least 2 finite examples, shape (num, *shape); got shape "
                f"{data.shape}. Stack examples along the first axis and drop missing ones."
            )
        if not 0 < noise_min < noise_max:
            raise ValueError(f"expected 0 < noise_min < noise_max; got {noise_min}, {noise_max}.")
        flat = data.reshape(len(data), -1)
        floor = (0.1 * noise_min) ** 2
        if diagonal:
            covariance = np.maximum(flat.var(0), floor)
        else:
            values, vectors = np.linalg.eigh(np.cov(flat.T, bias=True).reshape(2 * flat.shape[1:]))
            covariance = (vectors * np.maximum(values, floor)) @ vectors.T
        schedule = VariancePreserving() if schedule is None else schedule
        times = [float(schedule.time(jnp.asarray(-2 * np.log(s)))) for s in (noise_min, noise_max)]
        return cls(net, data.mean(0), covariance, schedule, *times)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.mean.shape

    @abc.abstractmethod
    def form(self, w: Array, f: Array, kappa: Array) -> Scalar:
        r"""$\text{form}(w, F, \kappa)$, all of shape `(n,)`; $\tfrac12 |w|^2$ where $F = 0$."""

    def energy(self, x: Array, t: Scalar) -> Scalar:
        arrays = (self.net, self.mean, self.scales, self.basis, self.offset)
        net, mean, scales, basis, offset = _cast(arrays, x.dtype)
        alpha_t, sigma_t = (jnp.asarray(c, x.dtype) for c in self.schedule(t))
        s = sigma_t / alpha_t
        u = (x / alpha_t - mean).ravel()
        v = u if basis is None else basis.T @ u
        total = s**2 + scales**2
        w = v / jnp.sqrt(total)
        f = net(w.reshape(self.shape), 0.25 * jnp.log(s)).ravel()
        log_volume = 0.5 * jnp.sum(jnp.log(2 * jnp.pi * total)) + x.size * jnp.log(alpha_t)
        return self.form(w, f, scales / s) + log_volume + self._offset(jnp.log(s), offset)

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


class InnerProductEnergy(AbstractNetworkEnergy):
    r"""Preconditioned inner-product energy: $\tfrac12 |w|^2 - \sum_i \kappa_i w_i F_i$.

    Its denoiser is the EDM form $c_{skip} v + c_{out} (F + J_F^\top w)$ where all $d_i$ agree, with
    $c_{skip} = d^2/(s^2 + d^2)$ and $c_{out} = s d / \sqrt{s^2 + d^2}$. Written with $\kappa = d/s$ no two
    large numbers cancel, at low noise in float32 either.

    Nothing bounds it from below: a network that grows as fast as $|w|$ makes $e^{-E}$ impossible to
    normalise, and a long chain finds where. See `ProperEnergy`. Arguments are those of
    `AbstractNetworkEnergy`.

    References:
        Thornton et al. (2025), Composition and Control with Distilled Energy Diffusion Models and
        Sequential Monte Carlo. Karras et al. (2022), Elucidating the Design Space of Diffusion-Based
        Generative Models, Table 1.
    """

    def form(self, w, f, kappa):
        return 0.5 * jnp.sum(w**2) - jnp.sum(kappa * w * f)


class ProperEnergy(AbstractNetworkEnergy):
    r"""Inner-product energy with its square completed, a proper law whatever the weights.

    $\tfrac12 \rho |w|^2 + \tfrac12 |\sqrt{1-\rho}\,w - \kappa F|^2$ with $\rho = \tfrac12$; multiplied out,
    $\tfrac12 |w|^2 - \sqrt{1-\rho}\sum_i \kappa_i w_i F_i + \tfrac12 \sum_i (\kappa_i F_i)^2$: the inner
    product plus a price on large corrections. It is never below $\tfrac12\rho |w|^2$, so $e^{-E}$ has a
    finite integral and Gaussian tails at every level, and a chain that leaves the data comes back.
    Arguments are those of `AbstractNetworkEnergy`.
    """

    def form(self, w, f, kappa):
        # rho = 1/2: tails at most sqrt(2) wider than those of the Gaussian of the data.
        return 0.25 * jnp.sum(w**2) + 0.5 * jnp.sum((0.5**0.5 * w - kappa * f) ** 2)


def _cast(tree, dtype):
    """Floating leaves as `dtype`: float32 weights serve float64 positions and the other way round."""
    return jax.tree.map(
        lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, tree
    )
