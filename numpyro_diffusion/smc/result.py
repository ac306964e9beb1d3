"""The result of a run: weighted particles with their history; also of interrupted and failed runs."""

from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._finite import in_words
from .._records import record, record_page
from .._typing import Array, PyTree
from .claims import Claims
from .described import as_page, described
from .feynman_kac import FeynmanKac
from .identity import Identity
from .packing import Packed, pack
from .weights import SMCState, family_weights, genealogy_error, log_mean_exp

__all__ = ["SMCResult", "Trace"]


class Trace(NamedTuple):
    """History of a run by level; leaves of shape `(num_levels,)` or `(num_chains, num_levels)`.

    Attributes:
        ess: Effective sample size after weighing, as a share of the particles.
        conditional_ess: The same for this level's weights alone.
        log_evidence_increment: Change of the log evidence at the level, in nats.
        resampled: Whether the cloud was resampled before the level.
        unique_ancestors: Number of distinct starting particles that still have offspring.
        info: Means over the particles of what the scheme's `step` reports.
        parents: Index of each particle's parent before the level, with a last axis of particles; only
            with `keep_genealogy`.
    """

    ess: Array
    conditional_ess: Array
    log_evidence_increment: Array
    resampled: Array
    unique_ancestors: Array
    info: Any
    parents: Array | None = None

    __repr__ = record
    _repr_html_ = record_page


def packed(row: Trace) -> tuple[Packed, Packed, Array | None]:
    """Pack the history of one level of all clouds into one array for the numbers and one for the info."""
    return pack(tuple(row[:5]), 1), row.info, row.parents


def unpacked(rows: tuple[Packed, Packed, Array | None], used: int) -> Trace:
    """The first levels of some rows, on the host: another number of levels compiles nothing."""
    first = lambda leaf: np.asarray(leaf)[:used].swapaxes(0, 1)
    numbers, info, parents = jax.tree.map(first, rows)
    ess, share, gain, resampled, ancestors = numbers.unpack(exact=True)
    return Trace(ess, share, gain, resampled, ancestors, info.unpack(), parents)


class SMCResult(NamedTuple):
    r"""A weighted cloud and its history.

    Attributes:
        positions: Pytree of particles, leading axes `(num_particles,)` or `(num_chains, num_particles)`.
        log_weights: Unnormalised log weights of the particles.
        log_evidence: $\log \hat Z$ of each cloud, in nats; $\hat Z$ is unbiased (a ratio of two such
            estimates where the first levels made a cloud of the prior).
        log_evidence_error: Standard error of $\log \hat Z$ of each cloud, from its own genealogy, or from
            its chains in a waste-free cloud. It is too small where few starting particles have offspring;
            `nd.diagnostics.log_evidence_error(result)` widens it there and compares the clouds, and
            `nd.diagnostics.verdict(result)` says so.
        initial_info: What `init` reports, averaged over the particles.
        trace: History over the levels.
        levels: The frozen levels that were run.
        claims: Of which distribution the particles are, and what the evidence is of; its parts are
            properties.
        completed: Whether all levels were run. If not, the particles follow a distribution on the way.
        state: The raw cloud, from which `run_smc(..., state=)` goes on.
        num_levels_run: How many levels were run.
        chain_length: That of a waste-free run; `None` for the usual cloud.
        identity: What the run was asked to do, which must be the same where it goes on.

    References:
        Chan & Lai (2013); Lee & Whiteley (2018), Variance estimation in the particle filter,
        Biometrika: the genealogical standard error.
    """

    positions: PyTree
    log_weights: Array
    log_evidence: Array
    log_evidence_error: Array
    initial_info: Any
    trace: Trace
    levels: PyTree
    claims: Claims
    completed: bool
    state: SMCState
    num_levels_run: int
    chain_length: int | None = None
    identity: Identity | None = None

    __repr__ = described
    _repr_html_ = as_page

    target = property(attrgetter("claims.target"))
    evidence = property(attrgetter("claims.evidence"))
    exact = property(attrgetter("claims.exact"))
    normalized = property(attrgetter("claims.normalized"))
    weighted = property(attrgetter("claims.weighted"))


def make_result(
    model: FeynmanKac,
    cloud: SMCState,
    initial_info,
    traces,
    done,
    num_levels,
    num_chains,
    chain_length: int | None = None,
    identity: Identity | None = None,
) -> SMCResult:
    """The result of a run after `done` levels, without the axis of clouds if `num_chains` is `None`."""
    weights = cloud._replace(particles=None)
    log_evidence, errors = evidence_of(weights, chain_length is not None, model.claims.weighted)
    trace = None
    if traces:
        trace = jax.tree.map(lambda *parts: jax.device_put(np.concatenate(parts, 1)), *traces)
    result = SMCResult(
        positions=model.position(cloud.particles),
        log_weights=cloud.log_weights,
        log_evidence=log_evidence,
        log_evidence_error=errors,
        initial_info=initial_info,
        trace=trace,  # type: ignore[arg-type]
        levels=model.levels,
        claims=model.claims if done == num_levels else _on_the_way(model.claims, done, num_levels),
        completed=done == num_levels,
        state=cloud,
        num_levels_run=done,
        chain_length=chain_length,
        identity=identity,
    )
    return result if num_chains is not None else first_cloud(result)


