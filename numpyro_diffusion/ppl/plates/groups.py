"""ArviZ groups of a plate that was sampled object by object."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from ... import diagnostics
from ..._prng import lean
from ..._typing import PRNGKey
from ..dims import plate_dims
from ..groups import Run, observed_values, pointwise, predictions, renamed
from ..look import look
from ..model_bridge import LiveModel
from .layout import PlateModel
from .result import PlateResult

__all__ = ["Asked", "plate_groups"]


class Asked(NamedTuple):
    """Which groups are wanted, and how many draws of the prior."""

    predictive: bool
    log_likelihood: bool
    num_prior: int


def plate_groups(
    model: Callable,
    arguments: tuple[tuple, dict[str, Any]],
    plate: PlateModel,
    result: PlateResult,
    samples: dict[str, np.ndarray],
    key: PRNGKey,
    asked: Asked,
) -> tuple[dict[str, dict[str, Any]], dict[str, list[str | None]]]:
    """Arrays by group and variable, and the dimensions whose names the model knows, by variable.

    Args:
        model: The user's, of all objects.
        arguments: Its own.
        plate: What was seen of it.
        result: Of the run.
        samples: Draws by site, leading with `(num_chains, num_particles)`.
        key: That of the draws.
        asked: What is wanted.
    """
    args, kwargs = arguments
    trace = look(LiveModel((), (), (), model, args, kwargs), 0.0)
    observed = observed_values(trace)
    own = lean(key)
    # Beyond any number of replicates, which the draws split this key into.
    keys = {name: jax.random.fold_in(own, 2**20 + i) for i, name in enumerate(("prior", "predict"))}
    latent = {n: samples[n] for n in (*plate.one.diffusion_sites, *plate.axes) if n in samples}
    latent |= {n: samples[n] for n in plate.one.other_sites if n in samples}
    groups: dict[str, Any] = {"posterior": samples}
    if asked.predictive:
        run = Run(model, args, kwargs, plate.one, None, keys)  # type: ignore[arg-type]
        groups |= predictions(run, latent, tuple(samples), tuple(observed), asked.num_prior)
    if asked.log_likelihood and observed:
        groups["log_likelihood"] = pointwise(model, args, kwargs, latent, observed)
    groups["observed_data"] = observed
    groups["constant_data"] = diagnostics.array_arguments(model, args, kwargs, observed)
    dims = {n: d for n, d in plate_dims(trace).items() if n not in groups["constant_data"]}
    groups = renamed({n: diagnostics.real_parts(g) for n, g in groups.items() if g})
    stats = {"object_ess": result.object_ess, "object_spread": result.object_spread}
    groups["object_stats"] = stats
    for name, axis in plate.value_axes.items():
        if axis is not None and (names := dims.get(name)) and names[axis] is not None:
            dims |= {stat: [names[axis]] for stat in stats}
            break
    dims = {n.replace("/", "."): d for n, d in dims.items()}
    return {n: jax.tree.map(np.asarray, g) for n, g in groups.items()}, dims
