r"""Bridges: the path of densities from noise to a posterior.

A particle's position $z$ holds the noised diffusion variables $u = x_t / \alpha_t$, in the units of the
data, and every other latent variable, unconstrained. A bridge gives the densities

$$\gamma_{c, \beta}(z) = p_c(u)\; p(\theta \mid \hat x)\; p_g(y \mid \hat x, \theta)^{\beta},
\qquad \hat x = \text{twist}(u, c), \quad g = g(\theta, c),$$

where the *clock* $c$ runs from 1 (noise) to 0 (every diffusion site at its own `t_min`) and the log-SNR
of each site is linear in it. At $c = 0$ the twist is the identity and $g = 1$, so $p_g$ is the likelihood
and $\gamma_{0, 1}$ the user's joint density and nothing else. What happens to a likelihood at $c > 0$
changes the variance of a sampler, never its target.

*Tempering by information.* At high noise the twist leaves a share $\rho(c)$ of the prior's variance open.
A Gaussian datum of information $\kappa(\theta)$ (per prior variance) then has the effective precision
$\kappa / (1 + \kappa \rho)$, so the likelihood is raised to $g = 1 / (1 + \kappa(\theta) \rho(c))$ and made
a density of the data again,

$$\log p_g(y) = g \log p(y) + (1 - g) \log p(\text{centre}) + \tfrac n2 \log g,$$

exact for $n$ Gaussian data. Without the power a small noise level would be ruled out at high noise, where
no $\hat x$ can fit the data, and could hardly be found again. Without the norm such levels would be too
rare among the particles, by a factor that even depends on the units of the data, and those few would
come to rule the cloud.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ._typing import Array, Position, PRNGKey, Scalar
from .energies import AbstractEnergy
from .twists import AbstractTwist, Tweedie

__all__ = ["Bridge", "DiffusionSite", "Rest", "Seen", "from_energy", "log_density"]


class Seen(NamedTuple):
    """What one network evaluation says of the diffusion sites of a particle."""

    log_density: Scalar
    x_hat: dict[str, Array]
    sites: dict[str, Scalar]


class Rest(NamedTuple):
    """Everything in the model that is not a diffusion site, given what it sees of those sites.

    Attributes:
        log_prior: Of the other latent sites, in unconstrained space.
        log_likelihood: Of observed sites and factors.
        log_peak: What the log likelihood would be if every datum lay at the centre of its law.
        num_data: Number of data, as far as `log_peak` knows of them.
        sites: Log density of each site.
    """

    log_prior: Scalar
    log_likelihood: Scalar
    log_peak: Scalar
    num_data: Scalar
    sites: dict[str, Scalar]


class Bridge(NamedTuple):
    r"""Densities over positions, as functions of ONE particle.

    Attributes:
        sample_base: `key -> z`: diffusion sites from a Gaussian near their law at the noisy end, the
            others from their prior given what they see there.
        log_base: `z -> ()`: log density of the diffusion part of `sample_base`. The other sites are
            drawn from their own prior, which cancels.
        see: `(z, clock) -> Seen`: the diffusion part; one network evaluation a site.
        rest: `(z, x_hat) -> Rest`: the rest of the model; no network evaluation.
        carry: `(z, clock, next_clock) -> (z, log_det)`: moves the diffusion sites from one level to
            the next by the linear map between the Gaussian approximations of their laws.
        constrain: `z -> values`: model values of all latent and deterministic sites at clock 0.
        times: `clock -> {site: t}`: time of each diffusion site under its own schedule.
        exponent: `(z, clock) -> ()`: $g(\theta, c)$, 1 at clock 0; no network evaluation.
        diffusion_sites: their names; empty for a model without one.
        other_sites: names of the other latent sites.
        target: one sentence that names the law at the end of the bridge.
        log_normalizer_error: standard error of the prior normalisers inside, in nats; `None` when
            one of them is unknown, so that evidences hold up to a constant of the prior.
    """

    sample_base: Callable[[PRNGKey], Position]
    log_base: Callable[[Position], Scalar]
    see: Callable[[Position, Scalar], Seen]
    rest: Callable[[Position, dict[str, Array]], Rest]
    carry: Callable[[Position, Scalar, Scalar], tuple[Position, Scalar]]
    constrain: Callable[[Position], dict[str, Array]]
    times: Callable[[Scalar], dict[str, Scalar]]
    exponent: Callable[[Position, Scalar], Scalar]
    diffusion_sites: tuple[str, ...]
    other_sites: tuple[str, ...]
    target: str
    log_normalizer_error: float | None


def log_density(
    bridge: Bridge, z: Position, clock: Scalar, power: Scalar
) -> tuple[Scalar, tuple[Seen, Rest]]:
    r"""$\log \gamma_{c, \beta}(z)$ of shape `()` and its parts, from one network evaluation.

    At clock 0 and power 1 this is the user's joint log density.
    """
    seen = bridge.see(z, clock)
    rest = bridge.rest(z, seen.x_hat)
    return combine(bridge, z, clock, power, seen, rest), (seen, rest)


def combine(
    bridge: Bridge, z: Position, clock: Scalar, power: Scalar, seen: Seen, rest: Rest
) -> Scalar:
    """`log_density` from parts that are at hand. A power of 0 silences an infinite likelihood."""
    g = bridge.exponent(z, clock)
    norm = (1 - g) * rest.log_peak + 0.5 * rest.num_data * jnp.log(g)
    tempered = power * (g * rest.log_likelihood + norm)
    return seen.log_density + rest.log_prior + jnp.where(power > 0, tempered, 0.0)


def information(rest: Callable, z: Position, sites: dict[str, "DiffusionSite"]) -> Scalar:
    r"""$\kappa(\theta)$: how sharply the data speak of the diffusion sites, per prior variance.

    $\sum_p |F p|^2 / \sum_p |p \cdot F p|$ over a few fixed probes $p = \pm 1$, with $F$ minus the secant
    Hessian of the log likelihood over one prior standard deviation to each side of the prior mean,
    in units of that deviation. A function of the other sites alone; 0 where it is not finite.
    """
    centres = {n: site.centre for n, site in sites.items()}
    scales = {n: site.scale for n, site in sites.items()}
    gradient = jax.grad(lambda x: rest(z, x).log_likelihood)

    def one(probe):
        def slope(sign):  # both sides in one batch: the model is traced once
            x = jax.tree.map(lambda m, s, p: m + sign * s * p, centres, scales, probe)
            return gradient(x)

        sides = jax.vmap(slope)(jnp.array([-1.0, 1.0]))
        products = jax.tree.map(lambda s, g: 0.5 * s * (g[0] - g[1]), scales, sides)
        square = sum(jnp.sum(p**2) for p in products.values())
        return square, sum(jnp.sum(probe[n] * p) for n, p in products.items())

    signs = np.random.default_rng(0)  # drawn while the program is traced: its constants
    probes = {
        n: jnp.asarray(signs.choice([-1.0, 1.0], (2, *s.shape)), s.dtype) for n, s in scales.items()
    }
    squares, traces = jax.vmap(one)(probes)
    squares, traces = jnp.sum(squares), jnp.sum(jnp.abs(traces))
    usable = jnp.isfinite(squares) & jnp.isfinite(traces) & (traces > 0)
    return jnp.where(usable, squares, 0.0) / jnp.where(usable, traces, 1.0)


def exponent(
    rest: Callable, z: Position, sites: dict[str, "DiffusionSite"], clock: Scalar
) -> Scalar:
    r"""$g = 1 / (1 + \kappa(\theta) \rho(c))$ with $\rho$ the mean open share of the sites."""
    if not sites:
        return jnp.ones(())
    open_share = sum(site.residual(clock) for site in sites.values()) / len(sites)
    return 1 / (1 + information(rest, z, sites) * open_share)


class DiffusionSite(eqx.Module):
    """One diffusion variable, possibly a batch of independent ones, on its way from noise to data.

    Attributes:
        energy: The prior's energy, for one example.
        batch_shape: Shape of the plates around it.
    """

    energy: AbstractEnergy
    batch_shape: tuple[int, ...] = eqx.field(static=True, default=())

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.batch_shape, *self.energy.shape)

    @property
    def size(self) -> int:
        """Number of independent examples in the batch."""
        size = 1
        for n in self.batch_shape:
            size *= n
        return size

    def time(self, clock: Scalar) -> Scalar:
        """Schedule time at a clock: log-SNR is linear in the clock, both ends are exact."""
        schedule, t_min, t_max = self.energy.schedule, self.energy.t_min, self.energy.t_max
        clean = schedule.log_snr(jnp.asarray(t_min))
        noisy = schedule.log_snr(jnp.asarray(t_max))
        t = schedule.time(clean + clock * (noisy - clean))
        return jnp.where(clock <= 0, t_min, jnp.where(clock >= 1, t_max, t))

    def moments(self, clock: Scalar) -> tuple[Array, Array]:
        """Mean and variance of the Gaussian approximation in data units, each of event shape."""
        t = self.time(clock)
        mean, variance = self.energy.moments(t)
        alpha_t, _ = self.energy.schedule(t)
        return mean / alpha_t, variance / alpha_t**2

    def sample_base(self, key: PRNGKey) -> Array:
        mean, variance = self.moments(jnp.asarray(1.0))
        return mean + jnp.sqrt(variance) * jax.random.normal(key, self.shape, variance.dtype)

    def log_base(self, u: Array) -> Scalar:
        mean, variance = self.moments(jnp.asarray(1.0))
        terms = (u - mean) ** 2 / variance + jnp.log(2 * jnp.pi * variance)
        return -0.5 * jnp.sum(terms)

    def see(self, twist: AbstractTwist, u: Array, clock: Scalar) -> tuple[Scalar, Array]:
        """Log density of the whole batch and what the rest of the model sees of it."""
        t = self.time(clock)
        if not self.batch_shape:
            return twist(self.energy, u, t)
        flat = u.reshape(-1, *self.energy.shape)
        log_densities, x_hat = jax.vmap(lambda one: twist(self.energy, one, t))(flat)
        return jnp.sum(log_densities), x_hat.reshape(u.shape)

    def carry(self, u: Array, clock: Scalar, next_clock: Scalar) -> tuple[Array, Scalar]:
        mean, variance = self.moments(clock)
        next_mean, next_variance = self.moments(next_clock)
        ratio = jnp.sqrt(next_variance / variance)
        ratio = jnp.broadcast_to(ratio, self.energy.shape)
        return next_mean + ratio * (u - mean), self.size * jnp.sum(jnp.log(ratio))

    def residual(self, clock: Scalar) -> Scalar:
        r"""$\rho(c)$: share of the prior's variance that the twist leaves open; 0 at clock 0."""
        schedule = self.energy.schedule
        noise = schedule.noise_level(self.time(clock)) ** 2
        floor = schedule.noise_level(jnp.asarray(self.energy.t_min)) ** 2
        _, variance = self.moments(jnp.asarray(0.0))
        return (noise - floor) / (jnp.mean(variance) + noise)

    @property
    def centre(self) -> Array:
        mean, _ = self.moments(jnp.asarray(0.0))
        return jnp.broadcast_to(mean, self.shape)

    @property
    def scale(self) -> Array:
        _, variance = self.moments(jnp.asarray(0.0))
        return jnp.broadcast_to(jnp.sqrt(variance), self.shape)


