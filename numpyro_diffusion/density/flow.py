r"""Log density by the probability flow ODE (continuous change of variables), one path a point.

The flow carries the prior to the Gaussian at `t_max` without noise. The log density changes along the path
by the divergence of the flow, so that one ordinary differential equation gives it to any tolerance:

$$\log p(x) = \log \mathcal{N}(w_T; 0, I) - \sum_i \log r_i(t_{\min})
  - \int \nabla_w \cdot \frac{dw}{d\tau}\, d\tau$$

in the coordinates and the clock of `WhitenedFlow`, the integral from noise to data.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from .. import _faq
from .._arguments import check_counts, plain
from .._typing import Array, PRNGKey, Scalar
from ..energies import AbstractDenoiser
from ..energies.normal import log_normal
from .estimate import AbstractLogDensity, DensityEstimate, Point
from .trace import AbstractDivergence, ExactDivergence, Hutchinson
from .whitened import WhitenedFlow

if (
    TYPE_CHECKING
):  # it takes a third of a second to import, so only those who solve an equation wait for it
    import diffrax

__all__ = ["FlowDensity", "probability_flow"]

FIRST_STEP = 0.1  # of the clock: a tenth of an e-fold of the noise


def _default_solver() -> "diffrax.AbstractERK":
    import diffrax

    return diffrax.Tsit5()


class FlowDensity(AbstractLogDensity):
    r"""The density of the probability flow as an estimator, with the solver of its path.

    Attributes:
        divergence: `ExactDivergence()`, a derivative a coordinate, or `Hutchinson(num_probes)` with at least
            2 probes, whose spread is the standard error. Probes stay the same along a path.
        solver: An explicit Runge-Kutta method of Diffrax with an error estimate.
        rtol: Relative tolerance of a step, of the path and of the integral.
        atol: Absolute tolerance of a step, in standard deviations of the path and in nats of the integral.
        max_steps: Steps after which a point is given up: its density is then NaN.
        num_steps: `None` for steps that adapt to the tolerances, or so many equal ones, which for errors of
            a hundredth of a nat and more cost less, best with `solver=diffrax.Bosh3()`.

    Raises:
        TypeError: If the solver is not explicit.
        ValueError: If `Hutchinson` has a single probe, or a number is not positive.
    """

    divergence: AbstractDivergence = eqx.field(default_factory=ExactDivergence)
    solver: "diffrax.AbstractERK" = eqx.field(default_factory=_default_solver)
    rtol: float = eqx.field(static=True, default=1e-5)
    atol: float = eqx.field(static=True, default=1e-5)
    max_steps: int = eqx.field(static=True, converter=plain, default=1000)
    num_steps: int | None = eqx.field(static=True, converter=plain, default=None)

    def __check_init__(self):
        import diffrax

        check_counts(self, max_steps=1)
        if isinstance(self.divergence, Hutchinson) and self.divergence.num_probes < 2:
            raise ValueError(
                "the standard error of the flow's density is from the spread over probes; got 1 probe. "
                "Use `Hutchinson(num_probes)` with at least 2, or "
                f"`ExactDivergence()`. {_faq.numbers}"
            )
        if not isinstance(self.solver, diffrax.AbstractERK):
            raise TypeError(
                "`solver` expects an explicit Runge-Kutta method with an error estimate, such as "
                f"`diffrax.Tsit5()`; got {self.solver!r}. {_faq.kinds}"
            )
        if not (self.rtol > 0 and self.atol > 0):
            raise ValueError(
                f"`rtol` and `atol` must be positive; got {self.rtol} and "
                f"{self.atol}. {_faq.numbers}"
            )
        if self.num_steps is not None:
            check_counts(self, "`None` adapts them.", num_steps=1)
        if self.num_steps is not None and not self.num_steps < self.max_steps:
            raise ValueError(
                f"`num_steps` must be below `max_steps`; got {self.num_steps!r} and "
                f"{self.max_steps}. Raise `max_steps`, or leave the steps to the "
                f"tolerances. {_faq.numbers}"
            )

    @property
    def law(self) -> str:
        return "probability flow: the Gaussian at t_max, carried to t_min"

    def size(self, prior: AbstractDenoiser) -> int:
        return 1 + self.divergence.num_derivatives(math.prod(prior.shape))

    def point(
        self, prior: AbstractDenoiser, shared: Any, x: Array, key: PRNGKey, at_once: int
    ) -> Point:
        import diffrax

        del shared, at_once
        flow = WhitenedFlow.of(prior, x.dtype)
        noise, data = flow.ends()
        w = flow.whiten(x, data)
        directions = self.divergence.directions(key, w)
        start = w, jnp.zeros_like(self.divergence.replicates(jnp.zeros_like(directions[:, 0])))

        def field(clock, state, args):
            flow, directions = args
            return self.divergence.along(lambda w: flow.velocity(clock, w), state[0], directions)

        if self.num_steps is None:
            first = jnp.full_like(data, -FIRST_STEP)
            controller = diffrax.PIDController(self.rtol, self.atol, norm=_larger_part)
        else:
            first, controller = (noise - data) / self.num_steps, diffrax.ConstantStepSize()
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            self.solver,
            t0=data,
            t1=noise,
            dt0=first,
            y0=start,
            args=(flow, directions),
            saveat=diffrax.SaveAt(t1=True),
            stepsize_controller=controller,
            adjoint=diffrax.RecursiveCheckpointAdjoint(),
            max_steps=self.max_steps,
            throw=False,
        )
        last, change = jax.tree.map(lambda part: part[0], solution.ys)
        arrived = solution.result == diffrax.RESULTS.successful
        base = jnp.sum(log_normal(last, 1.0))
        _, least = flow.time_and_noise(data)
        replicates = base - jnp.sum(jnp.log(flow.spread(least))) + change
        replicates = jnp.where(arrived, replicates, jnp.nan)
        count = self.size(prior) * _stages(self.solver, solution.stats["num_steps"])
        if len(change) == 1:
            return Point(replicates[0], jnp.zeros((), x.dtype), count)
        variance = jnp.var(replicates, ddof=1) / len(change)
        return Point(jnp.mean(replicates), variance, count, replicates)


def _stages(solver: "diffrax.AbstractERK", num_steps: Array) -> Array:
    """Evaluations of the flow in so many steps, rejected ones included."""
    tableau: Any = solver.tableau
    if tableau.fsal:  # the last stage of a step is the first of the next
        return 1 + (tableau.num_stages - 1) * num_steps
    return tableau.num_stages * num_steps


def _larger_part(scaled: tuple[Array, Array]) -> Scalar:
    """Root mean square of the errors of the path or of the integrals, whichever is larger."""
    root_mean_square = lambda part: jnp.sqrt(jnp.mean(jnp.square(part)))
    return jnp.maximum(*(root_mean_square(part) for part in scaled))


def probability_flow(
    prior: AbstractDenoiser,
    x,
    key: PRNGKey | None = None,
    *,
    divergence: AbstractDivergence | None = None,
    solver: "diffrax.AbstractERK | None" = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 1000,
    num_steps: int | None = None,
    tolerance: float | None = None,
    max_evaluations: int = 100_000,
    batch_size: int = 4096,
    devices: Sequence[Any] | Mesh | None = None,
) -> DensityEstimate:
    r"""Normalised log density of a prior's probability flow.

    $$\log p(x) = \log \mathcal{N}(w_T; 0, I) - \sum_i \log r_i(t_{\min})
      - \int \nabla_w \cdot \frac{dw}{d\tau}\, d\tau .$$

    For an exact score this is $\log p(x)$ at `t_min`, to the tolerance of the solver and to what the
    distribution at `t_max` differs from its Gaussian: that falls as the cube of the noise level there, or as
    the first power where the prior knows its mean only roughly, as a `ScoreFunction` may. For a learned
    score it is the density of the distribution of `from_noise` and `NoiseReparam`, which integrates to 1; it
    is neither a bound nor the distribution of the reverse diffusion. Nothing is random with the exact
    divergence.

    Args:
        prior: Denoiser or energy; of an energy only the score is used.
        x: Examples of shape `(*batch, *shape)`, in the units of the prior.
        key: PRNG key of the probes; by default the same probes at every call.
        divergence: `ExactDivergence()` by default; `Hutchinson(num_probes)` for many dimensions.
        solver: An adaptive explicit Runge-Kutta method of Diffrax; `diffrax.Tsit5()` by default.
        rtol: As in `FlowDensity`.
        atol: As in `FlowDensity`.
        max_steps: As in `FlowDensity`.
        num_steps: As in `FlowDensity`.
        tolerance: Average over new probes until each standard error is at most this.
        max_evaluations: Stop there, a point.
        batch_size: Evaluations of the network held in memory at once, on each device.
        devices: Devices over which the points are shared out in equal blocks.

    Returns:
        Values in nats, standard errors (0 for the exact divergence), evaluations spent, all of the batch
        shape; and whose density it is. An evaluation of the divergence counts as its derivatives.

    Raises:
        TypeError: If `prior` is not a denoiser.
        ValueError: If shapes or numbers do not fit.
        FloatingPointError: If a density is NaN, or a path takes more than `max_steps`.

    Example:
        >>> import jax.numpy as jnp, numpyro_diffusion as nd
        >>> found = nd.density.probability_flow(nd.Gaussian([0.0], [[1.0]]), jnp.zeros(1))
        >>> round(float(found.value), 3)
        -0.919

    References:
        Chen et al. (2018), Neural Ordinary Differential Equations, NeurIPS. Song et al. (2021), Score-Based
        Generative Modeling through SDEs, ICLR, Sec. 4.3. Grathwohl et al. (2019), FFJORD, ICLR, for probes
        that stay the same along a path.
    """
    estimator = FlowDensity(
        ExactDivergence() if divergence is None else divergence,
        _default_solver() if solver is None else solver,
        rtol,
        atol,
        max_steps,
        num_steps,
    )
    try:
        return estimator(
            prior,
            x,
            key,
            tolerance=tolerance,
            max_evaluations=max_evaluations,
            batch_size=batch_size,
            devices=devices,
        )
    except FloatingPointError as error:
        error.add_note(f"NaN also stands for a path of more than `max_steps={max_steps}` steps.")
        raise
