r"""Floors under likelihoods that are 0 somewhere: their height by level, and how they fade.

A level's likelihood is $\tilde L + \delta$ (see `bridge.combine`) with

$$\delta = \ell \,\bigl(q + \tfrac{\rho}{1 - \rho}\bigr),$$

where $\ell$ is about the mean of $\tilde L$ over the prior, $q$ one over the number of such likelihoods, data
counted one by one, and $\rho(c)$ the share of the prior's variance
that the level leaves open: the less is known of the clean values, the less is ruled out. Too low a floor lets
through few particles of those that a level rules out, and these with large weights; too high a one leaves the
likelihood out. The pilot corrects $\ell$ from level to level by the share of its cloud that lives on the
floor. A model without edges has no floor.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, Scalar
from .particle import Particle

__all__ = ["corrected", "faded", "first", "floor_of", "gone", "ruled_out"]

_LOWEST = -50.0  # log of a floor over l, when nobody should live there
_FASTEST = 0.5  # change of the log of l from level to level

_Means = dict[str, Scalar]


def first(particles: Particle) -> _Means:
    r"""$\log \ell$ by edge for a cloud of the prior."""
    return {name: _log_mean(_cloud(r)) for name, r in particles.edges.items()}


def _log_mean(entries: Array) -> Scalar:
    possible = jnp.isfinite(entries)
    number = jnp.sum(possible)
    total = jax.nn.logsumexp(jnp.where(possible, entries, -jnp.inf))
    # Where nothing is possible yet, one number is as good as another.
    return jnp.where(number > 0, total - jnp.log(jnp.maximum(number, 1)), 0.0)


def floor_of(means: _Means, particles: Particle, share: Scalar) -> dict[str, Scalar]:
    r"""$\log \delta$ by edge, for the open share of a level."""
    parts = {name: _cloud(particles.edges[name]).shape[1] for name in means}
    return {name: mean + jnp.log(_ratio(means, parts[name], share)) for name, mean in means.items()}


def corrected(
    means: _Means, floor: dict[str, Scalar], share: Scalar, particles: Particle
) -> _Means:
    r"""$\log \ell$ for the level after the next.

    Args:
        means: Those that led to a level.
        floor: Of the level.
        share: Open share of the level.
        particles: A cloud there.
    """
    new = {}
    for name, mean in means.items():
        entries = _cloud(particles.edges[name])
        ratio = _ratio(means, entries.shape[1], share)
        # The share that lives on the floor: wanted is ratio / (1 + ratio).
        log_odds = jax.scipy.special.logit(jnp.mean(jax.nn.sigmoid(floor[name] - entries)))
        change = jnp.clip(jnp.log(ratio) - log_odds, -_FASTEST, _FASTEST)
        new[name] = mean + jnp.where(jnp.any(jnp.isfinite(entries)), change, 0.0)
    return new


def _ratio(means: _Means, num_entries: int, share: Scalar) -> Scalar:
    return 1 / (max(1, len(means)) * num_entries) + share / jnp.maximum(1 - share, 1e-6)


def _cloud(entries: Array) -> Array:
    """Entries of a cloud by particle; what is not a number is a density of 0."""
    return jnp.where(jnp.isnan(entries), -jnp.inf, entries).reshape(entries.shape[0], -1)


def faded(floor: dict[str, Scalar], stride: Scalar) -> dict[str, Scalar]:
    """The floor after the share `stride` of its way down; a stride of 1 leaves none."""
    fall = jnp.where(stride < 1, stride / jnp.maximum(1 - stride, 1e-12), jnp.inf)
    return jax.tree.map(lambda f: f - fall, floor)


def ruled_out(floor: dict[str, Any], means: dict[str, Any], particles: Particle) -> str:
    """Sites that hardly have a floor any more, and rule out all of a cloud; in words."""
    low = [name for name, f in floor.items() if -np.inf < float(f) < float(means[name]) + _LOWEST]
    none = lambda r: not np.isfinite(np.asarray(r).reshape(len(r), -1)).all(1).any()
    return ", ".join(f"`{name}`" for name in low if none(particles.edges[name]))


def gone(floor: dict[str, Any]) -> bool:
    """Test whether there is no floor."""
    return all(bool(np.isneginf(f)) for f in floor.values())
