"""Validation of NumPyro models before sampling; errors name the site."""

import contextlib
import inspect
import math
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpyro import distributions as dist

from ..bridge import Bridge, DiffusionSite
from .sites import is_discrete, refuse_estimator, site_shape, takes_complex, unwrapped

__all__ = [
    "NEEDS_VALUES",
    "check_model",
    "check_site",
    "diffusion_site",
    "refuse_rebuilt_energies",
    "refuse_unknown_normalizers",
    "support_values",
    "values_needed",
]

NEEDS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def check_model(model: Any) -> None:
    """Refuse what is no model: a value, and functions whose body does not run when they are called."""
    if not callable(model):
        raise TypeError(
            f"`model` must be a NumPyro model, a function; got {type(model).__name__}. An energy alone "
            "is sampled with `nd.from_energy` and `nd.run_smc`."
        )
    for body in (model, getattr(model, "__call__", None)):  # noqa: B004
        if inspect.isgeneratorfunction(body) or inspect.iscoroutinefunction(body):
            raise TypeError(
                "`model` must be a plain function; got one with `yield` or `async`, whose body does not run "
                "when it is called. Return values, or note them with `numpyro.deterministic`."
            )


def check_site(name: str, site: dict, trace: dict[str, dict]) -> None:
    """Refuse a site that is random, discrete, masked, scaled or not finite where it must not be."""
    if site["type"] == "plate":
        size, subsample_size = site["args"]
        if subsample_size is not None and subsample_size < size:
            raise ValueError(
                f"plate `{name}` subsamples {subsample_size} of {size}: its likelihood is random, so "
                "weights would be wrong. Use the whole plate."
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
            "`total_count` as plain Python numbers that depend on no other site."
        )
    if not site.get("can_be_unconstrained", True):
        law = type(unwrapped(site["fn"])).__name__
        raise ValueError(
            f"latent site `{name}` ({law}) has a support that NumPyro cannot map from unconstrained space. "
            "Write it as a function of sites that it can, as the classes in `numpyro.infer.reparam` do: "
            f"`numpyro.handlers.reparam(model, config={{{name!r}: ProjectedNormalReparam()}})` for a "
            "direction."
        )
    # NumPyro splits `y` with an `obs_mask` into `y_observed` and `y_unobserved`.
    partner = trace.get(name.removesuffix("_unobserved") + "_observed", {})
    if not partner.get("is_observed") and not np.all(np.asarray(site["counts"])):
        raise ValueError(
            f"the latent site `{name}` is masked, which would leave it without a prior; mask the "
            "observed sites instead."
        )
    if site["scale"] is not None:
        raise ValueError(
            f"the latent site `{name}` is under a `scale` handler: particles start from its prior, not "
            "from a power of it. Scale the observed sites only; for a diffusion prior raised to a "
            "power write `power * energy`."
        )


def support_values(fn: Any) -> Any:
    """Values of one entry of a discrete distribution, in order; `None` where they have no end or are not
    known.
    """
    fn = unwrapped(fn)
    if not fn.has_enumerate_support:
        return None
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
            f"`handlers.substitute(model, {{{name!r}: value}})`."
        )


def _check_observed(name: str, site: dict) -> None:
    if site["counts"] is None:
        fn = site["fn"]
        if isinstance(unwrapped(fn), dist.Unit):
            if jnp.iscomplexobj(unwrapped(fn).log_factor):
                raise TypeError(
                    f"factor `{name}` is complex; a density is real. Take its real part."
                )
            _warn_of_repeats(f"factor `{name}`", unwrapped(fn).batch_shape, fn.batch_shape)
        return
    value = np.asarray(site["value"])
    if value.dtype == object:
        return
    if np.iscomplexobj(value) and not takes_complex(site["fn"]):
        raise TypeError(
            f"observed site `{name}` has a law of real numbers; got {value.dtype}. Give real and imaginary "
            "parts each a law of its own."
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
            "data, or what its distribution is made of."
        )
    if value.size == 0:
        return
    _warn_of_repeats(f"observed site `{name}`", value.shape, expected)
    bad = ~np.isfinite(value if np.iscomplexobj(value) else value.astype(float))
    bad = bad & np.asarray(site["counts"])
    if bad.any():
        raise ValueError(
            f"observed site `{name}` has {int(bad.sum())} values that are not finite, the first at "
            f"index {tuple(int(i) for i in np.argwhere(bad)[0])}. Remove them, or mark them missing: "
            "`numpyro.sample(name, fn.mask(is_observed), obs=jnp.where(is_observed, y, 0))`."
        )


