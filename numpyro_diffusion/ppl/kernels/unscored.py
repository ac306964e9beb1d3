"""Handler that drops the log density of given diffusion sites whose prior has none."""

import numpyro.distributions as dist
from numpyro.primitives import Messenger

from ...energies import AbstractEnergy
from ..distributions import DiffusionPrior
from ..sites import unwrapped

__all__ = ["unscored"]


class unscored(Messenger):
    """Leaves out the log densities of observed diffusion sites whose prior is a score alone.

    Given its value, such a site adds a constant to the density of the others, but one that cannot be
    computed. To be put around everything that observes or conditions.
    """

    def process_message(self, msg):
        """Mask the site, if it is one of those."""
        if msg["type"] != "sample" or not msg["is_observed"]:
            return
        prior = unwrapped(msg["fn"])
        if not isinstance(prior, DiffusionPrior) or prior.log_density is not None:
            return
        if not isinstance(prior.energy, AbstractEnergy):
            msg["fn"] = dist.Unit(0.0) if msg["value"] is None else msg["fn"].mask(False)
