r"""Recovery likelihood: contrastive training of an energy on its own samples, by noise level.

The density of data is hard to sample, so its gradient of likelihood is hard to have. The density of slightly
noisy data *given that more noise was added* is easy: for $u' = u + \sqrt{v}\,\eta$,

$$p_\theta(u \mid u') \propto \exp\big(\log p_\theta(u) - |u - u'|^2 / 2v\big)$$

is held together by the noise. Its likelihood has the gradient

$$-\nabla_\theta \log p_\theta(u \mid u')
  = \nabla_\theta E(u) - \mathbb{E}_{p_\theta(\tilde u \mid u')} \nabla_\theta E(\tilde u),$$

where the negatives $\tilde u$ come from an `Initializer` and a few Metropolis moves; the initialiser learns
from where the moves end. No second derivative of the network is taken, unlike in denoising. At its optimum
the energy is that of noised data at every level, up to a function of the level, which `level_loss` learns.

References:
    Gao et al. (2021), Learning Energy-Based Models by Diffusion Recovery Likelihood, ICLR. Zhu et al. (2024),
    Learning Energy-Based Models by Cooperative Diffusion Recovery Likelihood, ICLR, arXiv 2309.05153.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .._arguments import whole_number, whole_numbers
from .._records import record, record_page
from .._typing import Array, PRNGKey, Scalar
from ..energies import AbstractEnergy
from ..smc.moves import Move, mala
from ..smc.preconditioner import Preconditioner
from .initializer import Initializer
from .losses import Levels, uniform_log_snr

__all__ = ["RecoveryReport", "recovery_loss", "recovery_process"]


class RecoveryReport(NamedTuple):
    r"""Diagnostics of the negative samples of one batch.

    Attributes:
        acceptance: Mean acceptance probability of the moves, shape `()`. Below a third, lower `step_size`.
        energy_gap: Mean energy of data minus that of negatives, in nats, shape `()`: 0 where they agree.
    """

    acceptance: Scalar
    energy_gap: Scalar

    __repr__ = record
    _repr_html_ = record_page


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
    num_moves = whole_number("num_moves", num_moves, 1)
    move, size = mala() if move is None else move, jnp.asarray(step_size, data.dtype)
    key_level, key_noise, key_chain = jax.random.split(key, 3)
    times = levels(key_level, energy, len(data)).astype(data.dtype)
    noise = jax.random.normal(key_noise, (2, *data.shape), data.dtype)

    chain = _Chain(energy, initializer, move, size, num_moves)

    def one(x_0, t, epsilon, eta, key):
        alpha_t, _ = energy.schedule(t)
        s = energy.schedule.noise_level(t).astype(x_0.dtype)
        s_next = ratio * s
        u = x_0 + s * epsilon
        u_next = u + jnp.sqrt((s_next - s) * (s_next + s)) * eta
        end, acceptance = chain(key, u_next, t, s_next)
        end = jax.lax.stop_gradient(end)
        gap = energy.energy(alpha_t * u, t) - energy.energy(alpha_t * end, t)
        lesson = initializer.error(end, u_next, s, s_next)
        return gap / x_0.size + lesson, RecoveryReport(acceptance, gap)

    keys = jax.random.split(key_chain, len(data))
    values, reports = jax.vmap(one)(data, times, noise[0], noise[1], keys)
    return jnp.mean(values), jax.tree.map(jnp.mean, reports)


def recovery_process(
    energy: AbstractEnergy,
    initializer: Initializer,
    key: PRNGKey,
    *,
    num_levels: int = 6,
    num_moves: int = 15,
    move: Move | None = None,
    step_size: Scalar | float = 0.8,
) -> Array:
    r"""Draw $u$ at `t_min`, noise level by noise level from the Gaussian of the energy at `t_max`.

    Each rung is a draw of the initialiser and moves that leave $p_\theta(u \mid u')$ as it is. Nothing is
    weighed: the draw follows $e^{-E}$ as far as the energies of the levels agree and the chains are long.

    Args:
        energy: Energy trained by `fit_recovery`.
        initializer: The initialiser trained with it.
        key: PRNG key.
        num_levels: Steps of one ratio of noise; those of training, or more.
        num_moves: Moves a step.
        move: Kind of move; `mala()` by default.
        step_size: As in `recovery_loss`.

    Returns:
        A point of shape `shape`, in the units of the data.
    """
    num_levels, num_moves = whole_numbers(1, num_levels=num_levels, num_moves=num_moves)
    dtype = jnp.result_type(float)
    ends = jnp.asarray([energy.t_max, energy.t_min], dtype)
    log_ends = jnp.log(jax.vmap(energy.schedule.noise_level)(ends))
    log_s = jnp.linspace(log_ends[0], log_ends[1], num_levels + 1)
    times = jax.vmap(energy.schedule.time)(-2 * log_s).at[-1].set(ends[1])
    move, size = mala() if move is None else move, jnp.asarray(step_size, dtype)
    chain = _Chain(energy, initializer, move, size, num_moves)
    key_start, key_chain = jax.random.split(key)
    alpha, _ = energy.schedule(ends[0])
    mean, variance = energy.moments(ends[0])
    start = mean + jnp.sqrt(variance) * jax.random.normal(key_start, energy.shape, dtype)

    def step(u, rung):
        t, s_next, key = rung
        return chain(key, u, t, s_next)[0].astype(dtype), None

    rungs = times[1:], jnp.exp(log_s[:-1]), jax.random.split(key_chain, num_levels)
    return jax.lax.scan(step, (start / alpha).astype(dtype), rungs)[0]


class _Chain(NamedTuple):
    """A draw of the initialiser and moves from it, for one point."""

    energy: AbstractEnergy
    initializer: Initializer
    move: Move
    step_size: Scalar
    num_moves: int

    def __call__(self, key: PRNGKey, u_next: Array, t: Scalar, s_next: Scalar):
        """Where the chain ends and its mean acceptance, from a point of the noisier level."""
        alpha_t, _ = self.energy.schedule(t)
        s = self.energy.schedule.noise_level(t).astype(u_next.dtype)
        variance = (s_next - s) * (s_next + s)

        def log_conditional(position):
            u = position["x"]
            return -self.energy.energy(alpha_t * u, t) - jnp.sum((u - u_next) ** 2) / (2 * variance)

        units = Preconditioner({"x": jnp.full(u_next.shape, s * jnp.sqrt(variance) / s_next)})
        key_start, key_moves = jax.random.split(key)
        start = self.initializer.draw(key_start, u_next, s, s_next)
        state = self.move.init({"x": start}, log_conditional, units)

        def step(state, key):
            return self.move.step(key, state, log_conditional, self.step_size, units)

        keys = jax.random.split(key_moves, self.num_moves)
        state, acceptance = jax.lax.scan(step, state, keys)
        return units.to_model(state.position)["x"], jnp.mean(acceptance)
