r"""From the posterior given some data to the posterior given other data of the same model."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from .._typing import Array, Position, PRNGKey, Scalar
from ..twists import Identity
from .base import Bridge
from .forms import DensityBridge
from .model import AbstractModel
from .tempering import Tempering
from .terms import Rest

__all__ = ["Grown", "Nested", "grown", "nested"]


class Grown(AbstractModel):
    r"""A model whose prior is its posterior given the old data, and whose likelihood is what data add.

    At clock 0 and power $\beta$ a bridge over it has the density
    $\gamma_\beta \propto p(z, y_{old})^{1 - \beta}\, p(z, y_{new})^\beta$. Where the old density is 0
    so are all of them (see `nested`).

    Attributes:
        old: The model at the old data.
        new: The same at the new ones.
    """

    old: AbstractModel
    new: AbstractModel

    @property
    def diffusion(self) -> tuple[str, ...]:
        """Names of the diffusion sites."""
        return self.new.diffusion

    @property
    def others(self) -> tuple[str, ...]:
        """Names of the other latent sites."""
        return self.new.others

    def rest(self, z, x_hat):
        before, after = self.old.rest(z, x_hat), self.new.rest(z, x_hat)
        start = before.log_prior + before.log_likelihood
        gain = after.log_prior + after.log_likelihood - start
        zero = jnp.zeros_like(start)
        # Of two densities that are both 0 there is no ratio; the old one rules the particle out.
        gain = jnp.where(jnp.isfinite(start), gain, zero)
        return Rest(start, gain, zero, zero, {}, after.sites)

    def draw_others(self, x, key):
        return self.new.draw_others(x, key)

    @property
    def discrete(self) -> tuple[str, ...]:
        """Names of the discrete latent sites."""
        return self.new.discrete

    def discrete_given(self, z, key):
        return self.new.discrete_given(z, key)

    def constrain(self, z):
        return self.new.constrain(z)

    def target(self, prior):
        return self.new.target(prior)


def grown(old: Bridge, new: Bridge, cloud: Position) -> DensityBridge:
    """The bridge at clock 0 from the posterior of one bridge to that of another with the same sites.

    Args:
        old: Bridge of the old data.
        new: Bridge of the new ones.
        cloud: Equally weighted draws of the old posterior, with one leading axis.
    """
    # The names of the sites are properties here; the type checker takes them for arguments.
    model = Grown(old.model, new.model)  # pyright: ignore[reportCallIssue]
    assert isinstance(new, DensityBridge)
    edges = tuple(dict.fromkeys((*(old.edges or ()), *(new.edges or ()))))
    return DensityBridge(model, new.sites, Identity(), Tempering({}, {}), edges=edges, cloud=cloud)


class Nested(NamedTuple):
    """Shares of points about a cloud that one of two data sets rules out.

    Attributes:
        widened: Impossible under the old data, possible under the new ones: no particle can get there.
        impossible: Particles of the cloud itself that are impossible under the new data.
    """

    widened: Scalar
    impossible: Scalar


@eqx.filter_jit
def nested(bridge: DensityBridge, key: PRNGKey) -> Nested:
    """Look for places that the new data allow and the old ones do not, about the cloud of `grown`.

    Args:
        bridge: From `grown`.
        key: PRNG key of the points, which lie within a few standard deviations of the particles.
    """
    model, cloud = bridge.model, bridge.cloud
    assert isinstance(model, Grown) and cloud is not None

    def spread(index: int, leaf: Array) -> Array:
        noise = jax.random.normal(jax.random.fold_in(key, index), leaf.shape, leaf.dtype)
        return leaf + 2 * jnp.std(leaf, 0) * noise

    leaves, structure = jax.tree.flatten(cloud)
    around = structure.unflatten([spread(i, leaf) for i, leaf in enumerate(leaves)])

    def possible(z: Position) -> tuple[Array, Array]:
        x = {name: z[name] for name in bridge.sites}
        values = [m.rest(z, x).log_likelihood for m in (model.old, model.new)]
        return jnp.isfinite(values[0]), jnp.isfinite(values[1])

    before, after = jax.vmap(possible)(around)
    return Nested(jnp.mean(~before & after), jnp.mean(~jax.vmap(possible)(cloud)[1]))
