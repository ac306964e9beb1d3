r"""Losses over tokens: the masked evidence lower bound, and noise-contrastive estimation of an energy."""

import jax
import jax.numpy as jnp

from .. import _faq
from .._prng import check_key
from .._typing import Array, PRNGKey, Scalar
from .energies import ResidualEnergy, energy_at
from .masked import MaskedDiffusion, chosen

__all__ = ["contrastive_loss", "masked_elbo", "masked_loss", "nce_loss"]


def masked_elbo(model: MaskedDiffusion, key: PRNGKey, x: Array) -> Scalar:
    r"""The evidence lower bound of ONE example in nats, unbiased, from one masking.

    In continuous time it is

    $$\log p(x_0) \ge \int_0^1 \frac{1}{t}\, \mathbb{E}_{q(x_t \mid x_0)} \sum_{i:\, x_t^i = m}
    \log p_\theta(x_0^i \mid x_t)\, dt ,$$

    where $n$ masked tokens have weight $1 / n$, whichever they are. Here $n$ is uniform over $1, \dots, D$,
    so that the weight is $D / n$. It is the bound of the sampler that reveals one token at a step.

    Args:
        model: The masked diffusion.
        key: PRNG key.
        x: Integers of shape `(num_tokens,)`; NaN comes of one that is no value.

    Raises:
        TypeError: If it holds no integers.
        ValueError: If it has another shape.

    References:
        Sahoo et al. (2024), arXiv 2406.07524. Hoogeboom et al. (2022), Autoregressive diffusion models,
        ICLR, arXiv 2110.02037, for the sum over orders.
    """
    key = check_key(key)
    x_t, number = model.hide(key, x)
    return model.num_tokens / number * jnp.sum(chosen(model.log_probs(x_t), x))


def masked_loss(model: MaskedDiffusion, key: PRNGKey, batch: Array) -> Scalar:
    """Minus the mean of `masked_elbo` over a batch of shape `(num, num_tokens)`, in nats an example."""
    key, rows = check_key(key), _rows(model, batch)
    keys = jax.random.split(key, len(rows))
    each = jax.vmap(lambda key, x: masked_elbo(model, key, x))(keys, rows)
    return -jnp.mean(each)


def contrastive_loss(energy_data: Array, energy_noise: Array) -> Array:
    r"""$-\log \sigma(-E_+) - \log \sigma(E_-)$: cross-entropy of telling data from draws of the denoiser.

    In the mean it is least where $E = \log p_\theta - \log q$, with $q$ the distribution of the data; then
    $p_\theta e^{-E} = q$ needs no normaliser.

    Args:
        energy_data: Energies of data.
        energy_noise: Energies of draws of the denoiser.

    References:
        Gutmann & Hyvarinen (2010), Noise-contrastive estimation, AISTATS.
    """
    return jax.nn.softplus(energy_data) + jax.nn.softplus(-energy_noise)


def nce_loss(energy: ResidualEnergy, key: PRNGKey, batch: Array, model: MaskedDiffusion) -> Scalar:
    r"""Noise-contrastive loss of a residual energy: the mean of `contrastive_loss` over a batch.

    Each example is masked at a random time, and told from one draw of $p_\theta(\cdot \mid x_t)$.

    Args:
        energy: The residual energy.
        key: PRNG key.
        batch: Examples of shape `(num, num_tokens)`.
        model: The masked diffusion, which is not trained.

    References:
        Xu et al. (2025), arXiv 2410.21357.
    """
    key = check_key(key)

    def one(key, x):
        key_hide, key_draw = jax.random.split(key)
        x_t, _ = model.hide(key_hide, x)
        other = model.draw_given(key_draw, x_t)
        return contrastive_loss(energy_at(energy, x, x_t), energy_at(energy, other, x_t))

    rows = _rows(model, batch)
    keys = jax.random.split(key, len(rows))
    return jnp.mean(jax.vmap(one)(keys, rows))


def _rows(model: MaskedDiffusion, batch: Array) -> Array:
    """Examples as integers; the training loop hands them over as floats. What is no integer becomes -1,
    which is no value, and the loss NaN.
    """
    batch = jnp.asarray(batch)
    if batch.ndim != 2 or batch.shape[1] != model.num_tokens or len(batch) == 0:
        raise ValueError(
            f"a batch must have shape (num, {model.num_tokens}) with num >= 1, one row an example; got "
            f"{batch.shape}. {_faq.shapes}"
        )
    if jnp.issubdtype(batch.dtype, jnp.integer):
        return batch
    return jnp.where(batch == jnp.round(batch), batch, -1).astype(int)
