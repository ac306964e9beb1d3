r"""Kernels of BlackJAX as moves, by name or by `from_blackjax`."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import blackjax
import blackjax.mcmc.slice as slices
import equinox as eqx
import jax
import jax.numpy as jnp
from blackjax.mcmc import integrators
from jax.flatten_util import ravel_pytree

from ..._arguments import check_callable, whole_number, whole_or_none
from ..._typing import Array, Position, Scalar
from .base import BlackJAXMove, Move

__all__ = [
    "adjusted_mclmc",
    "barker",
    "from_blackjax",
    "hmc",
    "mala",
    "nuts",
    "random_walk",
    "rmhmc",
    "slice_sampling",
]

_UNADJUSTED = "it accepts every step, so that what it leaves as it is depends on the step size"
_STOCHASTIC = (
    "it follows noisy gradients without an accept step: its law is near the density, not equal"
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
        raise ValueError(f"`target_acceptance` is in (0, 1]; got {target_acceptance}.")
    if not (hasattr(algorithm, "init") and hasattr(algorithm, "build_kernel")):
        vi = getattr(getattr(algorithm, "init", None), "__module__", "").rpartition(".")[2]
        if vi not in _REFUSED:
            raise TypeError(
                "`algorithm` is one of BlackJAX with `init` and `build_kernel`, such as `blackjax.hmc`, "
                f"before it is called; got {type(algorithm).__name__}."
            )
    module = algorithm.init.__module__.rpartition(".")[2]
    kind = "rmhmc" if algorithm is blackjax.rmhmc else module
    if kind in _REFUSED:
        reason, remedy = _REFUSED[kind]
        raise ValueError(f"`blackjax.{kind}` is no move here: {reason}. Use {remedy}.")
    wants = list(inspect.signature(algorithm.init).parameters)
    its_own = algorithm.init.__module__.startswith("blackjax.")
    if wants[2:] == ["random_generator_arg"]:
        algorithm = _Dynamic(algorithm)
    elif its_own and wants[1:] != ["logdensity_fn"]:
        raise ValueError(
            f"`blackjax.{module}` is no move here: its state begins with ({', '.join(wants)}), and a move "
            "begins with a position and its log density alone. If it is a kernel, wrap it in an algorithm "
            "whose kernel draws the rest anew at every step."
        )
    label = name or getattr(algorithm, "__name__", module)
    return BlackJAXMove(algorithm, parameters, evaluations, target_acceptance, label)


def _dimension(position: Position) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(position))


def _ones(position: Position) -> Array:
    return jnp.ones(_dimension(position), jnp.result_type(*jax.tree.leaves(position)))


def _step_size_alone(step_size, position):
    del position
    return {"step_size": step_size}


def _with_mass(step_size, position):
    return {"step_size": step_size, "inverse_mass_matrix": _ones(position)}


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


def barker() -> Move:
    """Barker's proposal, which a step size that is far too long hurts less than MALA's.

    References:
        Livingstone & Zanella (2022), The Barker proposal, JRSS B.
    """
    return from_blackjax(blackjax.barker, _step_size_alone, target_acceptance=0.4, name="barker")


class _NUTSParameters(eqx.Module):
    max_num_doublings: int

    def __call__(self, step_size, position):
        return _with_mass(step_size, position) | {"max_num_doublings": self.max_num_doublings}


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
                f"{position.size}. Use `hmc(n)`."
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


class _Implicit(NamedTuple):
    """Hamiltonian Monte Carlo with implicit midpoint steps."""

    @staticmethod
    def init(position, logdensity_fn):
        return blackjax.hmc.init(position, logdensity_fn)

    @staticmethod
    def build_kernel():
        return blackjax.hmc.build_kernel(integrators.implicit_midpoint)


class _Riemannian(BlackJAXMove):
    """Its metric is given in the coordinates of the model."""

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
                    f"got shape {mass.shape}."
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

    Implicit midpoint steps are solved by iteration, so that the move leaves a density as it is up to the
    tolerance of that.

    Args:
        mass_matrix: `z -> ` a positive definite matrix over the flattened position, in the coordinates of the
            model: for instance the expected information.
        num_integration_steps: Steps of a trajectory; each costs several gradients.

    References:
        Girolami & Calderhead (2011), Riemann manifold Langevin and Hamiltonian Monte Carlo methods, JRSS B.
    """
    number = whole_number("num_integration_steps", num_integration_steps, 1)
    check_callable("mass_matrix", mass_matrix, "`lambda z: jnp.eye(2)`")
    parameters = _RiemannianParameters(mass_matrix, number)
    return _Riemannian(_Implicit, parameters, None, 0.8, f"rmhmc({number})")
