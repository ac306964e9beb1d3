r"""Split samplers as kernels of NumPyro's own MCMC."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpyro.distributions import biject_to
from numpyro.infer.gibbs import GIBBS_SITES_KWARG, prototype_trace
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import is_prng_key

from ..._typing import Array, Position, PRNGKey, Scalar
from ...bridge import Bridge
from ...split import AbstractSplit, PnPDM
from ...split.base import Clock, SplitState, start
from ..bridge import from_model

__all__ = ["SplitKernel", "SplitKernelState"]


class SplitKernelState(NamedTuple):
    r"""State of one chain.

    Attributes:
        z: The sites of the kernel: other sites unconstrained, diffusion sites as the data see them.
        log_weight: Of the prior's copy of the diffusion sites, `chain.position`, for the exact posterior.
        chain: The state of the sampler.
        i: Sweeps that are done.
        rng_key: For the next one.
    """

    z: Position
    log_weight: Scalar
    chain: SplitState
    i: Scalar
    rng_key: PRNGKey


class SplitKernel(MCMCKernel):
    r"""`PnPDM` or `DAPS` as a kernel for `MCMC`, alone or as a block of `numpyro.infer.Gibbs`.

    The values of diffusion sites are those that the data see. With `PnPDM` that is $v$, whose law is the
    posterior with the prior blurred by `noise_level`, and blocks beside this one, given $v$, leave the same
    joint law as it is; the other copy with its weight is there as
    `extra_fields=("chain.position", "log_weight")`. With `DAPS` and an energy it is the posterior itself.
    As a block the kernel may own other sites too, which it then moves.

    Args:
        model: A NumPyro model.
        sampler: `PnPDM()` by default.
        path_space: The prior's score is enough, by discretised steps; its density plays no part.

    Raises:
        ValueError: If the model has no diffusion site among those of the kernel, or cannot be used.

    Example:
        >>> kernel = Gibbs([(nd.SplitKernel(model), ["x"]), (NUTS(model), None)])
        >>> MCMC(kernel, num_warmup=500, num_samples=1000).run(jax.random.key(0), y=y)
    """

    def __init__(
        self, model: Callable, sampler: AbstractSplit | None = None, *, path_space: bool = False
    ):
        self._model = model
        self.sampler = PnPDM() if sampler is None else sampler
        self.path_space = path_space
        self._bridge: Bridge | None = None
        self._transforms: dict[str, Callable] = {}
        self._num_warmup = 0

    @property
    def sample_field(self) -> str:
        """Where MCMC finds the draws."""
        return "z"

    @property
    def model(self) -> Callable:
        """The model, conditioned where the kernel is a block."""
        return self._model

    def init(
        self,
        rng_key: PRNGKey,
        num_warmup: int,
        init_params: Position | None,
        model_args: tuple,
        model_kwargs: dict[str, Any] | None,
    ) -> SplitKernelState:
        """A chain at a draw of the prior, or at `init_params`, constrained values by site."""
        model_kwargs = {} if model_kwargs is None else dict(model_kwargs)
        self._num_warmup = num_warmup
        self._bridge = _bridge(self._model, model_args, model_kwargs, self.path_space)
        bridge = _bound(self._bridge, model_args, model_kwargs)
        params = {} if init_params is None else init_params
        known = {*bridge.diffusion_sites, *bridge.other_sites}
        unknown = sorted(set(params) - known)
        if unknown:
            raise ValueError(
                f"`SplitKernel` has the sites {sorted(known)}; got values of {unknown}. A transformed "
                "diffusion prior cannot be a block: sample the prior, and transform its value."
            )

        self._transforms = _transforms(self._bridge)

        def one(key, params):
            key_start, key = jax.random.split(key)
            z = _start(key_start, bridge, params)
            chain = self.sampler.init(bridge, z)
            return SplitKernelState(z, chain.log_weight, chain, jnp.zeros((), int), key)

        if is_prng_key(rng_key):
            return one(rng_key, params)
        return jax.vmap(one)(rng_key, params)

    def sample(
        self, state: SplitKernelState, model_args: tuple, model_kwargs: dict[str, Any] | None
    ) -> SplitKernelState:
        """One sweep."""
        if self._bridge is None:
            raise RuntimeError("`SplitKernel.sample` needs `init` first.")
        bridge = _bound(self._bridge, model_args, model_kwargs)
        num_warmup = jnp.asarray(self._num_warmup)

        def one(state: SplitKernelState) -> SplitKernelState:
            key, key_sweep = jax.random.split(state.rng_key)
            clock = Clock(state.i, num_warmup)
            chain = self.sampler.sweep(key_sweep, bridge, state.chain, clock)
            chain = _like(state.chain, chain)
            z = {**chain.position, **chain.seen}
            return SplitKernelState(z, chain.log_weight, chain, state.i + 1, key)

        return one(state) if is_prng_key(state.rng_key) else jax.vmap(one)(state)

    def refresh(self, state, model_args, model_kwargs):
        """Nothing that the conditioning values enter is kept from sweep to sweep."""
        return state

    def wrap_model(self, wrapper: Callable) -> "SplitKernel":
        """A copy over `wrapper(model)`."""
        kernel = copy.copy(self)
        kernel._model, kernel._bridge = wrapper(self._model), None
        return kernel

    def postprocess_fn(self, model_args, model_kwargs):
        """Values of latent and deterministic sites from a position."""
        if self._bridge is None:
            return lambda z: z
        return _bound(self._bridge, model_args, model_kwargs).constrain

    def get_constrain_fn(self, model_args, model_kwargs):
        """The same for the kernel's own sites, by transforms alone."""
        transforms = self._transforms
        return lambda z: {n: transforms[n](v) if n in transforms else v for n, v in z.items()}

    def get_diagnostics_str(self, state: SplitKernelState) -> str:
        """Acceptance by block."""
        return ", ".join(f"{n} acc. {float(a):.2f}" for n, a in state.chain.acceptance.items())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bridge": None}