def normalizer_error(sites: dict[str, DiffusionSite]) -> float | None:
    """Standard error of the summed normalisers of some sites; `None` if one is unknown."""
    if any(site.energy.log_normalizer is None for site in sites.values()):
        return None
    # One error an energy, shared by its whole batch: it adds up, it does not average out.
    return sum((s.size * s.energy.log_normalizer_error) ** 2 for s in sites.values()) ** 0.5


class _EnergyBridge(eqx.Module):
    site: DiffusionSite
    twist: AbstractTwist
    log_likelihood: Callable | None

    def sample_base(self, key):
        return {"x": self.site.sample_base(key)}

    def log_base(self, z):
        return self.site.log_base(z["x"])

    def see(self, z, clock):
        value, x_hat = self.site.see(self.twist, z["x"], clock)
        return Seen(value, {"x": x_hat}, {"x": value})

    def rest(self, z, x_hat):
        del z
        zero = jnp.zeros((), x_hat["x"].dtype)
        if self.log_likelihood is None:
            return Rest(zero, zero, zero, zero, {})
        value = self.log_likelihood(x_hat["x"])
        return Rest(zero, value, zero, zero, {"likelihood": value})

    def carry(self, z, clock, next_clock):
        u, log_det = self.site.carry(z["x"], clock, next_clock)
        return {"x": u}, log_det

    def constrain(self, z):
        return dict(z)

    def times(self, clock):
        return {"x": self.site.time(clock)}

    def exponent(self, z, clock):
        if self.log_likelihood is None:
            return jnp.ones(())
        return exponent(self.rest, z, {"x": self.site}, clock)


