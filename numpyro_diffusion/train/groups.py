r"""Class weights by group distributionally robust optimisation (group DRO): the mixture of classes on which a
model does worst.

Rare or hard classes are learned badly by an average over the data. Group DRO is a game: weights $\alpha$ move
to the classes whose loss exceeds that of a reference, the model learns on the mixture that they make. Weights
change the *shares* of the classes, hence the prior of all examples together. A prior of each class, trained
with labels as conditions, stays what it is, and is learned better where it was worst.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import _faq
from .._arguments import whole_numbers
from .._records import record, record_page
from .._typing import Array, PRNGKey, PyTree, Scalar
from ..energies import AbstractDenoiser, Standardized
from .examples import check_examples
from .losses import denoising_loss
from .result import TrainingDiverged
from .settings import forgetful, trainable_of

__all__ = ["GroupWeights", "group_dro_weights"]


class GroupWeights(NamedTuple):
    r"""Result of `group_dro_weights`.

    Attributes:
        classes: The labels, in order, shape `(num_classes,)`.
        shares: $\alpha$, the share of each class in training, mean over the last half of the steps.
        weights: One an example, for `fit(weights=...)`: $n \alpha_c / n_c$.
        excess: Mean loss of each class less the reference's, over the last half of the steps.
        energy: The model that was trained along, its weights averaged over the last half of the steps.
        target: What training with these weights leads to, in words.
    """

    classes: np.ndarray
    shares: np.ndarray
    weights: np.ndarray
    excess: np.ndarray
    energy: Any
    target: str

    __repr__ = record
    _repr_html_ = record_page


def group_dro_weights(
    key: PRNGKey,
    energy: AbstractDenoiser,
    data,
    labels,
    *,
    reference: Any = None,
    loss: Callable[[Any, PRNGKey, Array], Scalar] = denoising_loss,
    steps: int = 2_000,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    rate: float = 0.05,
    smoothing: float = 1e-4,
    trainable: Callable[[Any], PyTree] | None = None,
) -> GroupWeights:
    r"""Weights of classes that make the largest excess loss small.

    $$\alpha_c \propto \alpha_c \exp\big(\rho\,[\ell_c(\theta) - \ell_c(\mathrm{ref})]\big), \qquad
      \theta \leftarrow \theta - \eta\, \mathrm{Adam}\Big(\nabla \sum_c \alpha_c \ell_c\Big), \qquad
      \alpha \leftarrow (1 - \gamma)\,\alpha + \gamma / C .$$

    The averages approach the saddle point of $\min_\theta \max_c\, \ell_c(\theta) - \ell_c(\mathrm{ref})$
    where losses are convex in $\theta$; for a network it is a heuristic.

    What the reference is decides everything. A class that is hard for *any* model, because it is wide or
    noisy, should not gain weight for that: give the loss that each class can reach, from a model of its own.
    The model that minimises the average loss is no such reference: no other of its kind has a
    smaller loss on all classes, so it is itself the saddle point, and the game changes nothing.

    Args:
        key: PRNG key.
        energy: Model to start from, small enough to be trained for this alone: an energy, a denoiser, or a
            `Standardized` distribution, with data in its units.
        data: Floating, finite examples of shape `(num, *energy.shape)`.
        labels: The class of each, shape `(num,)`.
        reference: Losses by class, in the order of `np.unique(labels)`; or a model, whose losses are those
            at the same examples and noise; or `None`, for 0.
        loss: `loss(energy, key, batch)`.
        steps: Updates.
        batch_size: Examples of each class in a step.
        learning_rate: Of Adam, constant.
        rate: $\rho$, in which the weights move.
        smoothing: $\gamma$, so that no class is ever forgotten; it draws the shares together, so keep it
            well below `rate`.
        trainable: Selects what is trained of the model; network and offset by default.

    Raises:
        TypeError: If data are not floating.
        ValueError: If shapes disagree, there are fewer than two classes, or a number is out of range.
        TrainingDiverged: If a loss becomes non-finite.

    References:
        Li, Zhang, Liu & Lin (2024), arXiv 2409.19128. Sagawa et al. (2020), Distributionally robust neural
        networks, ICLR. Xie et al. (2023), DoReMi: optimizing data mixtures speeds up language model
        pretraining, NeurIPS, for the excess over a reference.
    """
    steps, batch_size = whole_numbers(1, steps=steps, batch_size=batch_size)
    if not rate > 0 or not learning_rate > 0 or not 0 <= smoothing < 1:
        raise ValueError(
            "`rate` and `learning_rate` must be positive and `smoothing` in [0, 1); got "
            f"{rate}, {learning_rate} and {smoothing}. {_faq.numbers}"
        )
    data, labels = check_examples(data, energy.shape, "data"), np.asarray(labels)
    if labels.shape != (len(data),):
        raise ValueError(
            f"`labels` must have shape ({len(data)},), one an example; got "
            f"{labels.shape}. {_faq.shapes}"
        )
    classes, which, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise ValueError(
            f"expected at least 2 classes in `labels`; got {classes.tolist()}. {_faq.examples}"
        )
    units = energy if isinstance(energy, Standardized) else None
    if units is not None:
        energy, data = units.energy, jnp.asarray(units.standardize(np.asarray(data)))
        reference = reference.energy if isinstance(reference, Standardized) else reference
    reference_of = _reference(reference, loss, len(classes))
    energy = forgetful(energy)
    chosen = trainable_of(energy, trainable)
    start, static = eqx.partition(chosen(energy), eqx.is_inexact_array)
    rebuild = lambda part: eqx.tree_at(chosen, energy, eqx.combine(part, static))
    adam = optax.adam(learning_rate)
    order, begins = np.argsort(which, kind="stable"), np.cumsum(sizes) - sizes

    def update(carry, step):
        part, state, shares = carry
        key_batch, key_loss = jax.random.split(jax.random.fold_in(key, step))
        places = jax.random.uniform(key_batch, (len(classes), batch_size))
        rows = jnp.minimum((places * sizes[:, None]).astype(int), sizes[:, None] - 1)
        batches = data[jnp.asarray(order)[begins[:, None] + rows]]
        keys = jax.random.split(key_loss, len(classes))

        def objective(part):
            losses = jax.vmap(lambda key, batch: loss(rebuild(part), key, batch))(keys, batches)
            return shares @ losses, losses

        slope, losses = jax.grad(objective, has_aux=True)(part)
        excess = losses - reference_of(keys, batches)
        shares = jax.nn.softmax(jnp.log(shares) + rate * excess)
        shares = (1 - smoothing) * shares + smoothing / len(classes)
        change, state = adam.update(slope, state)
        part = optax.apply_updates(part, change)
        return (part, state, shares), (part, shares, excess)

    @jax.jit
    def half(carry, numbers):
        """Updates with the means of what they leave."""

        def one(held, step):
            carry, means = held
            carry, new = update(carry, step)
            return (carry, jax.tree.map(lambda m, n: m + n / len(numbers), means, new)), None

        shapes = jax.eval_shape(update, carry, numbers[0])[1]
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(one, (carry, zeros), numbers)[0]

    even = jnp.full(len(classes), 1 / len(classes), data.dtype)
    carry = start, adam.init(start), even
    numbers, means = jnp.arange(steps), None
    for part in (numbers[: steps // 2], numbers[steps // 2 :]):
        if len(part):
            carry, means = half(carry, part)
    part, shares, excess = jax.tree.map(np.asarray, means)
    if not (np.isfinite(excess).all() and np.isfinite(shares).all()):
        raise TrainingDiverged(
            "a loss of `group_dro_weights` became non-finite. Lower `learning_rate` or `rate`, or scale the "
            f"data to order one. {_faq.diverged}", energy, steps, {},
        )  # fmt: skip
    target = (
        "the mixture of the classes in the shares given, not in those of the data: with labels as "
        "conditions each class keeps its own distribution"
    )
    weights = len(data) * shares[which] / sizes[which]
    energy = rebuild(jax.tree.map(jnp.asarray, part))
    energy = energy if units is None else units.with_energy(energy)
    return GroupWeights(classes, shares, weights, excess, energy, target)


def _reference(reference: Any, loss: Callable, num: int) -> Callable[[Array, Array], Array | float]:
    """Losses of the reference by class, of the same keys and batches."""
    if isinstance(reference, AbstractDenoiser):
        return jax.vmap(lambda key, batch: loss(reference, key, batch))
    if reference is None:
        return lambda keys, batches: 0.0
    losses = np.asarray(reference, float)
    if losses.shape != (num,) or not np.isfinite(losses).all():
        raise ValueError(
            f"`reference` must be {num} finite losses, one a class in the order of `np.unique(labels)`, a "
            f"model, or None; got shape {losses.shape}. {_faq.shapes}"
        )
    return lambda keys, batches: jnp.asarray(losses, jnp.result_type(float))
