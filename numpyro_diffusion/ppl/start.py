"""A run that starts from a proposal: how good that is, and how the particles go on from there."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq, diagnostics
from .._prng import lean
from .._records import record, record_page
from .._typing import Array, PRNGKey
from ..bridge import Bridge, log_density
from ..schemes import Pilot
from ..schemes.data_tempered import DataTempered
from ..smc import FeynmanKac

__all__ = [
    "ProposalDiagnostics",
    "attributes_of_proposal",
    "check_start",
    "from_proposal",
    "started_in_words",
]

HEAVY = 0.7  # Pareto k-hat above which importance weights are not relied on


class ProposalDiagnostics(NamedTuple):
    r"""How close a proposal is to the posterior, from draws of it that the run does not use.

    Attributes:
        pareto_k: Pareto $\hat k$ of the weights $p(z, y) / q(z)$: up to 0.7 importance sampling is to be
            relied on, above a path from the proposal to the posterior is needed.
        ess: Their effective sample size, as a share of the draws.
        num_draws: Number of these draws.
        num_levels: Levels that the run takes from there; 1 for importance sampling alone.
    """

    pareto_k: float
    ess: float
    num_draws: int
    num_levels: int

    __repr__ = record
    _repr_html_ = record_page

    def __str__(self) -> str:
        how = "importance sampling alone"
        if self.num_levels > 1:
            how = f"{self.num_levels} levels from there to the posterior"
        return f"proposal: Pareto k-hat {self.pareto_k:.2f}, effective share {self.ess:.1%}; {how}"


def started_in_words(found: ProposalDiagnostics | None) -> str:
    """A line of a summary; nothing without a proposal."""
    return "" if found is None else f"{found}\n"


def attributes_of_proposal(found: ProposalDiagnostics | None) -> dict[str, float]:
    """Attributes of an ArviZ object; none without a proposal."""
    if found is None:
        return {}
    return {"proposal_pareto_k": found.pareto_k, "proposal_ess": found.ess}


def check_start(scheme: Any, twist: Any) -> DataTempered:
    """The scheme that leads from a proposal to the posterior.

    Raises:
        ValueError: If another one is asked for, or a twist, which is for noisy levels.
    """
    if isinstance(scheme, DataTempered) and twist is None:
        return scheme
    if scheme is None and twist is None:
        return DataTempered()
    got = f"`{type(twist if scheme is None else scheme).__name__}`"
    raise ValueError(
        "from a proposal a run goes straight to the posterior, and noise levels play no part: `scheme` is "
        f"`nd.schemes.DataTempered(moves=..., pilot=...)` or `None`, and `twist` is `None`; got {got}. To "
        f"come from noise, leave `initial` out. {_faq.exact_draws}"
    )


def from_proposal(
    key: PRNGKey, scheme: Any, bridge: Bridge, progress_bar: bool
) -> tuple[FeynmanKac, ProposalDiagnostics]:
    """The Feynman-Kac model that starts from a proposal, and how good that is.

    Where the weights of the proposal have a tail that can be relied on and the pilot sees no need for a step
    in between, importance sampling is all; otherwise the likelihood ratio to the proposal fades in, with
    moves. Both are decided on draws of their own, which leaves the evidence unbiased.

    Args:
        key: PRNG key of the pilot.
        scheme: A `DataTempered`, for its moves and its pilot.
        bridge: From the proposal.
        progress_bar: Show the pilot's progress.
    """
    key_weights, key_pilot = jax.random.split(lean(key))
    number = max(1000, scheme.pilot.num_particles)
    log_weights = np.asarray(_importance(bridge, jax.random.split(key_weights, number)), float)
    k = diagnostics.tail_shape(log_weights)
    model = scheme.run(scheme.kernels(bridge), key_pilot, progress_bar=progress_bar)
    if scheme.levels is None and len(model.levels.power) == 2:
        if not k > HEAVY:
            model = model._replace(levels=jax.tree.map(lambda leaf: leaf[:1], model.levels))
        else:  # in steps, whatever few particles say
            careful = scheme.pilot.but(
                Pilot(conditional_ess=max(0.9, scheme.pilot.conditional_ess))
            )
            scheme = dataclasses.replace(scheme, pilot=careful)
            model = scheme.run(scheme.kernels(bridge), key_pilot, progress_bar=progress_bar)
    weights = np.exp(log_weights - log_weights.max())
    share = float(weights.sum() ** 2 / np.sum(weights**2) / number)
    return model, ProposalDiagnostics(k, share, number, len(model.levels.power))


@eqx.filter_jit
def _importance(bridge: Bridge, keys: Array) -> Array:
    """Log weights of draws of the proposal against the posterior."""
    zero, one = jnp.zeros(()), jnp.ones(())

    def each(key):
        z = bridge.sample_prior(key)
        log_joint, (seen, rest, _) = log_density(bridge, z, zero, one)
        log_weight = log_joint - bridge.proposal.log_prob(z, seen.log_density + rest.log_prior)
        return jnp.where(jnp.isfinite(log_weight), log_weight, -jnp.inf)

    return jax.lax.map(each, keys, batch_size=256)
