r"""Density ratios: a prior transferred to another population from few examples."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from .._typing import Array, Scalar
from ..energies import AbstractFactor, Noised

__all__ = ["Ratio"]


def _none(u: Array, t: Scalar) -> Scalar:
    del t
    return jnp.zeros((), u.dtype)


class Ratio(AbstractFactor):
    r"""$h_t(u) = \mathbb{E}_p[q(x) / p(x) \mid u_t = u]$: the distribution $p$ turned into $q$.

    With the exact $h_t = q_t / p_t$ the score of the sum is that of the noised $q$,
    $\nabla \log p_t + \nabla \log h_t = \nabla \log q_t$. A learned one has errors at every level. At noisy
    ones they cost particles and nothing else; those of $h$ at `t_min` are errors of the distribution, so
    there a ratio that is better known may take its place.

    Attributes:
        log_h: `log_h(u, t)` of shape `()`, in nats, for ONE example in data units.
        log_ratio: `log_ratio(x)`, $\log q(x) / p(x)$ at `t_min`, where it is to be trusted more; `log_h`
            itself by default.

    References:
        Ouyang, Xie, Zha & Cheng (2024), Transfer Learning for Diffusion Models, NeurIPS, arXiv 2405.16876.
    """

    log_h: Callable[[Array, Scalar], Scalar] = _none
    log_ratio: Callable[[Array], Scalar] | None = None

    def log_value(self, noised: Noised) -> Scalar:
        u, dtype = noised.u, noised.u.dtype
        above = lambda: jnp.asarray(self.log_h(u, noised.t), dtype)
        if self.log_ratio is None:
            return above()
        trusted = self.log_ratio
        return jax.lax.cond(noised.clean, lambda: jnp.asarray(trusted(u), dtype), above)
