"""Log densities of NumPyro sites under wrappers, scales and masks.

Distributions come wrapped: in masks, in `expand` and in `to_event`. Nothing here runs the model.
"""

import copy
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints

from .. import _faq
from .._typing import Array
from .distributions import DiffusionPrior

__all__ = [
    "counts",
    "is_diffusion",
    "is_discrete",
    "is_other",
    "log_densities",
    "log_density",
    "log_peaks_and_numbers",
    "never_zero",
    "site_shape",
    "stand_in",
    "unmasked",
    "unwrapped",
]


def refuse_estimator(name: str, prior: Any) -> None:
    """Refuse a prior whose density is estimated where levels of an energy, or a sampler's distribution, are
    needed.
    """
    if getattr(prior, "log_density", None) is not None:
        raise ValueError(
            f"site `{name}` has `log_density={type(prior.log_density).__name__}`, a density of the prior "
            "alone; `SMC` and `noised` work with all levels of an energy, or with the distribution of "
            "the reverse sampler, which is another one. Leave `log_density` out; with it use NUTS, "
            f"SVI or importance sampling. {_faq.site_kind}"
        )


def unwrapped(fn: Any) -> Any:
    """The distribution under plates, masks, `expand` and `to_event`."""
    while isinstance(fn, dist.ExpandedDistribution | dist.Independent | dist.MaskedDistribution):
        fn = fn.base_dist
    return fn


def unmasked(fn: Any) -> Any:
    """Remove all masks from a distribution."""
    if isinstance(fn, dist.MaskedDistribution):
        return unmasked(fn.base_dist)
    if isinstance(fn, dist.ExpandedDistribution | dist.Independent):
        wrapper = copy.copy(fn)
        wrapper.base_dist = unmasked(fn.base_dist)
        return wrapper
    return fn


def counts(fn: Any, shape: tuple[int, ...]) -> Any:
    """Mark the entries of a value that enter its log density: those that no mask leaves out."""
    if isinstance(fn, dist.MaskedDistribution):
        known = isinstance(fn._mask, bool | np.ndarray)
        xp = np if known else jnp
        mask = xp.reshape(fn._mask, np.shape(fn._mask) + (1,) * fn.event_dim)
        return xp.broadcast_to(mask, shape) & counts(fn.base_dist, shape)
    if isinstance(fn, dist.ExpandedDistribution | dist.Independent):
        return counts(fn.base_dist, shape)
    return np.ones(shape, bool)


def site_shape(site: dict) -> tuple[int, ...]:
    """Shape of a site's value, plates and event together."""
    return site["fn"].shape(site["kwargs"]["sample_shape"])


def is_prior(fn: Any) -> bool:
    """Test whether it is a diffusion prior under wrappers."""
    return isinstance(unwrapped(fn), DiffusionPrior)


def is_diffusion(site: dict) -> bool:
    """Test whether it is a latent site with a diffusion prior."""
    latent = site["type"] == "sample" and not site["is_observed"]
    return latent and is_prior(site["fn"])


def is_discrete(site: dict) -> bool:
    """Test whether it is a latent site with a discrete prior."""
    return site["type"] == "sample" and not site["is_observed"] and bool(site["fn"].is_discrete)


def is_other(site: dict) -> bool:
    """Test whether it is a latent site with any other continuous prior."""
    latent = site["type"] == "sample" and not site["is_observed"]
    return latent and not is_diffusion(site) and not is_discrete(site)


def stand_in(site, deviations: float = 0.0):
    """Stand-in for a diffusion site while the model is traced: no reverse process is run."""
    if not is_diffusion(site):
        return None
    energy = unwrapped(site["fn"]).energy
    mean, variance = energy.moments(jnp.asarray(energy.t_min))
    return jnp.broadcast_to(mean + deviations * jnp.sqrt(variance), site_shape(site))


def log_densities(site: dict, fn: Any) -> Array:
    """Log density of each entry of a site under `fn`, with its scale; entries of `to_event` one by one."""
    while isinstance(fn, dist.Independent) and not (
        site["intermediates"] or np.ndim(site["scale"])
    ):
        fn = fn.base_dist
    if site["intermediates"]:
        values = fn.log_prob(site["value"], site["intermediates"])
    else:
        values = fn.log_prob(site["value"])
    return jnp.asarray(values if site["scale"] is None else site["scale"] * values)


def log_density(site: dict, fn: Any) -> Array:
    """Summed log density of a site under `fn`, with its scale."""
    return jnp.sum(log_densities(site, fn))


def log_peaks_and_numbers(site: dict) -> tuple[Array, Array]:
    """Log density of each entry of an observed site at its own centre, and how many numbers it holds.

    Both 0 where this means nothing: for factors, discrete data and distributions without a mean.
    """
    nothing, fn = (jnp.zeros(()), jnp.zeros(())), site["fn"]
    if isinstance(unwrapped(fn), dist.Unit) or fn.is_discrete:
        return nothing
    try:
        centre = jnp.broadcast_to(fn.mean, jnp.shape(site["value"]))
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return nothing
    known = jnp.all(jnp.isfinite(centre))
    centre = jnp.where(known, centre, site["value"])  # so that no gradient meets a NaN
    log_peaks = log_densities({**site, "value": centre, "intermediates": []}, fn)
    numbers = _numbers(fn, jnp.shape(centre))
    numbers = numbers if site["scale"] is None else site["scale"] * numbers
    known = known & jnp.all(jnp.isfinite(log_peaks))
    return jnp.where(known, log_peaks, 0.0), jnp.where(known, numbers, 0.0)


def never_zero(fn: Any) -> bool:
    """Test whether the density is positive at every real value for any parameters, as that of a normal
    distribution.

    False where that is not known, as for factors, counts, and distributions whose support depends on
    parameters.
    """
    return _base_support(unwrapped(fn)) is constraints.real


def takes_complex(fn: Any) -> bool:
    """Test whether it is a distribution of complex numbers."""
    return _base_support(unwrapped(fn)) is constraints.complex


def _base_support(fn: Any) -> Any:
    support: Any = None if isinstance(fn, dist.Unit | dist.Delta) else fn.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def _numbers(fn: Any, shape: tuple[int, ...]) -> Array:
    """How many numbers are behind each entry of a log density: 0 where a mask leaves it out."""
    batch = shape[: len(shape) - fn.event_dim]
    if isinstance(fn, dist.MaskedDistribution):
        return jnp.where(fn._mask, _numbers(fn.base_dist, shape), 0.0)
    if isinstance(fn, dist.Independent):
        inner = _numbers(fn.base_dist, shape)
        return jnp.sum(inner, tuple(range(-fn.reinterpreted_batch_ndims, 0)))
    if isinstance(fn, dist.ExpandedDistribution):
        return jnp.broadcast_to(_numbers(fn.base_dist, shape), batch)
    return jnp.full(batch, float(np.prod(shape[len(batch) :], initial=1.0)))
