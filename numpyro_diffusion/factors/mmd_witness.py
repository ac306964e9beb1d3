r"""The witness function of a discrepancy, and its gradient flow."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp

from .. import _faq
from .._arguments import whole_number
from .._typing import Array, PRNGKey, Scalar
from .mmd_kernels import AbstractKernel, Polyharmonic

__all__ = ["witness", "witness_flow"]


def witness(kernel: AbstractKernel, data: Array, generated: Array) -> Callable[[Array], Scalar]:
    r"""$w(x) = 2 \int k(x, y)\, (p_g - p_d)(dy)$: the first variation of $\mathrm{MMD}^2$ in $p_g$.

    Positive where there is too much. It is, up to a factor, the best critic of a generative adversarial
    network within the unit ball of the kernel, in closed form; a point that follows $-\nabla w$ lowers the
    discrepancy the fastest. Of the points of the cloud itself, $\nabla w(x_i)$ is the gradient of
    `mmd_squared` in $x_i$ times their number.

    Args:
        kernel: What clouds are compared by.
        data: Points of $p_d$, shape `(num_data, *shape)`.
        generated: Points of $p_g$, shape `(num, *shape)`.

    Returns:
        A function from ONE point to $w$ of shape `()`.

    References:
        Asokan, Shetty, Srikanth & Seelamantula (2023), GANs settle scores!, arXiv 2306.01654.
    """

    def value(x: Array) -> Scalar:
        mean = lambda points: jnp.mean(jax.vmap(lambda y: kernel(x, y))(points))
        return 2 * (mean(generated) - mean(data))

    return value


def witness_flow(
    key: PRNGKey,
    x: Array,
    data: Array,
    kernel: AbstractKernel | None = None,
    num_steps: int = 500,
    step_size: float = 0.1,
    noise: float = 0.0,
) -> Array:
    r"""A cloud that flows down its own witness: $x_i \leftarrow x_i - \eta \nabla w(x_i + \beta \xi_i)$.

    No network and no levels: it copies the data as far as the kernel sees them, and knows nothing beyond. A
    step costs the kernel between all pairs.

    Args:
        key: PRNG key for the noise.
        x: Start of the cloud, shape `(num, *shape)`.
        data: Points to flow to, shape `(num_data, *shape)`.
        kernel: `Polyharmonic()`, the energy distance, by default: its slopes are felt at any distance.
        num_steps: Number of steps.
        step_size: $\eta$.
        noise: $\beta$, the standard deviation of the noise at which slopes are looked at. A little gets
            clouds unstuck.

    Returns:
        The cloud at the end, shape `(num, *shape)`.

    Raises:
        ValueError: If shapes differ, or a number is out of range.

    References:
        Arbel et al. (2019), Maximum mean discrepancy gradient flow, NeurIPS.
    """
    num_steps = whole_number("num_steps", num_steps, 1)
    if x.shape[1:] != data.shape[1:]:
        raise ValueError(
            "`witness_flow` expects a cloud and data of points of one shape; got points of shapes "
            f"{x.shape[1:]} and {data.shape[1:]}. {_faq.shapes}"
        )
    if not step_size > 0 or not noise >= 0:
        raise ValueError(
            "`witness_flow` expects steps of positive size and noise of at least 0; got "
            f"step_size={step_size}, noise={noise}. {_faq.numbers}"
        )
    kernel = Polyharmonic() if kernel is None else kernel
    return _flow(key, x, data, kernel, num_steps, jnp.asarray([step_size, noise], x.dtype))


@eqx.filter_jit
def _flow(key, x, data, kernel, num_steps, sizes):
    step_size, noise = sizes

    def step(x, key):
        at = x + noise * jax.random.normal(key, x.shape, x.dtype)
        return x - step_size * jax.vmap(jax.grad(witness(kernel, data, x)))(at), None

    return jax.lax.scan(step, x, jax.random.split(key, num_steps))[0]
