r"""Powers, and other parameters of a prior, that maximise the evidence of one datum."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from .. import _faq
from .._arguments import whole_number, whole_numbers, whole_or_none
from .._records import record, record_page
from .._typing import Array, PRNGKey, Scalar
from ..energies import AbstractEnergy, Family, Powers
from ..schemes.annealed import Annealed
from ..schemes.base import AbstractScheme, check_scheme
from .slopes import Slopes

__all__ = ["PowerFit", "fit_power"]

_AVERAGED = 3  # steps at the end


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

    __repr__ = record
    _repr_html_ = record_page


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
    run = Slopes(family, log_likelihood, scheme, num_particles, num_chains, batch_size)
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
            f"bounds as `(low, high)`. {_faq.numbers}"
        )
    return theta, low, high
