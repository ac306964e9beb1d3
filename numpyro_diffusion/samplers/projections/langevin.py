r"""Projected Langevin dynamics: feasible draws of another distribution, as a baseline."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ... import _faq
from ..._arguments import whole_numbers
from ..._prng import lean
from ..._records import record, record_page
from ..._typing import Array, PRNGKey
from ...energies import AbstractDenoiser, AbstractEnergy, FactoredDenoiser
from ...energies.factored import log_factors

__all__ = ["ProjectedDraws", "projected_langevin"]


class ProjectedDraws(NamedTuple):
    """Draws of projected Langevin dynamics.

    Attributes:
        positions: Shape `(num_samples, *shape)`, in units of the data, all feasible.
        target: The distribution that was sampled, in words.
        exact: Whether that is the distribution of the energy in a limit that the run approaches: it is not.
    """

    positions: Array
    target: str
    exact: bool = False

    __repr__ = record
    _repr_html_ = record_page


def projected_langevin(
    key: PRNGKey,
    energy: AbstractDenoiser,
    projection: Callable[[Array], Array],
    *,
    step_size: float = 0.05,
    num_steps: int = 200,
    num_samples: int = 1000,
    initial: Array | None = None,
) -> ProjectedDraws:
    r"""$u \leftarrow \Pi\big(u + \eta \nabla \log p(u) + \sqrt{2 \eta}\, \xi\big)$ at `t_min`: a heuristic.

    Projected coupled diffusion as published, with `energy` a `Joint` and its `Coupling`. Draws are
    feasible, but what leaves the set comes to lie *on* its boundary, so that their distribution has atoms
    there, whose mass falls as $\sqrt\eta$; nor have Langevin steps a Metropolis test. The distribution
    confined to the set is that of `energy + Restrict(projection.slack)`, with the probability of the set as
    evidence.

    Args:
        key: PRNG key.
        energy: The distribution, all its factors in; only its score at `t_min` is used, so a denoiser without
            energy will do, and one of `denoiser + factor` has the slope of its factors at clean data.
        projection: From ONE example to the nearest feasible one, in units of the data.
        step_size: $\eta$, in squared units of the data; well below the smallest variance.
        num_steps: Steps of each chain.
        num_samples: Chains; the last state of each is a draw.
        initial: Starts, shape `(num_samples, *shape)`; by default projected draws of the Gaussian of
            `energy.moments(t_min)`.

    Raises:
        ValueError: If a number is out of range, or `initial` has another shape.
        TypeError: If `energy` is neither energy nor denoiser.
        FloatingPointError: If a chain's position is not finite.

    References:
        Luan, Goh, Ng & Ling (2025), Projected coupled diffusion for test-time constrained joint generation,
        arXiv 2508.10531. Bubeck, Eldan & Lehec (2018), Sampling from a log-concave distribution with
        projected Langevin Monte Carlo, for the limit of small steps.
    """
    num_steps, num_samples = whole_numbers(1, num_steps=num_steps, num_samples=num_samples)
    if not isinstance(energy, AbstractDenoiser):
        raise TypeError(
            f"`projected_langevin` expects an energy or a denoiser; got {type(energy).__name__}. A score is "
            f"one by `nd.ScoreFunction(fn, shape)`. {_faq.kinds}"
        )
    if not 0 < step_size < jnp.inf:
        raise ValueError(
            f"`step_size` must be positive and finite; got {step_size}. {_faq.numbers}"
        )
    shape = (num_samples, *energy.shape)
    if initial is not None and initial.shape != shape:
        raise ValueError(f"`initial` must have shape {shape}; got {initial.shape}. {_faq.shapes}")
    eta = jnp.asarray(step_size, jnp.result_type(float))
    keys = jax.random.split(lean(key), num_samples)
    positions = _chains(keys, energy, projection, eta, num_steps, initial)
    lost = None if isinstance(positions, Tracer) else ~np.isfinite(np.asarray(positions))
    if lost is not None and lost.any():
        chains = lost.reshape(num_samples, -1).any(1)
        raise FloatingPointError(
            f"`projected_langevin` lost {int(chains.sum())} of {num_samples} chains, the first is number "
            f"{int(chains.argmax())}: their positions are not finite. Take a smaller `step_size`, and look "
            f"at the score of the energy where chains start (`initial`). {_faq.lost}"
        )
    target = f"projected Langevin steps of size {step_size:g}: feasible, with mass on the boundary"
    return ProjectedDraws(positions, target)


def whole_score(energy: AbstractDenoiser, u: Array, t: Array) -> Array:
    r"""$\nabla_u$ of the log density at `t_min`, in units of the data, factors of a denoiser included."""
    if isinstance(energy, AbstractEnergy):
        return energy.log_density_and_score(u, t)[1]
    if isinstance(energy, FactoredDenoiser):
        slope = jax.grad(lambda u: log_factors(energy, u, u, t))(u)
        return energy.base.data_score(u, t) + slope
    return energy.data_score(u, t)


@eqx.filter_jit
def _chains(keys, energy, projection, eta, num_steps, initial):
    t = jnp.asarray(energy.t_min, eta.dtype)
    alpha, _ = energy.schedule(t)
    mean, variance = energy.moments(t)

    def start(key):
        white = jax.random.normal(key, energy.shape, eta.dtype)
        return projection((mean + jnp.sqrt(variance) * white) / alpha)

    def chain(key, first):
        key_start, key_steps = jax.random.split(key)
        u = start(key_start) if first is None else first

        def step(u, key):
            score = whole_score(energy, u, t)
            noise = jnp.sqrt(2 * eta) * jax.random.normal(key, u.shape, u.dtype)
            return projection(u + eta * score + noise), None

        return jax.lax.scan(step, u, jax.random.split(key_steps, num_steps))[0]

    return jax.vmap(chain, in_axes=(0, None if initial is None else 0))(keys, initial)