def first_cloud(result: SMCResult) -> SMCResult:
    """A result without its axis of clouds."""
    names = SMCResult._fields[:6] + ("state",)
    first = {n: jax.tree.map(lambda leaf: leaf[0], getattr(result, n)) for n in names}
    return result._replace(**first)


def _on_the_way(claims: Claims, done: int, num_levels: int) -> Claims:
    where = f"the intermediate distribution after {done} of {num_levels} levels"
    return claims._replace(
        target=f"{where}, on the way to: {claims.target}", evidence=f"the integral of {where}"
    )


@partial(jax.jit, static_argnames=("of_chains", "weighted"))
def evidence_of(cloud: SMCState, of_chains: bool, weighted: bool) -> tuple[Array, Array]:
    """Log evidence of each cloud and its error; NaN rather than a plausible number without weights."""
    if of_chains:
        errors = jnp.sqrt(cloud.chain_variance)
    else:
        errors = jax.vmap(genealogy_error)(cloud.log_weights, cloud.ancestors, cloud.prior_family)
    log_evidence = _total(cloud) - cloud.prior_log_evidence
    return (log_evidence, errors) if weighted else (jnp.nan * log_evidence, jnp.nan * errors)


def _total(cloud: SMCState) -> Array:
    return cloud.log_evidence + (cloud.lost + log_mean_exp(cloud.log_weights))


@jax.jit
def begin_evidence(cloud: SMCState) -> SMCState:
    """Return the cloud with its weights so far left out of the evidence: it is a cloud of the prior."""
    family = jax.vmap(family_weights)(cloud.log_weights, cloud.ancestors)
    return cloud._replace(
        prior_log_evidence=_total(cloud),
        prior_family=family,
        chain_variance=jnp.zeros_like(cloud.chain_variance),
    )


def go_on(
    state: SMCResult, num_particles: int, num_chains: int | None, identity: Identity | None = None
):
    """Restore the state of an interrupted run, with an axis of clouds; refuses that of another run."""
    shape = (num_particles,) if num_chains is None else (num_chains, num_particles)
    if state.log_weights.shape != shape:
        raise ValueError(
            f"`state` holds particles of shape {state.log_weights.shape}, but this run has {shape}. Go "
            "on with the `num_particles` and `num_chains` that the run began "
            f"with. {_faq.checkpoint}"
        )
    if identity is not None and state.identity is not None:
        told = state.identity.differences(identity)
        if told:
            raise ValueError(
                f"`state` is of another run: {', '.join(told)}. Go on with the key, model, data and settings "
                f"that it began with, or begin anew without `state`. {_faq.checkpoint}"
            )
    cloud, info, done = state.state, state.initial_info, state.num_levels_run
    trace = state.trace
    if num_chains is None:
        cloud, info, trace = jax.tree.map(lambda leaf: leaf[None], (cloud, info, trace))
    # After a death the trace is longer than what the particles went through.
    traces = [jax.tree.map(lambda leaf: np.asarray(leaf)[:, :done], trace)] if done else []
    return jax.tree.map(jnp.copy, cloud), info, done, traces  # the engine uses its memory again


def dead_cloud(cloud: int, result: SMCResult) -> FloatingPointError:
    """The error for a cloud in which nothing counts any more, with the result before its death."""
    level, trace = 0, result.trace
    if trace is not None:  # a chunk goes on after the level at which the cloud died
        ess = np.asarray(trace.ess).reshape(-1, trace.ess.shape[-1])[cloud]
        level = int(np.argmax(ess == 0)) + 1
        until = (*(slice(None),) * (trace.ess.ndim - 1), slice(level))
        trace = jax.tree.map(lambda leaf: leaf[until], trace)
    error = FloatingPointError(
        f"every particle of cloud {cloud} has weight 0 at level {level}: its log density is -inf, NaN "
        f"or +inf everywhere. Look at the likelihood at draws from the prior. {_faq.dead_cloud}"
    )
    result = result._replace(completed=False, trace=trace)
    for kind, what in (("nan", "NaN"), ("infinite", "+inf")):
        where = in_words(result, kind)
        if where:
            error.add_note(f"log density {what} at {where}.")
    error.result = result  # type: ignore[attr-defined]
    return error