def from_energy(
    energy: AbstractEnergy,
    log_likelihood: Callable[[Array], Scalar] | None = None,
    *,
    twist: AbstractTwist | None = None,
) -> Bridge:
    r"""Bridge to $e^{-E(x, t_{\min})}\, p(y \mid x)$, without a NumPyro model.

    Args:
        energy: The prior's energy.
        log_likelihood: `x -> ()` in nats for ONE example in data units; `None` for the prior alone.
        twist: What the likelihood sees at noisy levels; the denoised mean by default.

    Raises:
        TypeError: If `energy` is not an energy.
    """
    if not isinstance(energy, AbstractEnergy):
        raise TypeError(
            f"`from_energy` expects an AbstractEnergy; got {type(energy).__name__}. A score alone "
            "has no density to weigh particles with: train or distil an energy."
        )
    site = DiffusionSite(energy)
    parts = _EnergyBridge(site, Tweedie() if twist is None else twist, log_likelihood)
    return Bridge(
        sample_base=parts.sample_base,
        log_base=parts.log_base,
        see=parts.see,
        rest=parts.rest,
        carry=parts.carry,
        constrain=parts.constrain,
        times=parts.times,
        exponent=parts.exponent,
        diffusion_sites=("x",),
        other_sites=(),
        target="exp(-E(x, t_min)) p(y | x)" if log_likelihood else "exp(-E(x, t_min))",
        log_normalizer_error=normalizer_error({"x": site}),
    )
