"""The bridge: unnormalised log densities along noise levels, as sampling schemes need them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._typing import Array, Position, PRNGKey, Scalar
from ..twists import LowRank
from .matrix_free import widened_by_rank
from .observed import Observed, curvature
from .widening import around, averaged, widened

__all__ = ["Bridge", "Edge", "Rest", "Seen", "combine", "floored", "log_density"]


class Seen(NamedTuple):
    """What one network evaluation says of the diffusion sites of a particle.

    Attributes:
        log_density: Of all diffusion sites.
        x_hat: What the rest of the model sees, by site.
        sites: Log density of each site.
        roots: Roots of the covariances around `x_hat`, or the covariances if they are `LowRank`; empty
            where the twist has none.
        scores: In path space, of the sampler; of a composition those of its parts, leading with their
            number.
    """

    log_density: Scalar
    x_hat: dict[str, Array]
    sites: dict[str, Scalar]
    roots: dict[str, Array] | dict[str, LowRank]
    scores: dict[str, Array] = {}

    @classmethod
    def of(cls, parts: dict[str, tuple[Scalar, Array, Any, Array | None]]) -> "Seen":
        """From log density, twisted value, covariance root and scores of the parts of each site."""
        values = {name: part[0] for name, part in parts.items()}
        x_hat = {name: part[1] for name, part in parts.items()}
        roots = {name: part[2] for name, part in parts.items() if part[2] is not None}
        scores = {name: part[3] for name, part in parts.items() if part[3] is not None}
        return cls(sum(values.values(), jnp.zeros(())), x_hat, values, roots, scores)


class Edge(NamedTuple):
    """An observed site or factor whose density may be 0.

    Attributes:
        log_density: Of each entry.
        log_peak: That of each entry at the centre of its law; 0 where that is not known.
        num_data: Numbers behind each entry, as far as `log_peak` knows of them.
    """

    log_density: Array
    log_peak: Array
    num_data: Array

    def softened(self, g: Scalar) -> tuple[Array, Scalar]:
        """Log densities to the power `g` against their peaks, and what makes up for the peaks."""
        against = self.log_density - self.log_peak
        possible = jnp.isfinite(against)
        # An infinity times `g` would have no gradient in what `g` depends on.
        tempered = g * jnp.where(possible, against, 0.0)
        entries = jnp.where(possible, tempered, jax.lax.stop_gradient(against))
        return entries, jnp.sum(self.log_peak) + 0.5 * jnp.sum(self.num_data) * jnp.log(g)


class Rest(NamedTuple):
    """Everything in the model that is not a diffusion site, given what it sees of those sites.

    Attributes:
        log_prior: Of the other latent sites, in unconstrained space.
        smooth: Log likelihood of the observed sites that are positive everywhere; `None` if there are none.
        log_peak: What `smooth` would be if every datum lay at the centre of its law.
        num_data: Number of these data.
        edges: The other observed sites, and factors, by name.
        sites: Log density of each site.
    """

    log_prior: Scalar
    smooth: Scalar | None
    log_peak: Scalar
    num_data: Scalar
    edges: dict[str, Edge]
    sites: dict[str, Scalar]

    @property
    def log_likelihood(self) -> Scalar:
        """Of observed sites and factors."""
        terms = [jnp.sum(edge.log_density) for edge in self.edges.values()]
        if self.smooth is not None:
            terms.append(self.smooth)
        return sum(terms, jnp.zeros_like(self.log_prior))

    def with_edges(self, names: tuple[str, ...], log_peaks: dict[str, Array]) -> "Rest":
        """The same, where all edges but these are taken to be positive everywhere.

        Args:
            names: Of the edges that stay.
            log_peaks: By edge, what stands for the peak of each entry where no law gives it; 0 if left out.
        """
        edges = {
            n: e._replace(log_peak=jnp.where(e.num_data > 0, e.log_peak, log_peaks.get(n, 0.0)))
            for n, e in self.edges.items()
        }
        others = [edge for name, edge in edges.items() if name not in names]
        if not others:
            return self._replace(edges=edges)
        smooth = [] if self.smooth is None else [self.smooth]
        total = lambda field: sum((jnp.sum(getattr(edge, field)) for edge in others), jnp.zeros(()))
        return self._replace(
            smooth=sum(smooth, total("log_density")),
            log_peak=self.log_peak + total("log_peak"),
            num_data=self.num_data + total("num_data"),
            edges={name: edge for name, edge in edges.items() if name in names},
        )


class Bridge(NamedTuple):
    r"""Densities over positions, as functions of ONE particle.

    Attributes:
        sample_base: `key -> z`: diffusion sites from a Gaussian near their law at the noisy end, the
            others from their prior given what they see there.
        sample_prior: `key -> z`: exact draws of the prior at clock 0; only where `exact_prior`.
        log_base: `z -> ()`: log density of the diffusion part of `sample_base`. The other sites are
            drawn from their own prior, which cancels.
        see: `(z, clock) -> Seen`: the diffusion part; one network evaluation a site.
        rest: `(z, x_hat) -> Rest`: the rest of the model; no network evaluation.
        carry: `(z, clock, next_clock) -> (z, log_det)`: moves the diffusion sites from one level to
            the next by the linear map between the Gaussian approximations of their laws.
        constrain: `z -> values`: model values of all latent and deterministic sites at clock 0.
        times: `clock -> {site: t}`: time of each diffusion site under its own schedule.
        noise: `clock -> {site: s}`: its noise level in units of the data.
        exponent: `(z, clock) -> ()`: $g(\theta, c)$, 1 at clock 0; no network evaluation.
        open_share: `clock -> ()`: share of the prior's variance that the twist leaves open; 0 at clock 0.
        diffusion_sites: their names; empty for a model without one.
        other_sites: names of the other latent sites.
        target: one sentence that names the law at the end of the bridge.
        log_normalizer_error: standard error of the prior normalisers inside, in nats; `None` when
            one of them is unknown, so that evidences hold up to a constant of the prior.
        exact_prior: whether every diffusion site can be drawn exactly at clock 0.
        path_space: whether the prior is the law of a reverse sampler, known by its steps alone.
        powers: in path space, the exponents of the parts of each site that is a composition.
        observed: `(z, x) -> Observed`: what the laws of the data say of clean values `x`; `None` where no
            more than a log likelihood is known.
        evaluations: network evaluations of one `see`, where derivatives count as evaluations.
        drivers: names of the other sites on which the energy of a diffusion site depends. What is seen at a
            particle is outdated when they move.
        choices: names of the other sites that are unconstrained uniform variables, of which choices among
            finitely many values are made.
        floor: of the level at hand: by edge, the log of what is added to its density, $-\infty$ or left
            out for nothing (see `combine`).
    """

    sample_base: Callable[[PRNGKey], Position]
    sample_prior: Callable[[PRNGKey], Position]
    log_base: Callable[[Position], Scalar]
    see: Callable[[Position, Scalar], Seen]
    rest: Callable[[Position, dict[str, Array]], Rest]
    carry: Callable[[Position, Scalar, Scalar], tuple[Position, Scalar]]
    constrain: Callable[[Position], dict[str, Array]]
    times: Callable[[Scalar], dict[str, Scalar]]
    noise: Callable[[Scalar], dict[str, Scalar]]
    exponent: Callable[[Position, Scalar], Scalar]
    open_share: Callable[[Scalar], Scalar]
    diffusion_sites: tuple[str, ...]
    other_sites: tuple[str, ...]
    target: str
    log_normalizer_error: float | None
    exact_prior: bool = False
    path_space: bool = False
    powers: dict[str, tuple[float, ...]] = {}
    observed: Callable[[Position, dict[str, Array]], Observed] | None = None
    evaluations: int = 1
    drivers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    floor: dict[str, Scalar] = {}

    @classmethod
    def of(cls, parts: Any, **rest: Any) -> "Bridge":
        """The bridge whose functions are the methods of `parts`; `rest` gives the other fields."""
        rest = {"floor": {}, "drivers": (), "choices": (), **rest}
        functions = {name: getattr(parts, name) for name in cls._fields if name not in rest}
        return cls(**functions, **rest)


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

    Returns:
        The value, and the log likelihood of the entries of each edge, without floors.
    """
    fixed, edges = _likelihood(bridge, z, clock, seen, rest)
    total = fixed + sum(
        (jnp.sum(floored(r, bridge.floor.get(name))) for name, r in edges.items()), jnp.zeros(())
    )
    return seen.log_density + rest.log_prior + jnp.where(power > 0, power * total, 0.0), edges


def _likelihood(
    bridge: Bridge, z: Position, clock: Scalar, seen: Seen, rest: Rest
) -> tuple[Scalar, dict[str, Array]]:
    r"""The log likelihood $\log \tilde L$ that a noisy level knows, in two parts.

    Returns:
        A sum over what is positive everywhere, and by edge the entries of what is not. Where a twist widens
        the former, the latter are averaged over a few points.
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
    if rest.smooth is not None:
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
    log_likelihood = lambda x: bridge.rest(z, x).smooth
    if not isinstance(next(iter(seen.roots.values())), LowRank):
        return widened(log_likelihood, seen.x_hat, seen.roots, otherwise)  # type: ignore[arg-type]
    observed = None if bridge.observed is None else lambda x: bridge.observed(z, x)  # type: ignore
    bend = curvature(observed, log_likelihood, jax.lax.stop_gradient(seen.x_hat))
    return widened_by_rank(log_likelihood, bend, seen.x_hat, seen.roots, otherwise)  # type: ignore
