"""Probabilities of a discrete site by the evidence of each of its values."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

from .._records import record, record_page
from .._typing import PRNGKey
from .choice_sites import choice_values
from .look import look
from .model_bridge import LiveModel
from .smc import SMC

__all__ = ["ChoiceEvidences", "choice_evidences"]


class ChoiceEvidences(NamedTuple):
    r"""What the data say of a choice among finitely many values.

    Attributes:
        values: The values, shape `(num_values,)`.
        log_evidences: $\log p(c) + \log p(y \mid c)$ of each, in nats.
        log_evidence_errors: Their standard errors.
        log_probs: $\log p(c \mid y)$.
        standard_errors: Of the probabilities $p(c \mid y)$.
        runs: The `SMC` of each value, with its draws.
    """

    values: np.ndarray
    log_evidences: np.ndarray
    log_evidence_errors: np.ndarray
    log_probs: np.ndarray
    standard_errors: np.ndarray
    runs: tuple[SMC, ...]

    __repr__ = record
    _repr_html_ = record_page

    @property
    def log_evidence(self) -> float:
        r"""$\log p(y)$, the choice summed out."""
        return float(np.logaddexp.reduce(self.log_evidences))


def choice_evidences(
    model: Callable, site: str, key: PRNGKey, *args: Any, smc: SMC | None = None, **kwargs: Any
) -> ChoiceEvidences:
    r"""A discrete latent site summed out: a run of `SMC` for each of its values, weighed by the evidence.

    `SMC` on the model itself finds the same probabilities, from the shares of the values among its particles.
    Where distributions of different values are far apart in many dimensions those shares are decided early,
    by few particles; a run for each value has no such trouble, and its errors are known.

    Args:
        model: A NumPyro model.
        site: Name of a latent site with finitely many values, outside of plates.
        key: PRNG key.
        *args: Arguments of the model.
        smc: The sampler, of any model: its scheme and numbers are taken. `SMC(model)` by default.
        **kwargs: Keyword arguments of the model.

    Raises:
        ValueError: If the model has no such site.
    """
    options = {} if smc is None else _options(smc)
    values = choice_values(look(LiveModel((), (), (), model, args, kwargs), 0.0), site)
    runs = []
    for value, one in zip(values, jax.random.split(key, len(values)), strict=True):
        given = handlers.condition(model, {site: jnp.asarray(value)})
        runs.append(SMC(given, **{"progress_bar": False, **options}).run(one, *args, **kwargs))
    logs = np.array([run.log_evidence for run in runs])
    errors = np.array([run.log_evidence_error for run in runs])
    log_probs = logs - np.logaddexp.reduce(logs)
    p = np.exp(log_probs)
    # The derivative of one probability in all log evidences.
    slopes = np.diag(p) - np.outer(p, p)
    return ChoiceEvidences(
        values, logs, errors, log_probs, np.sqrt(slopes**2 @ errors**2), tuple(runs)
    )


def _options(smc: SMC) -> dict[str, Any]:
    names = (
        "scheme",
        "num_particles",
        "num_chains",
        "twist",
        "initial",
        "chain_length",
        "batch_size",
        "progress_bar",
    )
    return {name: getattr(smc, name) for name in names}
