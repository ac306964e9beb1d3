"""The two forms of a diffusion variable: with a density at every level, and in path space with scores."""

import jax
import jax.numpy as jnp

from .. import _faq
from .._typing import Array, PRNGKey, Scalar
from ..energies import AbstractDenoiser, AbstractEnergy, Factored, FactoredDenoiser
from ..energies.factored import log_factors
from ..twists import added_variance
from . import composed
from .sites import DiffusionSite

__all__ = ["DensitySite", "PathSite"]


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
                "integral is known; it takes no `initial`. Leave it out, or use a scheme that "
                f"needs energies. {_faq.compositions}"
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
