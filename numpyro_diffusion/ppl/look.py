"""Abstract inspection of a model: its sites and shapes, without computing anything.

The model is traced with its data as they are and its latent sites abstract. Values of observed sites, masks
and the arrays of energies that the model made on the way are computed afterwards, together.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun
from numpyro import distributions as dist
from numpyro.distributions import biject_to

from .. import _faq
from .checks import NEEDS_VALUES
from .model_bridge import LiveModel
from .site_checks import support_values
from .sites import counts, is_diffusion, is_discrete, stand_in, unwrapped

__all__ = ["look"]


def look(live: LiveModel, deviations: float) -> dict[str, dict]:
    """The trace of a model, of which shapes, kinds and the entries below may be read.

    Sites of the trace get `counts`, which entries their masks leave (`None` where there is none to look at);
    diffusion sites get `energy`, discrete ones `support` (`None` where it has no end or is not known), other
    latent ones `can_be_unconstrained`; observed sites have their `value`.

    Args:
        live: The model and its data.
        deviations: How far from the prior's mean the diffusion sites are put, in standard deviations. Other
            latent sites are drawn from their priors, with another key for another value.

    Raises:
        ValueError: If a latent site has no sampler.
    """
    met: list[str] = []
    seen: dict[str, dict] = {}

    def values(site):
        met.append(site["name"])
        return stand_in(site, deviations)

    def traced(key):
        seen.update(live.trace(values, key))
        kept = {name: _kept(site) for name, site in seen.items()}
        arrays, rest = eqx.partition(kept, eqx.is_array)
        seen[""] = rest
        return arrays

    key = jax.random.key(int(deviations))
    try:
        try:
            closed, shapes = jax.make_jaxpr(traced, return_shape=True)(key)
            arrays = _evaluated(closed, key)
            structure = jax.tree.structure(shapes)
        except (
            NEEDS_VALUES
        ):  # an energy that is made in the model may; anything else is refused later
            arrays, structure = jax.tree.flatten(traced(key))
    except NotImplementedError as error:
        raise ValueError(
            f"latent site `{met[-1]}` has no sampler, for instance an improper prior. Particles start "
            f"from the prior: give the site a proper one. {_faq.improper}"
        ) from error
    kept = eqx.combine(jax.tree.unflatten(structure, arrays), seen.pop(""))
    return {name: {**site, **kept[name]} for name, site in seen.items()}


def _kept(site: dict) -> dict[str, Any]:
    if site["type"] != "sample":
        return {}
    if is_diffusion(site):
        energy = unwrapped(site["fn"]).energy
        return {"energy": energy, "counts": counts(site["fn"], site["fn"].shape())}
    if is_discrete(site):
        fn = site["fn"]
        return {"counts": counts(fn, fn.shape()), "support": support_values(fn)}
    if not site["is_observed"]:
        fn = site["fn"]
        return {"counts": counts(fn, fn.shape()), "can_be_unconstrained": _has_bijection(fn)}
    value: Any = site["value"]
    if value is None or isinstance(unwrapped(site["fn"]), dist.Unit):
        return {"counts": None}
    if str(getattr(value, "dtype", "")) == "object":
        return {"counts": None}
    return {"value": value, "counts": counts(site["fn"], jnp.shape(value))}


def _has_bijection(fn: Any) -> bool:
    """Whether NumPyro has a map from unconstrained space onto the support, whose bounds may be traced."""
    try:
        biject_to(fn.support)
    except NotImplementedError:
        return False
    return True


def _evaluated(closed: ClosedJaxpr, key: Any) -> list[Any]:
    """Outputs of a program, most of which it was given."""
    here = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    out = closed.jaxpr.outvars
    known = {i: v.val if isinstance(v, Literal) else here.get(v) for i, v in enumerate(out)}
    missing = [i for i, value in known.items() if value is None]
    if missing:
        rest = jaxpr_as_fun(
            closed.replace(jaxpr=closed.jaxpr.replace(outvars=[out[i] for i in missing]))
        )
        known.update(zip(missing, jax.jit(rest)(key), strict=True))
    return [v if isinstance(v, jax.Array) else jax.device_put(np.array(v)) for v in known.values()]
