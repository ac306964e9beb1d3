"""`from_blackjax`: any kernel of BlackJAX that leaves a density as it is, and refusals of what does not."""

import inspect
from collections.abc import Callable
from typing import Any

import blackjax
import jax

from ... import _faq
from ..._arguments import check_callable, whole_or_none
from ..._typing import Position, Scalar
from .base import BlackJAXMove, Move

__all__ = ["from_blackjax"]

_UNADJUSTED = "it accepts every step, so that what it leaves as it is depends on the step size"
_STOCHASTIC = (
    "it follows noisy gradients without an accept step: what it draws is only near the density"
)
_NO_KERNEL = "it is no Markov chain on positions"
_REFUSED = {
    "mclmc": (_UNADJUSTED, "`nd.moves.adjusted_mclmc()`"),
    "sgld": (_STOCHASTIC, "`nd.moves.mala()`"),
    "sghmc": (_STOCHASTIC, "`nd.moves.hmc(n)`"),
    "sgnht": (_STOCHASTIC, "`nd.moves.hmc(n)`"),
    "csgld": (_STOCHASTIC, "`nd.moves.mala()`"),
    "svgd": (_NO_KERNEL, "`nd.moves.hmc(n)`"),
    "laplace_hmc": (
        "it integrates a part of the sites out, and particles need all",
        "`nd.moves.hmc(n)`",
    ),
    "laplace_dynamic_hmc": (
        "it integrates a part of the sites out, and particles need all",
        "`nd.moves.hmc(n)`",
    ),
    "meanfield_vi": (_NO_KERNEL, "`nd.moves.hmc(n)`"),
    "fullrank_vi": (_NO_KERNEL, "`nd.moves.hmc(n)`"),
    "schrodinger_follmer": (_NO_KERNEL, "`nd.moves.hmc(n)`"),
    "periodic_orbital": ("its state is a weighted orbit, not a position", "`nd.moves.hmc(n)`"),
    "coupled_hmc": ("it moves two chains at once", "`nd.moves.hmc(n)`"),
    "ghmc": (
        "its momentum is part of the state, and a particle holds a position alone",
        "`nd.moves.hmc(n)`, which draws it anew",
    ),
    "elliptical_slice": (
        "it takes the density without its Gaussian factor, and `logdensity_fn` is the whole",
        "`nd.moves.elliptical_slice(mean, scale)`, which divides the Gaussian out",
    ),
    "marginal_latent_gaussian": (
        "it takes the density without its Gaussian factor, and `logdensity_fn` is the whole",
        "`nd.moves.elliptical_slice(mean, scale)`, which divides the Gaussian out",
    ),
    "rmhmc": (
        "with a metric that depends on the position, `blackjax.rmhmc.build_kernel()` makes leapfrog steps, "
        "which do not preserve volume there",
        "`nd.moves.rmhmc(mass_matrix)`, which makes implicit midpoint steps",
    ),
}


class _Dynamic:
    """A kernel with a random number of steps, whose generator is split from the key of the step."""

    def __init__(self, algorithm: Any):
        self.algorithm = algorithm

    def __eq__(self, other: Any) -> bool:
        return type(other) is _Dynamic and other.algorithm is self.algorithm

    def __hash__(self) -> int:
        return hash((_Dynamic, id(self.algorithm)))

    def init(self, position, logdensity_fn):
        """A state without a generator."""
        return blackjax.hmc.init(position, logdensity_fn)

    def build_kernel(self):
        """The kernel with a generator of its own at every step."""
        inner = self.algorithm.build_kernel()

        def kernel(key, state, logdensity_fn, **parameters):
            key, key_steps = jax.random.split(key)
            dynamic = blackjax.mcmc.dynamic_hmc.DynamicHMCState(*state, key_steps)  # type: ignore
            new, info = inner(key, dynamic, logdensity_fn, **parameters)
            return type(state)(*new[: len(state)]), info

        return kernel


def from_blackjax(
    algorithm: Any,
    parameters: Callable[[Scalar, Position], dict],
    *,
    evaluations: int | None = 1,
    target_acceptance: float = 0.6,
    name: str | None = None,
) -> Move:
    """A move from any BlackJAX algorithm whose kernel takes `(key, state, logdensity_fn, **params)`.

    The kernel must leave a density as it is, whatever its parameters, and its state must follow from a
    position: what does neither is refused by name.

    Args:
        algorithm: For instance `blackjax.mala`, `blackjax.nuts`, `blackjax.dynamic_hmc`.
        parameters: `(step_size, position) -> dict`, the kernel's parameters at a step size.
        evaluations: Evaluations of the density that one step costs; `None` if that depends on the state.
        target_acceptance: Acceptance rate that a pilot aims for; 1 for a kernel that rejects nothing, whose
            step size then stays as it is.
        name: For printing; by default that of the algorithm or of the module it is from.

    Raises:
        ValueError: For an algorithm that is no valid move, with the reason and what to take instead.
        TypeError: For what is no algorithm.
    """
    evaluations = whole_or_none("evaluations", evaluations, 0, "`None` where that is not known.")
    check_callable("parameters", parameters, "`lambda step_size, position: {...}`")
    if not 0 < target_acceptance <= 1:
        raise ValueError(f"`target_acceptance` is in (0, 1]; got {target_acceptance}. {_faq.moves}")
    if not (hasattr(algorithm, "init") and hasattr(algorithm, "build_kernel")):
        vi = getattr(getattr(algorithm, "init", None), "__module__", "").rpartition(".")[2]
        if vi not in _REFUSED:
            raise TypeError(
                "`algorithm` is one of BlackJAX with `init` and `build_kernel`, such as `blackjax.hmc`, "
                f"before it is called; got {type(algorithm).__name__}. {_faq.moves}"
            )
    module = algorithm.init.__module__.rpartition(".")[2]
    kind = "rmhmc" if algorithm is blackjax.rmhmc else module
    if kind in _REFUSED:
        reason, remedy = _REFUSED[kind]
        raise ValueError(f"`blackjax.{kind}` is no move here: {reason}. Use {remedy}. {_faq.moves}")
    wants = list(inspect.signature(algorithm.init).parameters)
    its_own = algorithm.init.__module__.startswith("blackjax.")
    if wants[2:] == ["random_generator_arg"]:
        algorithm = _Dynamic(algorithm)
    elif its_own and wants[1:] != ["logdensity_fn"]:
        raise ValueError(
            f"`blackjax.{module}` is no move here: its state begins with ({', '.join(wants)}), and a move "
            "begins with a position and its log density alone. If it is a kernel, wrap it in an algorithm "
            f"whose kernel draws the rest anew at every step. {_faq.moves}"
        )
    label = name or getattr(algorithm, "__name__", module)
    return BlackJAXMove(algorithm, parameters, evaluations, target_acceptance, label)
