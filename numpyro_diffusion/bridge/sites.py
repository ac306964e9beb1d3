"""Diffusion variables on their way from noise to data."""

import equinox as eqx
import jax
import jax.numpy as jnp

from .._typing import Array, PRNGKey, Scalar
from ..energies import AbstractEnergy
from ..twists import AbstractTwist

__all__ = ["DiffusionSite", "normalizer_error"]


class DiffusionSite(eqx.Module):
    """One diffusion variable, possibly a batch of independent ones, on its way from noise to data.

    Attributes:
        energy: The prior's energy, for one example.
        batch_shape: Shape of the plates around it.
    """

    energy: AbstractEnergy
    batch_shape: tuple[int, ...] = eqx.field(static=True, default=())

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.batch_shape, *self.energy.shape)

    @property
    def size(self) -> int:
        """Number of independent examples in the batch."""
        size = 1
        for n in self.batch_shape:
            size *= n
        return size

    def time(self, clock: Scalar) -> Scalar:
        """Schedule time at a clock: log-SNR is linear in the clock, both ends are exact."""
        schedule, t_min, t_max = self.energy.schedule, self.energy.t_min, self.energy.t_max
        clean = schedule.log_snr(jnp.asarray(t_min))
        noisy = schedule.log_snr(jnp.asarray(t_max))
        t = schedule.time(clean + clock * (noisy - clean))
        return jnp.where(clock <= 0, t_min, jnp.where(clock >= 1, t_max, t))

    def moments(self, clock: Scalar) -> tuple[Array, Array]:
        """Mean and variance of the Gaussian approximation in data units, each of event shape."""
        t = self.time(clock)
        mean, variance = self.energy.moments(t)
        alpha_t, _ = self.energy.schedule(t)
        return mean / alpha_t, variance / alpha_t**2

    def sample_base(self, key: PRNGKey) -> Array:
        mean, variance = self.moments(jnp.asarray(1.0))
        return mean + jnp.sqrt(variance) * jax.random.normal(key, self.shape, variance.dtype)

    def log_base(self, u: Array) -> Scalar:
        mean, variance = self.moments(jnp.asarray(1.0))
        terms = (u - mean) ** 2 / variance + jnp.log(2 * jnp.pi * variance)
        return -0.5 * jnp.sum(terms)

    def see(self, twist: AbstractTwist, u: Array, clock: Scalar) -> tuple[Scalar, Array]:
        """Log density of the whole batch and what the rest of the model sees of it."""
        t = self.time(clock)
        if not self.batch_shape:
            return twist(self.energy, u, t)
        flat = u.reshape(-1, *self.energy.shape)
        log_densities, x_hat = jax.vmap(lambda one: twist(self.energy, one, t))(flat)
        return jnp.sum(log_densities), x_hat.reshape(u.shape)

    def carry(self, u: Array, clock: Scalar, next_clock: Scalar) -> tuple[Array, Scalar]:
        mean, variance = self.moments(clock)
        next_mean, next_variance = self.moments(next_clock)
        ratio = jnp.sqrt(next_variance / variance)
        ratio = jnp.broadcast_to(ratio, self.energy.shape)
        return next_mean + ratio * (u - mean), self.size * jnp.sum(jnp.log(ratio))

    def residual(self, clock: Scalar) -> Scalar:
        r"""$\rho(c)$: share of the prior's variance that the twist leaves open; 0 at clock 0."""
        schedule = self.energy.schedule
        noise = schedule.noise_level(self.time(clock)) ** 2
        floor = schedule.noise_level(jnp.asarray(self.energy.t_min)) ** 2
        _, variance = self.moments(jnp.asarray(0.0))
        return (noise - floor) / (jnp.mean(variance) + noise)

    @property
    def centre(self) -> Array:
        mean, _ = self.moments(jnp.asarray(0.0))
        return jnp.broadcast_to(mean, self.shape)

    @property
    def scale(self) -> Array:
        _, variance = self.moments(jnp.asarray(0.0))
        return jnp.broadcast_to(jnp.sqrt(variance), self.shape)


def normalizer_error(sites: dict[str, DiffusionSite]) -> float | None:
    """Standard error of the summed normalisers of some sites; `None` if one is unknown."""
    if any(site.energy.log_normalizer is None for site in sites.values()):
        return None
    # One error an energy, shared by its whole batch: it adds up, it does not average out.
    return sum((s.size * s.energy.log_normalizer_error) ** 2 for s in sites.values()) ** 0.5