def _warn_of_repeats(what: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    times = math.prod(expected) // max(math.prod(shape), 1)
    if times > 1:
        warnings.warn(
            f"{what} has values of shape {shape}, its plates and law {expected}: each value counts {times} "
            "times in likelihood and evidence. If that is meant, broadcast it yourself; if not, look at the "
            "shape and the plates.",
            stacklevel=5,  # the caller of `from_model`
        )


def refuse_rebuilt_energies(sites: dict[str, DiffusionSite], again: dict[str, dict]) -> None:
    """Refuse energies that are others in a second trace, but for their arrays."""
    for name, site in sites.items():
        if not equal(site.energy, again[name]["energy"], numbers=False):
            raise ValueError(
                f"the energy of site `{name}` is another one at other values of latent sites, or is built "
                "anew from new functions whenever the model runs. Use one fixed energy a site, made outside "
                "the model, or one whose arrays alone depend on latent sites."
            )


def equal(a: Any, b: Any, *, numbers: bool = True) -> bool:
    """Whether two pytrees are equal, compared on the host: nothing is compiled.

    Args:
        a: One.
        b: The other.
        numbers: Compare numbers in arrays too, not only their shapes and types.
    """
    (leaves, structure), (others, same) = jax.tree.flatten(a), jax.tree.flatten(b)
    if structure != same:
        return False

    def one(x, y):
        if x is y:
            return True
        if not (eqx.is_array_like(x) and eqx.is_array_like(y)):
            return x == y
        if jnp.shape(x) != jnp.shape(y) or jnp.result_type(x) != jnp.result_type(y):
            return False
        return not numbers or bool((np.asarray(x) == np.asarray(y)).all())

    return all(map(one, leaves, others))


def refuse_unknown_normalizers(
    sites: dict[str, DiffusionSite], varying: set[str], path_space: bool
) -> None:
    """Refuse energies that depend on other latent sites, unless they are normalised."""
    for name in sorted(varying):
        if path_space:
            raise ValueError(
                f"the energy of site `{name}` depends on other latent sites, which a scheme in path space "
                "cannot move: their law holds all its steps. Use a scheme that needs energies, such as "
                "`Annealed()`, or one fixed energy a site."
            )
        if sites[name].energy.log_normalizer is None:  # type: ignore[attr-defined]
            raise ValueError(
                f"the energy of site `{name}` depends on other latent sites; its normaliser would be part of "
                "the posterior and is not known. Make a table of it, `family = "
                "nd.normalizers.tabulate(function, grid, key=key)`, and write `family.given(value)`; for "
                "labels see `with_label_normalizers`, or give each value a site of its own, "
                "`x = jnp.stack([x0, x1])[k]`. Or use one fixed energy a site, made outside the "
                "model; for an unknown location and scale write `x = mu + scale * z` with `z` from it."
            )


@contextlib.contextmanager
def values_needed(discrete: tuple[str, ...] = ()):
    """Say in plain words that a model cannot be traced."""
    try:
        yield
    except NEEDS_VALUES as error:
        summed = ""
        if discrete:
            summed = (
                f" Nor may an `if` or a `range` ask for the discrete site {_listed(discrete)}, which is "
                "summed over all its values at once: write `jnp.where(flag, a, b)`."
            )
        raise ValueError(
            "the model needs the values of its array arguments or latent sites, not only their shapes, so it "
            "cannot be compiled for all of them at once: this comes from an `if`, a NumPy function or an "
            "index made from one, or from a plain number in `log_prob` of a law with bounds, which NumPyro "
            f"checks with NumPy. Pass sizes and switches as Python numbers, and use `jax.numpy`.{summed}"
        ) from error


def _listed(names: tuple[str, ...]) -> str:
    return " or ".join(f"`{name}`" for name in names)


def diffusion_site(name: str, site: dict, bridge_type: type[Bridge], initial: Any) -> DiffusionSite:
    """The diffusion variable at a site; refuses a score where a density is needed."""
    refuse_estimator(name, unwrapped(site["fn"]))
    energy, shape = site["energy"], site_shape(site)
    if not isinstance(energy, bridge_type.prior_type):
        raise TypeError(
            f"site `{name}` has the score-only prior {type(energy).__name__}: particles cannot be "
            "weighed without a density. Train or distil an energy, or use the scheme `Twisted`, whose "
            "prior is the law of the reverse sampler."
        )
    batch_shape = tuple(shape[: len(shape) - len(energy.shape)])
    return bridge_type.site_type(energy, batch_shape, initial)
