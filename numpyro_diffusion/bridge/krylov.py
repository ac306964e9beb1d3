r"""Posterior covariances of denoised means in a Krylov subspace of the data's information (MMPS).

Per example, the Krylov vectors of $F C$ from the gradient of the likelihood: the directions that conjugate
gradients would take for the widened likelihood. $C = \tau^2 \partial \hat x / \partial u$ costs one
derivative of the denoiser a direction, forwards. Other sites are held at one typical value, so that the
result is a function of the diffusion sites alone and moves of other sites need no network evaluation.

Not lineax's conjugate gradients: they return the solution, and needed here are the directions on the way.

References:
    Rozet et al. (2024), Learning Diffusion Priors from Observations by Expectation Maximization, NeurIPS.
    Gittens & Mahoney (2016), Revisiting the Nyström Method, JMLR.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, Position, Scalar
from ..energies.noise import root_of
from ..twists import LowRank, added_variance, denoised_mean
from .observed import Curvature
from .sites import DiffusionSite

__all__ = ["krylov"]


def krylov(
    sites: dict[str, DiffusionSite],
    num_directions: int,
    gradient: Callable[[Position], Position],
    curvature: Callable[[Position], Curvature],
    u: Position,
    x_hat: Position,
    clock: Scalar,
) -> dict[str, LowRank]:
    """Covariances around `x_hat`, by site.

    Args:
        sites: The diffusion sites.
        num_directions: Directions an example; those beyond its number of coordinates are 0.
        gradient: Of the log likelihood, at clean values.
        curvature: $F$ at clean values.
        u: The noised variables.
        x_hat: Their denoised means.
        clock: The clock.
    """
    u, x_hat = jax.lax.stop_gradient((u, x_hat))
    times = {name: site.time(clock) for name, site in sites.items()}
    tau2 = {n: added_variance(s.energy, times[n]).astype(u[n].dtype) for n, s in sites.items()}

    def jacobian(name, v):
        """The derivative of the denoised mean along `v`, example by example."""
        site, t = sites[name], times[name]
        mean = lambda one: denoised_mean(site.energy, one, t)
        along = lambda one, v: jax.jvp(mean, (one,), (v,))[1]
        flat = lambda leaf: leaf.reshape(-1, *site.energy.shape)
        image = jax.vmap(along)(flat(u[name]), flat(v.reshape(site.shape)))
        return _rows(jnp.nan_to_num(image, posinf=0.0, neginf=0.0), site)

    bend = curvature(x_hat)
    zeros = {
        n: jnp.zeros((num_directions, *_rows(v, sites[n]).shape), v.dtype) for n, v in u.items()
    }

    def one(i, carry):
        bases, images, direction = carry
        step = {}
        for name, site in sites.items():
            v = _orthonormal(_rows(direction[name], site), bases[name])
            image = jacobian(name, v)
            bases = {**bases, name: bases[name].at[i].set(v)}
            images = {**images, name: images[name].at[i].set(image)}
            step[name] = (tau2[name] * image).reshape(site.shape)
        return bases, images, jax.tree.map(jnp.nan_to_num, bend.times(step))

    start = zeros, zeros, jax.tree.map(jnp.nan_to_num, gradient(x_hat))
    bases, images, _ = jax.lax.fori_loop(0, num_directions, one, start)
    roots = {}
    for name, site in sites.items():
        signs = np.random.default_rng(0).choice([-1.0, 1.0], _rows(u[name], site).shape)
        probe = _remainder(jnp.asarray(signs, u[name].dtype), bases[name])
        left = jnp.sum(probe**2, -1)
        share = jnp.sum(probe * jacobian(name, probe), -1) / jnp.maximum(left, 1e-3)
        floor = tau2[name] * jnp.clip(jnp.where(left > 1e-3, share, 0.0), 0.0, 1.0)
        columns = root_of(tau2[name]) * _nystrom(bases[name], images[name])
        roots[name] = LowRank(columns, bases[name], floor)
    return jax.lax.stop_gradient(roots)


def _rows(leaf: Array, site: DiffusionSite) -> Array:
    """One flat row an example."""
    return leaf.reshape(site.size, -1)


def _remainder(v: Array, basis: Array) -> Array:
    """What is left of `v`, `(examples, size)`, beside a basis, `(directions, examples, size)`."""
    for _ in range(2):  # once leaves rounding errors that grow from vector to vector
        v = v - jnp.einsum("ib,ibs->bs", jnp.einsum("ibs,bs->ib", basis, v), basis)
    return v


def _orthonormal(v: Array, basis: Array) -> Array:
    """The new direction that `v` brings; 0 where it brings none."""
    before = jnp.sqrt(jnp.sum(v**2, -1, keepdims=True))
    scaled = v / jnp.where(before > 0, before, 1.0)
    left = _remainder(scaled, basis)
    length = jnp.sqrt(jnp.sum(left**2, -1, keepdims=True))
    floor = 100 * jnp.finfo(v.dtype).eps ** 0.75
    return jnp.where(length > floor, left / jnp.where(length > floor, length, 1.0), 0.0)


def _nystrom(basis: Array, images: Array) -> Array:
    r"""Columns whose squares add up to $J V (V^\top J V)^{-1} V^\top J$, no longer than 1 each."""
    small = jnp.einsum("ibs,jbs->bij", basis, images)
    values, vectors = jnp.linalg.eigh(0.5 * (small + small.swapaxes(-1, -2)))
    scale = jnp.where(
        values > 1e-5, 1 / jnp.maximum(values, jnp.sqrt(jnp.maximum(values, 1e-5))), 0.0
    )
    return jnp.einsum("jbs,bji,bi->ibs", images, vectors, scale)
