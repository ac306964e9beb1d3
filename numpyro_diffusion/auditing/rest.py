r"""Drift of Markov chains that start from data: whether the energy leaves data where they are."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._records import record, record_page
from .._typing import Array, PRNGKey
from ..density.paths import check_data
from ..energies import AbstractEnergy
from ..energies.check import check_has_density
from ..smc.moves import hmc
from ..smc.preconditioner import Preconditioner
from .draws import noised_to_prior
from .levels import mean_and_error

__all__ = ["Rest", "rest_of_data"]


class Rest(NamedTuple):
    r"""Drift of MCMC chains of the energy at `t_min` that start from data.

    Attributes:
        before: Mean energy of the data with the prior's noise, in nats.
        after: Mean energy of where chains lead from there.
        fall: How far energies fall, `before - after`, in nats: 0 under the distribution of the energy.
        fall_error: Its standard error over examples.
        distance: Root mean square length of the way of a coordinate, in noise levels at `t_min`.
        acceptance: Of the chains' moves, in their second half.
        num_chains: One an example.
    """

    before: float
    after: float
    fall: float
    fall_error: float
    distance: float
    acceptance: float
    num_chains: int

    __repr__ = record
    _repr_html_ = record_page


def rest_of_data(
    energy: AbstractEnergy,
    data,
    key: PRNGKey,
    *,
    num_moves: int = 100,
    num_steps: int = 8,
    batch_size: int | None = 4096,
) -> Rest:
    r"""Move noised data by chains that leave the energy's own distribution as it is, and see whether they
    stay.

    Data that follow $p_{t_{\min}}$ do so after any number of moves, and their energies fall by nothing on
    average. An energy knows the places where training looked, and those are noised data. Elsewhere it may be
    deeper than at any of them, by hundreds of nats for images: draws of the reverse process never go there
    and look well, scores on data are right, and yet every chain, NUTS among them, leaves the data for good.

    Hamiltonian moves of `num_steps` leapfrog steps, at a step size that the first half of them tunes. Chains
    that are too short to get anywhere say nothing, so look at `distance` too.

    Args:
        energy: The energy.
        data: Clean examples of shape `(num, *shape)`; one chain each.
        key: PRNG key.
        num_moves: Moves of each chain.
        num_steps: Leapfrog steps a move, an evaluation of energy and score each.
        batch_size: Bound on the evaluations at once; none if `None`.

    Raises:
        TypeError: If `energy` is a denoiser alone.
        ValueError: If data or numbers cannot be used.
    """
    check_has_density("rest_of_data", energy)
    counts = {"num_moves": num_moves, "num_steps": num_steps, "batch_size": batch_size}
    data = check_data(energy, data, **counts)
    key_noise, key_moves = jax.random.split(key)
    start = jnp.asarray(noised_to_prior(energy, data, key_noise), data.dtype)
    found = _chains(energy, start, key_moves, num_moves, num_steps, batch_size)
    end, before, after, acceptance = (np.asarray(value, float) for value in found)
    fall, error = mean_and_error(before - after)
    level = float(energy.schedule.noise_level(jnp.asarray(energy.t_min)))
    return Rest(
        float(before.mean()),
        float(after.mean()),
        float(fall),
        float(error),
        float(np.sqrt(np.mean((end - np.asarray(start)) ** 2)) / level),
        float(acceptance),
        len(data),
    )


@eqx.filter_jit
def _chains(energy, start: Array, key, num_moves, num_steps, batch_size):
    t = jnp.asarray(energy.t_min, start.dtype)
    alpha_t, sigma_t = energy.schedule(t)
    move = hmc(num_steps)
    scale = Preconditioner({"u": jnp.full(start.shape[1:], sigma_t / alpha_t, start.dtype)})
    value = lambda z: -energy.energy(alpha_t * z["u"], t)
    mapped = lambda f, xs: jax.lax.map(f, xs, batch_size=batch_size or len(start))

    def sweep(carry, i):
        states, log_step = carry
        keys = jax.random.split(jax.random.fold_in(key, i), len(start))
        one = lambda at: move.step(at[0], at[1], value, jnp.exp(log_step), scale)
        states, accepted = mapped(one, (keys, states))
        accepted = jnp.mean(accepted)
        gain = jnp.where(2 * i < num_moves, 4 * (1.0 + i) ** -0.6, 0.0)
        log_step = log_step + (gain * (accepted - move.target_acceptance)).astype(log_step.dtype)
        return (states, log_step), accepted

    states = mapped(lambda u: move.init({"u": u}, value, scale), start)
    first = states.logdensity
    log_step = jnp.log(jnp.asarray(0.5, start.dtype))
    (states, _), accepted = jax.lax.scan(sweep, (states, log_step), jnp.arange(num_moves))
    end = jax.vmap(scale.to_model)(states.position)["u"]
    return end, -first, -states.logdensity, jnp.mean(accepted[num_moves // 2 :])
