r"""Diffusion priors as NumPyro distributions.

`DiffusionPrior(energy)` is the law of clean data, `NoisedPrior(energy, t)` the same law with the noise
of level $t$ on it. Both live in the units of the data: their variable is $u_t = x_t / \alpha_t$. They
hold the whole energy as pytree data, so that networks travel through `jit`, `vmap` and `grad` as
arguments, and never as constants.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import validate_sample

from .._typing import Array, PRNGKey, Scalar
from ..energies.base import AbstractDenoiser, AbstractEnergy
from ..schedules import reverse_moments
from ..twists import added_variance

__all__ = ["DiffusionPrior", "NoisedPrior", "batched"]


def batched(function, num_leading: int):
    """Map a function of one example over `num_leading` leading axes."""
    for _ in range(num_leading):
        function = jax.vmap(function)
    return function


@eqx.filter_jit  # compiled once an energy, however often a model is traced
def _reverse_process(energy: AbstractDenoiser, key: PRNGKey, num_steps: int) -> Array:
    r"""One draw of $x_{t_{\min}}$ by ancestral steps $x_s \sim q(x_s \mid x_t, \hat x_0(x_t))$.

    Steps are equal in log-SNR and start from the Gaussian of `energy.moments(t_max)`.
    """
    dtype = jnp.result_type(float)
    t_max, t_min = jnp.asarray(energy.t_max, dtype), jnp.asarray(energy.t_min, dtype)
    ends = energy.schedule.log_snr(t_max), energy.schedule.log_snr(t_min)
    times = jax.vmap(energy.schedule.time)(jnp.linspace(*ends, num_steps + 1))
    times = times.at[0].set(t_max).at[-1].set(t_min)
    key_base, key_steps = jax.random.split(key)

    def step(x, level):
        t, s, key_step = level
        q = reverse_moments(energy.schedule, t, s)
        noise = jax.random.normal(key_step, energy.shape, dtype)
        x_s = q.noised * x + q.data * energy.denoise(x, t) + jnp.sqrt(q.variance) * noise
        return x_s.astype(dtype), None

    mean, variance = energy.moments(t_max)
    x = mean + jnp.sqrt(variance) * jax.random.normal(key_base, energy.shape, dtype)
    levels = times[:-1], times[1:], jax.random.split(key_steps, num_steps)
    return jax.lax.scan(step, x.astype(dtype), levels)[0]


class _Packed(eqx.Module):
    """An energy split into its arrays and the rest (functions, numbers), which is metadata."""

    arrays: AbstractDenoiser
    rest: AbstractDenoiser = eqx.field(static=True)

    def __init__(self, energy: AbstractDenoiser):
        is_array = lambda leaf: isinstance(leaf, jax.Array | np.ndarray)
        self.arrays, self.rest = eqx.partition(energy, is_array)

    def unpack(self) -> AbstractDenoiser:
        return eqx.combine(self.arrays, self.rest)


class _Noised(Distribution):
    r"""What the two priors share: the law of $u_t = x_t / \alpha_t$."""

    arg_constraints = {}
    pytree_data_fields = ("energy",)
    pytree_aux_fields = ("num_steps",)

    def __init__(self, energy, num_steps, validate_args):
        name = type(self).__name__
        if not isinstance(energy, AbstractDenoiser):
            raise TypeError(
                f"`{name}` expects an energy or a denoiser of this package; got "
                f"{type(energy).__name__}. Wrap a callable energy in `EnergyFunction`, a callable "
                "score in `ScoreFunction`."
            )
        if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
            raise ValueError(
                f"`{name}` expects `num_steps`, the length of its reverse process, to be a positive "
                f"integer; got {num_steps!r}. The default is 200."
            )
        self.energy, self.num_steps = energy, num_steps
        super().__init__((), tuple(energy.shape), validate_args=validate_args)

    @property
    def energy(self) -> AbstractDenoiser:
        packed = self._packed
        return packed.unpack() if isinstance(packed, _Packed) else packed

    @energy.setter
    def energy(self, energy):
        # `vmap` puts axis numbers where energies are; they, and packed energies, pass as they are.
        self._packed = _Packed(energy) if isinstance(energy, AbstractDenoiser) else energy

    @property
    def time(self) -> Scalar:
        """Time at which the law is read, shape `()`."""
        raise NotImplementedError

    @property
    def support(self):
        return constraints.independent(constraints.real, self.event_dim)

    @property
    def has_rsample(self) -> bool:
        return False  # the choice of a component has no derivative

    def tree_flatten(self):
        children, aux = super().tree_flatten()
        names = self.gather_pytree_data_fields()
        packed = {"energy": self._packed}
        return tuple(packed.get(n, c) for n, c in zip(names, children, strict=True)), aux

    def _check(self, value) -> AbstractEnergy:
        """The energy, once it and the value are found fit for a density."""
        energy, name, shape = self.energy, type(self).__name__, jnp.shape(value)
        if not isinstance(energy, AbstractEnergy):
            raise TypeError(
                f"`{name}.log_prob` needs an energy; got the score-only prior "
                f"{type(energy).__name__}. Metropolis-type kernels (NUTS, HMC, MALA, the moves of "
                "SMC) need a density whose gradient is the score: without one they accept wrongly and "
                "give no warning. Train or distil an energy, or use a scheme in path space."
            )
        if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise TypeError(
                f"`{name}` is a law of real numbers; got values of type {jnp.result_type(value)}. "
                "Convert them, e.g. `x.astype(float)`, and scale them to the units of the training data."
            )
        if len(shape) < self.event_dim or shape[len(shape) - self.event_dim :] != self.event_shape:
            raise ValueError(
                f"`{name}` expects values of shape (..., {', '.join(map(str, self.event_shape))}); got "
                f"{shape}. Reshape them to the shape of one example, batch axes first."
            )
        return energy

    @validate_sample
    def log_prob(self, value, intermediates=None):
        r"""Log density of $u_t$ in nats, of shape `value.shape` without the event axes.

        Normalised where `energy.log_normalizer` is known.
        """
        del intermediates
        energy, value = self._check(value), jnp.asarray(value)
        t = jnp.asarray(self.time, value.dtype)
        log_density = lambda u: energy.log_density(u, t)
        return batched(log_density, value.ndim - self.event_dim)(value)

    def sample(self, key, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of shape `sample_shape + event_shape`."""
        if key is None:
            raise ValueError(
                f"`{type(self).__name__}.sample` expects a PRNG key; got None. Seed the model: "
                "`numpyro.handlers.seed(model, jax.random.key(0))`."
            )
        if not sample_shape:
            return self._draw(key)
        keys = jax.random.split(key, math.prod(sample_shape))
        return jax.vmap(self._draw)(keys).reshape(*sample_shape, *self.event_shape)

    def _draw(self, key) -> Array:
        raise NotImplementedError


