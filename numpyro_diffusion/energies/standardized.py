r"""A learned prior in the units of a table with columns of very different scales.

The noise of a diffusion is the same in every coordinate, so the columns that it sees must be alike. The units
stay outside: $x = m + D z$ with the diagonal $D$ of standard deviations, and a diffusion for $z$.
"""

from typing import Any, NoReturn, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .. import _faq
from .._numbers import several_examples
from .._typing import Array, Scalar
from .base import AbstractDenoiser
from .columns import named

__all__ = ["Standardized"]


class Standardized(eqx.Module):
    r"""The distribution of $x = m + D z$ where $z$ has a diffusion prior: `from_data(..., standardize=True)`.

    It is no energy itself, for its noise is not the same in every column. `fit`, `audit`, `DiffusionPrior`,
    `save` and `load` take it as it is, with data and sites in the user's units; everything else works with
    `energy`, in standard units, and data through `standardize`. Noise levels are in standard deviations.

    Attributes:
        energy: The distribution of $z$: an energy or a denoiser.
        location: $m$, of the shape of one example.
        scale: The diagonal of $D$, of the same shape, positive.

    Raises:
        ValueError: If shapes disagree, or a scale is not positive.
    """

    energy: Any
    location: Array
    scale: Array

    def __check_init__(self):
        shape = tuple(self.energy.shape)
        shapes = [np.shape(part) for part in (self.location, self.scale)]
        if not isinstance(self.energy, AbstractDenoiser) or shapes != [shape, shape]:
            raise ValueError(
                f"`Standardized` expects an energy, and a location and a scale of its shape {shape}; got "
                f"{type(self.energy).__name__} and shapes {shapes}. One number a "
                f"column. {_faq.kinds}"
            )
        parts = self.location, self.scale
        if any(isinstance(part, Tracer) for part in parts):
            return
        location, scale = (np.asarray(part) for part in parts)
        if not (np.isfinite(location).all() and np.isfinite(scale).all() and (scale > 0).all()):
            raise ValueError(
                f"locations must be finite and scales finite and positive; got {location} and {scale}. "
                f"Drop columns that never change. {_faq.examples}"
            )

    @classmethod
    def units_of(cls, data) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each column, of finite data of shape `(num, *shape)`.

        Raises:
            ValueError: If data are fewer than 2 or not finite, or a column never changes.
        """
        data = several_examples(data)
        location, scale = data.mean(0), data.std(0)
        constant = np.flatnonzero(scale <= 1e-9 * np.maximum(np.abs(data).max(0), 1e-300))
        if len(constant):
            raise ValueError(
                f"{named(constant)} of the data never change, so they have no scale. Drop them: nothing is "
                f"to be learned of them. {_faq.examples}"
            )
        return location, scale

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.energy.shape)

    def standardize(self, x) -> Any:
        r"""$z = D^{-1} (x - m)$ of examples of shape `(..., *shape)`; on the host for NumPy arrays."""
        if isinstance(x, np.ndarray):
            x, location, scale = (np.asarray(a, float) for a in (x, self.location, self.scale))
        else:
            x, location, scale = jnp.asarray(x), self.location, self.scale
        return (self._checked(x) - location) / scale

    def restore(self, z) -> Array:
        r"""$x = m + D z$, of the shape of `z`."""
        return self.location + self.scale * self._checked(jnp.asarray(z))

    def _checked(self, x: Any) -> Any:
        if x.shape[max(x.ndim - len(self.shape), 0) :] != self.shape:
            raise ValueError(
                f"`Standardized` expects examples of shape (..., {', '.join(map(str, self.shape))}); got "
                f"{x.shape}. Put the columns last. {_faq.shapes}"
            )
        return x

    def denoised(self, x) -> Array:
        r"""Draws without the noise that the prior keeps: $m + D\, \mathbb{E}[z_0 \mid z]$ at `t_min`.

        A site with this prior is data plus noise of `noise_min` standard deviations, independent of all
        else given the draw. This is the mean of what is under it; the noise itself is about
        $s^2 \partial \hat z_0 / \partial z$, which `energy.denoise` gives by derivative.

        Args:
            x: Draws in the user's units, of shape `(..., *shape)`.
        """
        energy, x = self.energy, jnp.asarray(x)
        t = jnp.asarray(energy.t_min, x.dtype)
        alpha_t = jnp.asarray(energy.schedule(t)[0], x.dtype)
        z = self.standardize(x).reshape(-1, *self.shape)
        z_hat = jax.lax.map(lambda z: energy.denoise(alpha_t * z, t), z, batch_size=1024)
        return self.restore(z_hat.reshape(x.shape))

    def with_energy(self, energy: AbstractDenoiser) -> Self:
        """Return another energy in the same units."""
        return type(self)(energy, self.location, self.scale)

    def given(self, condition) -> Self:
        """Return the same distribution under a condition, as `AbstractNetworkEnergy.given`."""
        return self.with_energy(self.energy.given(condition))

    def with_log_normalizer(self, value: Scalar | float, error: float = 0.0) -> Self:
        """Return it with a known normaliser of `energy`, from `prior_normalizer(self.energy, key)`."""
        return self.with_energy(self.energy.with_log_normalizer(value, error))

    def __getattr__(self, name: str) -> NoReturn:
        known = not name.startswith("_") and hasattr(AbstractDenoiser, name)
        known = known or name in (
            "schedule",
            "t_min",
            "t_max",
            "score",
            "log_density",
            "log_normalizer",
        )
        why = (
            ": a `Standardized` distribution is not an energy, since its noise differs from column "
            "to column. Pass "
            "its `energy`, which is one in standard units, and data through `standardize`"
        )
        raise AttributeError(f"`Standardized` has no `{name}`{why if known else ''}. {_faq.kinds}")
