"""Heuristics as published: the draws of a scheme without weights, or with weights and no resampling."""

import dataclasses
from collections.abc import Callable
from operator import attrgetter

import equinox as eqx

from .. import smc
from .._typing import Array
from .._written import written
from .base import AbstractScheme, check_scheme
from .checks import check_tuned
from .transport import AbstractTransport
from .tuned import TunedScheme

__all__ = ["unresampled", "unweighted"]


def unweighted(
    scheme: AbstractScheme, projection: Callable[[Array], Array] | None = None
) -> AbstractScheme:
    r"""The draws of a scheme with their weights left out: the heuristic that many papers stop at.

    They follow what the proposals lead to. The result says that it is a heuristic, and has no evidence.

    Args:
        scheme: Such as `nd.Twisted()`, which is then DPS.
        projection: `u -> u`: what draws of a diffusion site are replaced by, for instance the nearest point
            of a set. Here alone, since it puts draws on a boundary, where they have no density to be weighed
            with; the distribution confined to a set is `energy + nd.factors.Restrict(inside)`.

    Raises:
        TypeError: If `scheme` is no scheme, or has no transport that could be followed by a projection.

    Example:
        >>> nd.SMC(model, nd.schemes.unweighted(nd.Twisted(levels=50)))
    """
    check_scheme(scheme)
    if projection is not None:
        check_tuned("unweighted(projection=)", scheme)
    return AsPublished(scheme, smc.unweighted, projection)


def unresampled(scheme: AbstractScheme) -> AbstractScheme:
    """Scheme without resampling: the same draws with the weights of whole paths (importance sampling).

    `nd.diagnostics.pareto_k(result)` tells whether the weights are of use.

    Raises:
        TypeError: If `scheme` is no scheme.
    """
    check_scheme(scheme)
    return AsPublished(scheme, smc.unresampled)


class AsPublished(AbstractScheme):
    """The draws of another scheme, its model changed."""

    scheme: AbstractScheme
    change: Callable[[smc.FeynmanKac], smc.FeynmanKac] = eqx.field(static=True)
    projection: Callable[[Array], Array] | None = eqx.field(static=True, default=None)
    twist = property(attrgetter("scheme.twist"))
    bridge_type = property(attrgetter("scheme.bridge_type"))

    def __repr__(self) -> str:
        tail = "" if self.projection is None else f", projection={written(self.projection)}"
        return f"{written(self.change)}({self.scheme!r}{tail})"

    def __call__(self, bridge, key=None, *, progress_bar=False):
        if not isinstance(self.scheme, TunedScheme):
            return self.change(self.scheme(bridge, key, progress_bar=progress_bar))
        self.scheme.check_bridge(bridge)
        kernels = self.scheme.kernels(bridge)
        weighed = self.change is not smc.unweighted
        transport = kernels.transport
        transport = transport.as_published() if weighed else transport.unweighed()
        if self.projection is not None:
            transport = _Projected(transport, self.projection)
        kernels = dataclasses.replace(kernels, transport=transport)
        return self.change(self.scheme.run(kernels, key, progress_bar=progress_bar))

    def evaluations_per_level(self, bridge, levels=None, chain_length=None):
        return self.scheme.evaluations_per_level(bridge, levels, chain_length)


class _Projected(AbstractTransport):
    """A transport whose draws are replaced by their projections."""

    transport: AbstractTransport
    projection: Callable[[Array], Array] = eqx.field(static=True)
    needs_gradient = property(attrgetter("transport.needs_gradient"))
    needs_curvature = property(attrgetter("transport.needs_curvature"))

    def measure(self, *args):
        return self.transport.measure(*args)

    def evaluations(self, bridge):
        return self.transport.evaluations(bridge)

    def __call__(self, key, bridge, position, gradient, seen, level):
        new, log_ratio = self.transport(key, bridge, position, gradient, seen, level)
        drawn = {name: self.projection(new[name]) for name in bridge.diffusion_sites}
        return {**new, **drawn}, log_ratio
