"""Particle marginal Metropolis-Hastings (PMMH): a random walk on the other sites with estimated evidences."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer.gibbs import GIBBS_SITES_KWARG, conditioned, with_conditioning
from numpyro.infer.hmc_util import HMCAdaptState

from ... import _faq
from ..._finite import Sightings
from ..._typing import Position, PRNGKey, Scalar
from ...schemes import TunedScheme
from ...schemes.retrace import way_back
from ...twists import AbstractTwist
from ..sites import is_diffusion, stand_in
from ..tracing import tracing
from .adaptation import Adaptation, round_coordinates
from .particles import AbstractParticles
from .problem import traced

__all__ = ["ParticleMarginal", "ParticleMarginalState"]


class ParticleMarginalState(NamedTuple):
    r"""State of one chain.

    Attributes:
        i: Steps taken, warm-up included.
        z: Unconstrained values by site; of the diffusion sites, one particle's.
        trail: The path of noised values that led there, where the scheme is in path space; else `None`.
        log_evidence: Estimate of $\log p(\theta, y)$ at `z`, with the Jacobian of the transform.
        accept_prob: Acceptance probability of the last step.
        mean_accept_prob: Its mean, since warm-up or while it lasts.
        adapt_state: Step size and covariance of the walk.
        rng_key: For the next step.
        non_finite: Where log densities were NaN or +inf; after +inf `z` is NaN.
    """

    i: Scalar
    z: Position
    trail: Any
    log_evidence: Scalar
    accept_prob: Scalar
    mean_accept_prob: Scalar
    adapt_state: HMCAdaptState
    rng_key: PRNGKey
    non_finite: Sightings


class ParticleMarginal(AbstractParticles):
    r"""Particle marginal Metropolis-Hastings over the other sites $\theta$, diffusion sites summed out.

    A proposal $\theta'$ of a random walk is accepted with probability $\min\{1, \hat p(\theta', y) / \hat
    p(\theta, y)\}$, where $\hat p$ is the unbiased estimate of a run of $N$ particles at fixed $\theta'$, of
    which one is kept. The target is that of `ParticleGibbs`, exact for *any* $N$. With few particles the
    chain sticks at estimates that happen to be large: the standard deviation of $\log \hat p$ should be
    about 1, also where $\theta$ is far from typical, such as at a tiny noise level;
    `ReverseDiffusion(covariance=Local())` follows $\theta$ there. The prior's normaliser drops out.

    Warm-up adapts step and covariance of the walk, which are then frozen. For a handful of other sites that
    are tied closely to the diffusion sites, where Gibbs steps would be short.

    Args:
        model: A NumPyro model.
        scheme: `ReverseDiffusion`, `Annealed` or `Twisted`; by default the first, without moves.
        num_particles: $N$.
        twist: What the likelihood sees at noisy levels; what the scheme prefers by default.
        threshold: Resample below this share of the effective sample size.
        target_acceptance: What warm-up aims for.

    Raises:
        ValueError: At `init`, if there is no diffusion site, no other site, or a discrete one.
        TypeError: For a scheme that is no `TunedScheme`; at `init`, for a transport that cannot go back, and
            for a prior that is a score alone, unless the scheme is in path space.
        FloatingPointError: If a log density was +inf, when the run is done. A warning tells of NaN.

    References:
        Andrieu, Doucet & Holenstein (2010), Particle Markov chain Monte Carlo methods, JRSS B.
    """

    def __init__(
        self,
        model: Callable,
        scheme: TunedScheme | None = None,
        *,
        num_particles: int = 64,
        twist: AbstractTwist | None = None,
        threshold: float = 0.5,
        target_acceptance: float = 0.25,
    ):
        super().__init__(
            model, scheme, num_particles=num_particles, twist=twist, threshold=threshold
        )
        self.target_acceptance = target_acceptance

    @property
    def default_fields(self) -> tuple[str, ...]:
        """Draws and acceptance probabilities."""
        return ("z", "accept_prob")

    def get_diagnostics_str(self, state: ParticleMarginalState) -> str:
        """Text for the progress bar."""
        return f"{self.num_particles} particles, acc. prob={state.mean_accept_prob:.2f}"

    def check(self, sites, others, in_block):
        """Refuse a block without other sites."""
        del in_block
        if not others:
            raise ValueError(
                f"`ParticleMarginal` sums out {list(sites)} for the sake of other sites, and there are "
                f"none. Use `ParticleGibbs`. {_faq.blocks}"
            )

    def start(self, rng_key, values, args, kwargs):
        """Initial state: at given values, or at draws of the prior."""
        key_start, key_run, rng_key = jax.random.split(rng_key, 3)
        problem, given = self.problem, GIBBS_SITES_KWARG in kwargs
        if values is None or given:
            trace = traced(self._model, key_start, args, kwargs)
            first = {n: trace[n]["value"] for n in problem.others} if values is None else values
            supports = {n: biject_to(trace[n]["fn"].support) for n in problem.others}
            others = {n: jnp.asarray(supports[n]._inverse(first[n])) for n in problem.others}
        else:
            others = {n: values[n] for n in problem.others}
        x = None
        if values is not None and set(problem.sites) <= set(values):
            x = {n: values[n] for n in problem.sites}
        first, log_evidence = self.estimate(key_run, others, x, None, args, kwargs)
        z, trail = first.particle.position, first.trail
        adapt_state = self._adaptation.start(others, 1.0)
        zero = jnp.zeros_like(log_evidence)
        none = jnp.zeros((), int), {**z, **others}, trail, log_evidence
        met = self.met(first)
        return ParticleMarginalState(*none, zero, zero, adapt_state, rng_key, met)

    def estimate(self, key, others: Position, x: Position | None, trail: Any, args, kwargs):
        """A run at fixed other sites, along the path to `x` if given, and its evidence."""
        values, log_det = self._constrained(others, args, kwargs)
        kernels = self.problem.given(args, with_conditioning(kwargs, values))
        model = self.model_of(kernels)
        key_path, key_run = jax.random.split(key)
        known = trail is not None or way_back(kernels.transport).back is not None
        path = None
        if x is not None and known:
            path = self.path(key_path, kernels, model, x, trail)
        new = self.run(key_run, model, path, stays=path is not None)
        return new, new.log_evidence + log_det

    def step(self, state, args, kwargs):
        """Propose by a random walk and accept or reject by the ratio of estimated likelihoods."""
        rng_key, key_walk, key_run, key_accept = jax.random.split(state.rng_key, 4)
        old = {n: state.z[n] for n in self.problem.others}
        coordinates = round_coordinates(state.adapt_state, old)
        here = coordinates.to_round(old)
        away = coordinates.to_model(jax.random.normal(key_walk, here.shape, here.dtype))
        size = state.adapt_state.step_size
        others = jax.tree.map(lambda a, b: a + size * b, old, away)
        found, log_evidence = self.estimate(key_run, others, None, None, args, kwargs)
        met = state.non_finite.add(found.non_finite, state.i + 1)
        log_ratio = log_evidence - state.log_evidence
        log_ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)
        accepts = jnp.log(jax.random.uniform(key_accept)) < log_ratio
        choose = lambda a, b: jax.tree.map(lambda x, y: jnp.where(accepts, x, y), a, b)
        new = {**found.particle.position, **others}, found.trail, log_evidence
        z, trail, log_evidence = choose(new, (state.z, state.trail, state.log_evidence))
        accepted = jnp.exp(jnp.minimum(log_ratio, 0.0))
        here = {n: z[n] for n in self.problem.others}
        adapt_state = self._adaptation.update(state.i, accepted, here, state.adapt_state)
        i = state.i + 1
        count = jnp.where(i <= self._num_warmup, i, i - self._num_warmup)
        mean = state.mean_accept_prob + (accepted - state.mean_accept_prob) / count
        new = i, met.spoil(z), trail, log_evidence, accepted, mean, adapt_state, rng_key, met
        return ParticleMarginalState(*new)

    def refresh(self, state, model_args, model_kwargs):
        """An estimate at what other blocks have made of their sites, from a run that keeps the draw.

        The estimate is part of the chain: one that were not from a run along the present path would be of
        another distribution.
        """
        rng_key, key = jax.random.split(state.rng_key)
        others = {n: state.z[n] for n in self.problem.others}
        x = {n: state.z[n] for n in self.problem.sites}
        new, log_evidence = self.estimate(key, others, x, state.trail, model_args, model_kwargs)
        met = state.non_finite.add(new.non_finite, state.i)
        z = met.spoil({**new.particle.position, **others})
        return state._replace(
            z=z, trail=new.trail, log_evidence=log_evidence, rng_key=rng_key, non_finite=met
        )

    def get_constrain_fn(self, model_args, model_kwargs):
        """Function from `z` to values of the sites; the diffusion sites are real."""
        kwargs = {} if model_kwargs is None else model_kwargs
        split = lambda z: {n: z[n] for n in self.problem.others}
        return lambda z: {**z, **self._constrained(split(z), model_args, kwargs)[0]}

    @property
    def _adaptation(self) -> Adaptation:
        return Adaptation(self._num_warmup, self.target_acceptance, dense=True)

    def _constrained(self, z: Position, args, kwargs) -> tuple[dict[str, Any], Scalar]:
        """Values of the other sites, and the log-determinant of the transform."""
        log_dets = []

        def value(site):
            name = site["name"]
            if name not in z:
                return stand_in(site) if is_diffusion(site) else None
            transform = biject_to(site["fn"].support)
            new = transform(z[name])
            log_dets.append(jnp.sum(transform.log_abs_det_jacobian(z[name], new)))
            return new

        model = handlers.seed(conditioned(self._model), jax.random.key(0))
        model = handlers.substitute(model, substitute_fn=value)
        with tracing:
            trace = handlers.trace(model).get_trace(*args, **kwargs)
        return {n: trace[n]["value"] for n in z}, sum(log_dets, jnp.zeros(()))
