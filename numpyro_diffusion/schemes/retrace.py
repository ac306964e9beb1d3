r"""Backward kernels and transition densities of the transports, for conditional SMC.

Where weights are made with a backward kernel $L$, the law of the paths that end in $x$ is $\gamma_0(x)$ times
backward kernels: a path can be made anew from its end, and need not be remembered. A level's moves are
reversible and are their own backward kernels. In path space the law of the paths is the sampler's own;
they are remembered.

Ancestor sampling asks for $M_k G_k$. With $G_k = \gamma_s(u_s)\, L(u_t \mid u_s) / \gamma_t(u_t)\, M(u_s \mid
u_t)$ the proposal drops out: the past $u_t$ of a given $u_s$ is chosen by $L(u_t \mid u_s) / \gamma_t(u_t)$.
"""

from collections.abc import Callable
from functools import singledispatch
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Position, PRNGKey, Scalar
from ..bridge import Bridge
from ..conditional import Path, PathModel
from .guided import Guided
from .kernels import Kernels, Particle
from .levels import Level
from .proposals import Reverse, usable
from .transport import AbstractTransport, Carry, Draws

__all__ = ["Retrace", "needed", "noised_path", "path_model", "remembered_path", "retrace"]


class Retrace(NamedTuple):
    r"""A transport, for steps that are given.

    Attributes:
        log_ratio: `(bridge, particle, position, level) -> ()`: $\log R$ of the step to `position`.
        log_link: `(bridge, particle, position, level) -> ()`: $\log M R$ of it, up to what does not depend
            on the particle; `None` for a map, which has no density.
        back: `(key, bridge, position, level) -> position`: a draw of the backward kernel; `None` where
            the path is to be remembered.
    """

    log_ratio: Callable[[Bridge, Particle, Position, Level], Scalar]
    log_link: Callable[[Bridge, Particle, Position, Level], Scalar] | None
    back: Callable[[PRNGKey, Bridge, Position, Level], Position] | None


@singledispatch
def retrace(transport: AbstractTransport) -> Retrace:
    """How to go back along a transport; register a function for a new one.

    Raises:
        TypeError: If nothing is registered for it.
    """
    raise TypeError(
        f"the transport {type(transport).__name__} cannot go back, so that no path can be kept. Use "
        "`ReverseDiffusion`, `Annealed` or `Twisted(conjugate=False)`."
    )


retrace.register(Draws, retrace.dispatch(object))


@retrace.register
def _(transport: Carry) -> Retrace:
    def log_ratio(bridge, particle, position, level):
        del position
        return bridge.carry(particle.position, level.clock, level.next_clock)[1]

    def back(key, bridge, position, level):
        del key
        return bridge.carry(position, level.next_clock, level.clock)[0]

    return Retrace(log_ratio, None, back)


@retrace.register
def _(transport: Reverse) -> Retrace:
    def log_ratio(bridge, particle, position, level):
        total, old = jnp.zeros(()), particle.position
        gradient = transport.steered(bridge, old, particle.gradient, level)
        for name in bridge.diffusion_sites:
            step = transport.step(bridge, old, gradient, level, name)
            drift = (position[name] - old[name]).ravel()
            total = total + step.log_ratio(drift, step.noise(drift - step.mean))
        return total

    def log_link(bridge, particle, position, level):
        total = jnp.zeros(())
        moves, noises = _noises(bridge, level)
        for name, v in noises.items():
            total = total - 0.5 * jnp.sum((particle.position[name] - position[name]) ** 2) / v
        return jnp.where(moves, total, -jnp.inf)

    def back(key, bridge, position, level):
        moves, noises = _noises(bridge, level)
        keys, new = jax.random.split(key, len(noises)), dict(position)
        for k, (name, v) in zip(keys, noises.items(), strict=True):
            noise = jnp.sqrt(v) * jax.random.normal(k, new[name].shape, new[name].dtype)
            new[name] = new[name] + jnp.where(moves, noise, 0.0)
        return new

    return Retrace(log_ratio, log_link, back)


def _noises(bridge: Bridge, level: Level):
    """Whether two levels differ, and the variance of the noise between them, by site."""
    moves = level.next_clock < level.clock
    noisy, clean = bridge.noise(level.clock), bridge.noise(level.next_clock)
    one = lambda n: jnp.where(moves, (noisy[n] - clean[n]) * (noisy[n] + clean[n]), 1.0)
    return moves, {name: one(name) for name in bridge.diffusion_sites}


@retrace.register
def _(transport: Guided) -> Retrace:
    def pulls(bridge, particle, position, level):
        """The steps of the sampler itself, and how far the given one is off their means."""
        steps = transport.steps(bridge, particle.seen, level)
        for n, step in steps.items():
            yield n, step, (position[n] - particle.position[n]).ravel() - step.mean

    def log_ratio(bridge, particle, position, level):
        total = jnp.zeros(())
        for n, step, pull in pulls(bridge, particle, position, level):
            gap = pull - step.times_covariance(usable(particle.gradient[n]).ravel())
            terms = step.noise(gap) ** 2 / transport.inflation + jnp.log(transport.inflation)
            terms = 0.5 * jnp.sum(terms - step.noise(pull) ** 2)
            total = total + jnp.where(step.moves, terms, 0.0)
        return total

    def log_link(bridge, particle, position, level):
        total = jnp.zeros(())
        for _, step, pull in pulls(bridge, particle, position, level):
            total = total - 0.5 * jnp.sum(step.noise(pull) ** 2)
        return jnp.where(level.next_clock < level.clock, total, -jnp.inf)

    return Retrace(log_ratio, log_link, None)


def path_model(kernels: Kernels, levels: Level, *, samples_ancestors: bool = True) -> PathModel:
    """The Feynman-Kac model of some kernels, for given paths.

    All sites of the position must be diffusion sites.

    Args:
        kernels: Moves and weights over a bridge.
        levels: Frozen levels; see `needed`.
        samples_ancestors: Whether a path may take the past of another particle.
    """
    bridge, links = kernels.bridge, retrace(kernels.transport)
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
    return bridge._replace(floor=level.floor)


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
    back = retrace(kernels.transport).back
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
