"""Base class of kernels: NumPyro's contract, for one chain, several, or a block of Gibbs."""

import abc
import copy
from collections.abc import Callable
from typing import Any, Self

import jax
from numpyro.infer.mcmc import MCMCKernel
from numpyro.infer.util import constrain_fn
from numpyro.util import is_prng_key

from ..._typing import PRNGKey

__all__ = ["AbstractKernel"]


class AbstractKernel(MCMCKernel):
    """A kernel over a model, as functions of one chain.

    `MCMC` gives `vectorized` chains as a batch of keys or states, and everything else one by one. States
    are named tuples with fields `i`, `z` and `rng_key`.

    Args:
        model: A NumPyro model.
    """

    sample_field: str = "z"

    def __init__(self, model: Callable):
        self._model = model
        self._num_warmup = 0
        self._sample_fn: Callable | None = None  # `MCMC` asks for it, to see whether `init` has run

    @property
    def model(self) -> Callable:
        """The model."""
        return self._model

    @property
    def default_fields(self) -> tuple[str, ...]:
        """Collected without being asked for."""
        return ("z",)

    @abc.abstractmethod
    def prepare(self, rng_key: PRNGKey, values: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Prepare what depends on the values of the data, once; returns where to start."""

    @abc.abstractmethod
    def start(self, rng_key: PRNGKey, values: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The first state of one chain; `values` are of `prepare`."""

    @abc.abstractmethod
    def step(self, state: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The next state of one chain."""

    def init(self, rng_key, num_warmup, init_params, model_args, model_kwargs):
        """The first state; with several keys, that of several chains."""
        kwargs = {} if model_kwargs is None else dict(model_kwargs)
        self._num_warmup = num_warmup
        values = self.prepare(rng_key, init_params, model_args, kwargs)
        start = lambda key, values: self.start(key, values, model_args, kwargs)
        if not is_prng_key(rng_key):
            start = jax.vmap(start)
        state = jax.jit(start)(rng_key, values)
        self._sample_fn = self.step
        return state

    def sample(self, state, model_args, model_kwargs):
        """The next state; of several chains if the state is one of several."""
        kwargs = {} if model_kwargs is None else dict(model_kwargs)
        step = lambda state: self.step(state, model_args, kwargs)
        return step(state) if is_prng_key(state.rng_key) else jax.vmap(step)(state)

    def wrap_model(self, wrapper: Callable) -> Self:
        """Return the same kernel over `wrapper(model)`, not initialised."""
        kernel = copy.copy(self)
        kernel._model = wrapper(self._model)
        kernel._sample_fn = None
        return kernel

    def postprocess_fn(self, model_args, model_kwargs):
        """Function from `z` to values of all latent and deterministic sites."""
        kwargs = {} if model_kwargs is None else dict(model_kwargs)
        return lambda z: constrain_fn(self._model, model_args, kwargs, z, return_deterministic=True)
