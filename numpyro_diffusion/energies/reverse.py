r"""Ancestral sampling: draws from a learned diffusion by its reverse process."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .._typing import Array, PRNGKey
from ..schedules import reverse_moments
from .algebra import Composed
from .base import AbstractDenoiser
from .energy import AbstractEnergy
from .factored import Factored
from .family import Family
from .powered import PowerEnergy

__all__ = ["draw_prior", "has_exact_draws", "is_composed", "reverse_process"]


@eqx.filter_jit
def reverse_process(
    energy: AbstractDenoiser, key: PRNGKey, num_steps: int, initial: Any = None
) -> Array:
    r"""Draw $x_{t_{\min}}$ by ancestral sampling steps $x_s \sim q(x_s \mid x_t, \hat x_0(x_t))$.

    Steps are equal in log-SNR. Nothing is weighed: a start from a distribution other than that of
    $x_{t_{\max}}$ is felt at the end.

    Args:
        energy: An energy or a denoiser.
        key: PRNG key.
        num_steps: Number of steps, each one evaluation of the denoiser. The distribution of the draw differs
            from the distribution of the energy by an error of order one over this number.
        initial: Distribution of $x_t / \alpha_t$ at `t_max`, with `sample(key)`; the Gaussian of
            `energy.moments(t_max)` by default.

    References:
        Ho, Jain & Abbeel (2020), Denoising Diffusion Probabilistic Models, NeurIPS.
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

    if initial is None:
        mean, variance = energy.moments(t_max)
        x = mean + jnp.sqrt(variance) * jax.random.normal(key_base, energy.shape, dtype)
    else:
        x = energy.schedule(t_max)[0] * initial.sample(key_base)
    levels = times[:-1], times[1:], jax.random.split(key_steps, num_steps)
    return jax.lax.scan(step, x.astype(dtype), levels)[0]


@eqx.filter_jit  # compiled once an energy, however often a model is traced
def draw_prior(energy: AbstractDenoiser, key: PRNGKey, num_steps: int) -> Array:
    r"""Draw from the prior in the units of the data, exactly where there is a closed form."""
    t_min = jnp.asarray(energy.t_min, jnp.result_type(float))
    x = energy.draw(key, t_min) if isinstance(energy, AbstractEnergy) else None
    if x is None:
        x = reverse_process(energy, key, num_steps)
    return x / energy.schedule(t_min)[0].astype(x.dtype)


def has_exact_draws(energy: AbstractDenoiser) -> bool:
    """Test whether the energy can be drawn from in closed form; its `moments` are then exact too."""
    if not isinstance(energy, AbstractEnergy):
        return False
    t = jnp.asarray(energy.t_min, jnp.result_type(float))
    return jax.eval_shape(energy.draw, jax.random.key(0), t) is not None


def is_composed(energy: AbstractDenoiser) -> bool:
    """Test whether some part of an energy is a product, a power or a density times a factor.

    The path of such an energy is not a distribution with growing noise, and the reverse process ends
    elsewhere.
    """

    def found(part):
        if isinstance(part, PowerEnergy):
            return not part.normalized
        return isinstance(part, Composed | Factored | Family)

    return any(map(found, jax.tree.leaves(energy, is_leaf=found)))
