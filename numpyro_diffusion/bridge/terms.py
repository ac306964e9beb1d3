"""Terms of a bridge's density: what one network evaluation says, and what the rest of the model says."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._typing import Array, Scalar
from ..twists import LowRank
from .labels import LabelledData

__all__ = ["Edge", "Rest", "Seen"]


class Seen(NamedTuple):
    """Terms of one network evaluation at the diffusion sites of a particle.

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
        """Build it from log density, twisted value, covariance root and scores of the parts of each site."""
        values = {name: part[0] for name, part in parts.items()}
        x_hat = {name: part[1] for name, part in parts.items()}
        roots = {name: part[2] for name, part in parts.items() if part[2] is not None}
        scores = {name: part[3] for name, part in parts.items() if part[3] is not None}
        return cls(sum(values.values(), jnp.zeros(())), x_hat, values, roots, scores)


class Edge(NamedTuple):
    """An observed site or factor whose density may be 0.

    Attributes:
        log_density: Of each entry.
        log_peak: That of each entry at the centre of its distribution; 0 where that is not known.
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
        log_peak: What `smooth` would be if every datum lay at the centre of its distribution.
        num_data: Number of these data.
        edges: The other observed sites, and factors, by name.
        sites: Log density of each site.
        labelled: Other such data, which depend on discrete sites; `None` if there are none.
    """

    log_prior: Scalar
    smooth: Scalar | None
    log_peak: Scalar
    num_data: Scalar
    edges: dict[str, Edge]
    sites: dict[str, Scalar]
    labelled: LabelledData | None = None

    @property
    def log_likelihood(self) -> Scalar:
        """Log likelihood of observed sites and factors."""
        terms = [jnp.sum(edge.log_density) for edge in self.edges.values()]
        return sum(terms, jnp.zeros_like(self.log_prior) + self.positive)

    @property
    def positive(self) -> Scalar:
        """Log likelihood of all that is positive everywhere."""
        smooth = jnp.zeros(()) if self.smooth is None else self.smooth
        return smooth if self.labelled is None else smooth + self.labelled.log_likelihood

    @property
    def expected(self) -> Scalar:
        """`positive`, its log averaged over labels from their prior."""
        smooth = jnp.zeros(()) if self.smooth is None else self.smooth
        return smooth if self.labelled is None else smooth + self.labelled.expected

    def with_edges(self, names: tuple[str, ...], log_peaks: dict[str, Array]) -> "Rest":
        """Return the same terms, with all edges but these taken to be positive everywhere.

        Args:
            names: Of the edges that stay.
            log_peaks: By edge, what stands for the peak of each entry where no distribution gives it; 0 if
                left out.
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
