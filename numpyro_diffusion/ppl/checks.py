"""Validation of NumPyro models before sampling; errors name the site."""

import contextlib
import inspect
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution

from .. import _faq
from ..bridge import Bridge, DiffusionSite
from .sites import refuse_estimator, site_shape, unwrapped

__all__ = [
    "NEEDS_VALUES",
    "check_model",
    "diffusion_site",
    "refuse_rebuilt_energies",
    "refuse_unknown_normalizers",
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
    if isinstance(model, Distribution):  # which is callable
        raise TypeError(
            "`model` must be a NumPyro model, a function that calls `numpyro.sample`; got a distribution "
            f'({type(model).__name__}). Sample it in one: `def model(): numpyro.sample("x", '
            f"distribution)`. {_faq.not_a_model}"
        )
    if not callable(model):
        raise TypeError(
            f"`model` must be a NumPyro model, a function; got {type(model).__name__}. An energy alone "
            f"is sampled with `nd.from_energy` and `nd.run_smc`. {_faq.not_a_model}"
        )
    for body in (model, getattr(model, "__call__", None)):  # noqa: B004
        if inspect.isgeneratorfunction(body) or inspect.iscoroutinefunction(body):
            raise TypeError(
                "`model` must be a plain function; got one with `yield` or `async`, whose body does not run "
                "when it is called. Return values, or note them with "
                f"`numpyro.deterministic`. {_faq.not_a_model}"
            )


def refuse_rebuilt_energies(sites: dict[str, DiffusionSite], again: dict[str, dict]) -> None:
    """Refuse energies that are others in a second trace, but for their arrays."""
    for name, site in sites.items():
        if not equal(site.energy, again[name]["energy"], numbers=False):
            raise ValueError(
                f"the energy of site `{name}` is another one at other values of latent sites, or is built "
                "anew from new functions whenever the model runs. Use one fixed energy a site, made outside "
                f"the model, or one whose arrays alone depend on latent sites. {_faq.fixed_energy}"
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
                "cannot move: its density holds all steps of the sampler. Use a scheme that needs "
                "energies, such as "
                f"`Annealed()`, or one fixed energy a site. {_faq.normaliser}"
            )
        if sites[name].energy.log_normalizer is None:  # type: ignore[attr-defined]
            raise ValueError(
                f"the energy of site `{name}` depends on other latent sites; its normaliser would be part of "
                "the posterior and is not known. Make a table of it, `family = "
                "nd.normalizers.tabulate(function, grid, key=key)`, and write `family.given(value)`; for "
                "labels see `with_label_normalizers`, or give each value a site of its own, "
                "`x = jnp.stack([x0, x1])[k]`. Or use one fixed energy a site, made outside the "
                "model; for an unknown location and scale write `x = mu + scale * z` with `z` "
                f"from it. {_faq.normaliser}"
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
            "index made from one, or from a plain number in `log_prob` of a distribution with "
            "bounds, which NumPyro "
            "checks with NumPy. Pass sizes and switches as Python numbers, and use "
            f"`jax.numpy`.{summed} {_faq.needs_values}"
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
            f"prior is the distribution of the reverse sampler. {_faq.score_only}"
        )
    batch_shape = tuple(shape[: len(shape) - len(energy.shape)])
    return bridge_type.site_type(energy, batch_shape, initial)
