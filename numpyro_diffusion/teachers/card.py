r"""Cards of trained networks: what must be known before their numbers mean anything.

A network file says neither in which units it lives, nor which noise it was trained under, nor what its output
is. The card does; readers of foreign weights demand one.
"""

import dataclasses
import hashlib
import math
import re
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from ..schedules import AbstractSchedule
from .predictions import AbstractPrediction
from .transforms import AbstractTransform

__all__ = ["PriorCard"]

_DIGEST = "[0-9a-fA-F]{64}"


def _is_number(value) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


class PriorCard(eqx.Module):
    r"""Units, noise and conventions of a trained diffusion model, and where it came from.

    Attributes:
        name: What the model is called.
        shape: Shape of one example.
        units: Physical units of the data, in words.
        data_range: Smallest and largest physical value that data may take; infinite ends are allowed.
        transform: From physical units to those in which the network was trained.
        schedule: Noise schedule of the training, in our time from 0 to 1 and the network's units.
        prediction: What the output is.
        time_scale: The network is given $t$ times this.
        licence: Licence of the weights.
        source: Where the weights come from.
        sha256: Digest of the file. Weights are refused if theirs differs.

    Raises:
        ValueError: If a field is of the wrong kind, or shape, range or time scale make no sense.
    """

    name: str = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)
    units: str = eqx.field(static=True)
    data_range: tuple[float, float] = eqx.field(static=True)
    transform: AbstractTransform
    schedule: AbstractSchedule
    prediction: AbstractPrediction
    time_scale: float = eqx.field(static=True, default=1.0)
    licence: str = eqx.field(static=True, default="not stated")
    source: str = eqx.field(static=True, default="not stated")
    sha256: str | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        for name in ("name", "units", "licence", "source"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(
                    f"`{name}` of a card must be a string; got "
                    f"{getattr(self, name)!r:.80}. {_faq.cards}"
                )
        if not (isinstance(self.data_range, tuple | list) and len(self.data_range) == 2):
            raise ValueError(
                f"`data_range` must be two numbers; got {self.data_range!r:.80}. {_faq.cards}"
            )
        low, high = self.data_range
        if not (_is_number(low) and _is_number(high) and low < high):
            raise ValueError(
                f"`data_range` must rise; got {low} to {high}, in {self.units}. {_faq.cards}"
            )
        if not (
            isinstance(self.shape, tuple)
            and all(isinstance(n, int | np.integer) and n > 0 for n in self.shape)
        ):
            raise ValueError(f"`shape` must hold positive integers; got {self.shape}. {_faq.cards}")
        if not (_is_number(self.time_scale) and 0 < self.time_scale < math.inf):
            raise ValueError(f"`time_scale` must be positive; got {self.time_scale}. {_faq.cards}")
        digest = self.sha256
        if digest is not None and not (isinstance(digest, str) and re.fullmatch(_DIGEST, digest)):
            raise ValueError(
                f"`sha256` must be 64 hexadecimal digits; got {digest!r:.80}. {_faq.cards}"
            )
        if not self.units:
            raise ValueError(
                f"a card must name units; write 'dimensionless' if there are none. {_faq.cards}"
            )

    def verified(self, data: bytes) -> Self:
        """The card with the digest of the file in it.

        Args:
            data: All bytes of the file of weights.

        Raises:
            ValueError: If the card has a digest, and it is another.
        """
        digest = hashlib.sha256(data).hexdigest()
        if self.sha256 is not None and self.sha256.lower() != digest:
            raise ValueError(
                f"the weights of {self.name!r} should have SHA-256 {self.sha256}; these have {digest}. "
                "They are damaged or another version: get them again, or write a card of your "
                f"own. {_faq.cards}"
            )
        return dataclasses.replace(self, sha256=digest)

    def encode(self, data) -> np.ndarray:
        """Examples in the network's units.

        Args:
            data: Examples in physical units, shape `(num, *shape)`.

        Raises:
            ValueError: If a shape is not that of the card, or a value lies outside `data_range`, by which
                wrong units show.
        """
        data = np.asarray(data)
        low, high = self.data_range
        if data.shape[1:] != self.shape:
            raise ValueError(
                f"{self.name!r} expects examples of shape (num, {str(self.shape)[1:-1]}); got "
                f"{data.shape}. {_faq.shapes}"
            )
        if not np.all((data >= low) & (data <= high)):
            raise ValueError(
                f"{self.name!r} expects finite values from {low:g} to {high:g} ({self.units}); got "
                f"{data.min():g} to {data.max():g}. Convert the units first. {_faq.cards}"
            )
        return np.asarray(jax.vmap(self.transform.forward)(jnp.asarray(data)))

    def decode(self, data) -> np.ndarray:
        """Examples in physical units, from the network's.

        Args:
            data: Examples in the network's units, shape `(num, *shape)`.
        """
        return np.asarray(jax.vmap(self.transform.inverse)(jnp.asarray(data)))

    def to_dict(self) -> dict[str, Any]:
        """The card as JSON can hold it: for `save(path, energy, card=...)`, say."""
        low, high = (end if math.isfinite(end) else None for end in self.data_range)
        return {
            "name": self.name,
            "shape": list(self.shape),
            "units": self.units,
            "range": [low, high],
            "transform": repr(self.transform),
            "schedule": repr(self.schedule),
            "prediction": repr(self.prediction),
            "time_scale": self.time_scale,
            "licence": self.licence,
            "source": self.source,
            "sha256": self.sha256,
        }
