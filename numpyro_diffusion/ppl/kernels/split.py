r"""Split Gibbs samplers (PnP-DM, DAPS) as kernels of NumPyro's `MCMC`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpyro.distributions import biject_to
from numpyro.infer.gibbs import GIBBS_SITES_KWARG, conditioned

from ... import _faq
from ..._finite import Sightings, settled
from ..._typing import Position, PRNGKey, Scalar
from ...bridge import Bridge, DensityBridge, check_bridge_type
from ...samplers.split import AbstractSplit, PnPDM
from ...samplers.split.base import Clock, SplitState, start, uses_energy
from ..bridge import from_model
from .base import AbstractKernel
from .problem import given, traced

__all__ = ["SplitKernel", "SplitKernelState"]


class SplitKernelState(NamedTuple):
    r"""State of one chain.

    Attributes:
        i: Sweeps that are done.
        z: The sites of the kernel: other sites unconstrained, diffusion sites as the data see them.
        log_weight: Of the prior's copy of the diffusion sites, `chain.position`, for the exact posterior.
        chain: The state of the sampler.
        rng_key: For the next sweep.
        non_finite: Where log densities were NaN or +inf; after +inf `z` is NaN.
    """

    i: Scalar
    z: Position
    log_weight: Scalar
    chain: SplitState
    rng_key: PRNGKey
    non_finite: Sightings


class SplitKernel(AbstractKernel):
    r"""`PnPDM` or `DAPS` as a kernel for `MCMC`, alone or as a block of `numpyro.infer.Gibbs`.

    The values of diffusion sites are those that the data see. With `PnPDM` that is $v$, whose distribution
    is the posterior with the prior blurred by `noise_level`, and blocks beside this one, given $v$, leave
    the same joint distribution as it is; the other copy and its weight are there as
    `extra_fields=("chain.position", "log_weight")`; that weight knows nothing of what other blocks do after
    it, so it goes with the sites of this block alone. With `DAPS` and an energy it is the posterior itself.
    As a block the kernel may own other sites too, which it then moves.

    Args:
        model: A NumPyro model.
        sampler: `PnPDM()` by default.
        bridge_type: `nd.bridge.PathBridge` where the prior's score is to be enough, by discretised steps; its
            density then plays no part.

    Raises:
        ValueError: At `init`, if the block has no site with a `DiffusionPrior`, or cannot be used.
        TypeError: At `init`, for a prior that is a score alone, unless in path space.
        FloatingPointError: If a log density was +inf, when the run is done. A warning tells of NaN.

    Example:
        >>> kernel = Gibbs([(nd.SplitKernel(model), ["x"]), (NUTS(model), None)])
        >>> MCMC(kernel, num_warmup=500, num_samples=1000).run(jax.random.key(0), y=y)
    """

    def __init__(
        self,
        model: Callable,
        sampler: AbstractSplit | None = None,
        *,
        bridge_type: type[Bridge] = DensityBridge,
    ):
        check_bridge_type(bridge_type)
        super().__init__(model)
        self.sampler = PnPDM() if sampler is None else sampler
        self.bridge_type = bridge_type
        self._bridge: Bridge | None = None
        self._conditioned: Callable = model
        self._transforms: dict[str, Callable] = {}

    def prepare(self, rng_key, values, args, kwargs):
        """The bridge, given stand-ins for the sites of other blocks: what is checked has to be known."""
        del rng_key
        held = kwargs.get(GIBBS_SITES_KWARG, {})
        plain = {n: v for n, v in kwargs.items() if n != GIBBS_SITES_KWARG}
        trace = traced(self.model, jax.random.key(0), args, plain)
        chosen = {GIBBS_SITES_KWARG: {n: trace[n]["value"] for n in held}}
        bridge = from_model(
            conditioned(self.model), *args, bridge_type=self.bridge_type, **{**plain, **chosen}
        )
        if bridge.discrete_sites:
            names = list(bridge.discrete_sites)
            raise ValueError(
                f"`SplitKernel` cannot move the discrete sites {names}. Give them a block of their own, "
                f"`Gibbs([(DiscreteGibbs(model), {names}), ...])`, or sum them out with "
                f"`nd.SMC`. {_faq.discrete_site}"
            )
        uses_energy(self.sampler, bridge)
        values = {} if values is None else values
        known = {*bridge.diffusion_sites, *bridge.other_sites}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"`SplitKernel` has the sites {sorted(known)}; got values of {unknown}. (The diffusion site "
                f"of a transformed prior is its base: `TransformReparam`.) {_faq.names}"
            )
        self._bridge, self._conditioned = bridge, conditioned(self.model)
        self._transforms = {n: biject_to(trace[n]["fn"].support) for n in bridge.other_sites}
        return values

    def _given(self, args: tuple, kwargs: dict[str, Any]) -> Bridge:
        if self._bridge is None:
            raise RuntimeError(f"`SplitKernel` needs `init` before `sample`. {_faq.no_result}")
        return given(self._conditioned, self._bridge, args, kwargs)

    def start(self, rng_key, values, args, kwargs):
        """Initial state: at a draw of the prior, or at given values."""
        key_start, rng_key = jax.random.split(rng_key)
        bridge = self._given(args, kwargs)
        z = start(key_start, bridge)
        for name, value in values.items():
            transform = self._transforms.get(name)
            value = value if transform is None else transform._inverse(value)
            z[name] = jnp.asarray(value, z[name].dtype)
        chain = self.sampler.init(bridge, z)
        met = Sightings.none(
            chain.met, type(self).__name__
        )  # where a chain starts need not be possible
        return SplitKernelState(jnp.zeros((), int), z, chain.log_weight, chain, rng_key, met)

    def step(self, state, args, kwargs):
        """Make one sweep over all blocks."""
        rng_key, key_sweep = jax.random.split(state.rng_key)
        clock, bridge = Clock(state.i, jnp.asarray(self._num_warmup)), self._given(args, kwargs)
        chain = self.sampler.sweep(key_sweep, bridge, state.chain, clock)
        chain = jax.tree.map(lambda a, b: b.astype(a.dtype), state.chain, chain)
        i, z = state.i + 1, {**chain.position, **chain.seen}
        met = state.non_finite.add(settled(chain.met, i <= self._num_warmup), i)
        return SplitKernelState(i, met.spoil(z), chain.log_weight, chain, rng_key, met)

    def refresh(self, state, model_args, model_kwargs):
        """The state as it is: nothing in it depends on the other sites."""
        del model_args, model_kwargs
        return state

    def get_constrain_fn(self, model_args, model_kwargs):
        """The kernel's own sites, by transforms alone."""
        del model_args, model_kwargs
        transforms = self._transforms
        return lambda z: {n: transforms[n](v) if n in transforms else v for n, v in z.items()}

    def get_diagnostics_str(self, state) -> str:
        """Text for the progress bar."""
        return ", ".join(f"{n} acc. {float(a):.2f}" for n, a in state.chain.acceptance.items())
