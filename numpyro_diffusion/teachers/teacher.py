r"""A trained network as a denoiser: what it computes, and the card that says what that means."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp

from .. import _faq
from .._typing import Array, Params, Scalar
from ..energies.rough import rough_settings
from .base import AbstractTeacher
from .card import PriorCard

__all__ = ["Teacher"]


class Teacher(AbstractTeacher):
    r"""A network in its own conventions as a denoiser: $\hat x_0$ from $f(x_t, c\,t)$ by the card.

    It has no density; `distill` makes an energy of it. All of it lives in the network's units:
    `card.transform` leads to them and back.

    Args:
        fn: `fn(x, time)`, or `fn(params, x, time)` where `params` is given, for one example; `time` is $t$
            times the card's `time_scale`. An `eqx.Module` carries its own weights.
        card: Units, schedule and what the output is.
        params: Parameters as a pytree of arrays. Weights are cast to the type of `x`.
        mean: Rough mean of clean data in the network's units, broadcast to the shape.
        variance: Rough variance of clean data in the network's units, broadcast to the shape.
        t_min: Time at which the prior is read.
        t_max: Time at which sampling starts.

    Raises:
        TypeError: If `fn` is not callable, or the card is none.
        ValueError: If moments or times make no sense, or the output has another shape than the input.
    """

    fn: Callable[..., Array]
    params: Params
    card: PriorCard
    mean: Array
    variance: Array
    t_min: float = eqx.field(static=True)
    t_max: float = eqx.field(static=True)

    def __init__(
        self,
        fn: Callable[..., Array],
        card: PriorCard,
        *,
        params: Params = None,
        mean=0.0,
        variance=1.0,
        t_min: float | None = None,
        t_max: float | None = None,
    ):
        self.fn, self.params, self.card = fn, params, demand_card("Teacher", card)
        settings = rough_settings(
            "Teacher", fn, card.shape, card.schedule, mean, variance, t_min, t_max
        )
        _, _, self.mean, self.variance, self.t_min, self.t_max = settings
        x = jax.ShapeDtypeStruct(card.shape, jnp.result_type(float))
        output = eqx.filter_eval_shape(self.output, x, jnp.asarray(self.t_min))
        if output.shape != card.shape:
            raise ValueError(
                f"the network of {card.name!r} must return the shape {card.shape} of one example; got "
                f"{output.shape}. Drop or add channels in a function around it. {_faq.network}"
            )

    def output(self, x: Array, t: Scalar) -> Array:
        """Output of the network at $x_t$ = `x` and our time `t`, in its own convention."""
        cast = lambda leaf: leaf.astype(x.dtype) if eqx.is_inexact_array(leaf) else leaf
        fn, params = jax.tree.map(cast, (self.fn, self.params))
        time = self.card.time_scale * t
        return fn(x, time) if params is None else fn(params, x, time)


def demand_card(name: str, card: PriorCard) -> PriorCard:
    """The card, if it is one."""
    if not isinstance(card, PriorCard):
        raise TypeError(
            f"`{name}` expects a `PriorCard` with units, schedule and prediction; got "
            f"{type(card).__name__}. What a network's numbers mean is not in its "
            f"weights. {_faq.cards}"
        )
    return card
