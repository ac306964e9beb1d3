r"""Split Gibbs samplers: draws from the denoising posterior and from the likelihood block in turn.

A split sampler holds, beside the diffusion variable $x$, a second value of it that is near by Gaussian noise
of standard deviation $\rho$. One block draws from the prior and the noise, the other from the data and the
noise, and all other sites of the model are a block of their own. The data's side sees a clean variable and
costs no network evaluation, so any noise model and operator will do.
"""

import abc
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from ... import _faq
from ..._finite import NonFinite
from ..._typing import Array, Position, PRNGKey, Scalar
from ..._written import one_line
from ...bridge import Bridge, PathBridge
from ...smc import Claims
from ...smc.preconditioner import Preconditioner
from .blocks import ladder, reverse_steps

__all__ = ["AbstractSplit", "Clock", "Prior", "SplitState", "Tuning", "start", "uses_energy"]

Prior = Literal["energy", "score"]
NO_EVIDENCE = "nothing: split samplers estimate no evidence"


class Clock(NamedTuple):
    """Position of a chain within its warm-up.

    Attributes:
        step: Sweeps that are done.
        num_warmup: Sweeps of the warm-up: the first half of it lowers the noise, all of it tunes.
    """

    step: Scalar
    num_warmup: Scalar

    @property
    def annealed(self) -> Scalar:
        """Annealing schedule: from 0 to 1 over the first half of the warm-up, then 1."""
        return jnp.where(
            self.step >= self.num_warmup,
            1.0,
            jnp.minimum(1.0, 2 * self.step / jnp.maximum(self.num_warmup, 1)),
        )

    @property
    def gain(self) -> Scalar:
        """Step size of the adaptation in one sweep; 0 after the warm-up."""
        settling = jnp.maximum(0, self.step - self.num_warmup // 2)
        return jnp.where(self.step < self.num_warmup, (1.0 + settling) ** -0.6, 0.0)


class Tuning(NamedTuple):
    """Quantities adapted in the warm-up and frozen after it.

    Attributes:
        prior: Log step sizes of moves of the diffusion sites, one a noise level.
        data: Log step size of moves of what the data see.
        other: Log step size of moves of the other sites.
        mean: Of the position, over the warm-up.
        variance: The same.
    """

    prior: Array
    data: Scalar
    other: Scalar
    mean: Position
    variance: Position

    @classmethod
    def at(cls, z: Position, num_levels: int = 1) -> "Tuning":
        """Before anything is known."""
        first = jnp.full((), jnp.log(0.5))
        ones = jax.tree.map(jnp.ones_like, z)
        return cls(jnp.full(num_levels, jnp.log(0.5)), first, first, z, ones)

    def learned(self, z: Position, gain: Scalar) -> "Tuning":
        """Return the tuning with its moments moved towards a position."""
        gain = 0.1 * gain
        gap = jax.tree.map(jnp.subtract, z, self.mean)
        mean = jax.tree.map(lambda m, g: m + (gain * g).astype(m.dtype), self.mean, gap)
        variance = jax.tree.map(
            lambda v, g: (v + gain * ((1 - gain) * g**2 - v)).astype(v.dtype), self.variance, gap
        )
        return self._replace(mean=mean, variance=variance)

    def scale(self, names: tuple[str, ...], noise: dict[str, Scalar] | None = None) -> Any:
        """Coordinates in which these sites look round, within noise of this level if there is any."""

        def one(name):
            precision = 1 / (self.variance[name] + 1e-12)
            if noise is not None:
                precision = precision + 1 / noise[name] ** 2
            return jax.lax.rsqrt(precision).astype(self.variance[name].dtype)

        return Preconditioner({name: one(name) for name in names})


class SplitState(NamedTuple):
    r"""State of one chain of a split sampler.

    Attributes:
        position: Diffusion sites in units of the data, other sites unconstrained.
        seen: What the rest of the model sees of the diffusion sites, by site.
        log_weight: Of `position`, for the exact posterior; 0 where nothing is weighed.
        tuning: What the warm-up has found.
        acceptance: Of the last sweep, by block; 1 where nothing can be refused.
        met: Whether the last sweep met NaN or +inf, by site, in proposals too.
    """

    position: Position
    seen: dict[str, Array]
    log_weight: Scalar
    tuning: Tuning
    acceptance: dict[str, Scalar]
    met: NonFinite


class AbstractSplit(eqx.Module):
    """A split sampler: one chain, one sweep at a time.

    Attributes:
        prior: Whether the prior's side asks its `"energy"`, by exact moves, or its `"score"`, by discretised
            steps; `None` for the energy where the bridge has one.
    """

    __repr__ = one_line

    prior: eqx.AbstractVar[Prior | None]

    @abc.abstractmethod
    def init(self, bridge: Bridge, z: Position) -> SplitState:
        """A chain at a position."""

    @abc.abstractmethod
    def sweep(self, key: PRNGKey, bridge: Bridge, state: SplitState, clock: Clock) -> SplitState:
        """Make one sweep over all blocks."""

    @abc.abstractmethod
    def claims(self, bridge: Bridge) -> Claims:
        """Distribution of `position` with its weight; there is no evidence."""

    @abc.abstractmethod
    def seen_target(self, bridge: Bridge) -> str:
        """Distribution of `seen`."""

    @abc.abstractmethod
    def evaluations(self, bridge: Bridge) -> int | None:
        """Network evaluations of one sweep."""


def uses_energy(sampler: AbstractSplit, bridge: Bridge) -> bool:
    """Test whether the block of the prior makes MCMC moves with the energy.

    Raises:
        ValueError: If there is no diffusion site, no density where one is asked for, or only the summed
            scores of a composition.
    """
    name = type(sampler).__name__
    if not bridge.diffusion_sites:
        raise ValueError(
            f"`{name}` splits a diffusion variable from the data, and the model has no `DiffusionPrior`. "
            f"Use NUTS or `nd.SMC`. {_faq.blocks}"
        )
    if bridge.drivers:
        raise ValueError(
            f"the prior of a diffusion site depends on {list(bridge.drivers)}, and the block of "
            f"`{name}` that moves the other sites looks at the data alone, so that they would follow "
            "another distribution. Use `nd.SMC`, or `nd.MoveKernel` or NUTS in NumPyro's "
            f"MCMC. {_faq.normaliser}"
        )
    if sampler.prior not in ("energy", "score", None):
        raise ValueError(
            f"`prior` of `{name}` is 'energy', 'score', or `None` for the energy where there is one; got "
            f"{sampler.prior!r}. {_faq.choices}"
        )
    if sampler.prior == "energy" and isinstance(bridge, PathBridge):
        raise ValueError(
            f"`{name}(prior='energy')` needs a density, and a bridge in path space has none. Make a "
            f"`DensityBridge`, or use prior='score'. {_faq.score_only}"
        )
    energy = sampler.prior == "energy"
    if sampler.prior is None:
        energy = not isinstance(bridge, PathBridge)
    if not energy and bridge.powers:
        raise ValueError(
            f"sites {sorted(bridge.powers)} have compositions, whose summed scores are not those of their "
            f"noised distribution. Use `{name}(prior='energy')` on a "
            f"`DensityBridge`. {_faq.compositions}"
        )
    return energy


def start(key: PRNGKey, bridge: Bridge, num_steps: int = 50) -> Position:
    """A position to start from: a draw of the prior, exact where the bridge has exact draws."""
    if bridge.exact_prior:
        return bridge.sample_prior(key)
    key_base, key_steps = jax.random.split(key)
    z = bridge.sample_base(key_base)
    u = {name: z[name] for name in bridge.diffusion_sites}
    return {
        **z,
        **reverse_steps(key_steps, bridge, u, ladder(bridge, jnp.ones(()), num_steps, 7.0)),
    }
