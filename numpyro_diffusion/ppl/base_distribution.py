"""What the two diffusion priors share as NumPyro distributions."""

import math
import os
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import (
    Distribution,
    constraints,
)
from numpyro.distributions.util import validate_sample

from .. import _faq
from .._arguments import whole_number
from .._typing import Array, PRNGKey, Scalar
from ..density.estimate import AbstractLogDensity
from ..energies.base import AbstractDenoiser
from ..energies.energy import AbstractEnergy
from ..energies.reverse import has_exact_draws, is_composed
from ..energies.standardized import Standardized
from .packed import Packed

__all__ = ["NoisedDistribution", "batched"]


def batched(function, num_leading: int):
    """Map a function of one example over `num_leading` leading axes."""
    for _ in range(num_leading):
        function = jax.vmap(function)
    return function


class NoisedDistribution(Distribution):
    r"""What the two priors share: the distribution of $u_t = x_t / \alpha_t$."""

    arg_constraints = {}
    pytree_data_fields = ("energy",)
    pytree_aux_fields = ("num_steps",)
    log_density: AbstractLogDensity | None = None

    def __init__(self, energy, num_steps, validate_args):
        name = type(self).__name__
        if not isinstance(energy, AbstractDenoiser):
            if isinstance(energy, type) and issubclass(energy, AbstractDenoiser | Standardized):
                raise TypeError(
                    f"`{name}` expects an energy or a denoiser of this package; got the class "
                    f"`{energy.__name__}`. Make one: `{energy.__name__}(...)`. {_faq.kinds}"
                )
            if isinstance(energy, str | os.PathLike):
                raise TypeError(
                    f"`{name}` expects an energy or a denoiser of this package; got the text "
                    f"{str(energy)!r}. Read a file first: `nd.load(path)`, or `nd.load_pretrained(name)`. "
                    f"{_faq.kinds}"
                )
            if isinstance(energy, np.ndarray | jax.Array):
                raise TypeError(
                    f"`{name}` expects an energy or a denoiser of this package; got an array of shape "
                    f"{energy.shape}. Train an energy on examples first: `nd.fit`. {_faq.kinds}"
                )
            raise TypeError(
                f"`{name}` expects an energy or a denoiser of this package; got "
                f"{type(energy).__name__}. Wrap a callable energy in `EnergyFunction`, a callable "
                f"score in `ScoreFunction`. {_faq.kinds}"
            )
        num_steps = whole_number("num_steps", num_steps, 1, "The default is 200.")
        self.energy, self.num_steps = energy, num_steps
        super().__init__((), tuple(energy.shape), validate_args=validate_args)

    @property
    def energy(self) -> AbstractDenoiser:
        packed = self._packed
        return packed.unpack() if isinstance(packed, Packed) else packed

    @energy.setter
    def energy(self, energy):
        # `vmap` puts axis numbers where energies are; they, and packed energies, pass as they are.
        self._packed = Packed(energy) if isinstance(energy, AbstractDenoiser) else energy

    @property
    def time(self) -> Scalar:
        """Time at which the distribution is read, shape `()`."""
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

    @property
    def mean(self) -> Array:
        """Mean in the units of the data, of the shape of one example, where it is known exactly."""
        return self._moments("mean")[0]

    @property
    def variance(self) -> Array:
        """Variance of each coordinate in the units of the data, where it is known exactly."""
        return self._moments("variance")[1]

    def _moments(self, asked: str) -> tuple[Array, Array]:
        energy = self._single()
        if not has_exact_draws(energy):
            raise NotImplementedError(
                f"the {asked} of `{type(self).__name__}` is known for energies with exact draws, such as "
                f"`Gaussian` or `Mixture`; got {type(energy).__name__}. Estimate it: from draws, or for a "
                f"composed energy from the weighted particles of `nd.SMC`. {_faq.exact_draws}"
            )
        t = jnp.asarray(self.time, jnp.result_type(float))
        return energy.data_moments(t)

    def _single(self) -> AbstractDenoiser:
        if self._packed.is_stacked():
            raise ValueError(
                f"`{type(self).__name__}` is the distribution of one energy; got several, stacked "
                "along a leading "
                "axis, as `vmap` and NumPyro's `scan` make them. Stay inside `vmap`; instead of a "
                "diffusion site inside `scan`, sample all steps in a `plate` and scan over the "
                f"values. {_faq.stacked}"
            )
        return self.energy

    def _check(self, value) -> Any:
        """The energy, once it and the value are found fit for a density."""
        energy, name, shape = self._single(), type(self).__name__, jnp.shape(value)
        if self.log_density is None and not isinstance(energy, AbstractEnergy):
            raise TypeError(
                f"`{name}.log_prob` needs an energy; got the score-only prior "
                f"{type(energy).__name__}. Metropolis-type kernels (NUTS, HMC, MALA, the moves of "
                "SMC) need a density whose gradient is the score: without one they accept wrongly and "
                "give no warning. Train or distil an energy, use a scheme in path space, or give "
                "`DiffusionPrior` an estimator: "
                f"`log_density=nd.density.ScoreFormula()`. {_faq.log_prob}"
            )
        if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise TypeError(
                f"`{name}` is a distribution of real numbers; got values of type {jnp.result_type(value)}. "
                "Convert them, e.g. `x.astype(float)`, and scale them to the units of the "
                f"training data. {_faq.real_numbers}"
            )
        if len(shape) < self.event_dim or shape[len(shape) - self.event_dim :] != self.event_shape:
            raise ValueError(
                f"`{name}` expects values of shape (..., {', '.join(map(str, self.event_shape))}); got "
                f"{shape}. Reshape them to the shape of one example, batch axes "
                f"first. {_faq.shape}"
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
        log_density = (
            (lambda u: energy.log_density(u, t))
            if self.log_density is None
            else self.log_density.log_density(energy)
        )
        return batched(log_density, value.ndim - self.event_dim)(value)

    def sample(self, key, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of shape `sample_shape + event_shape`.

        Warns:
            UserWarning: If the energy is composed, so that draws have another distribution than `log_prob`.
        """
        if key is None:
            raise ValueError(
                f"`{type(self).__name__}.sample` expects a PRNG key; got None. Seed the model: "
                f"`numpyro.handlers.seed(model, jax.random.key(0))`. {_faq.keys}"
            )
        energy = self._single()
        if is_composed(energy):
            warnings.warn(
                f"draws of `{type(self).__name__}` follow the reverse process of {type(energy).__name__}, "
                "which is not its distribution: a product of noised distributions is not the noised product. "
                "Densities, and what MCMC or `nd.SMC` makes of them, are right. For draws run "
                f"`nd.SMC` on the model without data. {_faq.exact_draws}",
                stacklevel=2,
            )
        if not sample_shape:
            return self._draw(energy, key)
        keys = jax.random.split(key, math.prod(sample_shape))
        draws = jax.vmap(lambda key: self._draw(energy, key))(keys)
        return draws.reshape(*sample_shape, *self.event_shape)

    def _draw(self, energy: AbstractDenoiser, key: PRNGKey) -> Array:
        raise NotImplementedError
