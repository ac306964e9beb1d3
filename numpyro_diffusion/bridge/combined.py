"""The log density of a level of a bridge, put together from its terms."""

import jax
import jax.numpy as jnp

from .._typing import Array, Position, Scalar
from ..twists import LowRank
from .base import Bridge
from .matrix_free import widened_by_rank
from .observed import curvature
from .terms import Rest, Seen
from .widening import around, averaged, widened

__all__ = ["combine", "floored", "log_density"]


def log_density(
    bridge: Bridge, z: Position, clock: Scalar, power: Scalar
) -> tuple[Scalar, tuple[Seen, Rest, dict[str, Array]]]:
    r"""$\log \gamma_{c, \beta}(z)$ of shape `()` and its parts, from one network evaluation.

    At clock 0 and power 1, without a floor, this is the user's joint log density.
    """
    seen = bridge.see(z, clock)
    rest = bridge.rest(z, seen.x_hat)
    value, edges = combine(bridge, z, clock, power, seen, rest)
    return value, (seen, rest, edges)


def combine(
    bridge: Bridge, z: Position, clock: Scalar, power: Scalar, seen: Seen, rest: Rest
) -> tuple[Scalar, dict[str, Array]]:
    r"""`log_density` from parts that are at hand. A power of 0 silences an infinite likelihood.

    With a floor $\delta$ a likelihood $\tilde L$ that may be 0 is $\tilde L + \delta$. Weights are right
    only where a level's density is positive wherever the next one's is: a particle of density 0 at a noisy
    level has no offspring, and the clean values that it would have come to may be possible.

    Over a bridge that starts from a proposal $q$ it is $\log q(z)^{1 - \beta}\, p(z, y)^\beta$, at clock 0.

    Returns:
        The value, and the log likelihood of the entries of each edge, without floors.
    """
    if bridge.proposal is not None:
        return _from_proposal(bridge, z, power, seen, rest)
    fixed, edges = _likelihood(bridge, z, clock, seen, rest)
    labelled = jnp.zeros(())
    if rest.labelled is not None and not seen.roots:
        labelled = rest.labelled.softened(bridge.exponent(z, clock), power)
    total = fixed + sum(
        (jnp.sum(floored(r, bridge.floor.get(name))) for name, r in edges.items()), jnp.zeros(())
    )
    return seen.log_density + rest.log_prior + jnp.where(
        power > 0, power * total + labelled, 0.0
    ), edges


def _from_proposal(
    bridge: Bridge, z: Position, power: Scalar, seen: Seen, rest: Rest
) -> tuple[Scalar, dict[str, Array]]:
    r"""$\log q(z)^{1 - \beta}\, p(z, y)^\beta$ at clock 0, for a proposal $q$ that is positive everywhere."""
    log_prior = seen.log_density + rest.log_prior
    log_joint = log_prior + rest.log_likelihood
    start = (1 - power) * bridge.proposal.log_prob(z, log_prior)
    value = start + jnp.where(power > 0, power * log_joint, 0.0)
    return value, {name: edge.log_density for name, edge in rest.edges.items()}


def _likelihood(
    bridge: Bridge, z: Position, clock: Scalar, seen: Seen, rest: Rest
) -> tuple[Scalar, dict[str, Array]]:
    r"""The log likelihood $\log \tilde L$ that a noisy level knows, in two parts.

    Returns:
        A sum over what is positive everywhere, and by edge the entries of what is not. Where a twist widens
        the former, with what depends on labels, the latter are averaged over a few points.
    """
    g = bridge.exponent(z, clock)
    softened, offset = jnp.zeros(()), jnp.zeros(())
    if rest.smooth is not None:
        softened = g * rest.smooth + (1 - g) * rest.log_peak + 0.5 * rest.num_data * jnp.log(g)
    parts = {name: edge.softened(g) for name, edge in rest.edges.items()}
    edges = {name: entries for name, (entries, _) in parts.items()}
    offset = sum((one for _, one in parts.values()), offset)
    if not seen.roots:
        return softened + offset, edges
    if rest.smooth is not None or rest.labelled is not None:
        softened = _widened(bridge, z, seen, softened)
    if edges and not isinstance(next(iter(seen.roots.values())), LowRank):
        points = around(seen.x_hat, seen.roots)  # type: ignore[arg-type]
        each = jax.vmap(lambda x: bridge.rest(z, x).edges)(points)
        whole = jax.vmap(lambda edge: jnp.sum(edge.softened(g)[0]))  # of all entries together
        edges = {name: averaged(whole(edge)) for name, edge in each.items()}
    return softened + offset, edges


def floored(entries: Array, floor: Scalar | None) -> Array:
    r"""$\log(e^r + \delta)$ of each entry $r$; NaN counts as a density of 0 while there is a floor."""
    if floor is None:
        return entries
    above = ~jnp.isneginf(floor)  # the sum of two zeros would have no gradient
    known = jnp.where(jnp.isnan(entries), -jnp.inf, entries)
    return jnp.where(above, jnp.logaddexp(known, jnp.where(above, floor, 0.0)), entries)


def _widened(bridge: Bridge, z: Position, seen: Seen, otherwise: Scalar) -> Scalar:
    log_likelihood = lambda x: bridge.rest(z, x).positive
    if not isinstance(next(iter(seen.roots.values())), LowRank):
        return widened(log_likelihood, seen.x_hat, seen.roots, otherwise)  # type: ignore[arg-type]
    bend = curvature(bridge.laws(z), log_likelihood, jax.lax.stop_gradient(seen.x_hat))
    return widened_by_rank(log_likelihood, bend, seen.x_hat, seen.roots, otherwise)  # type: ignore
