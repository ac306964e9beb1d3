"""Kernels of BlackJAX as moves, by name."""

import dataclasses
from typing import NamedTuple

import blackjax
import blackjax.mcmc.slice as slices
import equinox as eqx
import jax
import jax.numpy as jnp

from .adapted import from_blackjax
from .base import Move
from .parameters import ones, step_size_alone

__all__ = ["barker", "mala", "random_walk", "slice_sampling"]


def _mala_parameters(step_size, position):
    length = jnp.sqrt(2 * step_size)
    return {
        "step_size": length,
        "inverse_mass_matrix": ones(position),
        "num_integration_steps": 1,
    }


def mala() -> Move:
    """Metropolis-adjusted Langevin (MALA): one evaluation a move.

    It is Hamiltonian Monte Carlo with one leapfrog step of length `sqrt(2 * step_size)`, and run as that.

    References:
        Roberts & Tweedie (1996), Exponential convergence of Langevin distributions, Bernoulli.
        Neal (2011), section 5.5.2, for their equality.
    """
    move = from_blackjax(blackjax.hmc, _mala_parameters, target_acceptance=0.6, name="mala")
    return dataclasses.replace(move, leapfrog=True)


class _RandomWalk(NamedTuple):
    """BlackJAX's additive-step random walk with one step size for all coordinates."""

    @staticmethod
    def init(position, logdensity_fn):
        return blackjax.additive_step_random_walk.init(position, logdensity_fn)

    @staticmethod
    def build_kernel():
        kernel = blackjax.additive_step_random_walk.build_kernel()

        def step(key, state, logdensity_fn, step_size):
            def propose(key, position):
                leaves, treedef = jax.tree.flatten(position)
                keys = jax.random.split(key, len(leaves))
                return treedef.unflatten(
                    [
                        step_size * jax.random.normal(k, leaf.shape, leaf.dtype)
                        for k, leaf in zip(keys, leaves, strict=True)
                    ]
                )

            return kernel(key, state, logdensity_fn, propose)

        return step


def random_walk() -> Move:
    """Gaussian random-walk Metropolis: no gradient, for likelihoods that have none."""
    return from_blackjax(_RandomWalk, step_size_alone, target_acceptance=0.3, name="random_walk")


def barker() -> Move:
    """Barker's proposal, which a step size that is far too long hurts less than MALA's.

    References:
        Livingstone & Zanella (2022), The Barker proposal, JRSS B.
    """
    return from_blackjax(blackjax.barker, step_size_alone, target_acceptance=0.4, name="barker")


class _SliceParameters(eqx.Module):
    def __call__(self, step_size, position):
        del step_size, position
        return {"proposal_generator": slices.direction_proposal(), "width": 2.0}


def slice_sampling() -> Move:
    """Slice sampling along a random direction, two standard deviations wide at first.

    It takes no gradient and has no step size to tune.

    References:
        Neal (2003), Slice sampling, Annals of Statistics.
    """
    return from_blackjax(
        blackjax.slice_sampling,
        _SliceParameters(),
        evaluations=None,
        target_acceptance=1.0,
        name="slice_sampling",
    )
