r"""Networks outside JAX (PyTorch, TensorFlow, a server), called back from inside a JAX program.

Good for what needs values only, above all the targets of `distill`. Nothing can be differentiated through it
and nothing of it is compiled, so it is no prior for a sampler that wants gradients.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._arguments import whole_number
from .._typing import Array, Scalar
from ..energies.rough import rough_settings
from .base import AbstractTeacher
from .card import PriorCard
from .teacher import demand_card

__all__ = ["HostTeacher"]


class HostTeacher(AbstractTeacher):
    r"""A function of NumPy arrays as a denoiser, called in batches.

    Under `vmap` all examples go in one call, or in calls of `batch_size`; outside, a batch of one.

    Args:
        fn: `fn(x, time)` with `x` of shape `(num, *shape)` and `time` of shape `(num,)`, both NumPy arrays of
            32-bit floats; returns the network's output, an array of the shape of `x`. It must not call JAX.
        card: Units, schedule and what the output is. `time` is $t$ times the card's `time_scale`.
        batch_size: Most examples in one call of `fn`.
        mean: Rough mean of clean data in the network's units, broadcast to the shape.
        variance: Rough variance of clean data in the network's units, broadcast to the shape.
        t_min: Time at which the prior is read.
        t_max: Time at which sampling starts.

    Raises:
        TypeError: If `fn` is not callable, or the card is none.
        ValueError: If `batch_size` is below 1, or moments or times make no sense.
    """

    fn: Callable[[np.ndarray, np.ndarray], np.ndarray]
    card: PriorCard
    mean: Array
    variance: Array
    batch_size: int = eqx.field(static=True)
    t_min: float = eqx.field(static=True)
    t_max: float = eqx.field(static=True)

    def __init__(
        self,
        fn: Callable[[np.ndarray, np.ndarray], np.ndarray],
        card: PriorCard,
        *,
        batch_size: int = 256,
        mean=0.0,
        variance=1.0,
        t_min: float | None = None,
        t_max: float | None = None,
    ):
        batch_size = whole_number("batch_size", batch_size, 1)
        self.fn, self.card, self.batch_size = fn, demand_card("HostTeacher", card), batch_size
        settings = rough_settings(
            "HostTeacher", fn, card.shape, card.schedule, mean, variance, t_min, t_max
        )
        _, _, self.mean, self.variance, self.t_min, self.t_max = settings

    def output(self, x: Array, t: Scalar) -> Array:
        """Output of the network at $x_t$ = `x` and our time `t`, in its own convention."""
        call = _Batches(self.fn, self.shape, self.batch_size, self.card.name)

        @jax.custom_jvp
        def outside(x, time):
            like = jax.ShapeDtypeStruct(x.shape, x.dtype)
            return jax.pure_callback(call, like, x, time, vmap_method="broadcast_all")

        outside.defjvp(_no_gradient)
        return outside(x, self.card.time_scale * jnp.asarray(t))


class _Batches(NamedTuple):
    """The call on the host. Hashable, so that JAX knows the same call again."""

    fn: Callable[[np.ndarray, np.ndarray], np.ndarray]
    shape: tuple[int, ...]
    batch_size: int
    name: str

    def __call__(self, x, time) -> np.ndarray:
        """Any leading axes of `x` and `time` become one, cut into batches."""
        dtype, lead = x.dtype, np.shape(time)
        x = np.asarray(x, np.float32).reshape(-1, *self.shape)
        time = np.asarray(time, np.float32).reshape(-1)
        pieces = [slice(i, i + self.batch_size) for i in range(0, len(x), self.batch_size)]
        parts = [self.part(x[piece], time[piece]) for piece in pieces]
        return np.concatenate(parts).reshape(*lead, *self.shape).astype(dtype)

    def part(self, x: np.ndarray, time: np.ndarray) -> np.ndarray:
        output = np.asarray(self.fn(x, time))
        if output.shape != x.shape:
            raise ValueError(
                f"the function of {self.name!r} must return the shape {x.shape} of its input; got "
                f"{output.shape}. Keep the batch axis, and drop what is not the "
                f"prediction. {_faq.network}"
            )
        return output


def _no_gradient(primals, tangents):
    raise TypeError(
        "a `HostTeacher` has no gradient: what runs outside JAX cannot be differentiated by it. Distil it "
        f"into an energy (`distill`), or use schemes that need values alone. {_faq.score_only}"
    )
