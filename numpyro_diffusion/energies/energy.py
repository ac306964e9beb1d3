"""Base class of energies: log densities at all noise levels, up to a constant each."""

import abc
import math
from typing import Any, Self

import jax
import jax.numpy as jnp
from equinox import AbstractVar

from .. import _faq
from .._typing import Array, PRNGKey, Scalar, Shaped
from .base import AbstractDenoiser, replaced

__all__ = ["AbstractEnergy"]


class AbstractEnergy(AbstractDenoiser):
    r"""A time-dependent energy $E(x_t, t) = -\log p_t(x_t) - L(t)$ in nats.

    Subclasses give `energy` and `moments`; score, denoiser and the algebra follow. `e1 + e2` is the
    product of the two distributions, `e / temperature` and `power * e` a distribution raised to a power, `e1
    - e2` a ratio.

    Attributes:
        log_normalizer: $L(t_{\min}) = \log \int e^{-E(x, t_{\min})} dx$ in nats, or `None` where it
            is not known. It shifts the evidence and nothing else.
        log_normalizer_error: Standard error of `log_normalizer`, in nats.
        normalized: Whether $L(t) = 0$ at every level, by construction.
    """

    log_normalizer: AbstractVar[float | None]
    log_normalizer_error: AbstractVar[float]
    normalized = False

    @abc.abstractmethod
    def energy(self, x: Shaped, t: Scalar) -> Scalar:
        r"""$E(x_t, t)$, shape `()`, in nats."""

    def energy_and_score(self, x: Shaped, t: Scalar) -> tuple[Scalar, Shaped]:
        r"""$E(x_t, t)$ and $-\nabla_x E(x_t, t)$ from one forward and one backward pass."""
        energy, gradient = jax.value_and_grad(self.energy)(x, t)
        return energy, -gradient

    def score(self, x: Shaped, t: Scalar) -> Shaped:
        r"""$\nabla_x \log p_t(x_t) = -\nabla_x E(x_t, t)$, of the shape of `x`."""
        return self.energy_and_score(x, t)[1]

    def data_score(self, u: Shaped, t: Scalar) -> Shaped:
        alpha_t, _ = self.schedule(t)
        return alpha_t * self.score(alpha_t * u, t)

    def denoise(self, x: Shaped, t: Scalar) -> Shaped:
        r"""Tweedie's formula: $\hat x_0 = (x_t + \sigma_t^2 \nabla \log p_t(x_t)) / \alpha_t$."""
        alpha_t, sigma_t = self.schedule(t)
        return (x + sigma_t**2 * self.score(x, t)) / alpha_t

    def log_density(self, u: Shaped, t: Scalar) -> Scalar:
        r"""Log density of $u_t = x_t / \alpha_t$: the noised distribution in the units of the data.

        $-E(\alpha_t u, t) + d \log \alpha_t - L(t_{\min})$. At `t_min` this is the log density of
        the prior, normalised where `log_normalizer` is known.
        """
        return self.log_density_and_score(u, t)[0]

    def log_density_and_score(self, u: Shaped, t: Scalar) -> tuple[Scalar, Shaped]:
        """`log_density` and its gradient in `u`, from one evaluation."""
        alpha_t, _ = self.schedule(t)
        energy, score = self.energy_and_score(alpha_t * u, t)
        constant = 0.0 if self.log_normalizer is None else self.log_normalizer
        return u.size * jnp.log(alpha_t) - energy - constant, alpha_t * score

    def draw(self, key: PRNGKey, t: Scalar) -> Array | None:
        """Draw $x_t$ exactly where the energy has a closed form, else return `None`."""
        del key, t
        return None

    @property
    def unknown_elsewhere(self) -> dict[str, Any]:
        return {} if self.normalized else {"log_normalizer": None, "log_normalizer_error": 0.0}

    def with_log_normalizer(self, value: float | None, error: float = 0.0) -> Self:
        r"""Return the same energy with a known $L(t_{\min})$, which `save` stores with it.

        It comes from `prior_normalizer`, `adjacent_normalizer` or `thermodynamic_normalizer`.

        Args:
            value: $L(t_{\min})$ in nats, or `None` to forget it.
            error: Its standard error.

        Raises:
            ValueError: If a number is not finite, or the error is negative.
            TypeError: If the class has no field for it.
        """
        value, error = None if value is None else float(value), float(error)
        if not (math.isfinite(value or 0.0) and math.isfinite(error) and error >= 0):
            raise ValueError(
                "`with_log_normalizer` expects a finite value and an error of at least 0, in nats; got "
                f"{value} and {error}. {_faq.needs_normaliser}"
            )
        changes = {"log_normalizer": value, "log_normalizer_error": error}
        return replaced(self, "with_log_normalizer", changes)

    def potential_fn(self, t: Scalar | float):
        """The energy at one time as a function of `x`, in the form that NumPyro calls `potential_fn`."""
        return lambda x: self.energy(x, jnp.asarray(t, jnp.result_type(float)))
