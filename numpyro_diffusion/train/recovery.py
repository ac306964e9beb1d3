r"""Recovery likelihood: an energy learned by contrast with its own samples, level by level.

The density of data is hard to sample, so its gradient of likelihood is hard to have. The density of slightly
noisy data *given that more noise was added* is easy: for $u' = u + \sqrt{v}\,\eta$,

$$p_\theta(u \mid u') \propto \exp\big(\log p_\theta(u) - |u - u'|^2 / 2v\big)$$

is held together by the noise. Its likelihood has the gradient

$$-\nabla_\theta \log p_\theta(u \mid u')
  = \nabla_\theta E(u) - \mathbb{E}_{p_\theta(\tilde u \mid u')} \nabla_\theta E(\tilde u),$$

where the negatives $\tilde u$ come from an `Initializer` and a few Metropolis moves; the initialiser learns
from where the moves end. No second derivative of the network is taken, unlike in denoising. At its optimum
the energy is that of noised data at every level, up to a function of the level, which nothing here learns.

References:
    Gao et al. (2021), Learning Energy-Based Models by Diffusion Recovery Likelihood, ICLR. Zhu et al. (2024),
    Learning Energy-Based Models by Cooperative Diffusion Recovery Likelihood, ICLR, arXiv 2309.05153.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .._typing import Array, PRNGKey, Scalar
from ..energies import AbstractEnergy
from ..moves import Move, mala
from ..preconditioner import Preconditioner
from .initializer import Initializer
from .losses import Levels, uniform_log_snr

__all__ = ["RecoveryReport", "recovery_loss"]


class RecoveryReport(NamedTuple):
    r"""How the negatives of one batch fared.

    Attributes:
        acceptance: Mean acceptance probability of the moves, shape `()`. Below a third, lower `step_size`.
        energy_gap: Mean energy of data minus that of negatives, in nats, shape `()`: 0 where they agree.
    """

    acceptance: Scalar
    energy_gap: Scalar


def recovery_loss(
    energy: AbstractEnergy,
    initializer: Initializer,
    key: PRNGKey,
    data: Array,
    *,
    ratio: Scalar | float,
    num_moves: int = 15,
    move: Move | None = None,
    step_size: Scalar | float = 0.8,
    levels: Levels = uniform_log_snr,
) -> tuple[Scalar, RecoveryReport]:
    r"""Contrast of data and negatives and the lesson of the initialiser, a dimension; its *gradient* counts.

    An example is noised to a level $s$ and on to $s' = \rho s$. Moves start at a draw of the initialiser and
    leave $e^{-E(\alpha_t u, t)}\,\mathcal{N}(u' \mid u, (s'^2 - s^2) I)$ as it is, in units of
    $s \sqrt{1 - 1/\rho^2}$: what is left of the noise where the data are one point.

    Args:
        energy: Energy that learns.
        initializer: Where moves start; it learns the mean of where they end.
        key: PRNG key.
        data: Examples of shape `(num, *shape)`.
        ratio: $\rho > 1$, of the noise levels of neighbouring rungs; wide ones need long chains.
        num_moves: Moves of each negative.
        move: Kind of move; `mala()` by default.
        step_size: Of the moves, in the units above; the noise of a Langevin step has twice this variance.
        levels: Draws the times of the less noisy rung, `levels(key, energy, num)`.

    Returns:
        Mean of $E(u) - E(\tilde u)$ and of the initialiser's squared error, and a `RecoveryReport`.
    """
    move, size = mala() if move is None else move, jnp.asarray(step_size, data.dtype)
    key_level, key_noise, key_chain = jax.random.split(key, 3)
    times = levels(key_level, energy, len(data)).astype(data.dtype)
    noise = jax.random.normal(key_noise, (2, *data.shape), data.dtype)

    def one(x_0, t, epsilon, eta, key):
        alpha_t, _ = energy.schedule(t)
        s = energy.schedule.noise_level(t).astype(x_0.dtype)
        s_next = ratio * s
        variance = (s_next - s) * (s_next + s)
        u = x_0 + s * epsilon
        u_next = u + jnp.sqrt(variance) * eta

        def log_conditional(position):
            u = position["x"]
            return -energy.energy(alpha_t * u, t) - 0.5 * jnp.sum((u - u_next) ** 2) / variance

        units = Preconditioner({"x": s * jnp.sqrt(variance) / s_next})
        key_start, key_moves = jax.random.split(key)
        start = initializer.draw(key_start, u_next, s, s_next)
        state = move.init({"x": start}, log_conditional, units)
        step = lambda state, k: move.step(k, state, log_conditional, size, units)
        state, acceptance = jax.lax.scan(step, state, jax.random.split(key_moves, num_moves))
        end = jax.lax.stop_gradient(units.to_model(state.position)["x"])
        gap = energy.energy(alpha_t * u, t) - energy.energy(alpha_t * end, t)
        lesson = initializer.error(end, u_next, s, s_next)
        return gap / x_0.size + lesson, RecoveryReport(jnp.mean(acceptance), gap)

    keys = jax.random.split(key_chain, len(data))
    values, reports = jax.vmap(one)(data, times, noise[0], noise[1], keys)
    return jnp.mean(values), jax.tree.map(jnp.mean, reports)
