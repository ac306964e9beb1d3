"""Base class of kernels that run particles."""

import abc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from numpyro.infer.gibbs import GIBBS_SITES_KWARG

from ... import _faq
from ..._arguments import whole_number
from ..._finite import Sightings
from ...schemes import ReverseDiffusion, TunedScheme
from ...schemes.checks import check_tuned
from ...schemes.kernels import Kernels
from ...schemes.retrace import noised_path, path_model, remembered_path, way_back
from ...smc.conditional import Pass, Path, PathModel, conditional_smc
from ...twists import AbstractTwist
from .base import AbstractKernel
from .problem import Problem, prepare

__all__ = ["AbstractParticles"]


class AbstractParticles(AbstractKernel):
    """A kernel that runs particles over the diffusion sites of its block.

    Args:
        model: A NumPyro model.
        scheme: How particles get from noise to data: `ReverseDiffusion` (the default, without moves),
            `Annealed`, or `Twisted` for a score alone.
        num_particles: Particles of each run.
        twist: What the likelihood sees at noisy levels; what the scheme prefers by default.
        threshold: Resample below this share of the effective sample size.
    """

    def __init__(
        self,
        model: Callable,
        scheme: TunedScheme | None = None,
        *,
        num_particles: int,
        twist: AbstractTwist | None = None,
        threshold: float = 0.5,
    ):
        check_tuned(type(self).__name__, scheme)
        num_particles = whole_number("num_particles", num_particles, 2)
        super().__init__(model)
        self.scheme = ReverseDiffusion(moves=0) if scheme is None else scheme
        self.num_particles, self.threshold = num_particles, threshold
        self.twist = self.scheme.twist if twist is None else twist
        self._problem: Problem | None = None
        self._made_for: Any = None

    @property
    def problem(self) -> Problem:
        """Bridge and levels; there once `init` has run."""
        assert self._problem is not None, "`init` must be called before `sample`."
        return self._problem

    def wrap_model(self, wrapper):
        """Return the same kernel over `wrapper(model)`, not initialised."""
        kernel = super().wrap_model(wrapper)
        kernel._problem = None
        return kernel

    @abc.abstractmethod
    def check(self, sites: tuple[str, ...], others: tuple[str, ...], in_block: bool) -> None:
        """Refuse sites that are not the kernel's to move."""

    def prepare(self, rng_key, values, args, kwargs):
        """Bridge and levels."""
        del rng_key
        self.make(args, kwargs)
        return values

    def make(self, args: tuple, kwargs: dict[str, Any]) -> Problem:
        """The problem, made anew unless it is there for the same arguments: chains in turn share it.

        Under `vmap` or `jit` over data it must have been made before, for data of the same shapes.
        """
        plain = {k: v for k, v in kwargs.items() if k != GIBBS_SITES_KWARG}
        names = sorted(kwargs.get(GIBBS_SITES_KWARG, {}))
        leaves = [*jax.tree.leaves((args, plain)), *names]
        name = type(self).__name__
        if any(isinstance(leaf, Tracer) for leaf in leaves):
            if self._problem is None:
                raise TypeError(
                    f"`{name}` expects the values of the data, to choose its levels; got traced arrays. Call "
                    "`kernel.init` for one data set first, outside of `jit` and "
                    f"`vmap`. {_faq.needs_values}"
                )
        elif self._problem is None or not _same(leaves, self._made_for):
            check = lambda sites, others: self.check(sites, others, GIBBS_SITES_KWARG in kwargs)
            self._problem = prepare(name, check, self._model, self.scheme, self.twist, args, kwargs)
            self._made_for = leaves
        assert self._problem is not None
        return self._problem

    def model_of(self, kernels: Kernels) -> PathModel:
        """The Feynman-Kac model at the present values of the other sites."""
        return path_model(kernels, self.problem.levels)

    def path(self, key, kernels: Kernels, model: PathModel, z: Any, trail: Any) -> Path:
        """The path to keep: drawn anew from its end, or as it is remembered."""
        if way_back(kernels.transport).back is None:
            return remembered_path(kernels, model, trail)
        return noised_path(key, kernels, model, z)

    def met(self, first: Pass) -> Sightings:
        """NaN and +inf met by the SMC run before the first step."""
        num_levels = jax.tree.leaves(self.problem.levels)[0].shape[0]
        nothing = Sightings.none(first.non_finite, type(self).__name__, num_levels)
        return nothing.add(first.non_finite, jnp.zeros((), int))

    def run(self, key, model: PathModel, path: Path | None = None, *, stays: bool = False) -> Pass:
        """Run the particles once."""
        options: Any = {"threshold": self.threshold, "stays": stays}
        return conditional_smc(key, model, self.num_particles, path, **options)


def _same(new: list, old: list) -> bool:
    """Whether all arrays are the very same, and all else is equal."""
    plain = lambda a, b: isinstance(a, str | int | float | bool) and type(a) is type(b) and a == b
    pairs = zip(new, old, strict=False)
    return len(new) == len(old) and all(a is b or plain(a, b) for a, b in pairs)
