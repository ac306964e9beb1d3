"""New data for a finished run: what can be updated, and how the clouds go on."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from .. import _faq, diagnostics
from .._typing import PRNGKey
from ..bridge import Bridge, DensityBridge, grown, nested
from ..schemes import AbstractScheme, TunedScheme
from ..schemes.data_tempered import DataTempered
from ..smc import FeynmanKac, SMCResult, onward
from .checks import equal
from .draws import drawn, log_mean
from .look import look
from .model_bridge import LiveModel

__all__ = [
    "Increment",
    "attributes_of",
    "between",
    "check_can_update",
    "in_words",
    "scheme_for",
    "warn_of_fewer",
]


class Increment(NamedTuple):
    r"""What an update added to the log evidence.

    Attributes:
        log_evidence: $\log p(y_{new} \mid y_{old})$ in nats: log evidence after the update less
            that before. The prior's normaliser cancels. Where the old data are part of the new ones it is a
            prequential (one-step-ahead) score.
        error: Its standard error.
        num_levels: Levels that the update took.
    """

    log_evidence: float
    error: float
    num_levels: int

    @classmethod
    def of(cls, before: SMCResult, after: SMCResult) -> "Increment":
        """What clouds gained that went on from an earlier run."""
        gain = log_mean(after.log_evidence) - log_mean(before.log_evidence)
        return cls(gain, diagnostics.log_increment_error(before, after), after.num_levels_run)


def in_words(increments: tuple[Increment, ...]) -> str:
    """A line of a summary on the last of them; nothing without any."""
    if not increments:
        return ""
    gain, error, _ = increments[-1]
    return f"update {len(increments)}: log p(new data | old data) {gain:.3f} +- {error:.3f} nats\n"


def attributes_of(increments: tuple[Increment, ...]) -> dict[str, np.ndarray]:
    """Attributes of an ArviZ object; none without any update."""
    if not increments:
        return {}
    return {
        "log_evidence_increments": np.array([one.log_evidence for one in increments]),
        "log_evidence_increment_errors": np.array([one.error for one in increments]),
    }


def check_can_update(scheme: AbstractScheme, bridge: Bridge, result: SMCResult) -> None:
    """Refuse a run whose particles are not weighted draws from a posterior with a density.

    Raises:
        ValueError: If they are not.
    """
    if not (result.weighted and result.exact):
        raise ValueError(
            "`update` goes on from weighted draws of the old posterior; got those of a heuristic "
            f"(`{type(scheme).__name__}`), which follow another distribution, so that no weight "
            "would be right. Run "
            f"`nd.Annealed()`, or the scheme without `unweighted`, first. {_faq.update}"
        )
    if not isinstance(bridge, DensityBridge):
        raise ValueError(
            f"`update` weighs particles by the density of the model, which `{type(scheme).__name__}` "
            "does not know: its prior is the distribution of a reverse sampler, known by its steps "
            "alone. Run "
            "`nd.Annealed()` with an energy first, or run the new data from the "
            f"start. {_faq.update}"
        )
    if result.target != bridge.target:
        raise ValueError(
            f"`update` expects a run whose target is {bridge.target}; got one of: {result.target}. Run "
            f"`nd.Annealed()` first. {_faq.update}"
        )


def _bridge_between(key: PRNGKey, old: Bridge, new: Bridge, result: SMCResult) -> DensityBridge:
    """The bridge from the posterior that the clouds are of to that given the new data.

    Raises:
        ValueError: If the latent sites, their shapes or priors are others, if the new data allow what the old
            ones ruled out, or if no particle is possible under them.
    """
    assert isinstance(old, DensityBridge) and isinstance(new, DensityBridge)
    shapes = [_shapes(bridge) for bridge in (old, new)]
    if shapes[0] != shapes[1] or old.diffusion_sites != new.diffusion_sites:
        raise ValueError(
            f"`update` expects the latent sites of the run, {_words(shapes[0])}, in unconstrained space; got "
            f"{_words(shapes[1])}. Only data may change: sites that come with new data, such as the state at "
            "a new time, must be there from the start, their data masked; or run the new model "
            f"anew. {_faq.update}"
        )
    for name, site in old.sites.items():
        if not equal(site.energy, new.sites[name].energy):
            raise ValueError(
                f"`update` expects the prior of the run at site `{name}`; got another energy, "
                "so that its normaliser would not cancel. Run the new model from the "
                f"start. {_faq.update}"
            )
    key_cloud, key_near = jax.random.split(key)
    bridge = grown(old, new, drawn(key_cloud, result))
    shares = nested(bridge, key_near)
    if float(shares.impossible) == 1:
        raise ValueError(
            "every particle is impossible under the new data: their log density is -inf or NaN "
            "at all draws of the old posterior. Look for data outside of a distribution's support; "
            "if they are right, "
            f"run them from the start. {_faq.update}"
        )
    if float(shares.widened) > 0:
        raise ValueError(
            "the new data allow values that the old ones rule out (their density is 0 there), and no weight "
            f"reaches those: {float(shares.widened):.0%} of the points about the particles. `update` expects "
            "data that only narrow what is possible, as more data do. Run the new data from the "
            f"start. {_faq.update}"
        )
    return bridge


def between(
    key: PRNGKey,
    scheme: DataTempered,
    old: Bridge,
    new: Bridge,
    before: SMCResult,
    batch_size: int | None,
    progress_bar: bool,
) -> tuple[FeynmanKac, SMCResult]:
    """The Feynman-Kac model that leads clouds to new data, tuned, and the clouds that it starts from.

    Args:
        key: PRNG key of the pilot.
        scheme: Whose moves and pilot it has.
        old: Bridge to the posterior that the clouds are of.
        new: Bridge at the new data.
        before: The finished run.
        batch_size: Particles that are evaluated at once.
        progress_bar: Show the pilot's progress.
    """
    key_bridge, key_pilot = jax.random.split(key)
    kernels = scheme.kernels(_bridge_between(key_bridge, old, new, before))
    model = scheme.run(kernels, key_pilot, progress_bar=progress_bar)
    model = model._replace(claims=before.claims._replace(target=new.target))
    return model, onward(before, kernels.enter, batch_size)


def scheme_for(scheme: AbstractScheme) -> DataTempered:
    """The data tempering with the moves and the pilot of a scheme, where it has moves."""
    if not isinstance(scheme, TunedScheme) or scheme.moves.num == 0:
        return DataTempered()
    return DataTempered(moves=scheme.moves, pilot=scheme.pilot)


def warn_of_fewer(model: Callable, old: tuple[tuple, dict], new: tuple[tuple, dict]) -> None:
    """Say that there are fewer data than before: weights are right, but more uneven."""
    counts = [_num_data(model, *arguments) for arguments in (old, new)]
    if counts[1] < counts[0]:
        warnings.warn(
            f"the new data are {counts[1]} numbers where the old ones were {counts[0]}: the posterior given "
            "fewer data is wider than the cloud that it is reached from, so that tails may be missed. The "
            "weights are right as particles become many; running the new data from the start is safer. "
            f"{_faq.update}",
            stacklevel=3,
        )


def _num_data(model: Callable, args: tuple, kwargs: dict) -> int:
    trace = look(LiveModel((), (), (), model, args, kwargs), 0.0)
    observed = [s for s in trace.values() if s["type"] == "sample" and s["is_observed"]]
    masks = [
        np.broadcast_to(site["counts"], np.shape(site["value"]))
        if np.ndim(site["value"]) >= np.ndim(site["counts"])
        else np.asarray(site["counts"])
        for site in observed
        if site["counts"] is not None
    ]
    return int(sum(np.sum(mask) for mask in masks))


def _shapes(bridge: Bridge) -> dict[str, tuple[int, ...]]:
    shapes = jax.eval_shape(lambda key: bridge.sample_base(key), jax.random.key(0))
    return {name: leaf.shape for name, leaf in sorted(shapes.items())}


def _words(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"`{name}` of shape {shape}" for name, shape in shapes.items())
