r"""What a plate that was sampled object by object answers: evidence, weights of nodes, and how good they are.

With $Z_{ic}(\phi)$ the evidence of object $i$ as its cloud in replicate $c$ of $C$ has it, and $R$ nodes
$\phi_r \sim g$,

$$\hat p(y) = \frac1R \sum_r w_r , \qquad
w_r = \frac{p(\phi_r)}{g(\phi_r)} \prod_i \bar Z_i(\phi_r) , \qquad \bar Z_i = \frac1C \sum_c Z_{ic} .$$

Clouds are averaged by object and not by replicate: of a product of many averages the variance is far smaller
than of an average of products. The error of $\log \hat p(y)$ is that of the delta method, with normalised
weights $\bar w_r$ and the influence of each cloud
$I_{ic} = \sum_r \bar w_r Z_{ic}(\phi_r) / \bar Z_i(\phi_r) - 1$,

$$\sum_{ic} \frac{I_{ic}^2}{C (C - 1)} + \sum_r \left( \bar w_r - \frac1R \right)^2 .$$
"""

from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

from ... import _faq
from ..._records import record, record_page
from ..._typing import Array, Position
from .reference import Reference

__all__ = ["PlateResult", "plate_result", "verdict"]

FEW = 50.0  # effective nodes or particles below which a verdict speaks
APART = 0.5  # relative spread of an object's evidences above which it does


class PlateResult(NamedTuple):
    r"""Clouds of all objects, and nodes of the shared sites with their weights.

    Attributes:
        nodes: Shared sites in one unconstrained vector, shape `(num_nodes, size)`.
        log_weights: $\log w_r$ of all clouds together, shape `(num_nodes,)`.
        replicate_log_weights: The same from the clouds of one replicate, at its own share of the nodes and
            $-\infty$ elsewhere, shape `(num_chains, num_nodes)`.
        log_share: $\log Z_{ic}(\phi_r) / (C \bar Z_i(\phi_r))$, shape `(num_chains, num_objects, num_nodes)`.
        index: Particles drawn at each node, shape `(num_chains, num_objects, copies, num_nodes)`.
        positions: Object sites, unconstrained, leading with `(num_chains, num_objects, num_particles)`.
        object_log_evidence: Of each object under the reference, shape `(num_chains, num_objects)`.
        object_ess: Effective sample size of each object's clouds given the shared sites, averaged over their
            posterior, shape `(num_objects,)`.
        object_spread: Standard deviation of $I_{ic}$ over replicates, shape `(num_objects,)`; NaN for one.
        node_ess: Effective number of nodes.
        reference: $g$.
        log_evidence: $\log \hat p(y)$, in nats.
        log_evidence_error: Its standard error; NaN for one replicate.
        target: What draws follow in the limit.
        evidence: What the log evidence is the logarithm of.
        exact: True: as particles and nodes become many, at any reference and levels.
        normalized: Whether the evidence is free of the prior's normaliser.
    """

    nodes: Array
    log_weights: np.ndarray
    replicate_log_weights: np.ndarray
    log_share: np.ndarray
    index: np.ndarray
    positions: Position
    object_log_evidence: np.ndarray
    object_ess: np.ndarray
    object_spread: np.ndarray
    node_ess: float
    reference: Reference
    log_evidence: float
    log_evidence_error: float
    target: str
    evidence: str
    exact: bool
    normalized: bool

    __repr__ = record
    _repr_html_ = record_page


def plate_result(
    nodes: Array,
    log_prior_ratio: np.ndarray,
    log_ratio: np.ndarray,
    index: np.ndarray,
    ess: np.ndarray,
    positions: Position,
    object_log_evidence: np.ndarray,
    reference: Reference,
    claims: tuple[str, str, bool, bool],
) -> PlateResult:
    r"""Put replicates together.

    Args:
        nodes: Draws of the reference, shape `(num_nodes, size)`.
        log_prior_ratio: $\log p(\phi_r) / g(\phi_r)$.
        log_ratio: $\log Z_{ic}(\phi_r) / Z_{ic}^g$, shape `(num_chains, num_objects, num_nodes)`.
        index: See `PlateResult`.
        ess: Effective sample sizes, of the shape of `log_ratio`.
        positions: See `PlateResult`.
        object_log_evidence: See there.
        reference: The reference.
        claims: Target, evidence, whether exact, whether normalised.

    Raises:
        FloatingPointError: If no node has a density above 0.
    """
    log_objects = np.asarray(object_log_evidence, np.float64)
    log_z = log_ratio.astype(np.float64) + log_objects[..., None]
    num_chains, _, num_nodes = log_z.shape
    pooled = logsumexp(log_z, axis=0) - np.log(num_chains)
    log_weights = _known(log_prior_ratio + pooled.sum(0))
    if not np.isfinite(log_weights).any():
        raise FloatingPointError(
            "no node of the shared sites has a density above 0 for all objects. Take more `rounds` or "
            f"`num_nodes`, and look at the likelihood at draws of the prior. {_faq.dead_cloud}"
        )
    own = np.arange(num_nodes) % num_chains == np.arange(num_chains)[:, None]
    by_replicate = np.where(own, _known(log_prior_ratio + log_z.sum(1)), -np.inf)
    weights = np.exp(log_weights - logsumexp(log_weights))
    log_share = log_z - np.where(np.isfinite(pooled), pooled, 0.0) - np.log(num_chains)
    share = np.exp(log_share)
    influence = num_chains * share @ weights - 1
    many = num_chains > 1
    spread = influence.std(0, ddof=1) if many else np.full(influence.shape[1], np.nan)
    variance = np.sum(spread**2) / num_chains + np.sum((weights - 1 / num_nodes) ** 2)
    evenness = 1 / np.maximum(np.sum(share**2 / ess, 0), 1e-30)
    return PlateResult(
        nodes, log_weights, by_replicate, log_share, index, positions, log_objects,
        evenness @ weights, spread, float(1 / np.sum(weights**2)), reference,
        float(logsumexp(log_weights) - np.log(num_nodes)), float(np.sqrt(variance)), *claims,
    )  # fmt: skip


def _known(values: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(values), -np.inf, values)


def verdict(result: PlateResult) -> str:
    """What is to be said of a run, in words: effective nodes, the worst object, spread of its clouds."""
    said, least = [], int(np.argmin(result.object_ess))
    nodes, particles = result.node_ess, result.object_ess[least]
    if nodes < FEW:
        said.append(
            f"CHECK: the shared sites rest on {nodes:.0f} effective nodes of {len(result.log_weights)}. Take "
            "more `num_nodes` or `rounds`."
        )
    if particles < FEW:
        said.append(
            f"CHECK: object {least} rests on {particles:.0f} effective particles given the shared sites, the "
            "fewest of all. Take more `num_particles` or `rounds`."
        )
    spread = np.nan_to_num(result.object_spread)
    if spread.max() > APART:
        said.append(
            f"CHECK: the evidences of object {int(np.argmax(spread))} differ between its clouds by "
            f"{spread.max():.0%}. Take more `num_particles`, or a `scheme` with more levels."
        )
    return "\n".join(said) or (
        f"No reservation: {nodes:.0f} effective nodes, and {particles:.0f} effective particles for the worst "
        f"object ({least})."
    )
