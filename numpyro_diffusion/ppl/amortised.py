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
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .. import _faq
from .._arguments import whole_number
from .._prng import check_key, lean
from .._typing import Array, PRNGKey
from ..bridge import Bridge, DensityBridge, Proposal, proposed
from ..energies import StudentMixture
from ..train.mixture_density import MixtureDensityNetwork, fit_mixture_density
from ..train.result import FitResult
from .bridge import from_model
from .simulate import Observations, Simulator

__all__ = ["AmortisedProposal", "fit_proposal"]

GUARD = 0.05  # share of the prior, or of what is as wide
LARGE = 1e18  # numbers whose squares would overflow in 32 bits


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
                    f"`nd.ppl.fit_proposal(key, model, *args)`. {_faq.proposal}"
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
            "arguments. Call it with data, as you would `SMC.run`; any of the right shapes will "
            f"do. {_faq.proposal}"
        )
    key_latent, key_data, key_fit = jax.random.split(lean(check_key(key)), 3)
    keys = jax.random.split(key_latent, simulations)
    z, values, y = _simulated(simulator, keys, jax.random.split(key_data, simulations))
    z, y = np.asarray(z), np.asarray(y)
    kept = np.flatnonzero((np.abs(z) < LARGE).all(1) & (np.abs(y) < LARGE).all(1))
    if len(kept) < simulations // 2:
        raise ValueError(
            f"only {len(kept)} of {simulations} simulations of the model are finite, or below {LARGE:g}, in "
            f"unconstrained space. Look at the scales of its priors. {_faq.proposal}"
        )
    first, rest = kept[: len(kept) // 10], kept[len(kept) // 10 :]
    bank, told = jnp.asarray(z[rest]), jax.tree.map(lambda leaf: leaf[rest], values)

    def draw(key):
        key_which, key_data = jax.random.split(key)
        i = jax.random.randint(key_which, (), 0, len(bank))
        data = simulator.data(key_data, jax.tree.map(lambda leaf: leaf[i], told))
        # A rare pair that says nothing, in the place of one that overflows.
        return jnp.where(jnp.abs(data) < LARGE, data, 0.0), bank[i]

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
    covariance = np.cov(z.T, bias=True).reshape(2 * z.shape[1:]) + np.diag(1e-4 * variance + 1e-12)
    root = np.linalg.inv(np.linalg.cholesky(covariance))
    one = jnp.ones(1)
    return StudentMixture(0 * one, jnp.asarray(z.mean(0))[None], jnp.asarray(root)[None], one)
