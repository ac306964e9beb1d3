r"""The score-based density formula: a normalised log density from scores of noised points.

Li & Yan's formula for the distribution at `t_min` reads, in the units of the data and with the variance $r$
of the noise that is *added* to $x$,

$$\log p(x) = \log G(x) - \frac12 \int_0^\infty \mathbb{E}\Big[
  \Big|\frac{\epsilon}{\sqrt r} + \nabla \log p_r(x + \sqrt r \epsilon)\Big|^2 -
  \Big|\frac{\epsilon}{\sqrt r} + \nabla \log G_r(x + \sqrt r \epsilon)\Big|^2 \Big]\, dr$$

for any distribution $G$ that is noised exactly; here a Gaussian or a mixture of them. The difference of
squares is taken as $(\nabla \log p_r - \nabla \log G_r) \cdot (2 \epsilon / \sqrt r + \nabla \log p_r +
\nabla \log G_r)$, so that what is known is never computed, and mirrored noises keep its variance finite down
to $r = 0$. Taken literally, with $d / 2r$ in the place of the reference, the variance is infinite.
"""

import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from .. import _faq
from .._typing import Array, PRNGKey
from ..energies import AbstractDenoiser, AbstractEnergy
from ..energies.coordinates import cast_floats
from .estimate import AbstractLogDensity, DensityEstimate, Point
from .noises import AbstractNoises, Mirrored
from .reference import NoisedReference, check_noised, reference_of
from .times import AbstractTimes, Span, Stratified
from .trace import AbstractDivergence

__all__ = ["ScoreFormula", "score_formula"]


