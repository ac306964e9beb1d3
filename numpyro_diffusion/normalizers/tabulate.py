r"""Tables of normalisers, $L(\theta) = \log \int e^{-E(x, t_{\min}; \theta)} dx$ over a grid of $\theta$."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._arguments import whole_numbers, whole_or_none
from .._typing import Array, PRNGKey
from ..bridge import from_energy
from ..energies import AbstractEnergy, Family, Powers
from ..schemes.annealed import Annealed
from ..schemes.base import AbstractScheme, check_scheme
from ..smc import SMCResult, log_mean_exp, run_smc
from .by_sampler import summed_up
from .chebyshev import CLOCKS, Found, fitted

__all__ = ["tabulate"]


def tabulate(
    family: Callable[[Array], AbstractEnergy] | AbstractEnergy,
    grid: Any,
    *,
    key: PRNGKey,
    scheme: AbstractScheme | None = None,
    num_particles: int = 1000,
    num_chains: int = 4,
    degree: int | None = None,
    batch_size: int | None = None,
) -> Family:
    r"""A family of distributions with a table of its normalisers, for parameters that are latent variables.

    A run of the sampler on the prior alone at each node of the grid, through noise, so that modes are no
    barrier. Each run gives $L$ without bias in $e^L$, and its slope

    $$\partial_\theta L(\theta) = -\mathbb{E}_\theta[\partial_\theta E(x; \theta)] ,$$

    for a power $L'(\beta) = -\mathbb{E}_\beta[E(x)]$. Polynomials are fitted to both, weighed by their
    errors; errors of the fit grow with its misfit. What runs say on the way is kept for noisy levels.

    Args:
        family: From a parameter to an energy, a function of JAX. Of a prior alone it is the power,
            `nd.energies.Powers(prior)`. To be saved it must be a module, as `Powers` and `Guidance` are.
        grid: Increasing nodes, for a parameter of shape `()`; or a tuple of such, one a coordinate, whose
            products are the nodes for a parameter of shape `(num_coordinates,)`. Polynomials are in the
            logarithm where all nodes are positive and the last is three times the first or more.
        key: PRNG key.
        scheme: The sampler; `Annealed()` by default.
        num_particles: Particles a cloud.
        num_chains: Independent clouds at each node, at least 2.
        degree: Of the polynomials in each coordinate, at most and by default the number of its nodes (one
            less if there are several coordinates), and 8.
        batch_size: Particles that step at once, to bound memory.

    Returns:
        The family, an energy: `family.given(theta)` is the distribution at a parameter.

    Raises:
        TypeError: If the family gives no energy.
        ValueError: If the grid cannot be used, the distributions are normalised as they are, or a number is
        wrong. PilotError: If a distribution is too hard for the allowed number of levels.

    Warns:
        UserWarning: If the polynomials miss the nodes by more than three standard errors.

    References:
        Gelman & Meng (1998), Simulating normalizing constants, Statistical Science.
    """
    check_scheme(scheme)
    degree = whole_or_none("degree", degree, 1, "`None` takes one a node.")
    num_particles, num_chains = whole_numbers(2, num_particles=num_particles, num_chains=num_chains)
    batch_size = whole_or_none("batch_size", batch_size, 1, "`None` takes all.")
    family = Powers(family) if isinstance(family, AbstractEnergy) else family
    axes, scalar = _axes(grid)
    nodes = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], 1)
    member = eqx.filter_jit(family)
    run = _Runs(Annealed() if scheme is None else scheme, num_particles, num_chains, batch_size)
    found = []
    for node, key_node in zip(nodes, jax.random.split(key, len(nodes)), strict=True):
        theta = jnp.asarray(node[0] if scalar else node, jnp.result_type(float))
        energy = member(theta)
        _check_member(energy, theta)
        found.append(run(key_node, family, theta, energy))
    table = fitted(axes, nodes, found, degree)
    theta = jnp.asarray(nodes[0, 0] if scalar else nodes[0], jnp.result_type(float))
    at_nodes = [float(table.standard_error(jnp.asarray(node))) for node in nodes]
    return Family(family, table, theta, 0.0, max(at_nodes))  # pyright: ignore[reportCallIssue]


class _Runs(NamedTuple):
    scheme: AbstractScheme
    num_particles: int
    num_chains: int
    batch_size: int | None

    def __call__(self, key: PRNGKey, family: Callable, theta: Array, energy: Any) -> Found:
        key_pilot, key_run = jax.random.split(key)
        model = self.scheme(from_energy(energy, twist=self.scheme.twist), key_pilot)
        result = run_smc(
            key_run,
            model,
            self.num_particles,
            num_chains=self.num_chains,
            batch_size=self.batch_size,
        )
        value, error = summed_up(result)
        slope, slope_error = mean_over_particles(
            result, _slopes(family, theta, result.positions["x"])
        )
        return Found(value, error, -slope, slope_error, _on_the_way(result))


def _axes(grid: Any) -> tuple[list[np.ndarray], bool]:
    """Nodes of each coordinate, and whether there is one alone."""
    several = isinstance(grid, tuple | list) and any(np.ndim(axis) for axis in grid)
    axes = [np.asarray(axis, float) for axis in (grid if several else (grid,))]
    for axis in axes:
        if (
            axis.ndim != 1
            or len(axis) < 3
            or not np.isfinite(axis).all()
            or np.diff(axis).min() <= 0
        ):
            raise ValueError(
                "`grid` expects at least 3 finite, increasing nodes, such as `np.geomspace(0.25, 4, 7)`, or "
                f"a tuple of them, one a coordinate; got {axis!r:.80}. {_faq.table_range}"
            )
    return axes, not several


def _check_member(energy: Any, theta: Array) -> None:
    if not isinstance(energy, AbstractEnergy):
        raise TypeError(
            f"`family` must give an energy; got {type(energy).__name__} at {theta}. A score has no "
            f"normaliser. {_faq.score_only}"
        )
    if energy.log_normalizer is not None:
        raise ValueError(
            f"this {type(energy).__name__} is normalised as it is, so it needs no table: write it in the "
            "model, `power * energy` for a power of a Gaussian. If its normaliser depends on the parameter "
            "nonetheless, forget the stored one: "
            f"`energy.with_log_normalizer(None)`. {_faq.needs_normaliser}"
        )


@eqx.filter_jit
def _slopes(family: Callable, theta: Array, x: Array) -> Array:
    r"""$\partial_\theta E$ at particles in units of the data, shape `(num_chains, num_particles, k)`."""

    def one(u):
        def energy(theta):
            member = family(theta)
            t = jnp.asarray(member.t_min, u.dtype)
            return member.energy(member.schedule(t)[0] * u, t)

        return jnp.atleast_1d(jax.grad(energy)(theta))

    return jax.vmap(jax.vmap(one))(x)


def mean_over_particles(result: SMCResult, values: Array) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean of values of each particle, and its standard error; over clouds and within them."""
    each = np.asarray(values, float)
    weights = np.asarray(jax.nn.softmax(result.log_weights, -1), float)[..., None]
    means = (weights * each).sum(1)
    within = (weights**2 * (each - means[:, None]) ** 2).sum(1).mean(0)
    across = means.var(0, ddof=1)
    return means.mean(0), np.sqrt(np.maximum(within, across) / len(means))


def _on_the_way(result: SMCResult) -> np.ndarray | None:
    """What the log normaliser was at `CLOCKS`, as the run went by; `None` if it began without noise."""
    clocks = np.asarray(getattr(result.levels, "next_clock", np.zeros(0)), float)
    if not len(clocks) or float(np.asarray(result.levels.clock)[0]) != 1.0:
        return None
    steps = np.asarray(result.trace.log_evidence_increment, float)
    total = np.asarray(result.log_evidence, float)[:, None]
    later = np.cumsum(steps[:, ::-1], 1)  # of the last levels, the last first
    each = np.concatenate([total, total - later], 1)
    values = np.asarray(log_mean_exp(jnp.asarray(each.T)))
    return np.interp(CLOCKS, np.append(clocks[::-1], 1.0), values)