def _like(old, new):
    return jax.tree.map(lambda a, b: b.astype(a.dtype), old, new)


def _start(key: PRNGKey, bridge: Bridge, params: dict[str, Array]) -> Position:
    """A draw of the prior with some values given, other sites unconstrained."""
    z = start(key, bridge)
    x = {n: jnp.asarray(params.get(n, z[n]), z[n].dtype) for n in bridge.diffusion_sites}
    given = {**x, **{n: v for n, v in params.items() if n not in x}}
    parts: Any = bridge.rest.__self__
    trace = parts.trace(lambda site: given.get(site["name"]), key)
    inverse = lambda site: biject_to(site["fn"].support)._inverse(site["value"])
    return {**x, **{n: jnp.asarray(inverse(trace[n]), z[n].dtype) for n in bridge.other_sites}}


def _bridge(model: Callable, args: tuple, kwargs: dict[str, Any], path_space: bool) -> Bridge:
    """The bridge of a model, conditioned on stand-ins for sites of other blocks.

    Their values may be tracers, and what `from_model` checks has to be known; a draw of the prior does.
    """
    held = kwargs.get(GIBBS_SITES_KWARG, {})
    rest = {n: v for n, v in kwargs.items() if n != GIBBS_SITES_KWARG}
    if held:
        with jax.ensure_compile_time_eval():
            trace = prototype_trace(model, jax.random.key(0), args, rest)
            rest[GIBBS_SITES_KWARG] = {n: trace[n]["value"] for n in held}
    with jax.ensure_compile_time_eval():
        return from_model(model, *args, path_space=path_space, **rest)


def _transforms(bridge: Bridge) -> dict[str, Callable]:
    """From unconstrained values of the other sites to those of the model."""
    parts: Any = bridge.rest.__self__
    with jax.ensure_compile_time_eval():
        z = start(jax.random.key(0), bridge)
        trace = parts.trace(parts.values(z, {n: z[n] for n in bridge.diffusion_sites}))
        return {n: biject_to(trace[n]["fn"].support) for n in bridge.other_sites}


def _bound(bridge: Bridge, args: tuple, kwargs: dict[str, Any] | None) -> Bridge:
    """The same bridge with other values of the arguments."""
    parts: Any = bridge.rest.__self__
    arrays = lambda tree: jax.tree.map(
        lambda leaf: jnp.asarray(leaf) if hasattr(leaf, "dtype") else leaf, tree
    )
    parts = dataclasses.replace(parts, args=arrays(args), kwargs=arrays(dict(kwargs or {})))
    fields = set(bridge._fields)
    functions = {n for n in fields if getattr(getattr(bridge, n), "__self__", None) is not None}
    return bridge._replace(**{n: getattr(parts, n) for n in functions})
