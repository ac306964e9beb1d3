"""A NumPyro model as a diffusion energy, without training data."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from .. import _faq
from .._arguments import whole_number
from .._records import record, record_page
from .._typing import Array
from ..energies import SmoothedDensity
from ..schedules import AbstractSchedule
from .bridge import from_model

__all__ = ["ModelEnergy", "model_energy"]


class ModelEnergy(NamedTuple):
    """A NumPyro model as an energy.

    Attributes:
        energy: The joint density of latent sites and data over one unconstrained vector, whose integral is
            the model's evidence.
        constrain: From such a vector to the values of all latent and deterministic sites.
        unravel: From such a vector to unconstrained latent sites, by name.
    """

    energy: SmoothedDensity
    constrain: Callable[[Array], dict[str, Array]]
    unravel: Callable[[Array], dict[str, Array]]

    __repr__ = record
    _repr_html_ = record_page


def model_energy(
    model: Callable,
    *args: Any,
    mean=None,
    variance=None,
    num_draws: int = 256,
    schedule: AbstractSchedule | None = None,
    num_prior_draws: int = 1000,
    **kwargs: Any,
) -> ModelEnergy:
    r"""The posterior of a NumPyro model as the distribution of a diffusion: `SmoothedDensity` of its joint
    density.

    Latent sites are put into one vector in unconstrained space, Jacobians included. A scheme then samples
    `found.energy` through noise levels instead of powers of the likelihood; its log evidence is that of the
    model, and `found.constrain` takes particles back. It reads the joint density as it is, whatever the
    levels above: the inner integral is worth its cost in a few dimensions (see `SmoothedDensity`).

    Args:
        model: A NumPyro model with continuous latent sites and proper priors, and no `DiffusionPrior`.
        *args: Its arguments, data included.
        mean: Rough mean of the unconstrained vector under the posterior; that of the prior by default.
        variance: Rough variance, coordinate by coordinate; that of the prior by default. Where data say much,
            a fit that is closer to the posterior saves levels.
        num_draws: Frozen normals of the inner integral.
        schedule: Noise schedule, in units of the unconstrained vector.
        num_prior_draws: Draws of the prior for the default moments.
        **kwargs: Keyword arguments of the model.

    Raises:
        ValueError: If the model has a `DiffusionPrior`, or is refused by `from_model`.
    """
    num_draws = whole_number("num_draws", num_draws, 1)
    num_prior_draws = whole_number("num_prior_draws", num_prior_draws, 2)
    bridge = from_model(model, *args, **kwargs)
    if bridge.diffusion_sites:
        raise ValueError(
            f"`model_energy` expects a model without diffusion priors; got {list(bridge.diffusion_sites)}. "
            f"`nd.SMC` samples such a model as it is. {_faq.blocks}"
        )
    if bridge.discrete_sites:
        raise ValueError(
            "`model_energy` expects a model of continuous sites; got the discrete "
            f"{list(bridge.discrete_sites)}. `nd.SMC(model, nd.LikelihoodTempered())` sums them "
            f"out. {_faq.discrete_site}"
        )
    keys = jax.random.split(jax.random.key(0), num_prior_draws)
    draws = jax.jit(jax.vmap(bridge.sample_base))(keys)
    flat = jax.vmap(lambda z: ravel_pytree(z)[0])(draws)
    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], draws))

    def log_density(u: Array):
        rest = bridge.rest(unravel(u), {})
        return rest.log_prior + rest.log_likelihood

    energy = SmoothedDensity(
        log_density,
        flat.shape[1:],
        num_draws=num_draws,
        mean=jnp.mean(flat, 0) if mean is None else mean,
        variance=jnp.var(flat, 0) if variance is None else variance,
        schedule=schedule,
    )
    return ModelEnergy(energy, lambda u: bridge.constrain(unravel(u)), unravel)
