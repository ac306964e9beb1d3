"""BlackJAX kernels as kernels of NumPyro's `MCMC`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.infer import init_to_sample
from numpyro.infer.gibbs import GIBBS_SITES_KWARG
from numpyro.infer.hmc_util import HMCAdaptState
from numpyro.infer.util import constrain_fn, initialize_model, unconstrain_fn

from ... import _faq
from ..._finite import NonFinite, Sightings, looked_at, non_finite, settled
from ..._typing import Position, PRNGKey, Scalar
from ...smc.moves import Move, hmc
from ...smc.preconditioner import Preconditioner
from ..tracing import Watched
from .adaptation import Adaptation, round_coordinates
from .base import AbstractKernel
from .unscored import unscored

__all__ = ["MoveKernel", "MoveState"]


class MoveState(NamedTuple):
    """State of one chain.

    Attributes:
        i: Steps taken, warm-up included.
        z: Unconstrained values by site.
        inner: State of the BlackJAX kernel, in round coordinates.
        preconditioner: Those coordinates.
        potential_energy: Minus the log density at `z`.
        accept_prob: Acceptance probability of the last step.
        mean_accept_prob: Its mean, since warm-up or while it lasts.
        adapt_state: Step size and covariances; `adapt_state.step_size` may be asked for.
        rng_key: For the next step.
        non_finite: Where log densities were NaN or +inf; after +inf `z` is NaN.
    """

    i: Scalar
    z: Position
    inner: Any
    preconditioner: Preconditioner
    potential_energy: Scalar
    accept_prob: Scalar
    mean_accept_prob: Scalar
    adapt_state: HMCAdaptState
    rng_key: PRNGKey
    non_finite: Sightings


class MoveKernel(AbstractKernel):
    """Any `Move` as a kernel of `numpyro.infer.MCMC`, alone or as a block of `Gibbs`.

    Warm-up adapts the step size to the move's target acceptance, and a scale per coordinate; both are then
    frozen. Chains start from draws of the prior, since what a learned prior has seen is not near zero.
    As a block it takes sites beside a diffusion site whose prior is a score alone; NumPyro's own kernels
    ask for the density of that site, too.

    Args:
        model: A NumPyro model; discrete sites may be marked for enumeration.
        move: The move, for instance `nd.moves.hmc(8)` or `nd.moves.from_blackjax(...)`.
        dense: Whether coordinates that move together are learned, rather than a scale of each.
        init_strategy: As for NumPyro's kernels.

    `init_params` are unconstrained values, as for NUTS; those of a block of `Gibbs` are constrained.

    Proposals whose log density is NaN are refused, as NUTS does, which is right if the density is 0 there.

    Raises:
        FloatingPointError: If a log density was +inf, when the run is done. A warning tells of NaN after
            warm-up, in proposals too.

    Example:
        >>> kernel = nd.MoveKernel(model, nd.moves.hmc(8))
        >>> MCMC(kernel, num_warmup=500, num_samples=1000).run(jax.random.key(0), y=y)
    """

    def __init__(
        self,
        model: Callable,
        move: Move | None = None,
        *,
        dense: bool = False,
        init_strategy: Callable = init_to_sample,
    ):
        super().__init__(model)
        self.move = hmc(8) if move is None else move
        self.dense = dense
        self.init_strategy = init_strategy
        self._potential: Callable | None = None
        self._constrain: Callable | None = None
        self._enumerates = False

    @property
    def default_fields(self) -> tuple[str, ...]:
        """Draws and acceptance probabilities."""
        return ("z", "accept_prob")

    def get_diagnostics_str(self, state: MoveState) -> str:
        """Text for the progress bar."""
        size, mean = state.adapt_state.step_size, state.mean_accept_prob
        return f"{self.move.name}, step size {size:.2e}, acc. prob={mean:.2f}"

    def prepare(self, rng_key, values, args, kwargs):
        """Find the sites of the model, and where to start."""
        model = Watched(unscored(self._model))
        info = initialize_model(
            rng_key,
            model,
            init_strategy=self.init_strategy,
            dynamic_args=True,
            model_args=args,
            model_kwargs=kwargs,
        )
        self._potential, self._constrain = info.potential_fn, info.postprocess_fn
        self._enumerates = any(
            site["type"] == "sample" and not site["is_observed"] and site["fn"].support.is_discrete
            for site in info.model_trace.values()
        )
        first = info.param_info.z
        if not first:
            raise ValueError(
                "`MoveKernel` has no continuous site to move: all are observed, discrete, or of other "
                f"blocks. Leave it out. {_faq.blocks}"
            )
        if values is None:
            return first
        if GIBBS_SITES_KWARG not in kwargs:
            return values
        return unconstrain_fn(model, args, kwargs, {name: values[name] for name in first})

    def start(self, rng_key, values, args, kwargs):
        """The first state of one chain."""
        adapt_state = self._adaptation.start(values, 1.0)
        preconditioner = round_coordinates(adapt_state, values)
        inner = self.move.init(values, self._logdensity(args, kwargs), preconditioner)
        zero = jnp.zeros_like(inner.logdensity)
        none = jnp.zeros((), int), values, inner, preconditioner, -inner.logdensity
        flags = self._met(inner, preconditioner, args, kwargs)
        met = Sightings.none(flags, type(self).__name__).add(flags, none[0])
        return MoveState(*none, zero, zero, adapt_state, rng_key, met)

    def step(self, state, args, kwargs):
        """Make one MCMC move, and adapt during warm-up."""
        rng_key, key_move = jax.random.split(state.rng_key)
        old, adaptation = state.preconditioner, self._adaptation
        inner, accepted, proposal = self.move.step_and_proposal(
            key_move, state.inner, self._logdensity(args, kwargs), state.adapt_state.step_size, old
        )
        flags = self._met(proposal, old, args, kwargs)
        z = old.to_model(inner.position)
        adapt_state = adaptation.update(state.i, accepted, z, state.adapt_state)
        new = round_coordinates(adapt_state, z)
        warm = state.i < self._num_warmup
        choose = lambda a, b: jax.tree.map(lambda x, y: jnp.where(warm, x, y), a, b)
        preconditioner, inner = choose((new, self._seen_from(new, old, z, inner)), (old, inner))
        i = state.i + 1
        count = jnp.where(i <= self._num_warmup, i, i - self._num_warmup)
        mean = state.mean_accept_prob + (accepted - state.mean_accept_prob) / count
        energy = -inner.logdensity
        met = state.non_finite.add(settled(flags, warm), i)
        values = (
            i,
            met.spoil(z),
            inner,
            preconditioner,
            energy,
            accepted,
            mean,
            adapt_state,
            rng_key,
        )
        return MoveState(*values, met)

    def _met(self, state: Any, coordinates: Preconditioner, args, kwargs) -> NonFinite:
        """By site, where log densities at a state of the move are NaN or +inf; evaluates them only there."""

        def look():
            z = coordinates.to_model(state.position)
            potential = self._potential_of(args, kwargs)(z)
            sites = self._by_site(z, args, kwargs)
            # A step with a gradient of NaN ends nowhere: no site is to blame more than another.
            nowhere = ~jnp.isfinite(jnp.concatenate([jnp.ravel(v) for v in z.values()])).all()
            sites = {name: jnp.where(nowhere, 0.0, value) for name, value in sites.items()}
            named = jnp.stack([jnp.isnan(v) | jnp.isposinf(v) for v in [*sites.values(), 0.0]])
            whole = jnp.where(named.any(), 0.0, jnp.where(nowhere, jnp.nan, -potential))
            return non_finite({**sites, "joint density": whole})

        return looked_at(~jnp.isfinite(state.logdensity), look)

    def _by_site(self, z: Position, args, kwargs) -> dict[str, Scalar]:
        """Log density of each site; of none where discrete sites are summed out."""
        if self._enumerates:
            return {}
        kwargs = {} if kwargs is None else kwargs
        model = unscored(self._model)
        values = constrain_fn(model, args, kwargs, z)
        with handlers.trace() as sites, handlers.substitute(data=values):
            model(*args, **kwargs)
        return {
            name: jnp.sum(site["fn"].log_prob(site["value"]))
            for name, site in sites.items()
            if site["type"] == "sample"
        }

    def _seen_from(self, new: Preconditioner, old: Preconditioner, z: Position, inner: Any) -> Any:
        """The state of the move in other coordinates; evaluates nothing."""
        gradient = jax.tree.map(jnp.zeros_like, z)
        if hasattr(inner, "logdensity_grad"):
            gradient = self.move.gradient(inner, old)
        return self.move.init_known(z, inner.logdensity, gradient, new)

    def refresh(self, state, model_args, model_kwargs):
        """The state with its density at what the other blocks have made of their sites."""
        logdensity_fn = self._logdensity(model_args, model_kwargs)
        inner = self.move.init(state.z, logdensity_fn, state.preconditioner)
        flags = self._met(inner, state.preconditioner, model_args, model_kwargs)
        met = state.non_finite.add(flags, state.i)
        return state._replace(inner=inner, potential_energy=-inner.logdensity, non_finite=met)

    def wrap_model(self, wrapper):
        """Return the same kernel over `wrapper(model)`, not initialised."""
        kernel = super().wrap_model(wrapper)
        kernel._potential = kernel._constrain = None
        return kernel

    def postprocess_fn(self, model_args, model_kwargs):
        """Function from `z` to values of all latent and deterministic sites."""
        if self._constrain is None:
            return lambda z: z
        return self._constrain(*model_args, **({} if model_kwargs is None else model_kwargs))

    @property
    def _adaptation(self) -> Adaptation:
        return Adaptation(self._num_warmup, self.move.target_acceptance, self.dense)

    def _potential_of(self, args, kwargs) -> Callable[[Position], Scalar]:
        assert self._potential is not None, "`init` must be called before `sample`."
        return self._potential(*args, **({} if kwargs is None else kwargs))

    def _logdensity(self, args, kwargs) -> Callable[[Position], Scalar]:
        potential = self._potential_of(args, kwargs)

        def logdensity_fn(z):
            value = -potential(z)  # +inf stays: a chain goes there, and is seen to stand
            return jnp.where(jnp.isnan(value), -jnp.inf, value)

        return logdensity_fn
