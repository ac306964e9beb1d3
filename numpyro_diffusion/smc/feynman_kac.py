r"""Feynman-Kac models: initial draw, Markov step and log weight of a particle.

A model starts a particle with a weight and then takes it through levels, each of which moves it and
multiplies its weight. `step` does both at once, because both need the same network evaluation; the
levels are a pytree with a leading axis that the engine scans over, so nothing is compiled twice.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp

from .._records import record, record_page
from .._typing import PRNGKey, PyTree, Scalar
from .claims import Claims

__all__ = ["FeynmanKac", "from_kernels", "unresampled", "unweighted"]


class FeynmanKac(NamedTuple):
    r"""A Feynman-Kac model of ONE particle.

    Attributes:
        init: `key -> (particle, log_weight, info)`.
        step: `(key, particle, level) -> (particle, log_weight, info)`; the log weight is the
            increment. A move before the weighing, and any backward kernel, may hide inside.
        levels: Pytree whose leaves have a leading axis of length `num_levels`.
        position: `particle -> position`: what to keep of a particle at the end.
        claims: Target and evidence.
        evidence_from: Level from which weights count for the evidence; those before it made the
            prior's cloud, whose normaliser thereby drops out.
        rejuvenate: `(key, particle, level) -> (particle, info)`: the moves of a level alone, which leave
            its distribution as it is; `None` where there are none. Waste-free clouds are made of them.
        advance: `(key, particle, level, info) -> (particle, log_weight, info)`: the rest of `step`.
        resamples: Whether the engine may resample; if not, particles are those of the proposals, and their
            weights are importance weights.
    """

    init: Callable[[PRNGKey], tuple[PyTree, Scalar, Any]]
    step: Callable[[PRNGKey, PyTree, PyTree], tuple[PyTree, Scalar, Any]]
    levels: PyTree
    position: Callable[[PyTree], PyTree]
    claims: Claims = Claims(evidence="the integral of the target as the kernels define it")
    evidence_from: int = 0
    rejuvenate: Callable[[PRNGKey, PyTree, PyTree], tuple[PyTree, Any]] | None = None
    advance: Callable[[PRNGKey, PyTree, PyTree, Any], tuple[PyTree, Scalar, Any]] | None = None
    resamples: bool = True

    __repr__ = record
    _repr_html_ = record_page


class _Kernels(eqx.Module):
    initial: Callable
    kernel: Callable
    log_potential: Callable
    log_initial: Callable | None

    def init(self, key):
        particle = self.initial(key)
        if self.log_initial is None:
            return particle, jnp.zeros(()), {}
        return particle, self.log_initial(particle), {}

    def step(self, key, particle, level):
        new = self.kernel(key, particle, level)
        return new, self.log_potential(particle, new, level), {}


def _identity(particle):
    return particle


def from_kernels(
    initial: Callable,
    kernel: Callable,
    log_potential: Callable,
    levels: PyTree,
    *,
    log_initial: Callable | None = None,
) -> FeynmanKac:
    r"""A model from the triple $(M_0, M_k, G_k)$ of the Feynman-Kac literature.

    Args:
        initial: `key -> x`: draws from $M_0$.
        kernel: `(key, x, level) -> x`: draws from $M_k(\cdot \mid x)$.
        log_potential: `(x, x_new, level) -> ()`: $\log G_k$.
        levels: Pytree with a leading axis.
        log_initial: `x -> ()`: $\log G_0$; 0 if left out.

    References:
        Del Moral (2004), Feynman-Kac Formulae. Chopin & Papaspiliopoulos (2020), An Introduction to
        Sequential Monte Carlo, chapter 5.
    """
    parts = _Kernels(initial, kernel, log_potential, log_initial)
    return FeynmanKac(parts.init, parts.step, levels, _identity)


class _Unweighted(eqx.Module):
    """A function of a model with its log weight replaced by 0."""

    function: Callable

    def __call__(self, *args):
        particle, log_weight, info = self.function(*args)
        return particle, jnp.zeros_like(log_weight), info


def unresampled(model: FeynmanKac) -> FeynmanKac:
    """Importance sampling: the same particles with the weights of whole paths."""
    return model._replace(resamples=False)


def unweighted(model: FeynmanKac) -> FeynmanKac:
    r"""Heuristic without weights: the same particles, at which many papers stop.

    Its particles follow the distribution of the proposals, whatever that is. The result says that it is a
    heuristic, and its evidence is not a number.
    """
    claims = model.claims._replace(
        target=f"what the proposals lead to; with weights it would be: {model.claims.target}",
        evidence="nothing: a run without weights has no evidence",
        exact=False,
        weighted=False,
    )
    return model._replace(
        init=_Unweighted(model.init),
        step=_Unweighted(model.step),
        claims=claims,
        advance=None if model.advance is None else _Unweighted(model.advance),
    )
