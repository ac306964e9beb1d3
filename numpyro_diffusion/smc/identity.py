"""Identity of a run: what must be the same for it to go on from where it stopped."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._staging import fingerprint
from .._typing import PRNGKey, PyTree
from .feynman_kac import FeynmanKac

__all__ = ["Identity", "PlainIdentity", "digest"]

# What differs, in the words of a user, and the remedy.
_MODEL = "the model (what it computes, its data or a constant in it)"
_MEANING = {"key": "the PRNG key", "levels": "the levels"}
_MEANING["first_state"] = (
    "the first state of the chains (what starts them, or a setting of the kernel)"
)
_MEANING |= dict.fromkeys(
    ("start", "step", "moves", "advance", "resamples", "evidence_from"), _MODEL
)


@jax.tree_util.register_static
class Identity:
    """What a run was asked to do: its key, its Feynman-Kac model and its settings.

    Two of them are compared part by part. The model is compared by what it computes: its programs with all
    constants in them, data included. Pickled, it keeps digests alone.
    """

    def __init__(self, key: PRNGKey, model: FeynmanKac, settings: dict[str, Any]):
        self.key, self.model, self.settings = key, model, settings
        self._parts: dict[str, Any] | None = None

    def __reduce__(self):
        return _restored, (self.parts(),)

    def parts(self) -> dict[str, Any]:
        """Plain data by part."""
        if self._parts is None:
            self._parts = {"key": digest(jax.random.key_data(self.key))}
            self._parts |= {"levels": digest(self.model.levels), **_programs(self.model)}
            self._parts |= {n: _plain(value) for n, value in self.settings.items()}
        return self._parts

    def differences(self, other: "Identity") -> list[str]:
        """In words, each part in which this run is another; an empty list if it is the same."""
        if self._same_objects(other):
            return []
        return differences(self.parts(), other.parts())

    def _same_objects(self, other: "Identity") -> bool:
        """Whether both are of one model in memory, so that nothing needs to be traced."""
        if self._parts is not None or other._parts is not None or self.model is not other.model:
            return False
        one, two = (np.asarray(jax.random.key_data(run.key)) for run in (self, other))
        return np.array_equal(one, two) and self.settings == other.settings


class PlainIdentity:
    """The same in plain data, which the caller has made."""

    def __init__(self, parts: dict[str, Any]):
        self._parts = parts

    def parts(self) -> dict[str, Any]:
        """Plain data by part."""
        return self._parts


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """In words, each part in which plain data of two runs differ."""
    told: dict[str, None] = {}
    for name in sorted(found | expected):
        was, now = found.get(name), expected.get(name)
        if was != now:
            other = f"{_MEANING[name]} is another" if name in _MEANING else None
            told[other or f"{name} was {was!r:.60} and is {now!r:.60}"] = None
    return list(told)


def _restored(parts: dict[str, Any]) -> Identity:
    identity = Identity.__new__(Identity)
    identity._parts = parts
    return identity


def _programs(model: FeynmanKac) -> dict[str, str | None]:
    key = jax.random.key(0)
    particle, _, _ = jax.eval_shape(model.init, key)
    level = jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], model.levels)
    found = {
        "start": fingerprint(model.init, key),
        "step": fingerprint(model.step, key, particle, level),
    }
    if model.rejuvenate is not None and model.advance is not None:
        _, info = jax.eval_shape(model.rejuvenate, key, particle, level)
        found["moves"] = fingerprint(model.rejuvenate, key, particle, level)
        found["advance"] = fingerprint(model.advance, key, particle, level, info)
    return found | {"resamples": str(model.resamples), "evidence_from": str(model.evidence_from)}


def _plain(value: Any) -> Any:
    """A setting as JSON can hold it; a function by what it computes."""
    if callable(value):
        weights = jax.ShapeDtypeStruct((4,), jnp.result_type(float))
        return fingerprint(lambda key, w: value(key, w, 4), jax.random.key(0), weights)
    return value.item() if isinstance(value, np.generic) else value


def digest(tree: PyTree) -> str:
    """Digest of the arrays of a tree, with their types and shapes."""
    state = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        state.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return state.hexdigest()[:16]
