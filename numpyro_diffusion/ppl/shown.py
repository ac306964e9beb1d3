"""A finished run as text, as a page of a notebook and as a figure."""

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import diagnostics, plots
from .._html import page, picture, sparkline
from ..plots.summary import as_png
from ..smc.described import ESS
from .draws import drawn_by_cloud
from .start import started_in_words
from .update import in_words

if TYPE_CHECKING:
    from ..bridge import Bridge
    from .finished import AbstractRun

__all__ = ["figure", "html", "normaliser_in_words", "text"]


_UNKNOWN = (
    "The constant cancels between models with this prior; to compare priors,\n"
    "store it: `prior.with_log_normalizer(*nd.prior_normalizer(prior, key)[:2])`\n"
)


def normaliser_in_words(bridge: "Bridge", not_needed: bool) -> str:
    """Whether a log evidence is normalised, and how well the normalisers of its priors are known.

    Args:
        bridge: To the posterior.
        not_needed: Whether they drop out of the evidence.
    """
    if not bridge.diffusion_sites:
        return "normalised"
    if not_needed:
        return "normalised: the prior's normaliser is not needed by this scheme"
    error = bridge.log_normalizer_error
    if error is None:
        return "up to a constant: the prior's normaliser is unknown"
    known = f"to {error:.2g} nats" if error > 0 else "exactly"
    return f"normalised: the prior's normaliser is known {known}"


def text(run: "AbstractRun", prob: float, max_rows: int) -> str:
    """Table of the posterior, the evidence, and a verdict in plain words."""
    parts = [_table(run, prob, max_rows)]
    if run.bridge.discrete_sites:
        parts.append(diagnostics.probability_table(run.discrete_probabilities(), max_rows))
    kind = normaliser_in_words(run.bridge, run.result.normalized)
    count = run.network_evaluations
    parts.append(
        f"\nlog evidence {run._log_evidence:.3f} +- {run.log_evidence_error:.3f} nats ({kind})\n"
        f"evidence: {run.result.evidence}\n{'' if run.evidence_is_normalized else _UNKNOWN}"
        f"target: {run.result.target}; "
        f"{'exact as the number of particles grows' if run.result.exact else 'heuristic'}\n"
        f"{in_words(run.increments)}{started_in_words(run.proposal_diagnostics)}"
        f"{run.num_chains} clouds of {run.num_particles} particles, "
        f"{run.result.num_levels_run} levels{' of the last update' * bool(run.increments)}, "
        f"{'unknown number of' if count is None else f'{count:,}'} network evaluations\n"
        f"{diagnostics.verdict(run.result, run.bridge)}"
    )
    return "\n".join(parts)


def _grouped(run: "AbstractRun") -> dict[str, np.ndarray]:
    return {n: np.asarray(v) for n, v in run.get_samples(group_by_chain=True).items()}


def _table(run: "AbstractRun", prob: float, max_rows: int) -> str:
    result = run.result
    shares = diagnostics.cloud_shares(result)
    index = np.asarray(drawn_by_cloud(run._keys["resample"], result))
    if result.chain_length is None:
        families = np.take_along_axis(np.asarray(result.state.ancestors), index, 1)
    else:  # of waste-free clouds the chains of the last level, which lie one after the other
        families = index // result.chain_length
    return diagnostics.summary_table(_grouped(run), prob, max_rows, shares, families)


def figure(run: "AbstractRun") -> Any:
    """What happened by level and, of a completed run, the posterior of each site."""
    grouped = _grouped(run) if run.result.completed else {}
    return plots.plot_run(run.result, diagnostics.real_parts(grouped))


def html(run: "AbstractRun") -> str:
    """A page: the summary with its verdict, and the pictures, as Matplotlib draws them if it is there."""
    result = run.result
    if not result.completed:
        return page(repr(run), {"state": f"interrupted after {result.num_levels_run} levels"})
    try:
        drawn = picture(as_png(figure(run)), "the run by level, and the posterior by site")
    except ImportError:
        drawn = ""
    if not drawn and result.trace is not None:
        drawn = sparkline(result.trace.ess, ESS)
    return page(repr(run), {}, text(run, 0.9, 8), [drawn])
