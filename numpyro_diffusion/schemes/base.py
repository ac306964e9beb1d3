"""Base class of sampling schemes: one call, from a bridge to a Feynman-Kac model."""

import abc
from typing import Any

import equinox as eqx

from .. import _faq
from .._arguments import check_instance
from .._typing import PRNGKey
from .._written import one_line
from ..bridge import Bridge, DensityBridge
from ..smc import FeynmanKac
from ..twists import Tweedie
from .levels import Level

__all__ = ["AbstractScheme", "check_scheme"]


class AbstractScheme(eqx.Module):
    """A sampler: from a bridge to a Feynman-Kac model. The call is all that one must have.

    Attributes:
        twist: What the likelihood sees at noisy levels, unless the user says otherwise.
        bridge_type: The bridge that it takes and `SMC` makes: `DensityBridge`, or `PathBridge` if its prior
            is the distribution of a reverse sampler, known by its steps alone.
    """

    # Without annotations: a field of the same name in a subclass would else come before all others, wherever
    # it is written, and fields are given by position too.
    twist = Tweedie()
    bridge_type = DensityBridge
    __repr__ = one_line

    @abc.abstractmethod
    def __call__(
        self, bridge: Bridge, key: PRNGKey | None = None, *, progress_bar: bool = False
    ) -> FeynmanKac:
        """The Feynman-Kac model whose weighted particles follow the distribution at the end of the bridge.

        Its `position` answers with values of all sites of the bridge, in unconstrained space at clock 0, as
        `bridge.sample_base` gives them.

        Args:
            bridge: The densities, of its `bridge_type`.
            key: PRNG key of whatever is tuned before the run; a fixed one if left out.
            progress_bar: Show the progress of that.
        """

    def evaluations_per_level(
        self, bridge: Bridge, levels: Level | None = None, chain_length: int | None = None
    ) -> float | None:
        """Network evaluations a particle and level, beside one a particle at the start; `None`: not known.

        Args:
            bridge: The densities.
            levels: Those that were run.
            chain_length: That of a waste-free run.
        """
        del bridge, levels, chain_length
        return None


def check_scheme(scheme: Any) -> None:
    """Refuse what is no scheme; `None` is allowed.

    Raises:
        TypeError: If it is none, with the remedy for a function.
    """
    try:
        check_instance("scheme", scheme, AbstractScheme, "nd.Annealed()")
    except TypeError as error:
        if isinstance(scheme, type) or not callable(scheme):
            raise
        raise TypeError(
            f"{_faq.bare(error)} If it makes a `FeynmanKac` from a bridge, let it be the "
            "`__call__(self, bridge, key=None, *, progress_bar=False)` of a subclass of "
            "`nd.schemes.AbstractScheme`; or run it by "
            f"`nd.run_smc(key, scheme(bridge))`. {_faq.kinds}"
        ) from None
