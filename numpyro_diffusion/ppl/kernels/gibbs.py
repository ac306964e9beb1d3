"""Particle Gibbs: conditional SMC updates of the diffusion sites given all others."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ... import _faq
from ..._finite import Sightings
from ..._typing import Array, Position, PRNGKey, Scalar
from ...schemes import TunedScheme
from ...schemes.retrace import way_back
from ...twists import AbstractTwist
from .particles import AbstractParticles

__all__ = ["ParticleGibbs", "ParticleGibbsState"]


class ParticleGibbsState(NamedTuple):
    """State of one chain.

    Attributes:
        i: Steps taken, warm-up included.
        z: Values of the diffusion sites.
        trail: The path of noised values that led there, where the scheme is in path space; else `None`.
        ess: Effective sample size at the end of the last run, over the number of particles.
        moved: Whether the last step has changed `z`.
        mean_moved: How often it did, since warm-up or while that lasts.
        rng_key: For the next step.
        non_finite: Where log densities were NaN or +inf; after +inf `z` is NaN.
    """

    i: Scalar
    z: Position
    trail: Any
    ess: Scalar
    moved: Array
    mean_moved: Scalar
    rng_key: PRNGKey
    non_finite: Sightings


class ParticleGibbs(AbstractParticles):
    r"""Particle Gibbs with ancestor sampling, from noise to data, for the diffusion sites of a model.

    One step runs $N$ particles through the noise levels, one of them along a path that ends in the present
    value, and moves to the end of one of the paths. It leaves the posterior of the diffusion sites given all
    others invariant for *any* $N$, with whatever levels: more particles only move farther. All modes are
    one at high noise, so that a step may end in another mode.

    The target is the model's own posterior under $e^{-E(\cdot, t_{\min})}$; with `Twisted` it is that under
    the distribution of the reverse sampler, of which the state remembers the path.

    Levels are chosen once, at `init`, and no warm-up is needed.

    Args:
        model: A NumPyro model.
        scheme: `ReverseDiffusion`, `Annealed` or `Twisted`; by default the first, without moves. `Annealed`
            has no ancestor sampling and wants more particles.
        num_particles: $N$.
        twist: What the likelihood sees at noisy levels; what the scheme prefers by default.
        threshold: Resample below this share of the effective sample size.

    Raises:
        ValueError: At `init`, if the block has a site without `DiffusionPrior`, or none with one.
        TypeError: For a scheme that is no `TunedScheme`; at `init`, for a transport that cannot go back, and
            for a prior that is a score alone, unless the scheme is in path space.
        FloatingPointError: If a log density was +inf, when the run is done. A warning tells of NaN.

    Example:
        >>> kernel = Gibbs([(nd.ParticleGibbs(model), ["x"]), (NUTS(model), None)])
        >>> MCMC(kernel, num_warmup=500, num_samples=1000).run(jax.random.key(0), y=y)

    References:
        Lindsten, Jordan & Schon (2014), Particle Gibbs with ancestor sampling, JMLR.
    """

    def __init__(
        self,
        model: Callable,
        scheme: TunedScheme | None = None,
        *,
        num_particles: int = 16,
        twist: AbstractTwist | None = None,
        threshold: float = 0.5,
    ):
        super().__init__(
            model, scheme, num_particles=num_particles, twist=twist, threshold=threshold
        )

    @property
    def default_fields(self) -> tuple[str, ...]:
        """Draws, and whether they moved."""
        return ("z", "moved")

    def get_diagnostics_str(self, state: ParticleGibbsState) -> str:
        """Text for the progress bar."""
        return f"{self.num_particles} particles, moved {state.mean_moved:.2f}"

    def check(self, sites, others, in_block):
        """Refuse sites of other priors."""
        if others:
            names = ", ".join(f"`{n}`" for n in others)
            where = "by a block of their own" if in_block else "beside it"
            raise ValueError(
                f"`ParticleGibbs` moves sites with a `DiffusionPrior`; {names} has another prior and is to "
                f"be moved {where}: `Gibbs([(ParticleGibbs(model), {list(sites)}), (NUTS(model), None)])`. "
                "(The diffusion site of a transformed prior is its base: "
                f"`TransformReparam`.) {_faq.blocks}"
            )

    def start(self, rng_key, values, args, kwargs):
        """Initial state: from given values, or from an SMC run without a reference path."""
        key_run, rng_key = jax.random.split(rng_key)
        kernels = self.problem.given(args, kwargs)
        first = self.run(key_run, self.model_of(kernels))
        z = first.particle.position
        if values is not None and way_back(kernels.transport).back is not None:
            z = {n: jnp.asarray(values[n], z[n].dtype) for n in self.problem.sites}
        zero = jnp.zeros_like(first.ess)
        none, met = jnp.zeros((), int), self.met(first)
        still = jnp.zeros((), bool)
        return ParticleGibbsState(none, z, first.trail, zero, still, zero, rng_key, met)

    def step(self, state, args, kwargs):
        """Run conditional SMC and choose one of its paths."""
        rng_key, key_path, key_run = jax.random.split(state.rng_key, 3)
        kernels = self.problem.given(args, kwargs)
        model = self.model_of(kernels)
        path = self.path(key_path, kernels, model, state.z, state.trail)
        new = self.run(key_run, model, path)
        i = state.i + 1
        count = jnp.where(i <= self._num_warmup, i, i - self._num_warmup)
        mean = state.mean_moved + (new.moved - state.mean_moved) / count
        met = state.non_finite.add(new.non_finite, i)
        z = met.spoil(new.particle.position)
        return ParticleGibbsState(i, z, new.trail, new.ess, new.moved, mean, rng_key, met)

    def refresh(self, state, model_args, model_kwargs):
        """The state as it is: nothing in it depends on the other sites."""
        del model_args, model_kwargs
        return state

    def get_constrain_fn(self, model_args, model_kwargs):
        """The values as they are: diffusion sites are real."""
        del model_args, model_kwargs
        return lambda z: z
