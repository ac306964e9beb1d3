r"""MCMC moves: BlackJAX's kernels behind one interface.

A move leaves a density invariant. Here it is a pair of functions of ONE particle, like a BlackJAX
algorithm, in the round coordinates of a `Preconditioner`: `init` builds a state from a position,
`init_known` from an evaluation at hand, `step` goes on from it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp

from .._arguments import whole_number
from .._typing import Array, Position, PRNGKey, Scalar
from .preconditioner import Preconditioner

__all__ = ["Move", "from_blackjax", "hmc", "mala", "random_walk"]


class Move(eqx.Module):
    """A BlackJAX kernel with what a pilot needs to tune it.

    Attributes:
        algorithm: BlackJAX algorithm with `init(position, logdensity_fn)` and `build_kernel()`.
        parameters: `(step_size, position) -> dict`: keyword arguments of the kernel.
        evaluations: Density-and-gradient evaluations a step.
        target_acceptance: Acceptance rate that the pilot aims for.
        name: For printing.
        leapfrog: Whether the parameters are `step_size` and `num_integration_steps` of leapfrog steps, so
            that a chain may begin at a position that was not evaluated.
    """

    algorithm: Any = eqx.field(static=True)
    parameters: Callable[[Scalar, Position], dict] = eqx.field(static=True)
    evaluations: int = eqx.field(static=True)
    target_acceptance: float = eqx.field(static=True)
    name: str = eqx.field(static=True)
    leapfrog: bool = eqx.field(static=True, default=False)

    def init(
        self, position: Position, logdensity_fn: Callable, preconditioner: Preconditioner
    ) -> Any:
        """State at a position; evaluates the density (and its gradient if the kernel wants it)."""
        at = preconditioner.to_round(position)
        return self.algorithm.init(at, _in_round(logdensity_fn, preconditioner))

    def init_known(
        self, position: Position, value: Scalar, gradient: Position, preconditioner: Preconditioner
    ) -> Any:
        """State from an evaluation at hand: no new one.

        The kernel's own `init` is given a linear function with the right value and gradient.
        """
        at = preconditioner.to_round(position)
        slope = preconditioner.gradient_to_round(gradient)

        def linear(y):
            return value + jnp.sum(slope * (y - at))

        return self.algorithm.init(at, linear)

    def init_blind(self, position: Position, preconditioner: Preconditioner) -> Any:
        """State at a position that is evaluated by a first `step` of no length.

        Its log density is -inf, so that the step is accepted wherever there is a density. A loop over moves
        thereby holds the only copy of the density that is compiled.

        Raises:
            TypeError: If the kernel makes no leapfrog steps.
        """
        if not self.leapfrog:
            raise TypeError(f"move `{self.name}` makes no leapfrog steps; use `init`.")
        at = preconditioner.to_round(position)
        return self.algorithm.init(at, lambda y: jnp.sum(0 * y) - jnp.inf)

    def step(
        self,
        key: PRNGKey,
        state: Any,
        logdensity_fn: Callable,
        step_size: Scalar,
        preconditioner: Preconditioner,
        first: Array | None = None,
    ) -> tuple[Any, Scalar]:
        """One move; returns the new state and its acceptance probability.

        Args:
            key: PRNG key.
            state: Where it starts.
            logdensity_fn: What it leaves invariant.
            step_size: In round coordinates.
            preconditioner: Round coordinates.
            first: After `init_blind`: whether this is the step that evaluates and stays.
        """
        return self.step_and_proposal(key, state, logdensity_fn, step_size, preconditioner, first)[
            :2
        ]

    def step_and_proposal(
        self,
        key: PRNGKey,
        state: Any,
        logdensity_fn: Callable,
        step_size: Scalar,
        preconditioner: Preconditioner,
        first: Array | None = None,
    ) -> tuple[Any, Scalar, Any]:
        """The same with the state that was proposed; the new one, where the kernel doesn't tell."""
        kernel = self.algorithm.build_kernel()
        parameters = self.parameters(step_size, state.position)
        if first is not None:
            length, count = parameters["step_size"], parameters["num_integration_steps"]
            length, count = jnp.where(first, 0.0, length), jnp.where(first, 1, count)
            parameters |= {"step_size": length, "num_integration_steps": count}
        state, info = kernel(key, state, _in_round(logdensity_fn, preconditioner), **parameters)
        proposal = getattr(info, "proposal", state)
        return state, jnp.nan_to_num(info.acceptance_rate), proposal

    def gradient(self, state: Any, preconditioner: Preconditioner) -> Position:
        """Gradient of the log density at a state, in the coordinates of the model.

        Raises:
            TypeError: If the kernel does not use gradients.
        """
        if not hasattr(state, "logdensity_grad"):
            raise TypeError(f"move `{self.name}` keeps no gradient; use `mala()` or `hmc(n)`.")
        return preconditioner.gradient_to_model(state.logdensity_grad)


def _in_round(logdensity_fn: Callable, preconditioner: Preconditioner) -> Callable:
    return lambda y: logdensity_fn(preconditioner.to_model(y))


def from_blackjax(
    algorithm: Any,
    parameters: Callable[[Scalar, Position], dict],
    *,
    evaluations: int = 1,
    target_acceptance: float = 0.6,
    name: str | None = None,
) -> Move:
    """A move from any BlackJAX algorithm whose kernel takes `(key, state, logdensity_fn, **params)`.

    Args:
        algorithm: For instance `blackjax.mala`, `blackjax.hmc`, `blackjax.barker_proposal`.
        parameters: `(step_size, position) -> dict`, the kernel's parameters at a step size.
        evaluations: Evaluations of the density that one step costs.
        target_acceptance: Acceptance rate that a pilot aims for.
        name: For printing; by default that of the algorithm or of the module it is from.
    """
    evaluations = whole_number("evaluations", evaluations, 0)
    module = algorithm.init.__module__.rpartition(".")[2]
    label = name or getattr(algorithm, "__name__", module)
    return Move(algorithm, parameters, evaluations, target_acceptance, label)


def _dimension(position: Position) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(position))


def _ones(position: Position) -> Array:
    return jnp.ones(_dimension(position), jnp.result_type(*jax.tree.leaves(position)))


def _step_size_alone(step_size, position):
    del position
    return {"step_size": step_size}


def _mala_parameters(step_size, position):
    length = jnp.sqrt(2 * step_size)
    return {
        "step_size": length,
        "inverse_mass_matrix": _ones(position),
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


class _HMCParameters(eqx.Module):
    num_integration_steps: int

    def __call__(self, step_size, position):
        return {
            "step_size": step_size,
            "inverse_mass_matrix": _ones(position),
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
    return from_blackjax(_RandomWalk, _step_size_alone, target_acceptance=0.3, name="random_walk")
