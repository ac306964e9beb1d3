"""Sources of training examples: arrays, samplers, streams and mixtures of them."""

import abc
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._typing import Array, PRNGKey
from .examples import check_examples, check_weights

__all__ = [
    "AbstractSource",
    "Examples",
    "Mixed",
    "Sampler",
    "Stream",
    "as_source",
]


class Batch(NamedTuple):
    """Examples of shape `(num, *shape)` and one condition each, or `None`."""

    examples: Array
    condition: Array | None = None


class AbstractSource(eqx.Module):
    """A source of training examples."""

    @abc.abstractmethod
    def draw(self, key: PRNGKey, num: int, fed: Any) -> Batch:
        """A batch of `num` examples, inside a compiled step; `fed` is what `feed` gave for it."""

    def feed(self, num: int) -> Any:
        """Data that the host hands over for one batch of `num`; raises `StopIteration` at an end."""
        del num

    def fingerprint(self) -> int:
        """A number that tells the arrays of sources apart."""
        return 0

    def functions(self) -> tuple[Callable[[PRNGKey], Any], ...]:
        """Functions of a key that draw examples."""
        return ()


class Examples(AbstractSource):
    r"""An array of examples, drawn with replacement.

    With weights $w_i$ example $i$ is drawn with chance $w_i / \sum_j w_j$. A loss is then, in the mean, the
    weighted one, whichever loss it is, and no step is lost on examples that hardly count.

    Attributes:
        data: Examples of shape `(num, *shape)`.
        condition: One an example, leading with `(num,)`, or `None`.
        weights: One an example, of shape `(num,)`, not negative; `None` for equal ones.
    """

    data: Array
    condition: Array | None = None
    weights: Array | None = None

    @property
    def ess(self) -> float | None:
        r"""$(\sum_i w_i)^2 / \sum_i w_i^2$, how many examples the weights leave; `None` without weights."""
        if self.weights is None:
            return None
        weights = np.asarray(self.weights, float) / float(np.max(self.weights))
        return float(weights.sum() ** 2 / np.sum(weights**2))

    def draw(self, key, num, fed):
        if self.weights is None:
            index = jax.random.randint(key, (num,), 0, len(self.data))
        else:
            # One uniform draw in each of `num` cells: an example comes as often as its weight says.
            ends = np.cumsum(np.asarray(self.weights, float))
            ends = jnp.asarray(ends / ends[-1], jnp.result_type(float))
            key_place, key_order = jax.random.split(key)
            cells = jnp.arange(num) + jax.random.uniform(key_place, (num,), ends.dtype)
            index = jnp.searchsorted(ends, cells / num).clip(0, len(self.data) - 1)
            index = jax.random.permutation(key_order, index)
        return Batch(*jax.tree.map(lambda leaf: leaf[index], (self.data, self.condition)))

    def fingerprint(self):
        parts = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(self)]
        return zlib.crc32(b"".join(part.tobytes() for part in parts))


class Sampler(AbstractSource):
    """A JAX function that draws examples: a simulator, an exact distribution, a teacher's sampler.

    Attributes:
        fn: `fn(key) -> example` of shape `shape`, or `(example, condition)`.
    """

    fn: Callable[[PRNGKey], Any]

    def draw(self, key, num, fed):
        drawn = jax.vmap(self.fn)(jax.random.split(key, num))
        return Batch(*drawn) if isinstance(drawn, tuple) else Batch(drawn)

    def functions(self):
        return (self.fn,)


