r"""Training of soft value functions on draws of the prior."""

from typing import Any

import jax
import jax.numpy as jnp

from .. import _faq
from .._arguments import whole_numbers
from .._typing import Array, PRNGKey, Scalar
from ..energies import AbstractDenoiser, AbstractEnergy, added_variance
from ..factors import LearnedValue
from ..factors.value import Reward
from ..nets import ResidualMLP
from ..nets.scalar import ScalarHead
from .examples import check_examples
from .fit import fit
from .losses import Levels, uniform_log_snr
from .options import Optimizer

__all__ = ["draws_of", "fit_soft_value", "scalar_head", "value_loss"]


def value_loss(
    log_h: ScalarHead,
    key: PRNGKey,
    data: Array,
    log_weight: Reward,
    energy: AbstractDenoiser,
    *,
    levels: Levels = uniform_log_snr,
) -> Scalar:
    r"""Mean of $e^{f(u_t, t)} - w(x)\, f(u_t, t)$: least where $f = \log \mathbb{E}[w(x) \mid u_t]$.

    A Bregman divergence between $w$ and $e^f$. The square of $f - \log w$ is another matter: least where
    $f = \mathbb{E}[\log w(x) \mid u_t]$, which lies below, and below most where most is open.

    Args:
        log_h: $f$.
        key: PRNG key.
        data: Examples of the distribution at `t_min`, of shape `(num, *shape)`.
        log_weight: $\log w(x)$ for ONE example.
        energy: The distribution, for its levels of noise.
        levels: Draws the times.
    """
    key_level, key_noise = jax.random.split(key)
    times = levels(key_level, energy, len(data)).astype(data.dtype)
    noise = jax.random.normal(key_noise, data.shape, data.dtype)

    def one(x, t, epsilon):
        f = log_h(x + jnp.sqrt(added_variance(energy, t)) * epsilon, t)
        # Around the offset, so that both terms are of order one, whatever the unit of the weights.
        relative = f - log_h.offset
        weight = jnp.exp(jnp.asarray(log_weight(x), f.dtype) - log_h.offset)
        return jnp.exp(relative) - weight * relative

    return jnp.mean(jax.vmap(one)(data, times, noise))


def fit_soft_value(
    key: PRNGKey,
    energy: AbstractDenoiser,
    reward: Reward,
    data: Any = None,
    *,
    alpha: float = 1.0,
    net: Any = None,
    steps: int = 3000,
    batch_size: int = 512,
    learning_rate: float = 3e-3,
    progress_bar: bool = True,
) -> LearnedValue:
    r"""A network for $\log \mathbb{E}[e^{r(x) / \alpha} \mid u_t]$, for `Tilt(reward, alpha, value)`.

    A value costs a small network an evaluation, where that of the denoised mean costs the reward, the score
    and, with a gradient, a second derivative of the energy. It is the *soft* mean that is learned, by
    `value_loss`; errors of it cost particles, not the distribution.

    Args:
        key: PRNG key.
        energy: The prior.
        reward: `reward(x)` of shape `()` for ONE example in data units; no derivative of it is taken.
        data: Draws of the prior at `t_min`, or clean data, of shape `(num, *shape)`; or a function
            `fn(key) -> example`. Exact draws of the energy by default, where it has them. Rewards that hardly
            any example earns are not learned: draw some from a first, tilted run, or lower $1 / \alpha$.
        alpha: $\alpha$ in units of the reward.
        net: Backbone, as `nets.ResidualMLP(key, shape)`; one of 64 units by default.
        steps: Largest number of updates.
        batch_size: Examples a gradient.
        learning_rate: Peak of a warm-up and cosine decay.
        progress_bar: Show progress and losses.

    Raises:
        ValueError: If there are neither data nor exact draws, or `alpha` is not positive.
        TrainingDiverged: If the loss becomes non-finite.
    """
    steps, batch_size = whole_numbers(1, steps=steps, batch_size=batch_size)
    if not alpha > 0:
        raise ValueError(
            f"`fit_soft_value` expects a positive `alpha`; got {alpha}. {_faq.numbers}"
        )
    data = draws_of(energy) if data is None else data
    key_net, key_offset, key = jax.random.split(key, 3)
    log_weight = lambda x: reward(x) / alpha
    if callable(data):
        few: Any = jax.vmap(data)(jax.random.split(key_offset, 4096))
    else:
        few = data = check_examples(data, energy.shape, "data")
    log_weights = jax.vmap(log_weight)(few)
    offset = jax.nn.logsumexp(log_weights) - jnp.log(len(few))
    head = scalar_head(key_net if net is None else net, energy, offset)
    loss = lambda head, key, batch: value_loss(head, key, batch, log_weight, energy)
    fitted = fit(
        key, head, data, loss=loss, trainable=lambda head: head.net, steps=steps,  # pyright: ignore
        batch_size=batch_size, learning_rate=learning_rate, optimizer=Optimizer(weight_decay=1e-2),
        progress_bar=progress_bar,
    )  # fmt: skip
    return LearnedValue(fitted.energy, alpha)  # pyright: ignore[reportArgumentType]


def scalar_head(net: Any, energy: AbstractDenoiser, offset: Scalar | float = 0.0) -> ScalarHead:
    """An untrained scalar of noised data, scaled as the data are.

    Args:
        net: Backbone; or a key, for one of 64 units.
        energy: The distribution, for its schedule and moments.
        offset: What it is at first, everywhere.
    """
    if isinstance(net, jax.Array):
        net = ResidualMLP(net, energy.shape, width=64)
    t = jnp.asarray(energy.t_min, jnp.result_type(float))
    mean, variance = energy.data_moments(t)
    return ScalarHead(net, energy.schedule, mean, jnp.sqrt(variance), offset)


def draws_of(energy: AbstractDenoiser):
    """Exact draws at `t_min` in data units, as a function of a key."""
    t = jnp.asarray(energy.t_min, jnp.result_type(float))
    alpha_t, _ = energy.schedule(t)
    draw = lambda key: energy.draw(key, t) if isinstance(energy, AbstractEnergy) else None
    if jax.eval_shape(draw, jax.random.key(0)) is None:
        raise ValueError(
            f"`{type(energy).__name__}` has no exact draws: give `data`, draws of the prior or the data it "
            f"was trained on. {_faq.exact_draws}"
        )
    return lambda key: draw(key) / alpha_t  # pyright: ignore[reportOptionalOperand]
