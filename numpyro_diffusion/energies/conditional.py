r"""Energies under conditions, and the normalisers of labels."""

from typing import Any, Self

import jax.numpy as jnp
import numpy as np
from equinox import AbstractVar

from .. import _faq
from .._typing import Array, Scalar
from .base import replaced
from .coordinates import check_label, of_label
from .energy import AbstractEnergy

__all__ = ["AbstractConditional"]

_NO_LABELS = {"label_normalizers": None, "label_normalizer_errors": None}


class AbstractConditional(AbstractEnergy):
    r"""An energy that may be told a condition, and may know the normaliser of each label.

    Attributes:
        condition: What the distribution is conditioned on, see `given`; `None` for no condition.
        label_normalizers: $L(t_{\min})$ under each label, shape `(num_labels,)`, or `None`; see
            `with_label_normalizers`.
        label_normalizer_errors: Their standard errors.
    """

    condition: AbstractVar[Array | None]
    label_normalizers: AbstractVar[Array | None]
    label_normalizer_errors: AbstractVar[tuple[float, ...] | None]

    def given(self, condition) -> Self:
        r"""Return the same energy under a condition: a label, or a vector, for a network that was trained
        with it.

        `None` is no condition: the distribution over all, as far as training knew it. Conditions may be
        traced. Where normalisers of the labels are known they are counted in, so that the energy is
        normalised at `t_min` and energies of different labels compare there; at noisy levels they fade out.

        Args:
            condition: What the network's `condition` takes, `Labels` or `Vectors`; or `None`.

        Raises:
            ValueError: If the label has no normaliser among those that are known. A traced one gives NaN.
        """
        if condition is None and self.condition is None:
            return self
        if condition is not None and self.label_normalizers is not None:
            check_label(condition, len(self.label_normalizers))
        known = condition is not None and self.label_normalizers is not None
        changes = {
            "condition": None if condition is None else jnp.asarray(condition),
            "log_normalizer": 0.0 if known else None,
            "log_normalizer_error": max(self.label_normalizer_errors or (0.0,)) if known else 0.0,
        }
        return replaced(self, "given", changes)

    def with_label_normalizers(self, values, errors=None) -> Self:
        r"""Return the same energy with known $L(t_{\min})$ under each label, which `save` stores with it.

        Args:
            values: One a label, in nats, for example of `prior_normalizer(energy.given(label), key)` of an
                energy that knows none yet; `None` to forget them.
            errors: Their standard errors; the largest goes with every label.

        Raises:
            ValueError: If a number is not finite, an error is negative, or their numbers differ.
        """
        if values is None:
            other = replaced(self, "with_label_normalizers", _NO_LABELS)
            return other if self.condition is None else other.given(self.condition)
        values = np.asarray(values, float)
        errors = np.zeros_like(values) if errors is None else np.asarray(errors, float)
        fine = np.isfinite(values).all() and np.isfinite(errors).all() and (errors >= 0).all()
        if values.ndim != 1 or values.shape != errors.shape or not fine:
            raise ValueError(
                "`with_label_normalizers` expects one finite value a label, and as many errors of at least "
                f"0; got {values} and {errors}. {_faq.shapes}"
            )
        changes = {
            "label_normalizers": jnp.asarray(values),
            "label_normalizer_errors": tuple(errors.tolist()),
        }
        return replaced(self, "with_label_normalizers", changes).given(self.condition)

    @property
    def unknown_elsewhere(self) -> dict[str, Any]:
        return super().unknown_elsewhere | _NO_LABELS

    def label_term(self, t: Scalar, variance: Scalar, dtype) -> Scalar | float:
        """What the energy of a label has on top at a level, where its normaliser is known.

        Args:
            t: Time.
            variance: Of the data, by coordinate in the mean.
            dtype: Floating type of the energy.
        """
        if self.condition is None or self.label_normalizers is None:
            return 0.0
        known = of_label(self.label_normalizers, self.condition).astype(dtype)
        return self._label_share(t, variance).astype(dtype) * known

    def _label_share(self, t: Scalar, variance: Scalar) -> Scalar:
        r"""Share of a label's normaliser at a level: 1 at `t_min`, 0 where noise drowns all labels.

        At noisy levels any function will do; with this one a cloud keeps about its prior of labels there.
        """
        least = self.schedule.noise_level(jnp.asarray(self.t_min, jnp.result_type(t))) ** 2
        share = (variance + least) / (variance + self.schedule.noise_level(t) ** 2)
        return jnp.where(t <= self.t_min, 1.0, share)
