"""Hamiltonian moves: HMC, NUTS, adjusted MCLMC and Riemannian manifold HMC, from BlackJAX."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
from blackjax.mcmc import integrators
from jax.flatten_util import ravel_pytree

from ... import _faq
from ..._arguments import check_callable, whole_number
from ..._typing import Array, Position
from ..._written import written
from .adapted import from_blackjax
from .base import BlackJAXMove, Move
from .parameters import ones, with_mass

__all__ = ["adjusted_mclmc", "hmc", "nuts", "rmhmc"]


class _HMCParameters(eqx.Module):
    num_integration_steps: int

    def __call__(self, step_size, position):
        return {
            "step_size": step_size,
            "inverse_mass_matrix": ones(position),
            "num_integration_steps": self.num_integration_steps,
        }


def hmc(num_integration_steps: int = 2) -> Move:
    """Hamiltonian Monte Carlo with a fixed number of leapfrog steps, one evaluation each.

    References:
        Neal (2011), MCMC using Hamiltonian dynamics, Handbook of Markov Chain Monte Carlo.
    """
    num_integration_steps = whole_number("num_integration_steps", num_integration_steps, 1)
    move = from_blackjax(
        blackjax.hmc,
        _HMCParameters(num_integration_steps),
        evaluations=num_integration_steps,
        target_acceptance=0.75,
        name=f"hmc({num_integration_steps})",
    )
    return dataclasses.replace(move, leapfrog=True)


class _NUTSParameters(eqx.Module):
    max_num_doublings: int

    def __call__(self, step_size, position):
        return with_mass(step_size, position) | {"max_num_doublings": self.max_num_doublings}


def nuts(max_num_doublings: int = 5) -> Move:
    """The no-U-turn sampler. In a cloud every particle waits for the longest trajectory.

    Args:
        max_num_doublings: At most two to this power leapfrog steps.

    References:
        Hoffman & Gelman (2014), The no-U-turn sampler, JMLR.
    """
    most = whole_number("max_num_doublings", max_num_doublings, 1)
    return from_blackjax(
        blackjax.nuts,
        _NUTSParameters(most),
        evaluations=None,
        target_acceptance=0.8,
        name=f"nuts({most})",
    )


class _MCLMCParameters(eqx.Module):
    num_integration_steps: int

    def __call__(self, step_size, position):
        if position.size < 2:
            raise ValueError(
                "`adjusted_mclmc` turns a momentum of length 1, which takes at least 2 coordinates; got "
                f"{position.size}. Use `hmc(n)`. {_faq.moves}"
            )
        return {
            "step_size": step_size * jnp.sqrt(position.size),
            "integration_steps_params": (self.num_integration_steps,),
        }


def adjusted_mclmc(num_integration_steps: int = 3) -> Move:
    """Microcanonical Langevin dynamics with an accept step, which makes it exact.

    The step size counts a coordinate: steps on the sphere of momenta are its multiple by the root of the
    dimension. A step costs two gradients.

    Raises:
        ValueError: When it is run in one dimension.

    References:
        Robnik, Cohn-Gordon & Seljak (2025), Metropolis adjusted microcanonical Hamiltonian Monte Carlo,
        arXiv 2503.01707.
    """
    number = whole_number("num_integration_steps", num_integration_steps, 1)
    return from_blackjax(
        blackjax.adjusted_mclmc,
        _MCLMCParameters(number),
        evaluations=2 * number,
        target_acceptance=0.8,
        name=f"adjusted_mclmc({number})",
    )


_SAME = 1e-3  # relative to a coordinate and 1: solutions of a midpoint equation are farther apart


def _reversible_midpoint(logdensity_fn, kinetic_energy_fn):
    """Implicit midpoint steps, refused (a density of 0) where the step back does not lead to the start.

    Iterations that have not converged, or that end in another solution, are no reversible map: a move that
    accepts them does not leave the density as it is.
    """
    step = integrators.implicit_midpoint(logdensity_fn, kinetic_energy_fn)

    def checked(state, step_size):
        new = step(state, step_size)
        back = step(new, -step_size)
        ends = zip(jax.tree.leaves(state[:2]), jax.tree.leaves(back[:2]), strict=True)
        same = [jnp.all(jnp.abs(b - a) <= _SAME * (1 + jnp.abs(a))) for a, b in ends]
        sound = jnp.all(jnp.stack(same)) & ~jnp.isneginf(state.logdensity)
        return new._replace(logdensity=jnp.where(sound, new.logdensity, -jnp.inf))

    return checked


class _Implicit(NamedTuple):
    """Hamiltonian Monte Carlo with implicit midpoint steps."""

    @staticmethod
    def init(position, logdensity_fn):
        return blackjax.hmc.init(position, logdensity_fn)

    @staticmethod
    def build_kernel():
        return blackjax.hmc.build_kernel(_reversible_midpoint)


class _Riemannian(BlackJAXMove):
    """Its metric is given in the coordinates of the model."""

    def __repr__(self) -> str:
        matrix: Any = self.parameters
        return f"rmhmc({written(matrix.mass_matrix)}, {matrix.num_integration_steps})"

    def parameters_at(self, step_size, state, preconditioner):
        """Step size, number of steps and the mass matrix in round coordinates."""
        dimension = state.position.size
        flat = lambda y: ravel_pytree(preconditioner.to_model(y))[0]
        jacobian = jax.jacfwd(flat)(jnp.zeros_like(state.position))  # the map is linear

        def mass_matrix(y):
            mass = jnp.asarray(self.parameters.mass_matrix(preconditioner.to_model(y)))  # type: ignore
            if mass.shape != (dimension, dimension):
                raise ValueError(
                    f"`mass_matrix` returns a matrix ({dimension}, {dimension}) over the flattened position; "
                    f"got shape {mass.shape}. {_faq.moves}"
                )
            return jacobian.T @ mass @ jacobian

        return self.parameters(step_size, state.position) | {"inverse_mass_matrix": mass_matrix}


class _RiemannianParameters(eqx.Module):
    mass_matrix: Callable
    num_integration_steps: int

    def __call__(self, step_size, position):
        del position
        return {"step_size": step_size, "num_integration_steps": self.num_integration_steps}


def rmhmc(mass_matrix: Callable[[Position], Array], num_integration_steps: int = 3) -> Move:
    """Riemannian Hamiltonian Monte Carlo: a metric that depends on the position.

    Implicit midpoint steps are solved by iteration. A trajectory with a step whose way back is another one is
    refused, so that the move leaves a density as it is up to the tolerance of the iteration.

    Args:
        mass_matrix: `z -> ` a positive definite matrix over the flattened position, in the coordinates of the
            model: for instance the expected information.
        num_integration_steps: Steps of a trajectory; each costs several gradients, there and back.

    References:
        Girolami & Calderhead (2011), Riemann manifold Langevin and Hamiltonian Monte Carlo methods, JRSS B.
        Zappa, Holmes-Cerfon & Goodman (2018), Monte Carlo on manifolds, CPAM: the check of the way back.
    """
    number = whole_number("num_integration_steps", num_integration_steps, 1)
    check_callable("mass_matrix", mass_matrix, "`lambda z: jnp.eye(2)`")
    parameters = _RiemannianParameters(mass_matrix, number)
    return _Riemannian(_Implicit, parameters, None, 0.8, f"rmhmc({number})")
