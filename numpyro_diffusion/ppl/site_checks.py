"""Validation of one site of a model: its shape, scale, mask and data; errors name the site."""

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import distributions as dist

from .. import _faq
from .checks import NEEDS_VALUES
from .sites import is_discrete, site_shape, takes_complex, unwrapped

__all__ = ["check_site", "support_values"]


def check_site(name: str, site: dict, trace: dict[str, dict]) -> None:
    """Refuse a site that is random, discrete, masked, scaled or not finite where it must not be."""
    if site["type"] == "plate":
        size, subsample_size = site["args"]
        if subsample_size is not None and subsample_size < size:
            raise ValueError(
                f"plate `{name}` subsamples {subsample_size} of {size}: its likelihood is random, so "
                f"weights would be wrong. Use the whole plate. {_faq.subsample}"
            )
    if site["type"] == "param":
        _check_param(name, site, trace)
    elif site["type"] == "sample" and site["is_observed"]:
        _check_observed(name, site)
    elif site["type"] == "sample":
        _check_latent(name, site, trace)


def _check_latent(name: str, site: dict, trace: dict[str, dict]) -> None:
    if is_discrete(site) and site["support"] is None:
        law = type(unwrapped(site["fn"])).__name__
        raise ValueError(
            f"the discrete latent site `{name}` ({law}) has no finite list of values that is known when the "
            "model is traced, and is summed out value by value. Give it one: for counts "
            "`dist.Categorical(logits=dist.Poisson(rate).log_prob(jnp.arange(20)))`, and bounds or a "
            "`total_count` as plain Python numbers that depend on no other "
            f"site. {_faq.no_finite_list}"
        )
    if not site.get("can_be_unconstrained", True):
        law = type(unwrapped(site["fn"])).__name__
        raise ValueError(
            f"latent site `{name}` ({law}) has a support that NumPyro cannot map from unconstrained space. "
            "Write it as a function of sites that it can, as the classes in `numpyro.infer.reparam` do: "
            f"`numpyro.handlers.reparam(model, config={{{name!r}: ProjectedNormalReparam()}})` for a "
            f"direction. {_faq.site_kind}"
        )
    # NumPyro splits `y` with an `obs_mask` into `y_observed` and `y_unobserved`.
    partner = trace.get(name.removesuffix("_unobserved") + "_observed", {})
    if not partner.get("is_observed") and not np.all(np.asarray(site["counts"])):
        raise ValueError(
            f"the latent site `{name}` is masked, which would leave it without a prior; mask the "
            f"observed sites instead. {_faq.masked}"
        )
    if site["scale"] is not None:
        raise ValueError(
            f"the latent site `{name}` is under a `scale` handler: particles start from its prior, not "
            "from a power of it. Scale the observed sites only; for a diffusion prior raised to a "
            f"power write `power * energy`. {_faq.masked}"
        )


def support_values(fn: Any) -> Any:
    """Values of one entry of a discrete distribution, in order; `None` where they have no end or are not
    known.
    """
    fn = unwrapped(fn)
    if not fn.has_enumerate_support:
        return None
    if hasattr(fn, "entry_values"):  # entries depend on one another: all their joint values are run
        return jnp.asarray(fn.entry_values)
    try:
        return jnp.ravel(fn.enumerate_support(expand=False))
    except (NotImplementedError, *NEEDS_VALUES):
        return None


def _check_param(name: str, site: dict, trace: dict[str, dict]) -> None:
    """Refuse a parameter at its initial value, unless sites of a Bayesian network stand for all of it."""
    prefix = name.removesuffix("$params")
    sampled = [n for n, s in trace.items() if s["type"] == "sample" and n.startswith(prefix)]
    if site.get("is_initial") and len(sampled) < len(jax.tree.leaves(site["value"])):
        raise ValueError(
            f"the parameter `{name}` (`numpyro.param`) would stay at its initial value: only sample sites "
            "are inferred. Give it a prior with `numpyro.sample`, or its trained value with "
            f"`handlers.substitute(model, {{{name!r}: value}})`. {_faq.param}"
        )


def _check_observed(name: str, site: dict) -> None:
    if site["counts"] is None:
        fn = site["fn"]
        if isinstance(unwrapped(fn), dist.Unit):
            if jnp.iscomplexobj(unwrapped(fn).log_factor):
                raise TypeError(
                    f"factor `{name}` is complex; a density is real. Take its real "
                    f"part. {_faq.real_numbers}"
                )
            _warn_of_repeats(f"factor `{name}`", unwrapped(fn).batch_shape, fn.batch_shape)
        return
    value = np.asarray(site["value"])
    if value.dtype == object:
        return
    if np.iscomplexobj(value) and not takes_complex(site["fn"]):
        raise TypeError(
            f"observed site `{name}` has a distribution of real numbers; got {value.dtype}. Give "
            "real and imaginary "
            f"parts each a distribution of its own. {_faq.real_numbers}"
        )
    expected = site_shape(site)
    try:
        fits = np.broadcast_shapes(value.shape, expected) in (value.shape, expected)
    except ValueError:
        fits = False
    # Shapes that stretch each other would be summed over more terms than there are data.
    if not fits:
        raise ValueError(
            f"observed site `{name}` expects values of shape {expected}; got {value.shape}. Reshape the "
            f"data, or what its distribution is made of. {_faq.shapes}"
        )
    if value.size == 0:
        return
    _warn_of_repeats(f"observed site `{name}`", value.shape, expected)
    _warn_of_plates_of_one(name, site, value.shape)
    bad = ~np.isfinite(value if np.iscomplexobj(value) else value.astype(float))
    bad = bad & np.asarray(site["counts"])
    if bad.any():
        raise ValueError(
            f"observed site `{name}` has {int(bad.sum())} values that are not finite, the first at "
            f"index {tuple(int(i) for i in np.argwhere(bad)[0])}. Remove them, or mark them missing: "
            "`numpyro.sample(name, fn.mask(is_observed), obs=jnp.where(is_observed, y, "
            f"0))`. {_faq.missing_data}"
        )


def _warn_of_repeats(what: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    times = math.prod(expected) // max(math.prod(shape), 1)
    if times > 1:
        warnings.warn(
            f"{what} has values of shape {shape}, its plates and distribution {expected}: each "
            f"value counts {times} "
            "times in likelihood and evidence. If that is meant, broadcast it yourself; if not, look at the "
            f"shape and the plates. {_faq.shapes}",
            stacklevel=5,  # the caller of `from_model`
        )


def _warn_of_plates_of_one(name: str, site: dict, shape: tuple[int, ...]) -> None:
    """Say so where several data lie along the dimension of a plate of size 1, which NumPyro broadcasts."""
    batch = shape[: len(shape) - site["fn"].event_dim]
    for plate in site["cond_indep_stack"]:
        number = batch[plate.dim] if len(batch) >= -plate.dim else 1
        if plate.size == 1 and number > 1:
            warnings.warn(
                f"observed site `{name}` has {number} values along plate `{plate.name}`, whose size is 1: "
                f"whatever else is in the plate is one for all of them. Set the size to {number}; if one for "
                f"all is meant, sample `{name}` outside of the plate. {_faq.shapes}",
                stacklevel=5,  # the caller of `from_model`
            )
