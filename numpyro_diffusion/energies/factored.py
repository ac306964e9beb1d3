r"""Products of a distribution and factors: tilted, restricted and coupled priors."""

from typing import Self

import equinox as eqx
import jax.numpy as jnp

from .._typing import Array, Scalar
from .base import AbstractDenoiser
from .energy import AbstractEnergy
from .factors import AbstractFactor, Noised
from .noise import added_variance
from .parts import AbstractWrapper

__all__ = ["Factored", "FactoredDenoiser", "factored", "log_factors"]


class Factored(AbstractWrapper, AbstractEnergy):
    r"""$E(x, t) - \sum_j \log h_{j,t}(x / \alpha_t)$: the distribution $\propto p(u) \prod_j h_j(u)$ in data
    units.

    Usually written `energy + factor`. With the normaliser $L$ of the base it integrates to
    $e^{L}\, \mathbb{E}_p[\prod_j h_j]$. Only $L$ is left out by default, as if the factors were
    `numpyro.factor`s of a model with the prior $p$: the log evidence of a sampler is then
    $\log \mathbb{E}_p[\prod_j h_j]$, the log probability of a set if a factor restricts to it.

    Attributes:
        base: The energy.
        factors: What its distribution is multiplied by.
        log_normalizer: What is left out of the evidence: that of the base, or `None`. With the log of the
            whole integral, the distribution is a normalised prior of its own.
        log_normalizer_error: Its standard error.
    """

    base: AbstractEnergy
    factors: tuple[AbstractFactor, ...]
    log_normalizer: float | None = eqx.field(static=True, default=None)
    log_normalizer_error: float = eqx.field(static=True, default=0.0)

    def with_horizon(self, *, t_min: float | None = None, t_max: float | None = None) -> Self:
        """Return the same distribution with other times of its base, less the normaliser of that."""
        base = self.base.with_horizon(t_min=t_min, t_max=t_max)
        known = self if base.t_min == self.t_min else base
        known = known.log_normalizer, known.log_normalizer_error
        return type(self)(base, self.factors, *known)  # pyright: ignore[reportCallIssue]

    def energy(self, x: Array, t: Scalar) -> Scalar:
        alpha_t, _ = self.schedule(t)
        energy, score = self.base.energy_and_score(x, t)
        u = x / alpha_t
        x_hat = u + added_variance(self.base, t).astype(x.dtype) * alpha_t * score
        return energy - log_factors(self, u, x_hat, t)


class FactoredDenoiser(AbstractWrapper):
    r"""The distribution of a reverse sampler times factors, for schemes in path space.

    Usually written `denoiser + factor`. `denoise` is that of the base: the factors weigh, and steer, its
    steps.

    Attributes:
        base: The denoiser.
        factors: What its distribution is multiplied by.
    """

    base: AbstractDenoiser
    factors: tuple[AbstractFactor, ...]

    def denoise(self, x: Array, t: Scalar) -> Array:
        return self.base.denoise(x, t)


def log_factors(law: Factored | FactoredDenoiser, u: Array, x_hat: Array, t: Scalar) -> Scalar:
    r"""$\sum_j \log h_{j,t}(u)$, given the denoised mean of the base."""
    alpha_0, _ = law.schedule(jnp.asarray(law.t_min, u.dtype))
    _, variance = law.base.moments(jnp.asarray(law.t_min, u.dtype))
    d = (variance / alpha_0**2).astype(u.dtype)
    tau = added_variance(law.base, t).astype(u.dtype)
    clean = t <= jnp.asarray(law.t_min, jnp.result_type(t))
    noised = Noised(u, x_hat, jnp.broadcast_to(tau * d / (tau + d), u.shape), t, clean)
    return sum((f.log_value(noised) for f in law.factors), jnp.zeros((), u.dtype))


def factored(base: AbstractDenoiser, factor: AbstractFactor) -> Factored | FactoredDenoiser:
    """The distribution of `base` times a factor; the factors of one distribution stay in one list."""
    factor.check(base)
    if isinstance(base, Factored):
        known = base.log_normalizer, base.log_normalizer_error
        return Factored(base.base, (*base.factors, factor), *known)  # pyright: ignore
    if isinstance(base, FactoredDenoiser):
        return FactoredDenoiser(base.base, (*base.factors, factor))  # pyright: ignore
    if isinstance(base, AbstractEnergy):
        return Factored(base, (factor,), base.log_normalizer, base.log_normalizer_error)  # pyright: ignore
    return FactoredDenoiser(base, (factor,))  # pyright: ignore[reportCallIssue]
