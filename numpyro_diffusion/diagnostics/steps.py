"""Piecewise constant likelihoods, which gradients and weights cannot diagnose."""

from typing import Any

import equinox as eqx
import jax
import numpy as np

from ..bridge import Bridge
from ..smc import SMCResult

__all__ = ["piecewise_constant"]

_MOST = 1000  # particles that are looked at


def piecewise_constant(result: SMCResult, bridge: Bridge) -> str:
    """Sites whose log density takes few values over many places, in words; empty if there are none.

    Args:
        result: A run that is done.
        bridge: What was run.
    """
    axes = np.ndim(result.log_weights)
    flat = jax.tree.map(
        lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[axes:]), result.positions
    )
    some = slice(None, None, max(1, np.size(result.log_weights) // _MOST))
    positions = jax.tree.map(lambda leaf: leaf[some], flat)
    leaves = jax.tree.leaves(positions)
    rows = np.concatenate([leaf.reshape(len(leaf), -1).astype(float) for leaf in leaves], 1)
    num_places = len(np.unique(rows, axis=0))
    findings = []
    for name, each in _sites(bridge, positions).items():
        values = np.asarray(each, float)
        values = values[np.isfinite(values)]
        num_values = len(np.unique(values))
        if num_values < 0.2 * num_places and np.ptp(values) > 0.1:
            findings.append(
                f"The log density of site `{name}` takes {num_values} values at {num_places} places: it "
                "rises by steps, so that gradients are 0 and moves do not feel where it rises. Steps that no "
                "particle has met leave no trace, so the evidence and all judgements here may be far off. "
                "Use a smooth likelihood, or many more particles, and compare runs."
            )
    return " ".join(findings)


@eqx.filter_jit
def _sites(bridge: Bridge, positions: Any) -> dict[str, Any]:
    def one(z):
        return bridge.rest(z, {name: z[name] for name in bridge.diffusion_sites}).sites

    return jax.vmap(one)(positions)
