"""The bridge of one energy and one log likelihood, without a NumPyro model."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp

from .. import _faq
from .._staging import Settled, settle
from .._typing import Array, Scalar
from ..energies import AbstractDenoiser, Standardized
from ..twists import AbstractTwist, Tweedie
from .base import Bridge, seen_shapes
from .forms import DensityBridge, check_bridge_type
from .model import AbstractModel
from .tempering import Tempering
from .terms import Edge, Rest

__all__ = ["LogLikelihood", "from_energy"]


class LogLikelihood(AbstractModel):
    """A log likelihood of one variable, whose arrays are data; `None` for no data."""

    likelihood: Settled | None = None
    data: Any = None
    diffusion: ClassVar[tuple[str, ...]] = ("x",)
    others: ClassVar[tuple[str, ...]] = ()
    discrete: ClassVar[tuple[str, ...]] = ()

    def rest(self, z, x_hat):
        zero = jnp.zeros((), x_hat["x"].dtype)
        if self.likelihood is None:
            return Rest(zero, None, zero, zero, {}, {})
        value = self.likelihood(self.data, x_hat["x"])
        edges = {"likelihood": Edge(value, zero, zero)}
        return Rest(zero, None, zero, zero, edges, {"likelihood": value})

    def draw_others(self, x, key):
        return {}

    def constrain(self, z):
        return dict(z)

    def target(self, prior):
        return prior if self.likelihood is None else f"{prior} p(y | x)"


def from_energy(
    energy: AbstractDenoiser,
    log_likelihood: Callable[[Array], Scalar] | None = None,
    *,
    twist: AbstractTwist | None = None,
    bridge_type: type[Bridge] = DensityBridge,
    initial: Any = None,
) -> Bridge:
    r"""Bridge to $e^{-E(x, t_{\min})}\, p(y \mid x)$, without a NumPyro model.

    Args:
        energy: The prior's energy.
        log_likelihood: `x -> ()` in nats for ONE example in data units; `None` for the prior alone.
        twist: What the likelihood sees at noisy levels; the denoised mean by default.
        bridge_type: `nd.bridge.PathBridge` for `Twisted`: the prior is the distribution of the reverse
            sampler, and a denoiser is enough. Any scheme names its own, `scheme.bridge_type`.
        initial: Distribution of $x_t / \alpha_t$ at `t_max` from which particles start, with `sample(key)`
            and `log_prob(u)`; the Gaussian of `energy.moments(t_max)` by default. Weights correct for it.

    Raises:
        ValueError: If `initial` draws another shape.
        TypeError: If `energy` is not an energy, unless in path space; if `bridge_type` is no type of bridge.
    """
    check_bridge_type(bridge_type)
    if not isinstance(energy, bridge_type.prior_type):
        remedy = "A score alone has no density to weigh particles with: train or distil an energy."
        if isinstance(energy, Standardized):
            remedy = "Pass its `energy`, which is one in standard units."
        raise TypeError(
            f"`from_energy` expects an AbstractEnergy; got {type(energy).__name__}. {remedy} "
            f"{_faq.score_only}"
        )
    sites = {"x": bridge_type.site_type(energy, (), initial)}
    twist = (Tweedie() if twist is None else twist).of_size(math.prod(sites["x"].shape))
    if log_likelihood is None:
        return bridge_type(LogLikelihood(), sites, twist, Tempering({}, {}))
    data, fixed = eqx.partition(log_likelihood, eqx.is_array)
    of_data = lambda data, x: eqx.combine(data, fixed)(x)
    likelihood = settle(of_data, data, seen_shapes(sites, twist)[1]["x"])
    return bridge_type.over(LogLikelihood(likelihood, data), sites, twist)
