r"""Powers, and other parameters of a prior, that maximise the evidence of one datum."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._arguments import whole_number, whole_numbers, whole_or_none
from .._typing import Array, PRNGKey, Scalar
from ..bridge import from_energy
from ..energies import AbstractEnergy, Family, Powers
from ..schemes.annealed import Annealed
from ..schemes.base import AbstractScheme, check_scheme
from ..smc import run_smc
from .by_sampler import summed_up

__all__ = ["PowerFit", "fit_power"]

_AVERAGED = 3  # steps at the end
_LEAST = 0.05  # share of the information that the datum must leave for a Newton step


class PowerFit(NamedTuple):
    r"""Where the evidence of a datum is largest.

    Attributes:
        power: The parameter $\hat\theta$, of the shape of `start`.
        standard_error: Of its computation: what more particles would lower.
        posterior_sd: $1 / \sqrt{-\partial^2 \log p(y \mid \theta)}$ at $\hat\theta$: how little one datum
            says of it. Infinite where the evidence is not curved downwards.
        log_evidence: Near $\hat\theta$, in nats, normalised.
        log_evidence_error: Its standard error.
        converged: Whether steps have become as small as their errors, inside the bounds.
        path: Parameters of all steps, shape `(num_steps, num_coordinates)`.
        verdict: In words.
    """

    power: np.ndarray
    standard_error: np.ndarray
    posterior_sd: np.ndarray
    log_evidence: float
    log_evidence_error: float
    converged: bool
    path: np.ndarray
    verdict: str


def fit_power(
    family: Callable[[Array], AbstractEnergy] | AbstractEnergy,
    log_likelihood: Callable[[Array], Scalar],
    key: PRNGKey,
    *,
    start: Any = 1.0,
    bounds: tuple[Any, Any] | None = None,
    scheme: AbstractScheme | None = None,
    num_particles: int = 500,
    num_chains: int = 4,
    max_steps: int = 20,
    tolerance: float = 0.01,
    batch_size: int | None = None,
) -> PowerFit:
    r"""The power of a prior that maximises the evidence of one datum: empirical Bayes.

    With $\log p(y \mid \beta) = \log \int p(y \mid x) e^{-\beta E(x)} dx - \log \int e^{-\beta E(x)} dx$,

    $$\frac{d \log p(y \mid \beta)}{d \beta} = \mathbb{E}[E(x) \mid \beta] - \mathbb{E}[E(x) \mid y, \beta] ,
    \qquad \frac{d^2 \log p(y \mid \beta)}{d \beta^2}
      = \mathrm{Var}[E \mid y, \beta] - \mathrm{Var}[E \mid \beta] :$$

    where the datum has a higher energy than the prior expects, the power falls. Expectations are over
    particles: a run given the datum at each step, and one of the prior unless its normaliser is known. Steps
    are Newton's where the second derivative is safely negative, and those of scoring by $\mathrm{Var}[E \mid
    \beta]$ else. The last three are averaged.

    Args:
        family: A prior, whose power is fitted; a `Family`, whose parameter is; or a function from a parameter
            to an energy, such as `nd.energies.Powers(first, second)`.
        log_likelihood: Of the datum, `x -> ()` in nats for one example in units of the data.
        key: PRNG key.
        start: Where to begin; of the shape of the parameter.
        bounds: Least and greatest values; the grid of a `Family`, else a 20th to 20 times the start.
        scheme: The sampler; `Annealed()` by default.
        num_particles: Particles a cloud.
        num_chains: Independent clouds, at least 2.
        max_steps: Steps at most.
        tolerance: Relative size of a step at which to stop, where that is above its error.
        batch_size: Particles that step at once, to bound memory.

    Raises:
        ValueError: If `start` is not inside `bounds`, or a number is out of range.
        PilotError: If a distribution is too hard for the allowed number of levels.

    References:
        Younes (1989), Parametric inference for imperfectly observed Gibbsian fields, PTRF.
    """
    check_scheme(scheme)
    num_particles, num_chains = whole_numbers(2, num_particles=num_particles, num_chains=num_chains)
    batch_size = whole_or_none("batch_size", batch_size, 1, "`None` takes all.")
    max_steps = whole_number("max_steps", max_steps, _AVERAGED)
    theta, low, high = _start(family, start, bounds)
    if isinstance(family, Family):
        family = family.given
    elif isinstance(family, AbstractEnergy):
        family = Powers(family)
    scheme = Annealed() if scheme is None else scheme
    run = _Step(family, log_likelihood, scheme, num_particles, num_chains, batch_size)
    shape, path, targets, calm, at_edge = np.shape(start), [], [], 0, False
    for key_step in jax.random.split(key, max_steps):
        found = run(key_step, theta.reshape(shape))
        path.append(theta)
        step, error = found.newton()
        targets.append((theta + step, error))
        most = 0.5 * np.maximum(np.abs(theta), 0.1)
        new = np.clip(theta + np.clip(step, -most, most), low, high)
        at_edge = bool(np.any((new == low) & (step < 0) | (new == high) & (step > 0)))
        moved, theta = np.abs(new - theta), new
        small = np.maximum(tolerance * np.abs(theta), 2 * error)
        calm = calm + 1 if np.all(moved <= small) and not at_edge else 0
        if calm == _AVERAGED or (at_edge and not moved.any()):
            break
    # Each step is an estimate of its own of where it leads to.
    ends, errors = (np.stack(each) for each in zip(*targets[-max(calm, 1) :], strict=True))
    power = np.clip(ends.mean(0), low, high) if calm else theta
    error = np.sqrt((errors**2).mean(0) / len(errors))
    if calm > 1:
        error = np.maximum(error, ends.std(0, ddof=1) / calm**0.5)
    words = "The evidence has a maximum here."
    if at_edge:
        words = f"The evidence still rises at an end of the bounds, {low} to {high}. Widen them."
    elif calm < _AVERAGED:
        words = f"Steps are not yet small after {len(path)}. Take more steps or particles."
    return PowerFit(
        power.reshape(shape),
        error.reshape(shape),
        found.spread().reshape(shape),
        *found.log_evidence,
        calm == _AVERAGED,
        np.stack(path),
        words,
    )


def _start(family, start, bounds) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    theta = np.atleast_1d(np.asarray(start, float))
    if bounds is not None:
        low, high = bounds
    elif isinstance(family, Family):
        low, high = family.table.low, family.table.high
    else:
        low, high = np.minimum(theta / 20, theta * 20), np.maximum(theta / 20, theta * 20)
    low, high = (np.broadcast_to(np.asarray(end, float), theta.shape) for end in (low, high))
    if theta.ndim != 1 or not np.all((low < high) & (low <= theta) & (theta <= high)):
        raise ValueError(
            f"`start` must be inside `bounds`; got {start} and bounds from {low} to {high}. Pass both, the "
            "bounds as `(low, high)`."
        )
    return theta, low, high


class _Found(NamedTuple):
    """Derivatives of the log evidence at one parameter."""

    gradient: np.ndarray
    error: np.ndarray
    curvature: np.ndarray  # minus the second derivative
    scoring: np.ndarray  # what it would be if the datum said nothing
    log_evidence: tuple[float, float]

    def metric(self) -> np.ndarray:
        """The curvature where it is safely positive, else that for scoring."""
        shares = np.linalg.eigvals(np.linalg.solve(self.scoring, self.curvature)).real
        return self.curvature if shares.min() > _LEAST else self.scoring

    def newton(self) -> tuple[np.ndarray, np.ndarray]:
        """A step and its standard error."""
        inverse = np.linalg.inv(self.metric())
        return inverse @ self.gradient, np.sqrt(inverse**2 @ self.error**2)

    def spread(self) -> np.ndarray:
        values = np.linalg.eigvalsh(self.curvature)
        if values.min() <= 0:
            return np.full(len(values), np.inf)
        return np.sqrt(np.diag(np.linalg.inv(self.curvature)))


class _Step(NamedTuple):
    family: Callable
    log_likelihood: Callable
    scheme: AbstractScheme
    num_particles: int
    num_chains: int
    batch_size: int | None

    def __call__(self, key: PRNGKey, theta: np.ndarray) -> _Found:
        value = jnp.asarray(theta, jnp.result_type(float))
        energy = eqx.filter_jit(self.family)(value)
        key_prior, key_post = jax.random.split(key)
        post = self._run(key_post, energy, value, self.log_likelihood)
        if energy.log_normalizer is not None:  # and its derivatives are those of a normalised law
            scoring = post.second
            curvature = post.second - post.covariance
            return _Found(-post.mean, post.error, curvature, scoring, post.log_z)
        prior = self._run(key_prior, energy, value, None)
        return _Found(
            prior.mean - post.mean,
            np.hypot(prior.error, post.error),
            prior.covariance - post.covariance + post.second - prior.second,
            prior.covariance,
            (post.log_z[0] - prior.log_z[0], float(np.hypot(post.log_z[1], prior.log_z[1]))),
        )

    def _run(self, key: PRNGKey, energy: Any, theta: Array, log_likelihood: Any) -> "_Means":
        key_pilot, key_run = jax.random.split(key)
        bridge = from_energy(energy, log_likelihood, twist=self.scheme.twist)
        result = run_smc(
            key_run,
            self.scheme(bridge, key_pilot),
            self.num_particles,
            num_chains=self.num_chains,
            batch_size=self.batch_size,
        )
        slopes, second = _derivatives(self.family, theta, result.positions["x"])
        slopes, second = np.asarray(slopes, float), np.asarray(second, float)
        weights = np.asarray(jax.nn.softmax(result.log_weights, -1), float)
        means = np.einsum("cn,cnk->ck", weights, slopes)
        about = slopes - means[:, None]
        covariance = np.einsum("cn,cnk,cnl->ckl", weights, about, about).mean(0)
        within = np.einsum("cn,cnk->ck", weights**2, about**2).mean(0)
        error = np.sqrt(np.maximum(within, means.var(0, ddof=1)) / len(means))
        bends = np.einsum("cn,cnkl->ckl", weights, second).mean(0)
        return _Means(means.mean(0), error, covariance, bends, summed_up(result))


class _Means(NamedTuple):
    """Of the derivatives of the energy over particles: mean, its error, covariance, mean second ones."""

    mean: np.ndarray
    error: np.ndarray
    covariance: np.ndarray
    second: np.ndarray
    log_z: tuple[float, float]


@eqx.filter_jit
def _derivatives(family: Callable, theta: Array, x: Array) -> tuple[Array, Array]:
    r"""$\partial_\theta E$ and $\partial^2_\theta E$ at particles, in flat coordinates."""
    flat = theta.ravel()

    def energy(flat, u):
        member = family(flat.reshape(theta.shape))
        t = jnp.asarray(member.t_min, u.dtype)
        return member.energy(member.schedule(t)[0] * u, t)

    def one(u):
        return jax.grad(energy)(flat, u), jax.hessian(energy)(flat, u)

    return jax.vmap(jax.vmap(one))(x)
