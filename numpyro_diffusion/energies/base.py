r"""Energies and denoisers: what a diffusion model knows about a distribution.

A *denoiser* gives the mean of clean data given noised data. An *energy* knows more: a scalar
$E(x_t, t)$, in nats, with $p_t(x_t) = e^{-E(x_t, t) - L(t)}$. Its gradient is minus the score, and
Tweedie's formula turns the score into the denoiser, so an energy is a denoiser whose vector field is
certain to be a gradient. That certainty is what Metropolis steps and weights need.

All methods take ONE example of shape `shape`; `vmap` lives in the callers.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox import AbstractVar

from .._typing import Array, PRNGKey, Scalar
from ..schedules import AbstractSchedule

__all__ = ["AbstractDenoiser", "AbstractEnergy"]


class AbstractDenoiser(eqx.Module):
    r"""A noise schedule and a map $(x_t, t) \mapsto \mathbb{E}[x_0 \mid x_t]$.

    Attributes:
        schedule: The noise schedule $(\alpha_t, \sigma_t)$.
        shape: Shape of one example.
        t_min: Smallest time at which the model is trusted. Its law at `t_min` *is* the prior.
        t_max: Largest time; the law there is close to the Gaussian given by `moments(t_max)`.
    """

    schedule: AbstractVar[AbstractSchedule]
    shape: AbstractVar[tuple[int, ...]]
    t_min: AbstractVar[float]
    t_max: AbstractVar[float]

    @abc.abstractmethod
    def denoise(self, x: Array, t: Scalar) -> Array:
        r"""$\hat x_0(x_t) = \mathbb{E}[x_0 \mid x_t]$, of the shape of `x`."""

    @abc.abstractmethod
    def moments(self, t: Scalar) -> tuple[Array, Array]:
        """Mean and variance, each of shape `shape`, of a Gaussian roughly like the law at `t`.

        Used as the initial law at `t_max` and to scale positions from level to level. Both uses
        are corrected by weights, so roughly is enough.
        """


class AbstractEnergy(AbstractDenoiser):
    r"""A time-dependent energy $E(x_t, t) = -\log p_t(x_t) - L(t)$ in nats.

    Subclasses give `energy` and `moments`; score, denoiser and the algebra follow. `e1 + e2` is the
    product of the two laws, `e / temperature` and `power * e` a law raised to a power, `e1 - e2` a
    ratio.

    Attributes:
        log_normalizer: $L(t_{\min}) = \log \int e^{-E(x, t_{\min})} dx$ in nats, or `None` where it
            is not known. It shifts the evidence and nothing else.
        log_normalizer_error: Standard error of `log_normalizer`, in nats.
    """

    log_normalizer: AbstractVar[float | None]
    log_normalizer_error: AbstractVar[float]

    @abc.abstractmethod
    def energy(self, x: Array, t: Scalar) -> Scalar:
        r"""$E(x_t, t)$, shape `()`, in nats."""

    def energy_and_score(self, x: Array, t: Scalar) -> tuple[Scalar, Array]:
        r"""$E(x_t, t)$ and $-\nabla_x E(x_t, t)$ from one forward and one backward pass."""
        energy, gradient = jax.value_and_grad(self.energy)(x, t)
        return energy, -gradient

    def score(self, x: Array, t: Scalar) -> Array:
        r"""$\nabla_x \log p_t(x_t) = -\nabla_x E(x_t, t)$, of the shape of `x`."""
        return self.energy_and_score(x, t)[1]

    def denoise(self, x: Array, t: Scalar) -> Array:
        r"""Tweedie's formula: $\hat x_0 = (x_t + \sigma_t^2 \nabla \log p_t(x_t)) / \alpha_t$."""
        alpha_t, sigma_t = self.schedule(t)
        return (x + sigma_t**2 * self.score(x, t)) / alpha_t

    def log_density(self, u: Array, t: Scalar) -> Scalar:
        r"""Log density of $u_t = x_t / \alpha_t$: the noised law in the units of the data.

        $-E(\alpha_t u, t) + d \log \alpha_t - L(t_{\min})$. At `t_min` this is the log density of
        the prior, normalised where `log_normalizer` is known.
        """
        return self.log_density_and_score(u, t)[0]

    def log_density_and_score(self, u: Array, t: Scalar) -> tuple[Scalar, Array]:
        """`log_density` and its gradient in `u`, from one evaluation."""
        alpha_t, _ = self.schedule(t)
        energy, score = self.energy_and_score(alpha_t * u, t)
        constant = 0.0 if self.log_normalizer is None else self.log_normalizer
        return u.size * jnp.log(alpha_t) - energy - constant, alpha_t * score

    def draw(self, key: PRNGKey, t: Scalar) -> Array | None:
        """One exact draw of $x_t$ where the energy has a closed form, else `None`."""
        del key, t
        return None

    def potential_fn(self, t: Scalar | float):
        """The energy at one time as a function of `x`, in the form that NumPyro calls `potential_fn`."""
        return lambda x: self.energy(x, jnp.asarray(t, jnp.result_type(float)))

    def __add__(self, other: "AbstractEnergy") -> "AbstractEnergy":
        return _combine((self, other), (1.0, 1.0))

    def __sub__(self, other: "AbstractEnergy") -> "AbstractEnergy":
        return _combine((self, other), (1.0, -1.0))

    def __mul__(self, power: float) -> "AbstractEnergy":
        return _combine((self,), (power,))

    def __rmul__(self, power: float) -> "AbstractEnergy":
        return _combine((self,), (power,))

    def __truediv__(self, temperature: float) -> "AbstractEnergy":
        return _combine((self,), (1.0 / temperature,))

    def __neg__(self) -> "AbstractEnergy":
        return _combine((self,), (-1.0,))


def _combine(energies, powers) -> AbstractEnergy:
    from .algebra import combine  # algebra builds on this class, so it is met at call time

    return combine(energies, powers)
