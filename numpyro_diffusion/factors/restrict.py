r"""Constraints: a prior truncated to a set."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from .._arguments import check_callable, check_counts, plain, whole_number
from .._typing import Array, Scalar
from ..energies import AbstractFactor, Noised

__all__ = ["Restrict"]


def _unit_box(x: Array) -> Array:
    return 1.0 - jnp.abs(x)


class Restrict(AbstractFactor):
    r"""$h = 1\{x \in B\}$: the distribution confined to a set, whose probability becomes the evidence.

    At `t_min` the indicator itself. At noisy levels the chance to end inside, as far as the denoised mean
    $\hat x$ and the variance $r_t^2$ around it tell, which is never 0: an indicator at every level would be
    another distribution, of those paths that stay inside all the way.

    - Of *slacks* $g_j(x)$, positive inside, $h_t = \prod_j \Phi(g_j(\hat x) / \varsigma_j)$ with
      $\varsigma_j^2 = \sum_i r_{t,i}^2 (\partial_i g_j)^2$. It has a gradient, which leads particles inside.
    - Of a yes or no, the share of $\hat x + r_t \xi_i$ that are inside, for frozen normals $\xi_i$, mixed
      with a little of everywhere. It has none: particles are chosen, not led.

    Attributes:
        inside: $x \mapsto$ slacks of any shape, or one boolean, for ONE example in units of the data.
        num_draws: Normals, where `inside` says yes or no.
    """

    inside: Callable[[Array], Array] = eqx.field(static=True, default=_unit_box)
    num_draws: int = eqx.field(static=True, converter=plain, default=64)

    def __check_init__(self):
        check_counts(self, num_draws=1)
        check_callable("inside", self.inside, "x -> slacks, or a boolean")
        whole_number("num_draws", self.num_draws, 1)

    def log_value(self, noised: Noised) -> Scalar:
        answer = jax.eval_shape(self.inside, noised.u)
        if jnp.issubdtype(answer.dtype, jnp.bool_):
            at_last, above = self.inside(noised.u), self._share(noised)
        else:
            at_last, above = self.inside(noised.u) >= 0, self._chance(noised)
        hard = jnp.where(jnp.all(at_last), 0.0, -jnp.inf)
        return jnp.where(noised.clean, hard, above)

    def _chance(self, noised: Noised) -> Scalar:
        slacks = jnp.ravel(self.inside(noised.x_hat))
        at = jax.lax.stop_gradient(noised.x_hat)
        slopes = jax.jacrev(lambda x: jnp.ravel(self.inside(x)))(at).reshape(slacks.size, -1)
        variance = slopes**2 @ noised.variance.ravel()
        # Where nothing is open, or a slack is flat, the answer is the indicator's, up to a tiny width.
        scale = jnp.sqrt(jnp.maximum(variance, 1e-12 * jnp.maximum(1.0, slacks**2)))
        return jnp.sum(norm.logcdf(slacks / jax.lax.stop_gradient(scale)))

    def _share(self, noised: Noised) -> Scalar:
        normals = jax.random.normal(jax.random.key(0), (self.num_draws, *noised.u.shape))
        points = noised.x_hat + jnp.sqrt(noised.variance) * normals.astype(noised.u.dtype)
        share = jnp.mean(jax.vmap(self.inside)(points).astype(noised.u.dtype))
        return jnp.log((share * self.num_draws + 0.5) / (self.num_draws + 1.0))
