"""Diffusion variables of a bridge: noise level, denoising and transport of one site."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .. import _faq
from .._typing import Array, PRNGKey, Scalar
from ..energies import AbstractDenoiser
from ..twists import AbstractTwist, LowRank

__all__ = ["DiffusionSite", "open_share"]


class DiffusionSite(eqx.Module):
    """One diffusion variable, possibly a batch of independent ones, with its noised distributions.

    Attributes:
        energy: The prior's energy, or denoiser, for one example.
        batch_shape: Shape of the plates around it.
        initial: Distribution of $u$ at the noisy end from which particles start, an object with
            `sample(key)` and `log_prob(u)` for one example, such as a NumPyro distribution; `None` for the
            Gaussian of the energy's own `moments(t_max)`.
    """

    energy: AbstractDenoiser
    batch_shape: tuple[int, ...] = eqx.field(static=True, default=())
    initial: Any = None

    def __check_init__(self):
        if self.initial is None:
            return
        draw = jax.eval_shape(self.initial.sample, jax.random.key(0))
        if draw.shape != self.energy.shape:
            raise ValueError(
                f"the initial distribution draws shape {draw.shape}, but one example has shape "
                f"{self.energy.shape}. "
                "For a NumPyro distribution, `to_event` makes batch dimensions part of the "
                f"event. {_faq.shapes}"
            )

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
        return self.energy.data_moments(self.time(clock))

    @property
    def clean_moments(self) -> tuple[Array, Array]:
        """`moments` at clock 0, without the way there and back through the schedule."""
        return self.energy.data_moments(jnp.asarray(self.energy.t_min))

    @abc.abstractmethod
    def noise(self, clock: Scalar) -> Scalar:
        """Noise level of the kernels between levels, in units of the data."""

    @abc.abstractmethod
    def log_base(self, u: Array) -> Scalar:
        """Log density of `sample_base`."""

    @abc.abstractmethod
    def see_one(
        self, twist: AbstractTwist, u: Array, t: Scalar
    ) -> tuple[Scalar, Array, Array | None]:
        """`see` for one example, without the root."""

    @property
    def powers(self) -> tuple[float, ...]:
        """Exponents of the parts of a composition, in path space; empty for a single distribution."""
        return ()

    def sample_base(self, key: PRNGKey) -> Array:
        if self.initial is not None:
            keys = jax.random.split(key, self.size)
            return jax.vmap(self.initial.sample)(keys).reshape(self.shape)
        mean, variance = self.moments(jnp.asarray(1.0))
        return mean + jnp.sqrt(variance) * jax.random.normal(key, self.shape, variance.dtype)

    def see(
        self, twist: AbstractTwist, u: Array, clock: Scalar
    ) -> tuple[Scalar, Array, Array | LowRank | None, Array | None]:
        """Log density of the whole batch, what the rest of the model sees of it, how roughly, and scores."""
        t = self.time(clock)

        def one(u):
            log_density, x_hat, scores = self.see_one(twist, u, t)
            return log_density, x_hat, twist.covariance_root(self.energy, u, t), scores

        if not self.batch_shape:
            return one(u)
        flat = u.reshape(-1, *self.energy.shape)
        log_densities, x_hat, root, scores = jax.vmap(one)(flat)
        if isinstance(root, LowRank):
            root = root.side_by_side()
        elif root is not None and root.shape == flat.shape:
            root = root.reshape(u.shape)
        if scores is not None and self.powers:
            scores = scores.swapaxes(0, 1).reshape(-1, *u.shape)
        elif scores is not None:
            scores = scores.reshape(u.shape)
        return jnp.sum(log_densities), x_hat.reshape(u.shape), root, scores

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
        _, variance = self.clean_moments
        # Not what rounding leaves of it at clock 0: a sharp likelihood multiplies it by all it knows.
        return jnp.where(clock <= 0, 0.0, (noise - floor) / (jnp.mean(variance) + noise))

    @property
    def centre(self) -> Array:
        mean, _ = self.clean_moments
        return jnp.broadcast_to(mean, self.shape)

    @property
    def dtype(self) -> Any:
        """Floating type of its centre and scale; nothing is computed."""
        return jax.eval_shape(lambda: self.scale).dtype

    @property
    def scale(self) -> Array:
        _, variance = self.clean_moments
        return jnp.broadcast_to(jnp.sqrt(variance), self.shape)


def open_share(sites: dict[str, DiffusionSite], clock: Scalar) -> Scalar:
    r"""$\rho(c)$ of all sites: the mean of theirs; 0 without any."""
    return sum((site.residual(clock) for site in sites.values()), jnp.zeros(())) / max(
        1, len(sites)
    )
