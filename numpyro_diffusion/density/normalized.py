"""The log density of a normalised energy, with the interface of the other estimators."""

import jax.numpy as jnp

from .. import _faq
from ..energies import AbstractEnergy
from ..energies.check import check_has_density
from .estimate import AbstractLogDensity, Point

__all__ = ["NormalizedEnergy"]


class NormalizedEnergy(AbstractLogDensity):
    r"""$\log p(x) = -E(x, t_{\min}) - L(t_{\min})$ of an energy whose normaliser is known.

    One evaluation a point, and nothing random. The error of the normaliser is common to all points, so it
    is not in the standard error: `prior.log_normalizer_error` has it.
    """

    @property
    def law(self) -> str:
        return "normalised energy at t_min"

    def prepare(self, prior):
        check_has_density(type(self).__name__, prior)
        if isinstance(prior, AbstractEnergy) and prior.log_normalizer is None:
            raise ValueError(
                "`NormalizedEnergy` expects an energy whose `log_normalizer` is known; got None. See "
                "`prior_normalizer` and `with_log_normalizer`, or of labels `label_normalizers` and "
                f"`with_label_normalizers`. {_faq.needs_normaliser}"
            )

    def point(self, prior, shared, x, key, at_once):
        del shared, key, at_once
        assert isinstance(prior, AbstractEnergy)  # as `prepare` has found
        value = prior.log_density(x, jnp.asarray(prior.t_min, x.dtype))
        return Point(value, jnp.zeros_like(value), jnp.asarray(1))
