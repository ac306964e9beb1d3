"""Training over tokens: a masked diffusion by its lower bound, a residual energy against it."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._arguments import check_instance
from .._typing import Array, PRNGKey
from ..train import FitResult
from ..train import fit as _fit
from .energies import check_energy_function
from .losses import masked_loss, nce_loss
from .masked import MaskedDiffusion

__all__ = ["fit", "fit_energy"]


_REFUSED = ("loss", "condition", "null_rate", "augment")  # options that make no sense for tokens


class _Pair(eqx.Module):
    """An energy, and the masked diffusion against which it is trained."""

    energy: Any
    model: MaskedDiffusion

    @property
    def shape(self) -> tuple[int, ...]:
        return self.model.shape


def fit(key: PRNGKey, model: MaskedDiffusion, data: Any, **options: Any) -> FitResult:
    """Fit the denoiser of a masked diffusion to examples by the evidence lower bound.

    Args:
        key: PRNG key.
        model: What to start from, such as `MaskedDiffusion(TokenNetwork(key, 10, 4), 10, 4)`.
        data: Integers of shape `(num, num_tokens)`, from 0 to `num_values - 1`.
        **options: As of `train.fit`: `steps`, `batch_size`, `learning_rate`, `validation`, `weights`,
            `optimizer=train.Optimizer(...)`, `stopping=train.EarlyStopping(...)`, `checkpoint`,
            `progress_bar`, `trainable`.

    Returns:
        As `train.fit`: the trained model is its `energy`, losses are in nats an example.

    Raises:
        TypeError: If data are not integers, or an option is not one of tokens.
        ValueError: If shapes or values do not fit.
    """
    check_instance("model", model, MaskedDiffusion, "MaskedDiffusion(...)", optional=False)
    options = {"trainable": lambda model: model.denoiser} | _checked(options, model)
    return _fit(key, model, _tokens("data", data, model), loss=masked_loss, **options)  # type: ignore


def fit_energy(
    key: PRNGKey, energy: Any, model: MaskedDiffusion, data: Any, **options: Any
) -> FitResult:
    r"""Fit a residual energy by noise-contrastive estimation against draws of a masked diffusion.

    The denoiser is not trained. At the optimum $p_\theta(x_0 \mid x_t)\, e^{-E}$ is the distribution of the
    data given $x_t$, normalised as it is.

    Args:
        key: PRNG key.
        energy: A pytree that is called `energy(x, x_t)`, such as `EnergyNetwork(key, 10, 4)`.
        model: The masked diffusion.
        data: Integers of shape `(num, num_tokens)`.
        **options: As for `fit`.

    Returns:
        As `train.fit`: the trained energy is its `energy`; the loss of an energy that is 0 is 2 log 2.

    Raises:
        TypeError: If data are not integers, or an option is not one of tokens.
        ValueError: If shapes or values do not fit.
    """
    check_energy_function(energy)
    check_instance("model", model, MaskedDiffusion, "MaskedDiffusion(...)", optional=False)
    options = {"trainable": lambda pair: pair.energy} | _checked(options, model)
    pair = _Pair(energy, model)
    loss = lambda pair, key, batch: nce_loss(pair.energy, key, batch, pair.model)
    found = _fit(key, pair, _tokens("data", data, model), loss=loss, **options)  # type: ignore
    return found._replace(energy=found.energy.energy)  # type: ignore


def _checked(options: dict[str, Any], model: MaskedDiffusion) -> dict[str, Any]:
    unknown = sorted(set(options) & set(_REFUSED))
    if unknown:
        raise TypeError(
            f"training over tokens has no options {unknown}; leave them out. {_faq.together}"
        )
    if options.get("validation") is not None:
        options = options | {"validation": _tokens("validation", options["validation"], model)}
    return options


def _tokens(name: str, data: Any, model: MaskedDiffusion) -> Array:
    """Examples as floats, which the training loop takes; they hold integers of this size exactly."""
    data = np.asarray(data)
    if not np.issubdtype(data.dtype, np.integer):
        raise TypeError(
            f"`{name}` must hold integers, the values of tokens; got {data.dtype}. Number the "
            f"values from 0. {_faq.real_numbers}"
        )
    if data.ndim != 2 or data.shape[1] != model.num_tokens:
        raise ValueError(
            f"`{name}` must have shape (num, {model.num_tokens}), one row an example; got "
            f"{data.shape}. {_faq.shapes}"
        )
    if data.size and (data.min() < 0 or data.max() >= model.num_values):
        raise ValueError(
            f"`{name}` must hold values from 0 to {model.num_values - 1}; got {data.min()} to "
            f"{data.max()}. {_faq.numbers}"
        )
    return jnp.asarray(data, float)
