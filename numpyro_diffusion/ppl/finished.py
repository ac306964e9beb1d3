"""What a finished run answers: draws, weighted particles, evidence, summary and an ArviZ object."""

import abc
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .. import _faq, diagnostics
from .._typing import Array, PRNGKey
from ..bridge import Bridge
from ..diagnostics.links import more
from ..schemes import AbstractScheme
from ..smc import SMCResult
from . import shown
from .draws import (
    constrained,
    discrete_probabilities,
    drawn,
    drawn_by_cloud,
    log_mean,
    pooled_log_weights,
    take,
    with_discrete,
)
from .groups import Run, arviz_groups, level_times, prior_marks
from .start import ProposalDiagnostics, attributes_of_proposal
from .update import Increment, attributes_of

__all__ = ["AbstractRun"]

_exp = jax.jit(jnp.exp)


class AbstractRun(abc.ABC):
    """A run of a model by clouds of particles, and all that can be asked of it.

    Attributes:
        model: The NumPyro model.
        scheme: The sampler.
        num_particles: Particles a cloud.
        num_chains: Independent clouds.
    """

    model: Callable
    scheme: AbstractScheme
    num_particles: int
    num_chains: int
    _arguments: tuple[tuple, dict]
    _keys: dict[str, PRNGKey]
    _seconds: float

    @property
    @abc.abstractmethod
    def result(self) -> SMCResult:
        """The raw result of the engine; leading axes `(num_chains, num_particles)`."""

    @property
    @abc.abstractmethod
    def bridge(self) -> Bridge:
        """The bridge from noise to the posterior."""

    @property
    @abc.abstractmethod
    def increments(self) -> tuple[Increment, ...]:
        """What each update added to the log evidence."""

    @property
    @abc.abstractmethod
    def proposal_diagnostics(self) -> ProposalDiagnostics | None:
        """How close the proposal of the run is to the posterior; `None` without one."""

    @property
    @abc.abstractmethod
    def network_evaluations(self) -> int | None:
        """Network evaluations over particles, levels and clouds."""

    @property
    def _finished(self) -> SMCResult:
        if not self.result.completed:
            raise RuntimeError(
                f"the run was interrupted after {self.result.num_levels_run} levels; call "
                f"`resume()`. {_faq.no_result}"
            )
        return self.result

    @property
    def _drawn(self) -> SMCResult:
        """The result with the discrete sites of each particle among its positions."""
        finished = self._finished  # first: without one there is no bridge either
        return with_discrete(self.bridge, finished, self._keys["resample"])

    @property
    def log_evidence(self) -> float:
        r"""$\log p(y)$ in nats: log of the mean of the clouds' estimates.

        Of which distribution, `result.evidence` says. Normalised if the scheme needs no normaliser or the
        prior's is known (see `evidence_is_normalized`), otherwise up to a constant that is the same for all
        models with the same diffusion sites.

        A warning says so where the number may be off by more than its error: the run collapsed, or the
        posterior is as narrow as the spacing of floating-point numbers (`diagnostics.reservations`).
        """
        for reason in diagnostics.reservations(self._finished):
            warnings.warn(
                f"`log_evidence` is not to be relied on. {more(reason)}",
                stacklevel=2,
            )
        return self._log_evidence

    @property
    def _log_evidence(self) -> float:
        return log_mean(self._finished.log_evidence)

    @property
    def log_evidence_error(self) -> float:
        """Standard error of `log_evidence`, in nats.

        The larger of the error across clouds and the clouds' own (genealogical) errors, which are
        widened where few families are left; combined with the error of the prior's normaliser if that
        enters.
        """
        error = diagnostics.log_evidence_error(self._finished)
        if self.result.normalized:
            return error
        return math.hypot(error, self.bridge.log_normalizer_error or 0.0)

    @property
    def evidence_is_normalized(self) -> bool:
        """True if the scheme needs no normaliser, or that of every diffusion prior is known."""
        return self.result.normalized or self.bridge.log_normalizer_error is not None

    def get_weighted_samples(self) -> tuple[dict[str, Array], Array]:
        """All particles and their weights: values and weights lead with `(num_chains, num_particles)`.

        Weights sum to 1 over all clouds; a cloud counts by its evidence, so that the bias of means falls
        with the number of clouds as it does with that of particles.
        """
        result = self._drawn
        values = constrained(self.bridge, result.positions, num_axes=2)
        return values, _exp(pooled_log_weights(result))

    def get_samples(self, group_by_chain: bool = False) -> dict[str, Array]:
        """Equally weighted draws of latent and deterministic sites, in the space of the model.

        Args:
            group_by_chain: If true, arrays lead with `(num_chains, num_particles)` and each cloud
                stands for itself, for comparisons of clouds; otherwise with
                `(num_chains * num_particles,)`, clouds counting by their evidence, for the posterior.

        A mean over grouped draws counts all clouds alike. It has the bias of a single cloud, however many
        there are; that of `print_summary`, `get_weighted_samples` and ungrouped draws has not.
        """
        result = self._drawn
        if group_by_chain:
            index = drawn_by_cloud(self._keys["resample"], result)
            return constrained(self.bridge, take(index, result.positions), num_axes=2)
        return constrained(self.bridge, drawn(self._keys["resample"], result), num_axes=1)

    def discrete_probabilities(self) -> dict[str, Array]:
        """Posterior probabilities of the values of each discrete site, in order, as the last axis.

        Weighted means of probabilities given the other sites of a particle: of less variance than shares of
        draws. Empty for a model without discrete sites.
        """
        result = self._finished
        if not self.bridge.discrete_sites:
            return {}
        return discrete_probabilities(self.bridge, result.positions, pooled_log_weights(result))

    def print_summary(self, prob: float = 0.9, max_rows: int = 24) -> None:
        """Print a table of the posterior, the evidence, and a verdict on the run in plain words.

        All columns but `r_hat` count a cloud by its evidence, as `get_samples()` does.

        Args:
            prob: Probability of the central interval.
            max_rows: Rows printed a site; the rest is summed up in one line.
        """
        print(shown.text(self, prob, max_rows))

    def plot(self) -> Any:
        """The pictures of the run: what happened by level, and the posterior of every site.

        Of an interrupted run the first alone. `plots` has more of them, one by one.

        Returns:
            A Matplotlib figure.

        Raises:
            ImportError: Without Matplotlib: `pip install 'numpyro-diffusion[plots]'`.
        """
        return shown.figure(self)

    def _repr_html_(self) -> str | None:
        return shown.html(self)

    def to_arviz(
        self,
        *,
        predictive: bool = True,
        log_likelihood: bool = True,
        log_prior: bool = True,
        num_prior: int | None = None,
        coords: Mapping[str, Any] | None = None,
        dims: Mapping[str, Any] | None = None,
        pred_dims: Mapping[str, Any] | None = None,
    ) -> Any:
        """An ArviZ object: `InferenceData` (ArviZ 0.x) or `xarray.DataTree` (ArviZ 1.x).

        Groups: posterior (equally weighted draws, clouds as chains), prior, prior_predictive,
        posterior_predictive, log_likelihood, log_prior, observed_data, constant_data, sample_stats, smc_trace
        with what happened at each level, and weighted_particles, the cloud that the draws are from.

        In the posterior clouds stand as chains and count alike, as ArviZ takes chains; means over clouds that
        count by their evidence are those of `get_samples()` and of the weights in weighted_particles. Where
        the evidence is not to be relied on, a warning and the attribute `evidence_reservations` say why.

        Args:
            predictive: Include posterior predictive and prior draws.
            log_likelihood: Include the pointwise log likelihood, as LOO needs it. Errors of `az.loo` and
                `az.compare` are those of the data; the Monte Carlo error of the draws comes on top.
            log_prior: Include the log prior density of each latent site, as power scaling needs it
                (`az.psens`). Costs a network evaluation a draw.
            num_prior: Prior draws; 200 by default.
            coords: Values along dimensions, by name, as `az.from_numpyro` takes them.
            dims: Names of the dimensions of variables after chains and draws; plates have theirs.
            pred_dims: The same for prior and posterior predictive draws alone.

        Raises:
            ValueError: If names or coordinates do not fit the shapes.
        """
        result, (args, kwargs) = self._drawn, self._arguments
        run = Run(self.model, args, kwargs, self.bridge, result, self._keys)
        groups, known = arviz_groups(run, predictive, log_likelihood, num_prior or 200, log_prior)
        attributes = {
            "log_evidence": self.log_evidence,  # warns
            "log_evidence_error": self.log_evidence_error,
            "evidence_is_normalized": self.evidence_is_normalized,
            "evidence": self.result.evidence,
            "target": self.result.target,
            "exact": self.result.exact,
            "scheme": repr(self.scheme),
            "seconds": round(self._seconds, 3),
            "chains": "clouds, which count alike here; by their evidence in weighted_particles",
            **attributes_of(self.increments),
            **attributes_of_proposal(self.proposal_diagnostics),
            "evidence_reservations": " ".join(diagnostics.reservations(result)),
        }
        return diagnostics.to_arviz(
            groups, result, level_times(run), attributes, prior_marks(run),
            coords=coords, dims=dims, pred_dims=pred_dims, known_dims=known,
        )  # fmt: skip
