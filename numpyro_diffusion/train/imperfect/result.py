"""The result of a fit to imperfect examples."""

from typing import Any, NamedTuple

import numpy as np

from ... import _faq
from ..._records import record, record_page
from ..._typing import PyTree

__all__ = ["ImperfectResult", "imperfect_verdict"]


class ImperfectResult(NamedTuple):
    """Result of `fit_imperfect`.

    Attributes:
        energy: The prior of the best round.
        noise: Standard deviation of the noise in that round, as it was given or estimated: a number, or one
            an entry.
        parameters: Unknown parameters of the operator in that round; `None` where there are none.
        draws: One draw of every clean example given what is seen of it, by that prior: `(num,
            *energy.shape)`. Imputations, and data for `from_data` of a network.
        history: Arrays of one length, an entry a round, the start among them: `round`; `log_evidence`, nats
            an example of those that are judged, mean; `error`, its Monte Carlo standard error;
            `train_evidence`, of those that are fitted; `ess`, the mean effective sample size over the number
            of particles; `noise`, the root mean square of its scale.
        best_round: Round of what is returned; 0 if no round was better than the start.
        stopped: Why the fit ended: `"rounds"`, `"patience"` or `"interrupted"`.
        held_out: Indices of the examples that were judged and not fitted; empty if all are fitted and judged.
    """

    energy: Any
    noise: Any
    parameters: PyTree
    draws: np.ndarray
    history: dict[str, np.ndarray]
    best_round: int
    stopped: str
    held_out: np.ndarray

    __repr__ = record
    _repr_html_ = record_page

    @property
    def learned(self) -> bool:
        """True if the observed evidence of a round was above that of the start."""
        return self.best_round > 0

    @property
    def verdict(self) -> str:
        """Summary in words: by how much the evidence rose, or that nothing was learned and what to do."""
        return imperfect_verdict(
            self.history, self.best_round, self.stopped, len(self.held_out) > 0
        )


def imperfect_verdict(history: dict, best_round: int, stopped: str, held_out: bool) -> str:
    """Summarise the evidences of the rounds, with a remedy where nothing was learned."""
    values, errors = (np.asarray(history[name]) for name in ("log_evidence", "error"))
    which = "held-out examples" if held_out else "the examples"
    if best_round > 0:
        gain = values[best_round] - values[0]
        error = float(np.hypot(errors[best_round], errors[0]))
        more = " It was still rising: give more `rounds`." if stopped == "rounds" else ""
        more = more if best_round == len(values) - 1 else ""
        return (
            f"best at round {best_round} of {len(values) - 1}: the observed log evidence of {which} rose by "
            f"{gain:.4f} +- {error:.4f} to {values[best_round]:.4f} nats an example.{more}"
        )
    if len(values) == 1:
        return f"learned nothing: the fit ended before its first round. {_faq.nothing_learned}"
    return (
        f"learned nothing: in {len(values) - 1} rounds the observed log evidence of {which} was never above "
        f"that of the start, {values[0]:.4f} nats an example ({values[1:].max():.4f} at best since), and the "
        "prior is the one that it began with. Start from a Gaussian that was fitted to the same examples, "
        "take more `steps` a round or a smaller network, or more particles if `history['ess']` is near "
        f"1 / num_particles. {_faq.nothing_learned}"
    )
