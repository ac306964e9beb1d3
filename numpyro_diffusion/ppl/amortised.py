r"""Amortised proposals: a density of all latent sites given data, learned from simulations of the model.

Draws of the prior and their data are pairs $(z, y)$; a mixture density network fitted to them gives
$q(z \mid y)$ for any data of the same shapes. `SMC(model, initial=proposal)` starts there and weighs with
$p(z, y) / q(z \mid y)$, so that whatever $q$ is, draws and evidence are of the model's own posterior.

References:
    Papamakarios & Murray (2016), Fast epsilon-free inference of simulation models with Bayesian conditional
    density estimation, NeurIPS. Dax et al. (2023), Neural importance sampling for rapid and reliable
    gravitational-wave inference, PRL. Del Moral, Doucet & Jasra (2006), Sequential Monte Carlo samplers,
    JRSS B. Vehtari et al. (2024), Pareto smoothed importance sampling, JMLR.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .. import diagnostics
from .._arguments import whole_number
from .._prng import check_key, lean
from .._typing import Array, PRNGKey
from ..bridge import Bridge, DensityBridge, Proposal, log_density, proposed
from ..schemes import Pilot
from ..schemes.data_tempered import DataTempered
from ..smc import FeynmanKac
from ..train.mixture_density import MixtureDensityNetwork, StudentMixture, fit_mixture_density
from ..train.result import FitResult
from .bridge import from_model
from .simulate import Observations, Simulator

__all__ = [
    "AmortisedProposal",
    "ProposalDiagnostics",
    "attributes_of_proposal",
    "check_start",
    "fit_proposal",
    "from_proposal",
    "started_in_words",
]

GUARD = 0.05  # share of the prior, or of what is as wide
HEAVY = 0.7  # Pareto k-hat above which importance weights are not relied on


@dataclasses.dataclass(frozen=True, repr=False)
class AmortisedProposal:
    """A proposal for the latent sites of a model given its data, for `SMC(model, initial=proposal)`.

    Attributes:
        network: $q(z \\mid y)$.
        wide: Student's distribution with the moments of the prior.
        sites: Shapes of the latent sites in unconstrained space, by name.
        observed: Shapes of the observed sites, by name.
        fit: What training says: losses, and whether anything was learned beyond a linear regression.
    """

    network: MixtureDensityNetwork
    wide: StudentMixture
    sites: dict[str, tuple[int, ...]]
    observed: dict[str, tuple[int, ...]]
    fit: FitResult

    def __repr__(self) -> str:
        return f"AmortisedProposal({_words(self.sites)}, given {_words(self.observed)})"

    def bridge(self, bridge: Bridge, observations: Observations) -> DensityBridge:
        """The bridge from the proposal at these data to the posterior of another bridge.

        Args:
            bridge: To the posterior.
            observations: Its data.

        Raises:
            ValueError: If its latent sites or data are others than those of the model that was simulated.
        """
        assert isinstance(bridge, DensityBridge)
        for what, known, got in (
            ("latent sites", self.sites, _shapes(bridge)),
            ("data", self.observed, observations.shapes),
        ):
            if known != got:
                raise ValueError(
                    f"the proposal was fitted to a model with the {what} {_words(known)}; got "
                    f"{_words(got)}. Fit one to this model, with arguments of these shapes: "
                    "`nd.ppl.fit_proposal(key, model, *args)`."
                )
        y = observations.vector()
        # The guard is the prior itself where it can be drawn, so that weights are bounded.
        guarded = _exact_prior(bridge)
        density = _given(self.network, None if guarded else self.wide, y)
        return proposed(bridge, Proposal(density, GUARD if guarded else 0.0))


@eqx.filter_jit
def _given(network, wide: StudentMixture | None, y: Array) -> StudentMixture:
    mixture = network(y)
    return mixture if wide is None else mixture.beside(wide, GUARD)


def _exact_prior(bridge: Bridge) -> bool:
    """Whether the prior can be drawn exactly and its density is at hand, normalised."""
    known = bridge.exact_prior or not bridge.diffusion_sites
    return known and bridge.log_normalizer_error == 0 and not bridge.discrete_sites


def _shapes(bridge: Bridge) -> dict[str, tuple[int, ...]]:
    shapes = jax.eval_shape(bridge.sample_base, jax.random.key(0))
    return {name: leaf.shape for name, leaf in sorted(shapes.items())}


def _words(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"`{name}` of shape {shape}" for name, shape in shapes.items()) or "none"


def fit_proposal(
    key: PRNGKey,
    model: Callable,
    *args: Any,
    simulations: int = 10_000,
    components: int = 8,
    width: int = 128,
    steps: int = 3000,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    progress_bar: bool = True,
    **kwargs: Any,
) -> AmortisedProposal:
    r"""Fit a proposal $q(z \mid y)$ for all latent sites of a model to simulations of it.

    Sites are drawn from the prior (a learned one by its reverse process), and their data anew in every step
    of training. The proposal is for data of the same shapes under the same other arguments; under others it
    is a worse proposal, and nothing else. Entries that a mask leaves out are not looked at. Discrete latent
    sites are drawn too, and summed out as in `SMC`. Factors say nothing to the simulations.

    Args:
        key: PRNG key.
        model: A NumPyro model with observed sites.
        *args: Its arguments, data included, as for `SMC.run`; of the data the shapes count.
        simulations: Draws of the prior, of which a tenth is held out.
        components: Gaussians of the mixture, each with a full covariance.
        width: Units of each hidden layer.
        steps: Largest number of updates.
        batch_size: Pairs a gradient.
        learning_rate: Peak of a warm-up and cosine decay.
        progress_bar: Show progress and losses.
        **kwargs: Keyword arguments of the model.

    Raises:
        ValueError: If the model has no observed site, a latent space of more than 512 coordinates, or is one
            that `from_model` refuses; if most simulations are not finite; if a number is out of range.
        TypeError: For a prior that is a score without energy.

    Example:
        >>> proposal = nd.ppl.fit_proposal(jax.random.key(0), model, y=y)
        >>> smc = nd.SMC(model, initial=proposal).run(jax.random.key(1), y=y)
        >>> smc.proposal_diagnostics.pareto_k
    """
    simulations = whole_number("simulations", simulations, 400)
    bridge = from_model(model, *args, **kwargs)
    simulator = Simulator.of(model, args, kwargs, bridge)
    if not simulator.observations.values:
        raise ValueError(
            "`fit_proposal` learns from simulated data, and the model has no observed site at these "
            "arguments. Call it with data, as you would `SMC.run`; any of the right shapes will do."
        )
    key_latent, key_data, key_fit = jax.random.split(lean(check_key(key)), 3)
    keys = jax.random.split(key_latent, simulations)
    z, values, y = _simulated(simulator, keys, jax.random.split(key_data, simulations))
    z, y = np.asarray(z), np.asarray(y)
    kept = np.flatnonzero(np.isfinite(z).all(1) & np.isfinite(y).all(1))
    if len(kept) < simulations // 2:
        raise ValueError(
            f"only {len(kept)} of {simulations} simulations of the model are finite, in unconstrained space. "
            "Look at the scales of its priors, or use 64 bits: `jax.config.update('jax_enable_x64', True)`."
        )
    first, rest = kept[: len(kept) // 10], kept[len(kept) // 10 :]
    bank, told = jnp.asarray(z[rest]), jax.tree.map(lambda leaf: leaf[rest], values)

    def draw(key):
        key_which, key_data = jax.random.split(key)
        i = jax.random.randint(key_which, (), 0, len(bank))
        data = simulator.data(key_data, jax.tree.map(lambda leaf: leaf[i], told))
        # Of data that overflow, those of the middle: a rare pair that says nothing.
        return jnp.where(jnp.isfinite(data), data, 0.0), bank[i]

    found = fit_mixture_density(
        key_fit, y[first], z[first], draw=draw, start=(y[rest], z[rest]),
        components=components, width=width, steps=steps, batch_size=batch_size,
        learning_rate=learning_rate, progress_bar=progress_bar,
    )  # fmt: skip
    network: Any = found.energy
    sites, observed = _shapes(bridge), simulator.observations.shapes
    fit = found._replace(energy=None)  # pyright: ignore[reportArgumentType]
    return AmortisedProposal(network, _wide(z[kept]), sites, dict(sorted(observed.items())), fit)


@eqx.filter_jit
def _simulated(simulator: Simulator, keys: Array, data_keys: Array) -> tuple[Any, Any, Any]:
    """Latent vectors, values of all latent sites, and data, of as many simulations as there are keys."""

    def one(keys):
        z, values = simulator.latent(keys[0])
        return ravel_pytree(z)[0], values, simulator.data(keys[1], values)

    return jax.lax.map(one, (keys, data_keys), batch_size=512)


def _wide(z: np.ndarray) -> StudentMixture:
    """Student's distribution with the mean and the covariance of some draws."""
    z = np.asarray(z, np.float64)
    variance = np.var(z, 0)
    covariance = np.cov(z.T, bias=True).reshape(2 * z.shape[1:]) + np.diag(
        1e-4 * variance + 1e-12
    )
    root = np.linalg.inv(np.linalg.cholesky(covariance))
    one = jnp.ones(1)
    return StudentMixture(0 * one, jnp.asarray(z.mean(0))[None], jnp.asarray(root)[None], one)


