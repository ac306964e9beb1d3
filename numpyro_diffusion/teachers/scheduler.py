r"""Noise schedules and predictions from a `scheduler_config.json` of `diffusers`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import _faq
from ..schedules import Tabulated, from_betas
from .predictions import AbstractPrediction, Denoised, Noise, Velocity

__all__ = ["ddpm_prediction", "ddpm_schedule"]

_PREDICTIONS = {"epsilon": Noise(), "sample": Denoised(), "v_prediction": Velocity()}
_SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")


def ddpm_schedule(config: Mapping[str, Any]) -> Tabulated:
    """The noise schedule of a `scheduler_config.json`.

    Args:
        config: Its content.

    Raises:
        ValueError: If it is not one of the discrete variance-preserving schedules.
    """
    name, steps = config.get("_class_name"), config.get("num_train_timesteps", 1000)
    if name not in _SCHEDULERS:
        raise ValueError(
            f"expected one of {', '.join(_SCHEDULERS)}; got {name!r}. Pass `schedule` and "
            f"`prediction`. {_faq.foreign_weights}"
        )
    if config.get("rescale_betas_zero_snr", False):
        raise ValueError(
            "a schedule with rescale_betas_zero_snr ends without signal; pass "
            f"`schedule`. {_faq.foreign_weights}"
        )
    if not (type(steps) is int and 2 <= steps <= 100_000):
        raise ValueError(
            "`num_train_timesteps` must be a number of steps; got "
            f"{steps!r:.80}. {_faq.foreign_weights}"
        )
    low, high = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
    betas = config.get("trained_betas")
    told = {
        "beta_start": [low],
        "beta_end": [high],
        "trained_betas": [0.5] if betas is None else betas,
    }
    for name, values in told.items():
        if not (isinstance(values, list) and all(type(v) in (int, float) for v in values)):
            raise ValueError(
                f"`{name}` must hold numbers; got {config[name]!r:.80}. {_faq.foreign_weights}"
            )
        if not all(0 < value < 1 for value in values):
            raise ValueError(
                f"`{name}` must hold betas in (0, 1); got "
                f"{config[name]!r:.80}. {_faq.foreign_weights}"
            )
    if betas is not None:
        return from_betas(betas)
    kind = config.get("beta_schedule", "linear")
    if kind == "linear":
        return from_betas(np.linspace(low, high, steps))
    if kind == "scaled_linear":
        return from_betas(np.linspace(low**0.5, high**0.5, steps) ** 2)
    if kind == "squaredcos_cap_v2":
        signal = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        return from_betas(np.minimum(1 - signal[1:] / signal[:-1], 0.999))
    raise ValueError(
        f"beta_schedule={kind!r} is not supported; pass `schedule`. {_faq.foreign_weights}"
    )


def ddpm_prediction(config: Mapping[str, Any]) -> AbstractPrediction:
    """Prediction type of the network, from a `scheduler_config.json`.

    Args:
        config: Its content.

    Raises:
        ValueError: If that is none of noise, data and velocity.
    """
    kind = config.get("prediction_type", "epsilon")
    if type(kind) is not str or kind not in _PREDICTIONS:
        raise ValueError(
            f"prediction_type={kind!r:.80} is not one of "
            f"{sorted(_PREDICTIONS)}. {_faq.foreign_weights}"
        )
    return _PREDICTIONS[kind]
