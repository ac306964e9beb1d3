r"""Tempering of the likelihood by noise level, from the information in the data."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, Position, Scalar
from .sites import DiffusionSite, open_share
from .terms import Rest

__all__ = ["Tempering"]

_Rest = Callable[[Position, dict[str, Array]], Rest]


class Tempering(eqx.Module):
    r"""$g = 1 / (1 + \tfrac12 \kappa(\theta) \rho(c))$, with $\rho$ the mean open share of the sites.

    $\kappa(\theta)$ is the largest eigenvalue of $F$, minus the secant Hessian of the log likelihood
    about the prior mean in units of the prior's standard deviations: how sharply the data speak of the
    diffusion sites. Too small a value costs much (the likelihood rules out at high noise what would fit
    later), too large a value costs little. The half is there because a prior of many modes is narrower
    around its denoised mean than its variance says. The eigenvector is found once, when the bridge is
    made, for a few draws of the other sites; $\kappa(\theta) = |v \cdot F v| / |v|^2$ then costs three
    values of the likelihood and no network evaluation.

    Where no gradient may be taken, $v$ are random signs and $\kappa(\theta)$ is $|v \cdot F v|$, near the
    sum of all eigenvalues: not below the largest.

    Attributes:
        sites: The diffusion sites.
        direction: $v$, by site; no coordinate is beyond one standard deviation.
        summed: Whether $\kappa$ is that of all directions together.
    """

    sites: dict[str, DiffusionSite]
    direction: dict[str, Array]
    summed: bool = eqx.field(static=True, default=False)

    @classmethod
    def without_gradients(cls, sites: dict[str, DiffusionSite]) -> "Tempering":
        """Along random signs."""
        numbers = np.random.default_rng(0)
        signs = {
            n: jnp.asarray(numbers.choice([-1.0, 1.0], s.shape), s.dtype) for n, s in sites.items()
        }
        return cls(sites, signs, summed=True)

    @classmethod
    def towards_the_data(
        cls, rest: _Rest, sites: dict[str, DiffusionSite], others: Position
    ) -> "Tempering":
        """Find the direction of which the data say most.

        Args:
            rest: Of the bridge.
            sites: The diffusion sites.
            others: Draws of the other sites, unconstrained, with one leading axis.
        """
        numbers = np.random.default_rng(0)  # fixed: equal models get equal bridges
        start = _bounded(
            {
                n: jnp.asarray(numbers.standard_normal(s.shape), s.scale.dtype)
                for n, s in sites.items()
            }
        )
        return cls(sites, _direction(rest, sites, others, start) if sites else start)

    def __call__(self, rest: _Rest, z: Position, clock: Scalar) -> Scalar:
        """$g(\theta, c)$; 1 without diffusion sites and at clock 0."""
        if not self.sites:
            return jnp.ones(())
        return 1 / (1 + 0.5 * self.information(rest, z) * open_share(self.sites, clock))

    def information(self, rest: _Rest, z: Position) -> Scalar:
        r"""$\kappa(\theta)$, a function of the other sites alone; 0 where it is not finite."""
        # Values at three fixed points, not gradients: what the model computes of them is shared by all
        # particles unless it depends on the other sites, and a move differentiates this once more.
        ends = {n: (s.centre, s.scale * self.direction[n]) for n, s in self.sites.items()}
        at = lambda sign: {n: centre + sign * step for n, (centre, step) in ends.items()}
        points = jax.tree.map(lambda *leaves: jnp.stack(leaves), at(-1.0), at(0.0), at(1.0))
        # A datum that is impossible at one of them says nothing here.
        bends = [_bend(values) for values in _entries(jax.vmap(lambda x: rest(z, x))(points))]
        bend = jnp.abs(sum(bends, jnp.zeros(())))
        length = sum((jnp.sum(v**2) for v in self.direction.values()), jnp.zeros(()))
        length = jnp.ones_like(length) if self.summed else length
        usable = jnp.isfinite(bend) & (length > 0)
        return jnp.where(usable, bend, 0.0) / jnp.where(usable, length, 1.0)


def _entries(rests: Rest) -> list[Array]:
    """Log likelihoods at some points: of what is positive everywhere, and of each entry of the edges."""
    edges = [edge.log_density for edge in rests.edges.values()]
    return [jax.vmap(lambda rest: rest.expected)(rests), *edges]


def _bend(values: Array) -> Scalar:
    """Minus the second difference of values at three points, summed over what is finite at all of them."""
    below, centre, above = values
    bend = 2 * centre - below - above
    return jnp.sum(jnp.where(jnp.isfinite(bend), bend, 0.0))


def _product(rest: _Rest, sites: dict[str, DiffusionSite], z: Position, v: dict[str, Array]):
    """$F v$, by a difference of gradients at both sides of the prior mean."""
    gradient = jax.grad(lambda x: rest(z, x).log_likelihood)
    centres, scales = (
        {n: s.centre for n, s in sites.items()},
        {n: s.scale for n, s in sites.items()},
    )

    def slope(sign):  # both sides in one batch: the model is traced once
        return gradient({n: centres[n] + sign * scales[n] * v[n] for n in sites})

    sides = jax.vmap(slope)(jnp.array([-1.0, 1.0]))
    return {n: 0.5 * scales[n] * (sides[n][0] - sides[n][1]) for n in sites}


def _bounded(v: dict[str, Array]) -> dict[str, Array]:
    top = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in v.values()])) if v else 1.0
    return jax.tree.map(lambda leaf: leaf / jnp.where(top > 0, top, 1.0), v)


def _direction(rest, sites, others, start):
    """Power iteration for every draw of the other sites; the mean of what they find."""

    def one(z):
        def again(_, v):
            new = _bounded(_product(rest, sites, z, v))
            found = [jnp.all(jnp.isfinite(leaf)) & jnp.any(leaf != 0) for leaf in new.values()]
            found = jnp.any(jnp.stack(found))
            return jax.tree.map(lambda a, b: jnp.where(found & jnp.isfinite(a), a, b), new, v)

        return jax.lax.fori_loop(0, 8, again, start)  # an even number: no flip of sign

    each = jax.vmap(one)(others) if others else jax.tree.map(lambda leaf: leaf[None], one({}))
    return _bounded(jax.tree.map(lambda leaf: jnp.mean(leaf, 0), each))
