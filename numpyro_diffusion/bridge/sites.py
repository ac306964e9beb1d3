"""Diffusion variables of a bridge: noise level, denoising and transport of one site."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .._typing import Array, PRNGKey, Scalar
from ..energies import AbstractDenoiser, AbstractEnergy, Factored, FactoredDenoiser
from ..energies.factored import log_factors
from ..twists import AbstractTwist, LowRank, added_variance
from . import composed

__all__ = ["DensitySite", "DiffusionSite", "PathSite", "open_share"]


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
                "For a NumPyro distribution, `to_event` makes batch dimensions part of the event."
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
        _, variance = self.moments(jnp.asarray(0.0))
        # Not what rounding leaves of it at clock 0: a sharp likelihood multiplies it by all it knows.
        return jnp.where(clock <= 0, 0.0, (noise - floor) / (jnp.mean(variance) + noise))

    @property
    def centre(self) -> Array:
        mean, _ = self.moments(jnp.asarray(0.0))
        return jnp.broadcast_to(mean, self.shape)

    @property
    def dtype(self) -> Any:
        """Floating type of its centre and scale; nothing is computed."""
        return jax.eval_shape(lambda: self.scale).dtype

    @property
    def scale(self) -> Array:
        _, variance = self.moments(jnp.asarray(0.0))
        return jnp.broadcast_to(jnp.sqrt(variance), self.shape)


class DensitySite(DiffusionSite):
    """A diffusion variable whose noised densities an energy gives."""

    energy: AbstractEnergy

    def noise(self, clock: Scalar) -> Scalar:
        return self.energy.kernel_noise(self.time(clock))

    @property
    def exact(self) -> bool:
        """True if the prior at `t_min` can be drawn from exactly."""
        draw = lambda key: self.energy.draw(key, jnp.asarray(self.energy.t_min))
        return jax.eval_shape(draw, jax.random.key(0)) is not None

    @property
    def log_normalizer_error(self) -> float | None:
        """Standard error of the log normaliser of the whole batch; `None` if that is unknown."""
        if self.energy.log_normalizer is None:
            return None
        # One error an energy, shared by its whole batch: it adds up, it does not average out.
        return self.size * self.energy.log_normalizer_error

    def sample_prior(self, key: PRNGKey) -> Array:
        """Exact draws of the prior at `t_min`, in units of the data."""
        t_min = jnp.asarray(self.energy.t_min, jnp.result_type(float))
        alpha_t, _ = self.energy.schedule(t_min)
        keys = jax.random.split(key, self.size)
        draws = jnp.asarray(jax.vmap(lambda key: self.energy.draw(key, t_min))(keys))
        return draws.reshape(self.shape) / alpha_t

    def log_base(self, u: Array) -> Scalar:
        if self.initial is not None:
            flat = u.reshape(-1, *self.energy.shape)
            return jnp.sum(jax.vmap(self.initial.log_prob)(flat))
        mean, variance = self.moments(jnp.asarray(1.0))
        terms = (u - mean) ** 2 / variance + jnp.log(2 * jnp.pi * variance)
        return -0.5 * jnp.sum(terms)

    def see_one(self, twist, u, t):
        return *twist(self.energy, u, t), None


class PathSite(DiffusionSite):
    """A diffusion variable whose distribution is that of a reverse sampler, known by its steps alone: no
    density.

    An energy has a value beside its score. Where that is NaN or infinite at clock 0, so is the density here:
    the score may be a number there, and then nothing else would show it.
    """

    def __check_init__(self):
        if self.powers and self.initial is not None:  # powers that change with the time are refused
            raise ValueError(
                "a composition in path space starts from the product of the Gaussians of its parts, whose "
                "integral is known; it takes no `initial`. Leave it out, or use a scheme that needs energies."
            )

    def noise(self, clock: Scalar) -> Scalar:
        return self.energy.schedule.noise_level(self.time(clock))

    def log_base(self, u: Array) -> Scalar:
        """Log density of the sampler's start, which is the base, over the integral of a composition."""
        del u
        return -self.size * composed.log_integral(self.sampler) * jnp.ones(())

    @property
    def sampler(self) -> AbstractDenoiser:
        """The denoiser that defines the reverse sampler: the energy without its factors."""
        energy = self.energy
        return energy.base if isinstance(energy, Factored | FactoredDenoiser) else energy

    @property
    def powers(self) -> tuple[float, ...]:
        return composed.powers(self.sampler)

    def see_one(self, twist, u, t):
        log_density, x_hat, scores = self.step_of_sampler(u, t)
        return log_density, twist.of_denoised(u, x_hat), scores

    def step_of_sampler(self, u: Array, t: Scalar) -> tuple[Scalar, Array, Array]:
        """Log of the factors of the sampler's distribution, the denoised mean, and its score or those of its
        parts.
        """
        if self.powers:
            value, scores, x_hat = composed.scores(self.sampler, u, t)
        else:
            value, scores = composed.value_and_score(self.sampler, u, t)
            x_hat = u + added_variance(self.sampler, t) * scores
        # At noisy levels the steps are the prior, whatever density they pass.
        usual = jnp.isfinite(value) | (t > self.energy.t_min)
        factors = self._factors(u, x_hat, t)
        return jnp.where(usual, factors, jax.lax.stop_gradient(value)), x_hat, scores

    def log_factors(self, u: Array) -> Scalar:
        """Log of the factors of the whole batch at clock 0; the sampler is not evaluated."""
        t = self.time(jnp.zeros(()))
        each = jax.vmap(lambda u: self._factors(u, u, t))(u.reshape(-1, *self.energy.shape))
        return jnp.sum(each)

    def _factors(self, u: Array, x_hat: Array, t: Scalar) -> Scalar:
        if isinstance(self.energy, Factored | FactoredDenoiser):
            return log_factors(self.energy, u, x_hat, t)
        return jnp.zeros(())


def open_share(sites: dict[str, DiffusionSite], clock: Scalar) -> Scalar:
    r"""$\rho(c)$ of all sites: the mean of theirs; 0 without any."""
    return sum((site.residual(clock) for site in sites.values()), jnp.zeros(())) / max(
        1, len(sites)
    )
