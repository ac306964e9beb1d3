"""Imperfect examples, checked: what is seen, by which operator, and with which noise."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ... import _faq
from ..._arguments import check_callable
from ..._typing import Array, PyTree
from ..._written import one_line
from .posterior import Datum

__all__ = ["Noise", "Observe", "UnknownNoise", "check_data", "check_noise"]


class UnknownNoise:
    r"""A noise level that is estimated: standard deviation $\sigma\, r$ with unknown $\sigma$ and known $r$.

    Begin *above* what you expect. Where the data leave open how much of their spread is noise, as they do
    where every example is seen once and directly by one instrument, many pairs of prior and noise explain
    them alike, and the fit ends near its start: from above, at the cleanest prior.

    Args:
        start: $\sigma$ to start from, positive: one number; or one an entry, of the shape of what is seen of
            an example, and each is estimated by itself.
        relative: $r$, positive, broadcast over all examples: exposures, error bars known up to a factor.
        prior: Shape $a$ and rate $b$ of an inverse-gamma prior on $\sigma^2$, for the mode of the posterior;
            `None` for maximum likelihood.

    Raises:
        ValueError: If a number is not positive and finite.
    """

    __repr__ = one_line

    def __init__(self, start: Any, relative: Any = 1.0, prior: tuple[float, float] | None = None):
        self.start = _positive(start, "start")
        self.relative = _positive(relative, "relative")
        numbers = () if prior is None else tuple(map(float, np.ravel(_positive(prior, "prior"))))
        if prior is not None and len(numbers) != 2:
            raise ValueError(
                "`prior` is a pair, shape and rate of an inverse-gamma distribution; got "
                f"{prior}. {_faq.numbers}"
            )
        self.prior = (numbers[0], numbers[1]) if numbers else None


class Noise(NamedTuple):
    """Noise of all examples: `scale * relative`.

    Attributes:
        scale: Of shape `()`, or flat, one an entry.
        relative: Of shape `(num, n)`.
        unknown: Whether the scale is estimated.
        prior: See `UnknownNoise`.
    """

    scale: np.ndarray
    relative: np.ndarray
    unknown: bool
    prior: tuple[float, float] | None

    def update(self, squares: np.ndarray, seen: np.ndarray) -> "Noise":
        r"""With the scale that is most likely: $\sigma^2 = (b + \tfrac12 \sum r^2) / (a + 1 + \tfrac12 n)$.

        Without a prior the mean square.

        Args:
            squares: Mean squared residuals over the posterior of each example, `(num, n)`.
            seen: Which entries there are, `(num, n)`.
        """
        if not self.unknown:
            return self
        scaled = np.where(seen, squares / self.relative**2, 0.0)
        axis = None if np.ndim(self.scale) == 0 else 0
        total, count = scaled.sum(axis), seen.sum(axis)
        if self.prior is None:
            return self._replace(scale=np.sqrt(total / count))
        shape, rate = self.prior
        return self._replace(scale=np.sqrt((rate + 0.5 * total) / (shape + 1 + 0.5 * count)))

    @property
    def log_prior(self) -> float:
        r"""Log density of the prior at $\sigma^2$; 0 without one."""
        if self.prior is None:
            return 0.0
        shape, rate = self.prior
        variance = np.asarray(self.scale) ** 2
        terms = shape * math.log(rate) - math.lgamma(shape) - (shape + 1) * np.log(variance)
        return float(np.sum(terms - rate / variance))


class Observe(eqx.Module):
    """The operator from flat to flat, in the units in which the prior is learned.

    Attributes:
        function: `observe(x)`, or `observe(x, parameters)`; `None` for the identity.
        shape: Of one clean example.
        units: A `Standardized` distribution, or `None`.
        takes_parameters: Whether it has unknown parameters.
    """

    function: Callable | None = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)
    location: Any
    scale: Any
    takes_parameters: bool = eqx.field(static=True)

    def __call__(self, x: Array, parameters: PyTree) -> Array:
        x = x.reshape(self.shape)
        if self.location is not None:
            x = self.location + self.scale * x
        if self.function is None:
            return x.ravel()
        told = (parameters,) if self.takes_parameters else ()
        return jnp.ravel(self.function(x, *told)).astype(x.dtype)


def check_data(
    examples: Any, shape: tuple[int, ...], observe: Callable | None, parameters: PyTree
) -> tuple[np.ndarray, np.ndarray]:
    """Imperfect examples as a flat array with 0 where entries are missing, and which are seen.

    Raises:
        TypeError: If they are not floating, or `observe` is no function.
        ValueError: If shapes disagree, an entry is infinite, an example or a column has no entry.
    """
    array = np.asarray(examples)
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(
            "`examples` must be floating, with NaN for missing entries; got "
            f"{array.dtype}. {_faq.real_numbers}"
        )
    if observe is None:
        wanted, of = shape, "the energy"
    else:
        check_callable("observe", observe, "a function of one clean example, such as a blur")
        told = () if parameters is None else (parameters,)
        example = jax.ShapeDtypeStruct(shape, jnp.result_type(float))
        wanted, of = jax.eval_shape(observe, example, *told).shape, "`observe`"
    if array.shape[1:] != wanted or len(array) < 2:
        raise ValueError(
            f"`examples` must have shape (num, {', '.join(map(str, wanted))}) with num >= 2 to match {of}; "
            f"got {array.shape}. Put examples along the first axis, NaN where an entry is "
            f"missing. {_faq.examples}"
        )
    flat = array.reshape(len(array), -1)
    infinite = int(np.isinf(flat).sum())
    if infinite:
        raise ValueError(
            f"`examples` must be finite or NaN (missing); {infinite} entries are infinite. Put NaN in their "
            f"place if they are missing. {_faq.finite}"
        )
    seen = ~np.isnan(flat)
    columns = np.flatnonzero(~seen.any(0))
    if len(columns):
        index = [tuple(map(int, np.unravel_index(c, wanted))) for c in columns[:5]]
        names = ", ".join(str(i[0]) if len(i) == 1 else str(i) for i in index)
        raise ValueError(
            f"no example has entry {names}{', ...' if len(columns) > 5 else ''}: {len(columns)} of "
            f"{flat.shape[1]} entries are missing everywhere. Leave them out of what `observe` "
            f"returns. {_faq.examples}"
        )
    empty = np.flatnonzero(~seen.any(1))
    if len(empty):
        raise ValueError(
            f"{len(empty)} of {len(flat)} examples have no entry (first: {empty[0]}), and say nothing. Drop "
            f"them. {_faq.examples}"
        )
    return np.where(seen, flat, 0.0), seen


def check_noise(noise: Any, examples: np.ndarray, shape: tuple[int, ...]) -> Noise:
    """The noise of flat examples.

    Args:
        noise: Standard deviations that are known, which broadcast over the examples; or `UnknownNoise`.
        examples: Flat, of shape `(num, n)`.
        shape: Of what is seen of one example.

    Raises:
        ValueError: If one is not positive and finite, or shapes do not broadcast.
    """
    unknown = isinstance(noise, UnknownNoise)
    known: Any = noise.relative if unknown else _positive(noise, "noise")
    whole = (len(examples), *shape)
    try:
        relative = np.broadcast_to(known, whole).reshape(examples.shape)
    except ValueError:
        raise ValueError(
            f"`noise` must be a number or broadcast to the shape of the examples, {whole}; got shape "
            f"{np.shape(known)}. One standard deviation an example has shape ({whole[0]}, "
            f"{', '.join('1' for _ in shape)}). {_faq.shapes}"
        ) from None
    if not unknown:
        return Noise(np.ones(()), relative, False, None)
    if noise.start.shape not in ((), shape):
        raise ValueError(
            f"`start` of the noise must be a number, or one an entry, of shape {shape}; got shape "
            f"{noise.start.shape}. What is known of single examples goes into "
            f"`relative`. {_faq.shapes}"
        )
    return Noise(
        noise.start.ravel() if noise.start.shape else noise.start, relative, True, noise.prior
    )


def data_of(y: np.ndarray, seen: np.ndarray, noise: Noise) -> Datum:
    """What the sampler takes: arrays with a leading axis of examples."""
    dtype = np.dtype(jnp.result_type(float))
    return Datum(y.astype(dtype), seen, (noise.scale * noise.relative).astype(dtype))  # pyright: ignore[reportArgumentType]


def _positive(values: Any, name: str) -> np.ndarray:
    try:
        array = np.asarray(values, float)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`{name}` must be numbers; got {values!r:.60}. {_faq.real_numbers}"
        ) from error
    if not (np.isfinite(array) & (array > 0)).all():
        raise ValueError(
            f"`{name}` must be positive and finite; got {values!r:.60}. Entries that are missing are NaN in "
            "the examples, whatever their noise; noise that is not known is "
            f"`nd.train.UnknownNoise(start)`. {_faq.numbers}"
        )
    return array