class ScoreFormula(AbstractLogDensity):
    r"""The score-based density formula as an estimator, with its rules for times and noises.

    The default spends 256 evaluations a point: 16 times, each with eight pairs of mirrored noises.

    Attributes:
        times: `Stratified(num)`, random and unbiased, or `GaussLegendre(num)`, without randomness.
        noises: `Mirrored(num_pairs)`, random, or `GaussHermite(num)`, exact in few dimensions.
        divergence: `None` for the scores alone. `ExactDivergence()` and `Hutchinson(num_probes)` put the
            divergence of the score in the place of $\epsilon \cdot \nabla \log p / \sqrt r$, which has the
            same mean: less variance, and one derivative more for each coordinate or probe.
        reference: A normalised `Gaussian` or `GaussianMixture` over (flattened) examples near the
            distribution; by default the Gaussian with the mean and covariance that the prior knows of.

    References:
        Li & Yan (2024), A Score-Based Density Formula, with Applications in Diffusion Generative Models,
        arXiv 2408.16765; derived here for any reference. Kong, Brekelmans & Ver Steeg (2023),
        Information-theoretic diffusion, ICLR, is the same identity in the signal-to-noise ratio.
    """

    times: AbstractTimes = eqx.field(default_factory=Stratified)
    noises: AbstractNoises = eqx.field(default_factory=Mirrored)
    divergence: AbstractDivergence | None = None
    reference: AbstractEnergy | None = None

    def __check_init__(self):
        if self.reference is not None and not self.reference.normalized:
            raise TypeError(
                "`reference` must have a closed form at every level, `Gaussian` or `GaussianMixture`; got "
                f"{type(self.reference).__name__}. {_faq.kinds}"
            )

    @property
    def law(self) -> str:
        return "score formula: evidence lower bound of the reverse diffusion in continuous time"

    def size(self, prior: AbstractDenoiser) -> int:
        dimension = math.prod(prior.shape)
        extra = 0 if self.divergence is None else self.divergence.num_derivatives(dimension)
        return 2 * self.times.num * self.noises.num_noises(dimension) * (1 + extra)

    def prepare(self, prior: AbstractDenoiser) -> Any:
        check_noised(prior)
        gaussian = reference_of(prior)
        least = prior.schedule.noise_level(jnp.asarray(prior.t_min, jnp.result_type(float)))
        reference = gaussian if self.reference is None else NoisedReference(self.reference)
        # The unit of variance in which times are told: few directions of large variance must not set it.
        return reference, 1 / jnp.mean(1 / (gaussian.variances + least**2))

    def point(
        self, prior: AbstractDenoiser, shared: Any, x: Array, key: PRNGKey, at_once: int
    ) -> Point:
        reference, scale = cast_floats(shared, x.dtype)
        t_min, t_max = (jnp.asarray(t, x.dtype) for t in (prior.t_min, prior.t_max))
        least = prior.schedule.noise_level(t_min)
        key_times, key_noises, key_probes = jax.random.split(key, 3)
        noises, shares = self.noises(key_noises, self.times.num, x)
        span = Span(prior.schedule, t_min, t_max, scale)
        added, weights = self.times(key_times, noises.shape[1], span)
        probes = jax.random.split(key_probes, noises.shape[:2])

        def term(at):
            """Half the difference of squares at one time, mean of a noise and its mirror image."""
            r, epsilon, key = at
            s = jnp.sqrt(least**2 + r)
            t = prior.schedule.time_at_noise(s).astype(x.dtype)
            score = lambda u: prior.data_score(u, t)

            def one(epsilon):
                u = x + jnp.sqrt(r) * epsilon
                h = reference.score(u, s)
                if self.divergence is None:
                    g = score(u)
                    return 0.5 * jnp.sum((g - h) * (2 * epsilon / jnp.sqrt(r) + g + h))
                directions = self.divergence.directions(key, x)
                g, traced = self.divergence(score, u, directions)
                rest = traced - reference.divergence(u, s)
                return rest + 0.5 * jnp.sum((g - h) * (g + h))

            return 0.5 * (one(epsilon) + one(-epsilon))

        flat = lambda a: a.reshape(-1, *a.shape[2:])
        count = added.size
        step = max(1, min(count, at_once * count // self.size(prior)))
        values = jax.lax.map(
            term, (flat(added), flat(noises), flat(probes)), batch_size=step
        ).reshape(added.shape)
        parts = weights * values
        columns = jnp.sum(parts, 0)
        start, evaluations = reference.log_density(x, least), jnp.asarray(self.size(prior))
        value = start - columns @ shares
        if not self.noises.random:
            return Point(value, jnp.zeros_like(value), evaluations)
        variance = jnp.var(columns, ddof=1) / len(columns)
        return Point(value, variance, evaluations, start - columns)


def score_formula(
    prior: AbstractDenoiser,
    x,
    key: PRNGKey | None = None,
    *,
    times: AbstractTimes | None = None,
    noises: AbstractNoises | None = None,
    divergence: AbstractDivergence | None = None,
    reference: AbstractEnergy | None = None,
    tolerance: float | None = None,
    max_evaluations: int = 100_000,
    batch_size: int = 4096,
    devices: Sequence[Any] | Mesh | None = None,
) -> DensityEstimate:
    r"""Normalised log density of a prior from its scores alone, with an error bar.

    $$\log p(x) = \log G(x) - \frac12 \int_0^\infty \mathbb{E}\Big[
      \Big|\frac{\epsilon}{\sqrt r} + \nabla \log p_r\Big|^2 -
      \Big|\frac{\epsilon}{\sqrt r} + \nabla \log G_r\Big|^2 \Big]\, dr$$

    at $x + \sqrt r \epsilon$, for the distribution at `t_min`. For an exact score this is $\log p(x)$. For a
    learned one it is a lower bound of the log density of its reverse diffusion in continuous time, and its
    mean over data is below that of the truth by $\tfrac12 \int \mathbb{E} |\Delta \nabla \log p|^2 dr$. The
    integral ends at `t_max`, where the distribution is taken to be the reference's. The error of that falls
    as the sixth power of the noise level where the prior knows mean and covariance, and as the second where
    it knows the mean roughly, as a `ScoreFunction` may: give it the mean of the data, or a large `t_max`.

    Unbiased with `Stratified` times; with `GaussLegendre` times the integral over time has the (small) error
    of the rule, which the standard error does not know.

    Args:
        prior: Denoiser or energy; of an energy only the score is used. For $\log p(x \mid c)$ give it the
            condition: `prior.given(c)`.
        x: Examples of shape `(*batch, *shape)`, in the units of the prior.
        key: PRNG key; by default the same noises at every call.
        times: `Stratified(16)` by default.
        noises: `Mirrored(8)` by default.
        divergence: As in `ScoreFormula`.
        reference: As in `ScoreFormula`.
        tolerance: Spend evaluations until each standard error is at most this, in nats.
        max_evaluations: Stop there, a point.
        batch_size: Evaluations of the network held in memory at once, on each device.
        devices: Devices over which the points are shared out in equal blocks.

    Returns:
        Values in nats, standard errors, evaluations spent, all of the batch shape; and whose density it is.

    Raises:
        TypeError: If `prior` is not a denoiser.
        ValueError: If shapes or numbers do not fit.
        FloatingPointError: If an estimate is NaN.

    Example:
        >>> import jax.numpy as jnp, numpyro_diffusion as nd
        >>> found = nd.density.score_formula(nd.Gaussian(), jnp.zeros(2))
        >>> float(found.standard_error) < 1e-5
        True

    References:
        Li & Yan (2024), arXiv 2408.16765.
    """
    estimator = ScoreFormula(
        Stratified() if times is None else times,
        Mirrored() if noises is None else noises,
        divergence,
        reference,
    )
    return estimator(
        prior,
        x,
        key,
        tolerance=tolerance,
        max_evaluations=max_evaluations,
        batch_size=batch_size,
        devices=devices,
    )
