r"""Clouds of particles of many objects, each of one object's posterior under a reference, by one program.

The bridge of one object is the template: its programs are those of every object, and only the data, and what
is measured of them once, are others. Levels and step sizes are frozen, so that evidences are unbiased.
"""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from ..._typing import Array, Position, PRNGKey
from ...bridge import Bridge
from ...bridge.measured import measured
from ...bridge.tempering import Tempering
from ...schemes import TunedScheme
from ...smc import FeynmanKac
from ...smc.pure import sample
from .reference import JOINT, Reference

__all__ = ["Clouds", "Program", "run_clouds"]


class Clouds(NamedTuple):
    """Weighted particles of objects, with leading axes `(num_objects, num_particles)`.

    Attributes:
        positions: Of the object sites, unconstrained, each with an axis of length 1 for its object.
        log_weights: Normalised.
        log_evidence: Of each object under the reference, shape `(num_objects,)`; $-\\infty$ for a cloud that
            died.
    """

    positions: Position
    log_weights: Array
    log_evidence: Array


class Program(eqx.Module):
    """The run of one object under a reference, as a function of its data.

    Attributes:
        template: Bridge of some object under a reference.
        scheme: Without levels.
        levels: Frozen ones.
        evidence_from: See `FeynmanKac`.
    """

    template: Bridge
    scheme: TunedScheme
    levels: Any
    evidence_from: int = eqx.field(static=True)

    @classmethod
    def of(cls, scheme: TunedScheme, bridge: Bridge, key: PRNGKey, progress_bar: bool) -> "Program":
        """Levels from a pilot cloud over one object's bridge, unless the scheme has frozen ones."""
        bridge = _all_edges(bridge)
        model = scheme(bridge, key, progress_bar=progress_bar)
        bare = dataclasses.replace(scheme, levels=None)
        return cls(bridge, bare, model.levels, model.evidence_from)

    def bridge_at(self, data: list[Array]) -> Bridge:
        """The bridge of another object."""
        template = self.template
        model = dataclasses.replace(template.model, data=data)  # type: ignore[type-var]
        look = measured.__wrapped__  # without a compilation of its own
        typical, direction, found = look(model, template.sites, template.twist)
        tempering = template.tempering
        if template.sites and template.twist.takes_gradients:
            tempering = Tempering(template.sites, direction)
        return dataclasses.replace(
            template, model=model, typical=typical, tempering=tempering, log_peaks=found.log_peaks
        )

    def model_at(self, data: list[Array]) -> FeynmanKac:
        """The Feynman-Kac model of another object."""
        kernels = self.scheme.kernels(self.bridge_at(data))
        return FeynmanKac(
            kernels.init,
            kernels.step,
            self.levels,
            lambda particle: particle.position,
            evidence_from=self.evidence_from,
            advance=kernels.advance,
        )


def _all_edges(bridge: Bridge) -> Bridge:
    """Every factor that could be 0 counts as one that is: data of other objects may have zeros where these
    have none.
    """
    found = measured(bridge.model, bridge.sites, bridge.twist)[2]
    return dataclasses.replace(bridge, edges=tuple(found.zeros), log_peaks=found.log_peaks)


@eqx.filter_jit
def _run(program, own, common, keys, num_particles, threshold):
    def one(own, key):
        rows = iter(own)
        data = [next(rows) if leaf is None else leaf for leaf in common]
        model = program.model_at(data)
        found = sample(key, model, num_particles, threshold=threshold)
        position = {n: leaf for n, leaf in found.positions.items() if n != JOINT}
        return Clouds(position, jax.nn.log_softmax(found.log_weights), found.log_evidence)

    return jax.vmap(one)(own, keys)


def run_clouds(
    program: Program,
    data: "Data",
    reference: Reference,
    keys: Array,
    num_particles: int,
    threshold: float,
    batch_size: int,
    progress: Any,
) -> Clouds:
    """Clouds of all objects under a reference, so many objects at once.

    Args:
        program: Of one object.
        data: Of all objects.
        reference: Of the shared sites.
        keys: One an object.
        num_particles: Of each cloud.
        threshold: Of the resampling.
        batch_size: Objects at once.
        progress: Called with the number of objects done.
    """
    done = []
    for index, count in batches(data.num_objects, batch_size):
        own, common = data.rows(index, reference)
        found = _run(program, own, common, keys[index], num_particles, threshold)
        done.append(jax.tree.map(lambda leaf, n=count: np.asarray(leaf[:n]), found))
        progress(count)
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *done)


def batches(num: int, size: int) -> list[tuple[np.ndarray, int]]:
    """Indices in batches of one length, the last one filled up, and how many of each count."""
    starts = range(0, num, size)
    return [(np.minimum(np.arange(s, s + size), num - 1), min(size, num - s)) for s in starts]


@dataclasses.dataclass(frozen=True)
class Data:
    """The arrays that the model of one object is made of, for all objects.

    Attributes:
        leaves: All arrays among the arguments of the model; those that are split lead with objects.
        split: Which of them are.
        num_objects: Number of objects.
    """

    leaves: list[Array]
    split: list[bool]
    num_objects: int

    def rows(self, index: np.ndarray, reference: Reference) -> tuple[list[Array], list[Any]]:
        """Arrays of some objects, and those that all share, with `None` in the place of the former."""
        own = [leaf[index] for leaf, split in zip(self.leaves, self.split, strict=True) if split]
        common = [None if s else leaf for leaf, s in zip(self.leaves, self.split, strict=True)]
        return own, [*reference, *common]
