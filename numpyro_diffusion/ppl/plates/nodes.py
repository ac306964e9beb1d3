r"""Evidence of each object as a function of the shared sites, from its cloud under a reference.

For nodes $\phi_r \sim g$ and the particles $z_{ij}$ of object $i$ with weights $W_{ij}$

$$A_{ijr} = \log p(z_{ij}, y_i \mid \phi_r) , \qquad
q_{ij} = \frac1R \sum_r e^{A_{ijr}} \approx \int g(\phi)\, p(z_{ij}, y_i \mid \phi)\, d\phi , \qquad
\frac{Z_i(\phi)}{Z_i^g} \approx \sum_j W_{ij}\, \frac{p(z_{ij}, y_i \mid \phi)}{q_{ij}} .$$

The density of the diffusion prior does not depend on $\phi$ and cancels: no network is evaluated.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from ..._typing import Array
from .clouds import Clouds, Data, batches
from .reference import JOINT, Reference

__all__ = ["COPIES", "Ratios", "ratios", "shared_log_prior"]

COPIES = 4  # independent draws of an object's particle at each node
_AT_ONCE = 32  # particles


class Ratios(NamedTuple):
    r"""What objects say of some values of the shared sites; leading axis objects.

    Attributes:
        log_ratio: $\log Z_i(\phi_r) / Z_i^g$, shape `(num_objects, num_nodes)`.
        log_q: $\log q_{ij}$, shape `(num_objects, num_particles)`.
        ess: Effective sample size of the cloud at each node, shape `(num_objects, num_nodes)`.
        index: Particles drawn at each node, shape `(num_objects, COPIES, num_nodes)`; empty if not asked.
    """

    log_ratio: Array
    log_q: Array
    ess: Array
    index: Array


@eqx.filter_jit
def _batch(model, own, common, positions, log_weights, log_q, phis, reference, uniforms):
    def one(args):
        own, positions, log_weights, log_q, uniforms = args
        rows = iter(own)
        data = [next(rows) if leaf is None else leaf for leaf in common]
        there = eqx.tree_at(lambda m: m.data, model, data)

        def given(z):
            def at(phi):
                rest = there.rest({**z, JOINT: phi}, {n: z[n] for n in there.diffusion})
                return rest.log_prior + rest.log_likelihood

            return jax.vmap(at)(phis) - log_g

        log_g = jax.vmap(reference.log_prob)(phis)
        terms = jax.lax.map(given, positions, batch_size=_AT_ONCE)
        terms = jnp.where(jnp.isnan(terms), -jnp.inf, terms)
        if log_q is None:
            log_q = logsumexp(terms, axis=1) - jnp.log(terms.shape[1])
        # A particle that no node allows says nothing.
        known = jnp.isfinite(log_q)[:, None]
        log_terms = jnp.where(known, log_weights[:, None] + terms - log_q[:, None], -jnp.inf)
        log_ratio = logsumexp(log_terms, axis=0)
        shares = jnp.exp(log_terms - jnp.where(jnp.isfinite(log_ratio), log_ratio, 0.0))
        squares = jnp.sum(shares**2, 0)
        ess = 1 / jnp.where(squares > 0, squares, 1.0)
        index = jnp.zeros((0, len(phis)), int)
        if uniforms is not None:
            below = jnp.cumsum(shares, 0)
            place = lambda column, u: jnp.searchsorted(column, u * column[-1], side="right")
            index = jax.vmap(place, in_axes=(1, 1), out_axes=1)(below, uniforms)
            index = jnp.minimum(index, len(shares) - 1)
        return Ratios(log_ratio, log_q, ess, index)

    return jax.lax.map(one, (own, positions, log_weights, log_q, uniforms))


def ratios(
    model: Any,
    data: Data,
    clouds: Clouds,
    reference: Reference,
    phis: Array,
    batch_size: int,
    log_q: Array | None = None,
    uniforms: Array | None = None,
) -> Ratios:
    """What objects say of some values of the shared sites.

    Args:
        model: Of one object under a reference; its data do not matter.
        data: Of all objects.
        clouds: Under the reference.
        reference: The reference.
        phis: Values of the shared sites, shape `(num_nodes, size)`; draws of the reference if `log_q` is to
            be made of them.
        batch_size: Objects at once.
        log_q: As an earlier call found it.
        uniforms: Uniform numbers to draw particles at each node, shape `(num_objects, COPIES, num_nodes)`.
    """
    done = []
    for index, count in batches(data.num_objects, batch_size):
        own, common = data.rows(index, reference)
        rows = lambda leaf, i=index: None if leaf is None else jnp.asarray(leaf[i])
        positions = {name: rows(leaf) for name, leaf in clouds.positions.items()}
        found = _batch(
            model, own, common, positions, rows(clouds.log_weights), rows(log_q), phis, reference,
            rows(uniforms),
        )  # fmt: skip
        done.append(jax.tree.map(lambda leaf, n=count: np.asarray(leaf[:n]), found))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *done)


@eqx.filter_jit
def shared_log_prior(model: Any, layout: Any, z: Any, phis: Array) -> Array:
    r"""$\log p(\phi_r)$ in unconstrained space.

    Args:
        model: Of one object, under its own prior.
        layout: Of the shared sites (static).
        z: Any values of the object sites.
        phis: Shape `(num_nodes, size)`.
    """

    def at(phi):
        whole = {**z, **layout.sites(phi)}
        sites = model.rest(whole, {n: whole[n] for n in model.diffusion}).sites
        return sum((sites[name] for name, _ in layout.shapes), jnp.zeros(()))

    return jax.vmap(at)(phis)
