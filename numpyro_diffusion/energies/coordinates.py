"""Standardisation of data by a Gaussian, and the types a network computes in."""

import inspect
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .. import _faq
from .._numbers import several_examples

__all__ = ["cast_floats", "check_label", "check_net", "fitted_gaussian", "of_label"]


def check_net(net, shape: tuple[int, ...]) -> None:
    """Refuse a backbone that does not map examples of this shape to the like; nothing is computed.

    One that must be told a condition is not looked at.
    """
    arguments = jax.ShapeDtypeStruct(shape, jnp.result_type(float)), jnp.zeros(())
    try:
        inspect.signature(net).bind(*arguments)
    except (TypeError, ValueError):  # it wants a condition, or has no signature
        return
    try:
        found = jax.eval_shape(net, *arguments)
    except (TypeError, ValueError) as error:
        first = str(error).splitlines()[0].split(" Make it with")[0].rstrip(".")
        raise ValueError(
            f"`net` does not take examples of shape {shape} ({first}). Build it for them, e.g. "
            f"`ResidualMLP(key, {shape})`. {_faq.network}"
        ) from error
    if getattr(found, "shape", None) is None or found.size != math.prod(shape):
        raise ValueError(
            f"`net` must map examples of shape {shape} to the same shape; it gives "
            f"{getattr(found, 'shape', found)}. Build it for them, e.g. `ResidualMLP(key, "
            f"{shape})`. {_faq.network}"
        )


def fitted_gaussian(data, noise_min: float, noise_max: float, diagonal: bool):
    """Mean and covariance of data, with standard deviations of at least a tenth of `noise_min`.

    Args:
        data: Examples of shape `(num, *shape)`.
        noise_min: Least noise level, in the units of the data.
        noise_max: Largest noise level, which is only checked.
        diagonal: Variances alone, of shape `(n,)`, instead of a covariance `(n, n)`.

    Raises:
        ValueError: If there are fewer than 2 finite examples, or not `0 < noise_min < noise_max`.
    """
    data = several_examples(data)
    if not 0 < noise_min < noise_max:
        raise ValueError(
            f"expected 0 < noise_min < noise_max; got {noise_min}, {noise_max}. {_faq.schedules}"
        )
    flat = data.reshape(len(data), -1)
    floor = (0.1 * noise_min) ** 2
    if diagonal:
        covariance = np.maximum(flat.var(0), floor)
    else:
        values, vectors = np.linalg.eigh(np.cov(flat.T, bias=True).reshape(2 * flat.shape[1:]))
        covariance = (vectors * np.maximum(values, floor)) @ vectors.T
    return data.mean(0), covariance


def cast_floats(tree, dtype):
    """Floating leaves as `dtype`: float32 weights serve float64 positions and the other way round."""
    return jax.tree.map(
        lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, tree
    )


def of_label(values, label):
    """The value of a label; NaN where there is none, never that of another label."""
    inside = (label >= 0) & (label < len(values))
    return jnp.where(inside, values[jnp.where(inside, label, 0)], jnp.nan)


def check_label(label, num: int):
    """Refuse a label that is known not to be one of 0 to `num - 1`."""
    if isinstance(label, Tracer):
        return
    label = np.asarray(label)
    if not (np.issubdtype(label.dtype, np.integer) and ((label >= 0) & (label < num)).all()):
        raise ValueError(
            f"expected a label from 0 to {num - 1}, whose normaliser is known; got {label}. `None` is no "
            "condition; `with_label_normalizers(None)` forgets the "
            f"normalisers. {_faq.needs_normaliser}"
        )
