"""Bridges: unnormalised log densities along noise levels, as sampling schemes need them."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from .._prng import lean
from .._typing import Array, Position, PRNGKey, Scalar
from ..energies import AbstractDenoiser
from ..twists import AbstractTwist
from .edges import with_finite_gradients
from .krylov import krylov
from .measured import measured
from .model import AbstractModel
from .observed import Observed, curvature
from .sites import DiffusionSite, open_share
from .tempering import Tempering
from .terms import Rest, Seen

__all__ = ["Bridge", "seen_shapes"]


class Bridge(eqx.Module):
    r"""Densities over positions, as functions of ONE particle; made by `from_energy` or `from_model`.

    A position $z$ holds the diffusion sites in units of the data and the others unconstrained, by name.

    Attributes:
        model: The other sites and the data.
        sites: The diffusion sites.
        twist: What the model sees of them at noisy levels.
        tempering: Of the likelihood, by noise level.
        typical: Values of the other sites, for what is asked once for all particles.
        edges: Observed sites and factors whose density is 0 somewhere; `None` for all that could be.
        log_peaks: Largest log densities found of the sites and factors that could be.
        floor: Of the level at hand: by edge, the log of what is added to its density, $-\infty$ or left
            out for nothing (see `combine`).
        cloud: Positions of a cloud that stands for the prior, with a leading axis; `None` where the prior is
            drawn from.
        proposal: Of all latent sites at clock 0, in the place of the prior (see `proposed`); `None` without.
    """

    model: AbstractModel
    sites: dict[str, DiffusionSite]
    twist: AbstractTwist
    tempering: Tempering
    typical: Position = eqx.field(default_factory=dict)
    edges: tuple[str, ...] | None = eqx.field(static=True, default=None)
    log_peaks: dict[str, Array] = eqx.field(default_factory=dict)
    floor: dict[str, Scalar] = eqx.field(default_factory=dict)
    cloud: Position | None = None
    proposal: Any = None

    site_type: ClassVar[type[DiffusionSite]]
    prior_type: ClassVar[type[AbstractDenoiser]]
    prior: ClassVar[str]

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} of the diffusion sites {list(self.diffusion_sites)} and the other sites "
            f"{list(self.other_sites)}, with {self.twist!r}>"
        )

    @classmethod
    def over(cls, model: AbstractModel, sites: dict[str, Any], twist: AbstractTwist) -> "Bridge":
        """The bridge over a model, with everything measured that depends on its data."""
        typical, direction, found = measured(model, sites, twist)
        tempering = Tempering(sites, direction)
        if not twist.takes_gradients:
            tempering = Tempering.without_gradients(sites)
        return cls(model, sites, twist, tempering, typical, found.names, found.log_peaks)

    @property
    @abc.abstractmethod
    def exact_prior(self) -> bool:
        """True if every diffusion site, or what stands for the prior, can be drawn exactly at clock 0."""

    @property
    @abc.abstractmethod
    def log_normalizer_error(self) -> float | None:
        """Standard error of the prior normalisers inside, in nats; `None` when one is unknown.

        Evidences then hold up to a constant of the prior.
        """

    @abc.abstractmethod
    def score(self, u: dict[str, Array], clock: Scalar) -> dict[str, Array]:
        """Gradient of the log density of the noised diffusion sites."""

    def sample_base(self, key: PRNGKey) -> Position:
        """Diffusion sites from near their distribution at the noisy end, the others from their prior given
        those.
        """
        return self._drawn(lambda site, key: site.sample_base(key), jnp.asarray(1.0), key)

    def sample_prior(self, key: PRNGKey) -> Position:
        """Exact draws at clock 0 of the prior, or of what stands for it; only where `exact_prior`."""
        if self.proposal is not None:
            return self.proposal.sample(key, self)
        return self._drawn(lambda site, key: site.sample_prior(key), jnp.asarray(0.0), key)

    def _drawn(
        self, draw: Callable[[Any, PRNGKey], Array], clock: Scalar, key: PRNGKey
    ) -> Position:
        if self.cloud is not None:
            index = jax.random.randint(key, (), 0, len(jax.tree.leaves(self.cloud)[0]))
            return jax.tree.map(lambda leaf: leaf[index], self.cloud)
        key_sites, key_model = jax.random.split(key)
        keys = jax.random.split(key_sites, max(len(self.sites), 1))

        def drawn(sites):
            u = {n: draw(s, k) for k, (n, s) in zip(keys, sites.items(), strict=False)}
            if not self.other_sites:
                return u
            return {**u, **self.model.draw_others(self._seen(sites, u, clock).x_hat, key_model)}

        z = drawn(self.sites)
        # Sites on which energies depend do not look at the diffusion sites: the same key draws them again.
        return drawn(self.at(z)) if self.drivers else z

    def at(self, z: Position) -> dict[str, Any]:
        """The diffusion sites under the energies that the other sites give them."""
        return self.model.sites_at(self.sites, z) if self.drivers else self.sites

    def log_base(self, z: Position) -> Scalar:
        """Log density of the diffusion part of `sample_base`; the prior of the other sites cancels."""
        return sum((s.log_base(z[n]) for n, s in self.at(z).items()), jnp.zeros(()))

    def see(self, z: Position, clock: Scalar) -> Seen:
        """The diffusion part of the density; one network evaluation a site."""
        return self._seen(self.at(z), z, clock)

    def _seen(self, sites: dict[str, Any], z: Position, clock: Scalar) -> Seen:
        seen = Seen.of({n: s.see(self.twist, z[n], clock) for n, s in sites.items()})
        if not self.twist.num_directions:
            return seen
        log_likelihood = lambda x: self.rest(self.typical, x).log_likelihood
        bend = lambda x: curvature(self.laws(self.typical), log_likelihood, x)
        u, gradient = {name: z[name] for name in sites}, jax.grad(log_likelihood)
        roots = krylov(sites, self.twist.num_directions, gradient, bend, u, seen.x_hat, clock)
        return seen._replace(roots=roots)

    def rest(self, z: Position, x_hat: dict[str, Array]) -> Rest:
        """The rest of the density; no network evaluation."""
        rest = self.model.rest(with_finite_gradients(z), with_finite_gradients(x_hat))
        return rest if self.edges is None else rest.with_edges(self.edges, self.log_peaks)

    def laws(self, z: Position) -> Callable[[Position], Observed] | None:
        """Distributions of the data given clean values; `None` where only a log likelihood is known."""
        return self.model.laws(z)

    def carry(self, z: Position, clock: Scalar, next_clock: Scalar) -> tuple[Position, Scalar]:
        """The linear map between Gaussian approximations of two levels, and its log-determinant."""
        carried, log_det = dict(z), jnp.zeros(())
        for name, site in self.at(z).items():
            carried[name], one = site.carry(z[name], clock, next_clock)
            log_det = log_det + one
        return carried, log_det

    def draw_discrete(self, z: Position, key: PRNGKey) -> Position:
        """A joint draw of the discrete sites from their distribution given all others and the data."""
        return self.model.discrete_given(z, key).drawn

    def discrete_probabilities(self, z: Position) -> dict[str, Array]:
        """Probabilities of the values of the discrete sites given all others, values as the last axis."""
        return self.model.discrete_given(z, lean(jax.random.key(0))).probabilities

    def constrain(self, z: Position) -> dict[str, Array]:
        """Model values of all latent and deterministic sites at clock 0.

        Where the model has discrete sites `z` must hold their values, too (see `draw_discrete`).
        """
        return self.model.constrain(z)

    def times(self, clock: Scalar) -> dict[str, Scalar]:
        """Time of each diffusion site under its own schedule."""
        return {n: s.time(clock) for n, s in self.sites.items()}

    def noise(self, clock: Scalar) -> dict[str, Scalar]:
        """Noise level of each diffusion site, in units of the data."""
        return {n: s.noise(clock) for n, s in self.sites.items()}

    def open_share(self, clock: Scalar) -> Scalar:
        """Share of the prior's variance that the twist leaves open; 0 at clock 0."""
        return open_share(self.sites, clock)

    def exponent(self, z: Position, clock: Scalar) -> Scalar:
        r"""$g(\theta, c)$, 1 at clock 0; no network evaluation."""
        return self.tempering(self.rest, z, clock)

    def at_floor(self, floor: dict[str, Scalar]) -> "Bridge":
        """The bridge at a level with this floor."""
        return dataclasses.replace(self, floor=floor)

    @property
    def diffusion_sites(self) -> tuple[str, ...]:
        """Names of the diffusion sites; empty for a model without one."""
        return self.model.diffusion

    @property
    def other_sites(self) -> tuple[str, ...]:
        """Names of the other latent sites."""
        return self.model.others

    @property
    def drivers(self) -> tuple[str, ...]:
        """Names of the other sites on which energies depend."""
        return self.model.drivers

    @property
    def choices(self) -> tuple[str, ...]:
        """Names of the other sites of which discrete choices are made."""
        return self.model.choices

    @property
    def discrete_sites(self) -> tuple[str, ...]:
        """Names of the discrete latent sites, which are summed out."""
        return self.model.discrete

    @property
    def target(self) -> str:
        """Name the distribution at the end of the bridge, in one sentence."""
        return self.model.target(self.prior)

    @property
    def powers(self) -> dict[str, tuple[float, ...]]:
        """Exponents of the parts of each site that is a composition, in path space."""
        return {name: site.powers for name, site in self.sites.items() if site.powers}

    @property
    def evaluations(self) -> int:
        """Network evaluations of one `see`, where derivatives count as evaluations."""
        each = [self.twist.evaluations(site.energy) for site in self.sites.values()]
        return max(each, default=1)


def seen_shapes(sites: dict[str, Any], twist: AbstractTwist) -> tuple[Position, dict[str, Array]]:
    """Shapes of the diffusion sites, and of what the rest of the model sees of them."""

    def values():
        u = {n: s.sample_base(jax.random.key(0)) for n, s in sites.items()}
        see = lambda n: sites[n].see(twist, u[n], jnp.asarray(0.5))[1]
        return u, {n: see(n).astype(jnp.result_type(see(n), u[n])) for n in u}

    return jax.eval_shape(values)
