r"""Backward kernels and transition densities of the transports, for conditional SMC.

Where weights are made with a backward kernel $L$, the distribution of the paths that end in $x$ is
$\gamma_0(x)$ times
backward kernels: a path can be made anew from its end, and need not be remembered. A level's moves are
reversible and are their own backward kernels. In path space the distribution of the paths is the sampler's
own; they are remembered.

Ancestor sampling asks for $M_k G_k$. With $G_k = \gamma_s(u_s)\, L(u_t \mid u_s) / \gamma_t(u_t)\, M(u_s \mid
u_t)$ the proposal drops out: the past $u_t$ of a given $u_s$ is chosen by $L(u_t \mid u_s) / \gamma_t(u_t)$.
"""

import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._typing import Position, PRNGKey
from ..bridge import Bridge
from ..smc.conditional import Path, PathModel
from .kernels import Kernels
from .levels import Level
from .particle import Particle
from .transport import AbstractTransport, Retrace

__all__ = ["needed", "noised_path", "path_model", "remembered_path", "way_back"]


def way_back(transport: AbstractTransport) -> Retrace:
    """Backward kernel and transition density of a transport, for conditional SMC.

    Raises:
        TypeError: If the transport has no way back.
    """
    links = transport.retrace()
    if links is None:
        raise TypeError(
            f"the transport `{type(transport).__name__}` cannot go back, so that no path can be kept: its "
            "`retrace` answers with `None`. Use `ReverseDiffusion`, `Annealed` or "
            "`Twisted(conjugate=False)`; for a transport of your own, let it answer with a "
            f"`schemes.Retrace`. {_faq.moves}"
        )
    return links


def path_model(kernels: Kernels, levels: Level, *, samples_ancestors: bool = True) -> PathModel:
    """The Feynman-Kac model of some kernels, for given paths.

    All sites of the position must be diffusion sites.

    Args:
        kernels: Moves and weights over a bridge.
        levels: Frozen levels; see `needed`.
        samples_ancestors: Whether a path may take the past of another particle.
    """
    bridge, links = kernels.bridge, way_back(kernels.transport)
    clock, power = levels.clock[0], levels.power[0]
    floor = jax.tree.map(lambda leaf: leaf[0], levels.floor)

    def log_initial(particle):
        return particle.log_density - bridge.log_base(particle.position)

    def init(key):
        particle = kernels.evaluate(bridge.sample_base(key), clock, power, floor)
        info = kernels.info(particle, jnp.ones(()), jnp.ones(()))
        particle = kernels.remembered(particle)
        return particle, log_initial(particle), info

    def move(key, particle, level):
        return kernels.moved(key, particle, level)[0] if kernels.has_joint_moves else particle

    def advance(key, particle, level):
        return kernels.advance(key, particle, level)

    def log_increment(particle, new, level):
        ratio = links.log_ratio(_at(bridge, level), particle, new.position, level)
        return new.log_density - particle.log_density + ratio

    def log_link(particle, new, level):
        assert links.log_link is not None
        at = _at(bridge, level)
        return links.log_link(at, particle, new.position, level) - particle.log_density

    return PathModel(
        init,
        move,
        advance,
        log_initial,
        log_increment,
        log_link if samples_ancestors and links.log_link is not None else None,
        levels,
        _nothing if links.back is not None else _position,
    )


def _at(bridge: Bridge, level: Level) -> Bridge:
    return bridge.at_floor(level.floor)


def needed(kernels: Kernels, levels: Level) -> Level:
    """Concrete levels without those that neither move nor weigh."""
    if kernels.has_joint_moves:
        return levels
    falls = np.asarray(levels.next_clock) < np.asarray(levels.clock)
    weighs = falls | (np.asarray(levels.next_power) != np.asarray(levels.power))
    for name, floor in levels.floor.items():
        weighs |= np.asarray(levels.next_floor[name]) != np.asarray(floor)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[weighs], levels)


def _nothing(particle: Particle) -> None:
    del particle


def _position(particle: Particle) -> Position:
    return particle.position


def noised_path(key: PRNGKey, kernels: Kernels, model: PathModel, position: Position) -> Path:
    """A path that ends at a position, drawn by the backward kernels."""
    back = way_back(kernels.transport).back
    assert back is not None
    zero, one = jnp.zeros(()), jnp.ones(())

    def one_level(arrived, row):
        key, level = row
        key_back, key_move = jax.random.split(key)
        z = back(key_back, kernels.bridge, arrived.position, level)
        moved = kernels.remembered(kernels.evaluate(z, level.clock, level.power, level.floor))
        return model.move(key_move, moved, level), (moved, arrived)

    last = kernels.remembered(kernels.evaluate(position, zero, one, {}))
    keys = jax.random.split(key, model.levels.clock.shape[0])
    rows = keys, model.levels
    start, (moved, arrived) = jax.lax.scan(one_level, last, rows, reverse=True)
    return Path(start, moved, arrived)


def remembered_path(kernels: Kernels, model: PathModel, positions: Position) -> Path:
    """The particles at remembered positions, which lead with the levels and the end."""
    levels = model.levels
    clocks = jnp.append(levels.clock, levels.next_clock[-1])
    powers = jnp.append(levels.power, levels.next_power[-1])
    floors = jax.tree.map(lambda a, b: jnp.append(a, b[-1]), levels.floor, levels.next_floor)
    see = lambda z, *at: kernels.remembered(kernels.evaluate(z, *at))
    particles = jax.vmap(see)(positions, clocks, powers, floors)
    part = lambda index: jax.tree.map(lambda leaf: leaf[index], particles)
    return Path(part(0), part(slice(None, -1)), part(slice(1, None)))
