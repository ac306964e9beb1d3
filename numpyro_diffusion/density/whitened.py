r"""The probability flow in coordinates in which a Gaussian is constant.

The flow of $u = x_t / \alpha_t$ in the noise level $s$ is $du/ds = -s\, \nabla \log p_s(u)$. With the
Gaussian reference $\mathcal{N}(m, B\,\mathrm{diag}(v) B^\top)$ and $r = \sqrt{v + s^2}$, a number for each
coordinate, $w = B^\top (u - m) / r$ obeys

$$\frac{dw}{d \log s} = -\frac{s^2}{r} \big( B^\top \nabla \log p_s(u) + w / r \big) ,$$

which is 0 where the distribution is the reference. Time is told by the clock $\tau = \operatorname{arsinh}(c
/ s)$, with $c$ the largest standard deviation of the reference: the logarithm of the noise where there is
little of it, and $c / s$, in which the flow is smooth, where noise drowns the data.
"""

from typing import NamedTuple

import jax.numpy as jnp

from .._typing import Array, Scalar
from ..energies import AbstractDenoiser
from ..energies.coordinates import cast_floats
from .reference import Reference, check_noised, reference_of

__all__ = ["WhitenedFlow"]


class WhitenedFlow(NamedTuple):
    """The flow of a prior, for ONE point.

    Attributes:
        prior: Denoiser or energy.
        reference: Its Gaussian.
        scale: $c$, shape `()`.
    """

    prior: AbstractDenoiser
    reference: Reference
    scale: Scalar

    @classmethod
    def of(cls, prior: AbstractDenoiser, dtype) -> "WhitenedFlow":
        """The flow, computed in this type."""
        check_noised(prior)
        reference = cast_floats(reference_of(prior), dtype)
        return cls(prior, reference, jnp.sqrt(jnp.max(reference.variances)))

    def ends(self) -> tuple[Scalar, Scalar]:
        """Clocks at `t_max` and, larger, at `t_min`."""
        at = lambda t: jnp.arcsinh(
            self.scale / self.prior.schedule.noise_level(jnp.asarray(t, self.scale.dtype))
        )
        return at(self.prior.t_max), at(self.prior.t_min)

    def time_and_noise(self, clock: Scalar) -> tuple[Scalar, Scalar]:
        """Time of the schedule and noise level, both of shape `()`."""
        t = self.prior.schedule.time_at_noise(self.scale / jnp.sinh(clock))
        t = jnp.clip(t, self.prior.t_min, self.prior.t_max).astype(self.scale.dtype)
        # The noise of the time as it is rounded, so that score and reference speak of the same level.
        return t, self.prior.schedule.noise_level(t)

    def spread(self, s: Scalar) -> Array:
        """$r$, shape `(d,)`."""
        return jnp.sqrt(self.reference.variances + s**2)

    def whiten(self, u: Array, clock: Scalar) -> Array:
        """$w$ of shape `(d,)` from $u$."""
        _, s = self.time_and_noise(clock)
        return self.reference.turn(u - self.reference.mean) / self.spread(s)

    def colour(self, w: Array, s: Scalar) -> Array:
        """$u$, of the shape of one example, from $w$."""
        v = self.spread(s) * w
        v = v if self.reference.basis is None else self.reference.basis @ v
        return v.reshape(self.prior.shape) + self.reference.mean

    def velocity(self, clock: Scalar, w: Array) -> Array:
        r"""$dw / d\tau$, shape `(d,)`; one evaluation."""
        t, s = self.time_and_noise(clock)
        r = self.spread(s)
        score = self.reference.turn(self.prior.data_score(self.colour(w, s), t))
        return s**2 / (r * jnp.tanh(clock)) * (score + w / r)  # d log s = -d tau / tanh(tau)
