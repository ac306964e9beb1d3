"""Settings that `fit` derives from its arguments before the first step."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import _faq
from .._typing import Array, PRNGKey, PyTree
from ..energies import AbstractDenoiser, AbstractEnergy
from .examples import check_examples
from .losses import denoising_loss, energy_loss
from .sources import AbstractSource, Batch, Examples, Sampler

__all__ = [
    "default_decay",
    "default_loss",
    "forgetful",
    "make_optimiser",
    "names_of",
    "null_of",
    "split",
    "spreader",
    "trainable_of",
]


def split(
    key: PRNGKey, source: AbstractSource, shape: tuple[int, ...], validation: Any
) -> tuple[AbstractSource, Batch]:
    """A source to train on and a batch to judge by."""
    if validation is not None:
        examples, *condition = validation if isinstance(validation, tuple) else (validation,)
        examples = check_examples(examples, shape, "validation")
        return source, Batch(examples, *(jnp.asarray(c) for c in condition))
    if isinstance(source, Examples):
        num = len(source.data)
        if num < 2:
            raise ValueError(f"expected at least 2 training examples; got {num}. {_faq.examples}")
        # A tenth of a small table says too little: a fifth, up to 50.
        order, first = jax.random.permutation(key, num), max(1, num // 10, min(num // 5, 50))
        leaves = source.data, source.condition, source.weights
        pick = lambda index: Examples(*jax.tree.map(lambda a: a[index], leaves))
        kept, held_out = pick(order[first:]), pick(order[:first])
        if source.weights is None:
            return kept, Batch(held_out.data, held_out.condition)
        # Judged by as it is trained: on draws by weight.
        return kept, held_out.draw(key, first, None)
    if isinstance(source, Sampler):
        batch = source.draw(key, 1000, None)
        check_examples(batch.examples, shape, "draws of the function")
        return source, batch
    raise ValueError(
        f"`{type(source).__name__}` holds nothing out: give `validation`, examples of shape (num, "
        f"*shape). {_faq.together}"
    )


def default_loss(energy: AbstractDenoiser, held_out: Batch, source: AbstractSource) -> Callable:
    """`energy_loss`, or `denoising_loss` for a denoiser without energy, at the scale of the data."""
    data = source.data if isinstance(source, Examples) else held_out.examples
    scale = float(np.sqrt(np.mean(np.var(np.asarray(data), 0))))
    if scale == 0:
        raise ValueError(
            f"`data` must vary; all {len(data)} examples are equal. Pass more data, or a "
            f"`loss`. {_faq.examples}"
        )
    loss: Callable = energy_loss if isinstance(energy, AbstractEnergy) else denoising_loss
    return lambda e, k, batch, **told: loss(e, k, batch, data_scale=scale, **told)


def default_decay(source: AbstractSource, shape: tuple[int, ...]) -> float:
    r"""Weight decay for $n$ examples of $d$ numbers: $100\, (d / n) \min(1, 500 / n)$, in [0.01, 10].

    An array of a few hundred rows is learned by heart within a few hundred steps, and then no check is better
    than the Gaussian that training starts from; with this decay it is not. Other sources have 0.01.

    Args:
        source: Training examples, those held out taken off.
        shape: Shape of one example.
    """
    if not isinstance(source, Examples):
        return 1e-2
    num = len(source.data) if source.ess is None else source.ess
    return float(np.clip(100 * math.prod(shape) / num * min(1.0, 500 / num), 1e-2, 10.0))


def make_optimiser(learning_rate: Any, weight_decay: float | None, steps: int):
    """Adam with decoupled decay of matrices, gradients of norm at most 1, and a cosine decay."""
    schedule: Any = learning_rate
    if not callable(learning_rate):
        warmup = min(200, steps // 10)
        schedule = optax.warmup_cosine_decay_schedule(
            0.0, learning_rate, warmup, steps, 0.01 * learning_rate
        )
    matrices = lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, weight_decay=weight_decay or 0.0, mask=matrices),
    )


def null_of(energy: Any, null_rate: float) -> Array | None:
    """The null condition of an energy's network, if training is to use it."""
    if not hasattr(energy, "given"):
        raise TypeError(
            f"`{type(energy).__name__}` takes no condition: it has no method `given`. Drop "
            f"`condition`. {_faq.network}"
        )
    if null_rate == 0:
        return None
    embedding = getattr(getattr(energy, "net", None), "condition", None)
    if embedding is None:
        raise ValueError(
            "the network of this energy has no null condition. Build it with `condition=Labels(key, num)` "
            f"or `Vectors(key, length)`, or set `null_rate=0`. {_faq.network}"
        )
    return embedding.null


def spreader(devices: Sequence[Any] | None, batch_size: int) -> Callable[[Array], Array]:
    """Spreads arrays over devices along their first axis; the compiler does the rest."""
    if devices is None:
        return lambda leaf: leaf
    if batch_size % len(devices):
        raise ValueError(
            f"`batch_size` must be a multiple of the number of devices, {len(devices)}; got "
            f"{batch_size}. {_faq.devices}"
        )
    mesh = jax.sharding.Mesh(np.asarray(devices), ("batch",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    return lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding)


def forgetful(energy: Any) -> Any:
    """The energy without the normalisers of the weights that it starts from; new weights have others."""
    if not isinstance(energy, AbstractEnergy) or energy.normalized:
        return energy
    if getattr(energy, "label_normalizers", None) is not None:
        energy = energy.with_label_normalizers(None)  # pyright: ignore[reportAttributeAccessIssue]
    return energy if energy.log_normalizer is None else energy.with_log_normalizer(None)


def names_of(part: PyTree, whole: PyTree) -> list[str]:
    """Paths of the floating arrays of a part within the whole."""
    places = {id(leaf): path for path, leaf in jax.tree.leaves_with_path(whole)}
    leaves = filter(eqx.is_inexact_array, jax.tree.leaves(part))
    return [jax.tree_util.keystr(places.get(id(leaf), ())) for leaf in leaves]


def trainable_of(model: Any, trainable: Callable[[Any], PyTree] | None) -> Callable[[Any], PyTree]:
    """What is trained of a model: as said, or its network, and its offset where it has one.

    Raises:
        TypeError: If nothing is said and the model has no network.
    """
    if trainable is not None:
        return trainable
    if not hasattr(model, "net"):
        raise TypeError(
            f"`{type(model).__name__}` has no network to train. Say what is trained, such as "
            "`trainable=lambda energy: energy.mean`, or `distill` the model into a network "
            f"first. {_faq.network}"
        )
    names = [name for name in ("net", "offset") if hasattr(model, name)]
    return lambda model: tuple(getattr(model, name) for name in names)