class ProposalDiagnostics(NamedTuple):
    r"""How close a proposal is to the posterior, from draws of it that the run does not use.

    Attributes:
        pareto_k: Pareto $\hat k$ of the weights $p(z, y) / q(z)$: up to 0.7 importance sampling is to be
            relied on, above a path from the proposal to the posterior is needed.
        ess: Their effective sample size, as a share of the draws.
        num_draws: Number of these draws.
        num_levels: Levels that the run takes from there; 1 for importance sampling alone.
    """

    pareto_k: float
    ess: float
    num_draws: int
    num_levels: int

    def __str__(self) -> str:
        how = "importance sampling alone"
        if self.num_levels > 1:
            how = f"{self.num_levels} levels from there to the posterior"
        return f"proposal: Pareto k-hat {self.pareto_k:.2f}, effective share {self.ess:.1%}; {how}"


def started_in_words(found: ProposalDiagnostics | None) -> str:
    """A line of a summary; nothing without a proposal."""
    return "" if found is None else f"{found}\n"


def attributes_of_proposal(found: ProposalDiagnostics | None) -> dict[str, float]:
    """Attributes of an ArviZ object; none without a proposal."""
    if found is None:
        return {}
    return {"proposal_pareto_k": found.pareto_k, "proposal_ess": found.ess}


