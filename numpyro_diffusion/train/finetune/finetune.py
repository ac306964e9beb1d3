r"""`finetune`: a diffusion model turned into the tilt of itself by a reward, on one of five routes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ... import _faq
from ..._arguments import check_callable, check_instance, whole_numbers
from ..._typing import Array, PRNGKey, PyTree, Scalar
from ...energies import AbstractDenoiser, Standardized
from ..examples import check_examples
from ..options import EarlyStopping, Optimizer
from ..result import TrainingDiverged
from ..settings import forgetful
from .route import AbstractRoute, FinetuneResult, Task

__all__ = ["finetune"]


def finetune(
    route: AbstractRoute,
    key: PRNGKey,
    energy: AbstractDenoiser,
    reward: Callable[[Array], Scalar],
    *,
    temperature: float = 1.0,
    data=None,
    steps: int = 1000,
    batch_size: int = 128,
    learning_rate: float | optax.Schedule = 2e-3,
    trainable: Callable[[Any], PyTree] | None = None,
    optimizer: Optimizer = Optimizer(),  # noqa: B008 - it never changes
    stopping: EarlyStopping = EarlyStopping(check_every=100, validation_repeats=1),  # noqa: B008
    progress_bar: bool = True,
) -> FinetuneResult:
    r"""Train a model of $p(x)\, e^{r(x) / \alpha}$ from a model of $p$.

    Of all distributions it has the largest $\mathbb{E}[r] - \alpha\, \mathrm{KL}(\cdot \,\|\, p)$. A log
    likelihood with $\alpha = 1$ makes it a posterior, which is then amortised: its draws cost what those of
    the prior do. What is learned is as good as its training, and nothing downstream can tell; `energy +
    factors.Tilt(reward, alpha)` and a weighted sampler need no training and are exact as particles become
    many.

    Args:
        route: `RewardWeighted`, `ValueWeighted`, `PPO`, `DirectBackprop` or `PathConsistency`, an instance.
        key: PRNG key.
        energy: The prior $p$, an energy or a denoiser with a network; or a `Standardized` distribution.
        reward: $r$, `reward(x)` of shape `()` for ONE example in data units.
        temperature: $\alpha > 0$, in units of the reward: what a nat of divergence from the prior costs.
        data: Draws of the prior or the data it was trained on, of shape `(num, *energy.shape)`, for the
            routes that take them; drawn by default.
        steps: Largest number of updates.
        batch_size: Examples, or paths, a gradient.
        learning_rate: Peak of a warm-up and cosine decay over `steps`, or an optax schedule.
        trainable: Selects what is trained of the model; network and offset by default.
        optimizer: See `Optimizer`; on the routes that steer, weight decay is 0 by default.
        stopping: See `EarlyStopping`.
        progress_bar: Show progress and losses.

    Raises:
        TypeError: If an argument is of another kind, or the model has nothing to train.
        ValueError: If a number is out of range, a reward not one number, or `data` do not fit.
        TrainingDiverged: If a loss becomes non-finite; it carries the last good weights.

    References:
        Uehara et al. (2024), Understanding Reinforcement Learning-Based Fine-Tuning of Diffusion Models: A
        Tutorial and Review, arXiv 2407.13734.
    """
    steps, batch_size = whole_numbers(1, steps=steps, batch_size=batch_size)
    if not isinstance(route, AbstractRoute):
        raise TypeError(
            "`route` must be an instance of `RewardWeighted`, `ValueWeighted`, `PPO`, `DirectBackprop` or "
            f"`PathConsistency`, such as `train.PPO()`; got {route!r:.60}. {_faq.kinds}"
        )
    check_instance("optimizer", optimizer, Optimizer, "train.Optimizer(ema=0.99)", optional=False)
    check_instance("stopping", stopping, EarlyStopping, "train.EarlyStopping()", optional=False)
    check_callable("reward", reward, "x -> reward")
    if not (temperature > 0 and np.isfinite(temperature)):
        raise ValueError(
            f"`temperature` must be positive and finite; got {temperature}. {_faq.numbers}"
        )
    found = jax.eval_shape(reward, jax.ShapeDtypeStruct(energy.shape, jnp.result_type(float)))
    if getattr(found, "shape", None) != ():
        raise ValueError(
            f"a reward is one number, of shape (); got {getattr(found, 'shape', found)} for one example of "
            f"shape {energy.shape}. Sum it. {_faq.reward}"
        )
    if data is not None:
        data = check_examples(data, energy.shape, "data", np)
    if not isinstance(energy, Standardized):
        task = Task(
            forgetful(energy), reward, float(temperature), data, steps, batch_size, learning_rate, trainable,
            optimizer, stopping, progress_bar,
        )  # fmt: skip
        return route.run(key, task)
    options = {
        "temperature": temperature, "steps": steps, "batch_size": batch_size, "learning_rate": learning_rate,
        "trainable": trainable, "optimizer": optimizer, "stopping": stopping, "progress_bar": progress_bar,
        "data": None if data is None else energy.standardize(data),
    }  # fmt: skip
    try:
        result = finetune(route, key, energy.energy, lambda z: reward(energy.restore(z)), **options)
    except TrainingDiverged as error:
        error.energy = energy.with_energy(error.energy)
        raise
    return result._replace(energy=energy.with_energy(result.energy))
