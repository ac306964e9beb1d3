r"""Log prior densities of draws, site by site, as power scaling by importance sampling asks for them.

A site's entry is $\log p(x_i \mid \text{its parents})$ at the draw, in nats and in the space of the model,
without a Jacobian: what the posterior holds beside the likelihood. That of a diffusion site is
$-E(x, t_{\min})$ with its normaliser where it is known; a constant moves no weight.
"""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from numpyro import handlers

from ..energies import AbstractEnergy
from .choice_sites import taken_apart
from .each import each_draw
from .model_bridge import chosen_sites
from .sites import is_prior, log_densities, unmasked

if TYPE_CHECKING:
    from .groups import Run

__all__ = ["left_out", "log_priors"]


def left_out(run: "Run") -> list[str]:
    """Diffusion sites whose priors are known by their scores alone, and have no density."""
    sites = run.bridge.sites.items()
    return [name for name, site in sites if not isinstance(site.energy, AbstractEnergy)]


def log_priors(run: "Run", latent: dict[str, Any]) -> dict[str, np.ndarray]:
    """Log prior density of each latent site, with the shape of its plates after `(num_chains, num_draws)`.

    Args:
        run: The run.
        latent: Draws of its latent sites in the space of the model, leading with
            `(num_chains, num_draws)`.
    """
    skipped = left_out(run)
    model = taken_apart(run.model, chosen_sites(run.bridge), drawn=False)

    def one(values):
        given = handlers.substitute(model, data=values)
        trace = handlers.trace(given).get_trace(*run.args, **run.kwargs)
        sites = {name: trace[name] for name in latent if name in trace and name not in skipped}
        return {n: log_densities(site, _law(site)) for n, site in sites.items()}

    found = each_draw(one, np.shape(next(iter(latent.values())))[:2], latent)
    return jax.tree.map(np.asarray, found)


def _law(site: dict) -> Any:
    """The distribution of a latent site that enters the posterior (see `LiveModel.terms`)."""
    return site["fn"] if is_prior(site["fn"]) else unmasked(site["fn"])
