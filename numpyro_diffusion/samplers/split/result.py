"""The result of a split Gibbs sampler, and what it is looked at for."""

from operator import attrgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ... import _faq
from ..._records import record, record_page
from ..._typing import Array, Position
from ...smc import Claims

__all__ = ["SplitResult", "cut", "refuse_lost", "refuse_nonfinite", "together"]


class SplitResult(NamedTuple):
    r"""Draws of a split sampler by chain, and of which distribution they are.

    Attributes:
        positions: Diffusion sites from the prior's side and the other sites, unconstrained, leading with
            `(num_chains, num_draws)`.
        log_weights: Their log weights, of shape `(num_chains, num_draws)`; where nothing is weighed, 0, and
            $-\infty$ for draws at which the data are impossible (`DAPS`).
            `diagnostics.pareto_k(result)` tells how heavy their tail is.
        seen: Diffusion sites as the data see them, without weights.
        claims: Of which distribution the weighted positions are; its `target` and `exact` are properties.
            There is no evidence.
        seen_target: The distribution of `seen` and the other sites.
        acceptance: Of the moves, by block and chain; 1 where nothing can be refused.
        num_evaluations: Network evaluations of all chains, those of the warm-up included; `None` where those
            of a move are not known.
    """

    positions: Position
    log_weights: Array
    seen: dict[str, Array]
    claims: Claims
    seen_target: str
    acceptance: dict[str, Array]
    num_evaluations: int | None

    __repr__ = record
    _repr_html_ = record_page

    target = property(attrgetter("claims.target"))
    exact = property(attrgetter("claims.exact"))


def refuse_nonfinite(result: SplitResult) -> None:
    """Where the first value is that is not a number, if there is one."""
    for name, values in [*result.positions.items(), *result.seen.items()]:
        bad = ~np.isfinite(np.asarray(values)).reshape(*result.log_weights.shape, -1)
        wrong: np.ndarray = np.any(bad, -1)
        if not wrong.any():
            continue
        draw = int(np.argmax(np.any(wrong, 0)))
        chain, count = int(np.argmax(wrong[:, draw])), int(np.sum(np.any(wrong, 1)))
        error = FloatingPointError(
            f"site {name!r} is not finite in {count} of {len(wrong)} chains, first in chain {chain} at draw "
            f"{draw}. Look at the denoiser at draws from its noisiest level, or give chains "
            f"finite values to start from (`initial`). {_faq.lost}"
        )
        error.result = result  # type: ignore[attr-defined]
        raise error


def refuse_lost(result: SplitResult) -> None:
    """Chains of which no draw has a weight."""
    lost = ~np.isfinite(np.asarray(result.log_weights)).any(1)
    if lost.any():
        error = FloatingPointError(
            f"every draw of chain {int(np.argmax(lost))} has weight 0: the density of the data is 0 at what "
            "it sees, or at the prior's side of it. Use a smaller `noise_level`, a longer `num_burn_in`, or "
            f"start where the data are possible (`initial`). {_faq.dead_cloud}"
        )
        error.result = result  # type: ignore[attr-defined]
        raise error


def together(rows: list[Any]) -> Any:
    """Rows of several chunks, `(draws, chains, ...)`, as `(chains, draws, ...)`."""

    def one(*parts):
        return jnp.moveaxis(jnp.concatenate([jnp.asarray(part) for part in parts]), 0, 1)

    return jax.tree.map(one, *rows)


def cut(rows: list[Any], at: int) -> tuple[list[Any], list[Any]]:
    """Rows of several chunks before a row and from it on; no chunk is empty."""
    before, after, done = [], [], 0
    for row in rows:
        length = len(jax.tree.leaves(row)[0])
        share = min(max(at - done, 0), length)
        parts = [
            jax.tree.map(lambda leaf, s=s: leaf[s], row) for s in (slice(share), slice(share, None))
        ]
        before += parts[:1] if share else []
        after += parts[1:] if share < length else []
        done += length
    return before, after