class Stream(AbstractSource):
    """An iterator over batches, for data that do not fit into memory or are made elsewhere.

    A resumed run skips as many batches as it had seen, so that an iterator that begins anew gives the same
    weights as a run that was never interrupted.

    Attributes:
        next_batch: Gives the next batch, as `iterator.__next__` does: examples of shape `(num, *shape)`, or
            `(examples, conditions)`, with the `num` that training asks for (`batch_size`, or its share in
            `Mixed`). It raises `StopIteration` at the end.
        shape: Shape of one example.
    """

    next_batch: Callable[[], Any] = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)

    def draw(self, key, num, fed):
        return Batch(*fed)

    def feed(self, num):
        batch = self.next_batch()
        examples, *condition = batch if isinstance(batch, tuple) else (batch,)
        examples = check_examples(examples, self.shape, "a batch of the stream", np)
        if len(examples) != num:
            raise ValueError(
                f"expected batches of {num} examples from the stream; got {len(examples)}. Set "
                "`batch_size` to what it yields, and drop an incomplete last "
                f"batch. {_faq.examples}"
            )
        return (examples, *(np.asarray(c) for c in condition))


class Mixed(AbstractSource):
    """Several sources, each with a fixed part of every batch.

    Attributes:
        sources: The sources, for example `Examples(data)` and `Sampler(fn)`.
        shares: Their parts, positive; scaled to a sum of one and rounded to whole examples.

    Raises:
        ValueError: If there is not one positive share a source.
    """

    sources: tuple[AbstractSource, ...]
    shares: tuple[float, ...] = eqx.field(static=True)

    def __check_init__(self):
        if len(self.sources) != len(self.shares) or not self.shares or min(self.shares) <= 0:
            raise ValueError(
                f"`Mixed` expects one positive share a source; got {len(self.sources)} sources and "
                f"shares {self.shares}. {_faq.shapes}"
            )

    def _counts(self, num: int) -> list[int]:
        ends = np.round(num * np.cumsum(self.shares) / sum(self.shares)).astype(int)
        return np.diff(ends, prepend=0).tolist()

    def draw(self, key, num, fed):
        keys = jax.random.split(key, len(self.sources))
        batches = [
            source.draw(k, count, one)
            for source, k, count, one in zip(
                self.sources, keys, self._counts(num), fed, strict=True
            )
        ]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *batches)

    def feed(self, num):
        pairs = zip(self.sources, self._counts(num), strict=True)
        return tuple(source.feed(count) for source, count in pairs)

    def fingerprint(self):
        return zlib.crc32(repr([source.fingerprint() for source in self.sources]).encode())

    def functions(self):
        return tuple(fn for source in self.sources for fn in source.functions())


def as_source(
    data: Any, shape: tuple[int, ...], condition: Any = None, weights: Any = None
) -> AbstractSource:
    """Data of any kind as a source: an array, a function of a key, an iterator over batches.

    Args:
        data: The data, or a source.
        shape: Shape of one example.
        condition: With an array, one condition an example.
        weights: With an array, one weight an example.

    Raises:
        TypeError: If data are of none of these kinds, or not floating.
        ValueError: If shapes disagree, data are not finite, or weights negative.
    """
    no_array = isinstance(data, AbstractSource | Iterator) or callable(data)
    if weights is not None and no_array:
        raise TypeError(
            "`weights` go with an array of data; draw from a function or an iterator with the weights in it "
            f"already, or give `Examples(data, weights=weights)` to a mixture. {_faq.together}"
        )
    if condition is not None and no_array:
        raise TypeError(
            "`condition` goes with an array of data; a function or an iterator returns pairs "
            f"(examples, conditions) instead. {_faq.together}"
        )
    if isinstance(data, AbstractSource):
        return data
    if callable(data):
        return Sampler(data)
    if isinstance(data, Iterator):
        return Stream(data.__next__, shape)
    data = check_examples(data, shape, "data")
    if condition is not None:
        condition = jnp.asarray(condition)
        if condition.shape[:1] != data.shape[:1]:
            raise ValueError(
                f"`condition` must lead with one entry an example, {len(data)}; got shape "
                f"{condition.shape}. {_faq.shapes}"
            )
    return Examples(data, condition, None if weights is None else check_weights(weights, len(data)))