def check_start(scheme: Any, twist: Any) -> DataTempered:
    """The scheme that leads from a proposal to the posterior.

    Raises:
        ValueError: If another one is asked for, or a twist, which is for noisy levels.
    """
    if isinstance(scheme, DataTempered) and twist is None:
        return scheme
    if scheme is None and twist is None:
        return DataTempered()
    got = f"`{type(twist if scheme is None else scheme).__name__}`"
    raise ValueError(
        "from a proposal a run goes straight to the posterior, and noise levels play no part: `scheme` is "
        f"`nd.schemes.DataTempered(moves=..., pilot=...)` or `None`, and `twist` is `None`; got {got}. To "
        "come from noise, leave `initial` out."
    )


def from_proposal(
    key: PRNGKey, scheme: DataTempered, bridge: DensityBridge, progress_bar: bool
) -> tuple[FeynmanKac, ProposalDiagnostics]:
    """The Feynman-Kac model that starts from a proposal, and how good that is.

    Where the weights of the proposal have a tail that can be relied on and the pilot sees no need for a step
    in between, importance sampling is all; otherwise the likelihood ratio to the proposal fades in, with
    moves. Both are decided on draws of their own, which leaves the evidence unbiased.

    Args:
        key: PRNG key of the pilot.
        scheme: Moves and pilot.
        bridge: From the proposal.
        progress_bar: Show the pilot's progress.
    """
    key_weights, key_pilot = jax.random.split(lean(key))
    number = max(1000, scheme.pilot.num_particles)
    log_weights = np.asarray(_importance(bridge, jax.random.split(key_weights, number)), float)
    k = diagnostics.tail_shape(log_weights)
    model = scheme.run(scheme.kernels(bridge), key_pilot, progress_bar=progress_bar)
    if scheme.levels is None and len(model.levels.power) == 2:
        if not k > HEAVY:
            model = model._replace(levels=jax.tree.map(lambda leaf: leaf[:1], model.levels))
        else:  # in steps, whatever few particles say
            careful = scheme.pilot.but(Pilot(conditional_ess=max(0.9, scheme.pilot.conditional_ess)))
            scheme = dataclasses.replace(scheme, pilot=careful)
            model = scheme.run(scheme.kernels(bridge), key_pilot, progress_bar=progress_bar)
    weights = np.exp(log_weights - log_weights.max())
    share = float(weights.sum() ** 2 / np.sum(weights**2) / number)
    return model, ProposalDiagnostics(k, share, number, len(model.levels.power))


@eqx.filter_jit
def _importance(bridge: DensityBridge, keys: Array) -> Array:
    """Log weights of draws of the proposal against the posterior."""
    zero, one = jnp.zeros(()), jnp.ones(())

    def each(key):
        z = bridge.sample_prior(key)
        log_joint, (seen, rest, _) = log_density(bridge, z, zero, one)
        log_weight = log_joint - bridge.proposal.log_prob(z, seen.log_density + rest.log_prior)
        return jnp.where(jnp.isfinite(log_weight), log_weight, -math.inf)

    return jax.lax.map(each, keys, batch_size=256)