class DiffusionPrior(_Noised):
    r"""A learned diffusion as the prior of a NumPyro site.

    The law of $u = x_t / \alpha_t$ at $t_{\min}$, in the units of the data:
    $\log p(u) = -E(\alpha u, t_{\min}) + d \log \alpha - L(t_{\min})$, where $L$ is left out if the
    energy does not know it (this moves an evidence and no posterior). The gradient of `log_prob` is
    the score, so any NumPyro kernel may be used.

    Draws are exact where the energy has a closed form. Otherwise they follow the reverse process,
    discretised in `num_steps` steps: with model error, and for composed energies, its law is close
    to that of `log_prob` but not the same.

    A score-only prior (a denoiser that is not an energy) can be sampled but has no `log_prob`.

    Args:
        energy: The energy, of any event shape.
        num_steps: Number of steps of the reverse process.
        validate_args: As for every NumPyro distribution.

    Raises:
        TypeError: If `energy` is neither energy nor denoiser. `log_prob` raises it for integers and
            for score-only priors.
        ValueError: If `num_steps` is not a positive integer. `log_prob` raises it for wrong shapes.

    Example:
        >>> import numpyro_diffusion as nd
        >>> nd.DiffusionPrior(nd.Gaussian()).event_shape
        (2,)
    """

    def __init__(self, energy: AbstractDenoiser, *, num_steps: int = 200, validate_args=None):
        super().__init__(energy, num_steps, validate_args)

    @property
    def time(self):
        return self.energy.t_min

    def _draw(self, key) -> Array:
        energy = self.energy
        t_min = jnp.asarray(energy.t_min, jnp.result_type(float))
        x = energy.draw(key, t_min) if isinstance(energy, AbstractEnergy) else None
        if x is None:
            x = _reverse_process(energy, key, self.num_steps)
        return x / energy.schedule(t_min)[0].astype(x.dtype)


class NoisedPrior(_Noised):
    r"""A diffusion prior under the noise of level $t$: the law of $u_t = x_t / \alpha_t$.

    $u_t = u_{t_{\min}} + \mathcal{N}(0, (s_t^2 - s_{t_{\min}}^2) I)$ with noise levels
    $s = \sigma / \alpha$. `noised` puts it where a model has a `DiffusionPrior`.

    Args:
        energy: The energy.
        t: Time, shape `()`; may be traced.
        num_steps: Number of steps of the reverse process behind a draw of the prior.
        validate_args: As for every NumPyro distribution.
    """

    pytree_data_fields = ("t",)

    def __init__(self, energy: AbstractDenoiser, t, *, num_steps: int = 200, validate_args=None):
        self.t = t
        super().__init__(energy, num_steps, validate_args)

    @property
    def time(self):
        return self.t

    def _draw(self, key) -> Array:
        key_prior, key_noise = jax.random.split(key)
        u = DiffusionPrior(self.energy, num_steps=self.num_steps)._draw(key_prior)
        noise = jax.random.normal(key_noise, u.shape, u.dtype)
        return u + jnp.sqrt(added_variance(self.energy, self.t)).astype(u.dtype) * noise
