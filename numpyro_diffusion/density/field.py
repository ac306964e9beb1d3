r"""A density and its gradient as fields, $s \approx p$, $g \approx \nabla p$: a score's linear counterpart.

Mixing and affine push-forward are *linear* in $p$, not in $\log p$. What is learned of each part gives the
whole without another fit: the distribution of $Z = R + \gamma Z'$, as in a discounted sum of rewards, is an
average over $R$ of the field of $Z'$. The price: where $p$ is small both fields are, and a sampler stands
still.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._arguments import check_callable, check_instance
from .._numbers import number, one_number, real_array
from .._typing import Array, Scalar
from ..energies.checks import sum_to_one

__all__ = ["Bumps", "DensityField"]


class DensityField(eqx.Module):
    r"""A density and its gradient at one point, each a function of its own.

    Learned ones need not belong together: the gradient is that of the value up to the error of the fit.

    Attributes:
        value: $s(x)$, a number, of `x` of shape `(dimension,)`. A learned one may be a little below 0.
        gradient: $g(x)$, of the shape of `x`.

    References:
        Li et al. (2024), Bellman diffusion: generative modeling as learning a linear operator in the
        distribution space, arXiv 2410.01796.
    """

    value: Callable[[Array], Scalar]
    gradient: Callable[[Array], Array]

    def __check_init__(self):
        check_callable("value", self.value, "x -> density")
        check_callable("gradient", self.gradient, "x -> its gradient")

    @staticmethod
    def of(log_density: Callable[[Array], Scalar]) -> "DensityField":
        """The field of a normalised log density in closed form."""
        check_callable("log_density", log_density, "x -> log density")
        value = lambda x: jnp.exp(one_number("a log density", log_density(x)))
        return DensityField(value, jax.grad(value))

    @staticmethod
    def mix(fields: Sequence["DensityField"], weights) -> "DensityField":
        r"""The field of the mixture $\sum_k \omega_k p_k$: $\sum_k \omega_k s_k$ and $\sum_k \omega_k g_k$.

        Args:
            fields: Fields of the parts, at least one.
            weights: $\omega_k$, one a part, not negative, of sum 1.

        Raises:
            ValueError: If weights are none of these.
        """
        fields = (fields,) if isinstance(fields, DensityField) else tuple(fields)
        for field in fields:
            check_instance("fields", field, DensityField, "fit_density_field(...)", optional=False)
        shares = _shares("weights", weights)
        if len(shares) != len(fields):
            raise ValueError(
                f"expected one weight a field; got {len(fields)} and {len(shares)}. {_faq.shapes}"
            )
        sum_to_one("weights", np.asarray(weights, float))
        values = tuple(field.value for field in fields)
        return DensityField(
            _Mixed(values, shares), _Mixed(tuple(field.gradient for field in fields), shares)
        )

    def push_affine(self, scale: float, shifts, weights=None) -> "DensityField":
        r"""The field of $Z = R + \gamma Z'$ for this one's $Z'$ and an independent $R$.

        $$s(z) = \mathbb{E}_R\, \gamma^{-d}\, s'\big((z - R)/\gamma\big), \qquad
          g(z) = \mathbb{E}_R\, \gamma^{-d-1}\, g'\big((z - R)/\gamma\big) .$$

        Exact for the distribution that `shifts` and `weights` stand for. An evaluation costs one of this
        field a shift; `project_field` makes one field of the sum.

        Args:
            scale: $\gamma > 0$.
            shifts: Draws of $R$, or nodes, of shape `(num, dimension)`.
            weights: Of nodes, shape `(num,)`, not negative, up to a factor; equal by default.

        Raises:
            ValueError: If `scale`, `shifts` or `weights` are none of these.
        """
        scale = number("scale", scale, above=0)
        form = "of shape (num, dimension), one draw of R a row"
        rows = real_array("shifts", shifts, form)
        if rows.ndim != 2 or not rows.size:
            raise ValueError(
                f"`shifts` must be finite real numbers {form}; got shape {rows.shape}. {_faq.shapes}"
            )
        shares = _shares("weights", np.ones(len(rows)) if weights is None else weights)
        if len(shares) != len(rows):
            raise ValueError(
                f"expected one weight a shift; got {len(rows)} and {len(shares)}. {_faq.shapes}"
            )
        dtype = jnp.result_type(float)
        parts = jnp.asarray(scale, dtype), jnp.asarray(rows, dtype), jnp.asarray(shares, dtype)
        dimension = rows.shape[1]
        return DensityField(
            _Pushed(self.value, *parts, dimension), _Pushed(self.gradient, *parts, dimension + 1)
        )


class Bumps(eqx.Module):
    r"""$\sum_j w_j\, \mathcal{N}(x; c_j, h^2 I)$: what learned fields are made of, linear in the weights.

    Attributes:
        weights: $w_j$, shape `(num,)`, or `(num, dimension)` for a vector field.
        centers: $c_j$, shape `(num, dimension)`.
        width: $h$.
    """

    weights: Array
    centers: Array
    width: Scalar

    def __call__(self, x: Array) -> Array:
        _check_point(x, self.centers)
        return bumps(x, self.centers, self.width) @ self.weights


def bumps(x: Array, centers: Array, width: Scalar | float) -> Array:
    """The densities of all bumps at one point, shape `(num,)`."""
    squares = jnp.sum(((x - centers) / width) ** 2, -1)
    return jnp.exp(-0.5 * squares) / (jnp.sqrt(2 * jnp.pi) * width) ** x.size


class _Mixed(eqx.Module):
    parts: tuple[Callable, ...]
    weights: tuple[float, ...]

    def __call__(self, x) -> Any:
        return sum(w * part(x) for w, part in zip(self.weights, self.parts, strict=True))


class _Pushed(eqx.Module):
    part: Callable
    scale: Scalar
    shifts: Array
    weights: Array
    power: int = eqx.field(static=True)

    def __call__(self, z):
        _check_point(z, self.shifts)
        values = jax.vmap(lambda shift: self.part((z - shift) / self.scale))(self.shifts)
        return jnp.tensordot(self.weights, values, 1) / self.scale**self.power


def _check_point(x: Array, rows: Array) -> None:
    """Refuse a point of another dimension, which would be broadcast."""
    if jnp.shape(x) != rows.shape[1:]:
        raise ValueError(
            f"this field is one of points of shape {rows.shape[1:]}; got shape {jnp.shape(x)}. Fields and "
            f"shifts that are put together must have one dimension. {_faq.shapes}"
        )


def _shares(name: str, weights) -> tuple[float, ...]:
    sizes = real_array(name, weights, "of shape (num,)")
    if sizes.ndim != 1 or not (sizes >= 0).all() or not sizes.sum() > 0:
        raise ValueError(
            f"`{name}` must be one a part, not negative, and not all 0; got {sizes.tolist()}. {_faq.numbers}"
        )
    sizes = sizes / sizes.max()  # their sum may be beyond the largest number
    return tuple((sizes / sizes.sum()).tolist())
