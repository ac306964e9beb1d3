r"""Ensemble Kalman diffusion guidance (EnKG): an interacting ensemble, without any derivative."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree

from .. import _faq
from .._arguments import whole_number, whole_numbers
from .._prng import lean
from .._records import record, record_page
from .._typing import Array, Position, PRNGKey
from ..bridge import Bridge
from .split.blocks import ladder
from .split.daps import flow

__all__ = ["EnsembleDraws", "ensemble_kalman"]


class EnsembleDraws(NamedTuple):
    """An ensemble at the end of its flow.

    Attributes:
        positions: Diffusion sites in units of the data, leading with `(num_particles,)`; no weights.
        target: The distribution that was sampled, in words.
        exact: Whether that is the posterior in a limit that the run approaches: it is not.
    """

    positions: Position
    target: str
    exact: bool = False

    __repr__ = record
    _repr_html_ = record_page


def ensemble_kalman(
    key: PRNGKey,
    bridge: Bridge,
    *,
    num_particles: int = 1000,
    num_steps: int = 50,
    num_updates: int = 1,
    flow_steps: int = 10,
    guidance: float = 1.0,
    idle: float = 0.1,
) -> EnsembleDraws:
    r"""Ensemble Kalman diffusion guidance as published: a heuristic without derivatives of model or network.

    Particles $u_j$ follow the probability flow from noise to data. Before each step they are moved by what an
    ensemble knows of the operator $G$: with $\hat x_j$ the end of the flow from $u_j$,

    $$u_j \leftarrow u_j - w \sum_k c_{jk}\, (u_k - \bar u), \qquad c_{jk} = \tfrac1J \big\langle G(\hat x_j)
    - y,\ G(\hat x_k) - \bar G \big\rangle_\Gamma, \qquad w = g / \lVert c \rVert_F ,$$

    which is a gradient step of the likelihood, preconditioned by the covariance of the ensemble, with the
    regression of $G(\hat x)$ on $u$ in the place of its derivative. The flow has no noise, and the step has
    a fixed
    length: the ensemble ends near the data and is no sample of the posterior. With weights, for unknown noise
    levels too: `Twisted(proposal=schemes.EnsembleKalman())` with `twist=twists.BlackBox()`.

    Args:
        key: PRNG key.
        bridge: From `from_model`, with `bridge_type=nd.bridge.PathBridge`; a score is enough.
        num_particles: $J$.
        num_steps: Steps of the flow, dense near the data.
        num_updates: Moves before each step.
        flow_steps: Steps from $u_j$ to $\hat x_j$, each an evaluation; 1 for the denoised mean.
        guidance: $g$.
        idle: Share of the steps at either end without moves.

    Raises:
        ValueError: If a number is out of range, or the bridge is not what is needed.
        FloatingPointError: If a particle is not finite.

    References:
        Zheng, Chu, Wang, Kovachki, Baptista & Yue (2024), Ensemble Kalman Diffusion Guidance: A
        Derivative-free Method for Inverse Problems, arXiv 2409.20175.
    """
    num_particles = whole_number("num_particles", num_particles, 2)
    num_steps, num_updates, flow_steps = whole_numbers(
        1, num_steps=num_steps, num_updates=num_updates, flow_steps=flow_steps
    )
    if not 0 < guidance < np.inf:
        raise ValueError(
            f"`guidance` must be positive and finite; got {guidance}. Try 1; published are 2 to "
            f"3.5. {_faq.numbers}"
        )
    if not 0 <= idle < 0.5:
        raise ValueError(
            f"`idle` is a share from 0 to below 1/2; got {idle}. Published is 0.1. {_faq.numbers}"
        )
    if not bridge.diffusion_sites or bridge.other_sites:
        raise ValueError(
            "`ensemble_kalman` moves diffusion variables under a known noise level; the model "
            "has diffusion sites "
            f"{list(bridge.diffusion_sites)} and other sites {list(bridge.other_sites)}. Use"
            f" `nd.Twisted(proposal=nd.schemes.EnsembleKalman())`. {_faq.operator}"
        )
    if bridge.laws({}) is None:
        raise ValueError(
            "`ensemble_kalman` reads predictions and noise off a NumPyro model; the bridge of "
            "`from_energy` has a"
            f" log likelihood alone. Use `from_model`. {_faq.operator}"
        )
    sizes = jnp.asarray(guidance, jnp.result_type(float))
    first, last = int(idle * num_steps), num_steps - int(idle * num_steps)
    acts = (np.arange(num_steps) >= first) & (np.arange(num_steps) < last)
    numbers = num_particles, num_steps, num_updates, flow_steps
    positions = _run(lean(key), bridge, sizes, jnp.asarray(acts), *numbers)
    for name, values in positions.items():
        if isinstance(values, Tracer):
            break
        lost = ~np.isfinite(np.asarray(values)).reshape(num_particles, -1).all(1)
        if lost.any():
            raise FloatingPointError(
                f"`ensemble_kalman` lost {int(lost.sum())} of {num_particles} particles at site "
                f"{name!r}: they are"
                " not finite. Take a smaller `guidance`, and look at the score and the operator "
                f"at noise. {_faq.lost}"
            )
    target = (
        f"what the ensemble Kalman flow of {num_particles} particles in {num_steps} steps leads to"
    )
    return EnsembleDraws(positions, f"{target}; meant is: {bridge.target}")


@eqx.filter_jit
def _run(key, bridge, guidance, acts, num_particles, num_steps, num_updates, flow_steps):
    names = bridge.diffusion_sites
    keys = jax.random.split(key, num_particles)
    u = {name: leaf for name, leaf in jax.vmap(bridge.sample_base)(keys).items() if name in names}
    clocks = ladder(bridge, jnp.ones(()), num_steps, 7.0)

    def predicted(u: Position, clock):
        """What each particle is heading for, as the data see it, less the data, in their deviations."""
        end = flow(bridge, u, ladder(bridge, clock, flow_steps, 7.0))
        _, information, residual = bridge.laws(end)(end)
        return ravel_pytree({n: _scaled(information[n], residual[n]) for n in residual})[0]

    def move(_, carry):
        u, clock = carry
        errors = -jax.vmap(lambda u: predicted(u, clock))(u)
        coefficients = errors @ (errors - jnp.mean(errors, 0)).T / num_particles
        length = jnp.sqrt(jnp.sum(coefficients**2))
        share = guidance * coefficients / jnp.where(length > 0, length, 1.0)

        def one(leaf: Array):
            away = leaf - jnp.mean(leaf, 0)
            return (leaf - jnp.tensordot(share, away, 1)).astype(leaf.dtype)

        return jax.tree.map(one, u), clock

    def step(u, level):
        clock, following, active = level
        guided, _ = jax.lax.fori_loop(0, num_updates, move, (u, clock))
        u = jax.tree.map(lambda a, b: jnp.where(active, a, b), guided, u)
        return jax.vmap(lambda u: flow(bridge, u, jnp.stack([clock, following])))(u), None

    return jax.lax.scan(step, u, (clocks[:-1], clocks[1:], acts))[0]


def _scaled(information: Array, residual: Array) -> Array:
    """The residual in units of the data's standard deviations."""
    if information.shape == residual.shape:
        return jnp.sqrt(information) * residual
    return jnp.einsum("...ji,...j->...i", jnp.linalg.cholesky(information), residual)
