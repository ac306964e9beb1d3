r"""MCMC moves: BlackJAX's kernels behind one interface.

A move leaves a density invariant. Here it is a pair of functions of ONE particle, like a BlackJAX
algorithm, in the round coordinates of a `Preconditioner`: `init` builds a state from a position,
`init_known` from an evaluation at hand, `step` goes on from it.
"""

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ... import _faq
from ..._typing import Array, Position, PRNGKey, Scalar
from ..preconditioner import Preconditioner

__all__ = ["BlackJAXMove", "Move", "acceptance_of"]


class Move(eqx.Module):
    """A kernel that leaves a density as it is, with what a pilot needs to tune it.

    States have a `position` in round coordinates, its `logdensity` and, where `keeps_gradient`, the
    `logdensity_grad` there.

    Attributes:
        evaluations: Density-and-gradient evaluations a step; `None` where that depends on the state.
        target_acceptance: Acceptance rate that the pilot aims for; 1 for a kernel that rejects nothing and
            needs no step size.
        name: For printing.
        leapfrog: Whether a chain may begin at a position that was not evaluated (see `init_blind`).
    """

    if TYPE_CHECKING:  # fields of some subclasses, properties of others

        @property
        def evaluations(self) -> int | None: ...

        @property
        def target_acceptance(self) -> float: ...

        @property
        def name(self) -> str: ...

        @property
        def leapfrog(self) -> bool: ...
    else:
        leapfrog = False

    def __repr__(self) -> str:
        if self.name.isidentifier():
            return f"{self.name}()"
        return self.name if self.name.partition("(")[0].isidentifier() else f"<{self.name}>"

    @property
    @abc.abstractmethod
    def keeps_gradient(self) -> bool:
        """Whether the gradient at the position is known after a step."""

    @property
    def num_parts(self) -> int:
        """Moves with step sizes of their own: 1, but for compositions."""
        return 1

    @property
    def targets(self) -> Any:
        """Acceptance rate of each part: shape `(num_parts,)` for compositions, else `()`."""
        return self.target_acceptance

    @abc.abstractmethod
    def init(
        self, position: Position, logdensity_fn: Callable, preconditioner: Preconditioner
    ) -> Any:
        """State at a position; evaluates the density (and its gradient if the kernel wants it)."""

    @abc.abstractmethod
    def init_known(
        self, position: Position, value: Scalar, gradient: Position, preconditioner: Preconditioner
    ) -> Any:
        """State from an evaluation at hand: no new one."""

    @abc.abstractmethod
    def step_by_part(
        self,
        key: PRNGKey,
        state: Any,
        logdensity_fn: Callable,
        step_size: Array,
        preconditioner: Preconditioner,
        first: Array | None = None,
    ) -> tuple[Any, Scalar, Array, Any]:
        """One move.

        Args:
            key: PRNG key.
            state: Where it starts.
            logdensity_fn: What it leaves invariant.
            step_size: In round coordinates; one for all parts, or one for each.
            preconditioner: Round coordinates.
            first: After `init_blind`: whether this is the step that evaluates and stays.

        Returns:
            The new state; the mean acceptance probability of what was proposed; that of each part, of the
            shape of `targets`, which is its target where the part made no step; and the state that was
            proposed, or the new one where the kernel doesn't tell.
        """

    def init_blind(self, position: Position, preconditioner: Preconditioner) -> Any:
        """State at a position that is evaluated by a first `step` of no length.

        Raises:
            TypeError: If the kernel makes no leapfrog steps.
        """
        del position, preconditioner
        raise TypeError(f"move `{self.name}` makes no leapfrog steps; use `init`. {_faq.moves}")

    def step(
        self, key, state, logdensity_fn, step_size, preconditioner, first=None
    ) -> tuple[Any, Scalar]:
        """One move; returns the new state and its acceptance probability."""
        return self.step_by_part(key, state, logdensity_fn, step_size, preconditioner, first)[:2]

    def step_and_proposal(
        self, key, state, logdensity_fn, step_size, preconditioner, first=None
    ) -> tuple[Any, Scalar, Any]:
        """The same with the state that was proposed; the new one, where the kernel doesn't tell."""
        new = self.step_by_part(key, state, logdensity_fn, step_size, preconditioner, first)
        return new[0], new[1], new[3]

    def gradient(self, state: Any, preconditioner: Preconditioner) -> Position:
        """Gradient of the log density at a state, in the coordinates of the model.

        Raises:
            TypeError: If the kernel does not use gradients.
        """
        if not hasattr(state, "logdensity_grad"):
            raise TypeError(
                f"move `{self.name}` keeps no gradient; use `mala()` or `hmc(n)`. {_faq.moves}"
            )
        return preconditioner.gradient_to_model(state.logdensity_grad)


def acceptance_of(info: Any) -> Scalar:
    """Acceptance probability of a BlackJAX step; 1 where a kernel, such as a slice sampler, has none."""
    rate = getattr(info, "acceptance_rate", None)
    return jnp.ones(()) if rate is None else jnp.nan_to_num(rate)


class BlackJAXMove(Move):
    """A BlackJAX kernel.

    Attributes:
        algorithm: BlackJAX algorithm with `init(position, logdensity_fn)` and `build_kernel()`.
        parameters: `(step_size, position) -> dict`: keyword arguments of the kernel.
        evaluations: Density-and-gradient evaluations a step; `None` if not known.
        target_acceptance: Acceptance rate that the pilot aims for.
        name: For printing.
        leapfrog: Whether the parameters are `step_size` and `num_integration_steps` of leapfrog steps, so
            that a chain may begin at a position that was not evaluated.
    """

    algorithm: Any = eqx.field(static=True)
    parameters: Callable[[Scalar, Position], dict] = eqx.field(static=True)
    evaluations: int | None = eqx.field(static=True)
    target_acceptance: float = eqx.field(static=True)
    name: str = eqx.field(static=True)
    leapfrog: bool = eqx.field(static=True, default=False)

    @property
    def keeps_gradient(self) -> bool:
        """Whether states of the kernel hold a gradient."""
        state = jax.eval_shape(
            lambda y: self.algorithm.init(y, lambda y: jnp.sum(y)), np.zeros(2, np.float32)
        )
        return hasattr(state, "logdensity_grad")

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
            raise TypeError(f"move `{self.name}` makes no leapfrog steps; use `init`. {_faq.moves}")
        at = preconditioner.to_round(position)
        return self.algorithm.init(at, lambda y: jnp.sum(0 * y) - jnp.inf)

    def step_by_part(
        self, key, state, logdensity_fn, step_size, preconditioner, first=None
    ) -> tuple[Any, Scalar, Array, Any]:
        """One step of the kernel."""
        kernel = self.algorithm.build_kernel()
        parameters = self.parameters_at(step_size, state, preconditioner)
        if first is not None:
            length, count = parameters["step_size"], parameters["num_integration_steps"]
            length, count = jnp.where(first, 0.0, length), jnp.where(first, 1, count)
            parameters |= {"step_size": length, "num_integration_steps": count}
        state, info = kernel(key, state, _in_round(logdensity_fn, preconditioner), **parameters)
        accepted = acceptance_of(info)
        return state, accepted, accepted, getattr(info, "proposal", state)

    def parameters_at(self, step_size: Scalar, state: Any, preconditioner: Preconditioner) -> dict:
        """Keyword arguments of the kernel at a state."""
        del preconditioner
        return self.parameters(step_size, state.position)


def _in_round(logdensity_fn: Callable, preconditioner: Preconditioner) -> Callable:
    return lambda y: logdensity_fn(preconditioner.to_model(y))
