"""What a bridge measures once of its model: typical values, where data say most, and possible zeros."""

import jax
import jax.numpy as jnp

from .._prng import lean
from .._staging import brief_jit
from ..twists import AbstractTwist
from .edges import Doubts, doubtful
from .model import AbstractModel
from .sites import DiffusionSite
from .tempering import Tempering

__all__ = ["measured"]


@brief_jit
def measured(model: AbstractModel, sites: dict[str, DiffusionSite], twist: AbstractTwist):
    """Typical values of the other sites, the direction of which the data say most, and which are edges."""
    others = {}
    if model.others:  # a few draws beside the prior mean of the diffusion sites
        x = {name: site.centre for name, site in sites.items()}
        keys = jax.random.split(lean(jax.random.key(0)), 8)
        others = jax.vmap(lambda key: model.draw_others(x, key))(keys)
    typical = jax.tree.map(lambda leaf: jnp.median(leaf, 0), others)
    if not sites:
        return typical, {}, Doubts({}, {})
    found = doubtful(lambda x: model.rest(typical, x).edges, sites)
    if not twist.takes_gradients:
        return typical, {}, found
    return typical, Tempering.towards_the_data(model.rest, sites, others).direction, found
