r"""Control variates from a Gaussian reference with a closed form.

In the coordinates in which its covariance is diagonal, at noise level $s$ the Gaussian is
$\mathcal{N}(m, \mathrm{diag}(v) + s^2 I)$.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._typing import Array, Scalar
from ..energies import (
    AbstractDenoiser,
    AbstractEnergy,
    AbstractNetworkEnergy,
    Composed,
    ComposedDenoiser,
    Factored,
    FactoredDenoiser,
    Family,
    Gaussian,
    GaussianMixture,
    NetworkDenoiser,
    PowerEnergy,
)

__all__ = ["NoisedReference", "Reference", "check_noised", "reference_of"]

FULL_COVARIANCE = (
    1024  # up to so many dimensions; an eigendecomposition is then a matter of a second
)


class Reference(NamedTuple):
    r"""The Gaussian of the data, in the coordinates in which its covariance is diagonal.

    Attributes:
        mean: Shape `shape`.
        variances: Shape `(d,)`.
        basis: Eigenvectors, shape `(d, d)`, or `None` where the coordinates are left as they are.
    """

    mean: Array
    variances: Array
    basis: Array | None

    @classmethod
    def of(cls, data: Array) -> "Reference":
        """Moments of data of shape `(num, *shape)`."""
        host = np.asarray(data, np.float64)
        flat = host.reshape(len(host), -1)
        variances, basis = flat.var(0), None
        if flat.shape[1] <= FULL_COVARIANCE:
            covariance = np.cov(flat.T, bias=True).reshape(2 * flat.shape[1:])
            variances, vectors = np.linalg.eigh(covariance)
            variances, basis = np.maximum(variances, 0), jnp.asarray(vectors, data.dtype)
        to_array = lambda a: jnp.asarray(a, data.dtype)
        return cls(to_array(host.mean(0)), to_array(variances), basis)

    def turn(self, u: Array) -> Array:
        """A vector of example space in the eigenbasis, shape `(d,)`."""
        return u.ravel() if self.basis is None else self.basis.T @ u.ravel()

    def log_density_and_score(self, u: Array, s: Scalar) -> tuple[Scalar, Array]:
        r"""$\log \mathcal{N}(u; m, S + s^2 I)$ and its gradient, of the shape of `u`."""
        v, total = self.turn(u - self.mean), self.variances + s**2
        score = -v / total
        log_density = 0.5 * jnp.sum(v * score - jnp.log(2 * jnp.pi * total))
        score = score if self.basis is None else self.basis @ score
        return log_density, score.reshape(u.shape)

    def score(self, u: Array, s: Scalar) -> Array:
        r"""$\nabla_u \log \mathcal{N}(u; m, S + s^2 I)$, of the shape of `u`."""
        return self.log_density_and_score(u, s)[1]

    def log_density(self, u: Array, s: Scalar) -> Scalar:
        return self.log_density_and_score(u, s)[0]

    def divergence(self, u: Array, s: Scalar) -> Scalar:
        """Divergence of the score."""
        del u
        return -jnp.sum(1 / (self.variances + s**2))


class NoisedReference(NamedTuple):
    """A distribution with a closed form at every noise level as a reference, such as a mixture fitted to
    data.
    """

    energy: AbstractEnergy

    def _at(self, u: Array, s: Scalar) -> tuple[Scalar, Array]:
        t = self.energy.schedule.time_at_noise(s)
        value, score = self.energy.log_density_and_score(u.reshape(self.energy.shape), t)
        return value, score.reshape(u.shape)

    def score(self, u: Array, s: Scalar) -> Array:
        return self._at(u, s)[1]

    def log_density(self, u: Array, s: Scalar) -> Scalar:
        return self._at(u, s)[0]

    def divergence(self, u: Array, s: Scalar) -> Scalar:
        return jnp.trace(jax.jacfwd(lambda v: self.score(v, s))(u.ravel()))


def check_noised(prior: AbstractDenoiser) -> None:
    """Refuse compositions and factors: their levels are a path, not one distribution under more and more
    noise.
    """
    what = ""
    if isinstance(prior, Composed | ComposedDenoiser) and prior.powers != (1.0,):
        what = f"a composition with powers {prior.powers}"
    elif isinstance(prior, PowerEnergy | Family):
        what = f"a {type(prior).__name__}, a distribution to a power or with a parameter"
    elif isinstance(prior, Factored | FactoredDenoiser):
        what = (
            f"a distribution times {', '.join(type(factor).__name__ for factor in prior.factors)}"
        )
    if what:
        raise ValueError(
            "a density from scores, and the probability flow, need the scores of one noised "
            "distribution at all levels; got "
            f"{what}, whose noisy levels are only a path to it. Use `energy.log_density` at t_min, "
            f"`prior_normalizer` for its constant, and `SMC` for its draws. {_faq.schedules}"
        )


def reference_of(prior: AbstractDenoiser) -> Reference:
    """The Gaussian with the mean and covariance of the clean data, as far as the prior knows them."""
    if isinstance(prior, NetworkDenoiser):
        prior = prior.base
    if isinstance(prior, AbstractNetworkEnergy):
        return Reference(prior.mean, prior.scales**2, prior.basis)
    if isinstance(prior, Gaussian) and prior.eigenvalues is not None:
        return Reference(prior.mean, prior.eigenvalues, prior.eigenvectors)
    if isinstance(prior, GaussianMixture) and prior.eigenvalues is not None:
        mean = prior.weights @ prior.means
        apart = prior.means - mean
        covariance = jnp.einsum(
            "k,kij,kj,klj->il",
            prior.weights,
            prior.eigenvectors,
            prior.eigenvalues,
            prior.eigenvectors,
        ) + jnp.einsum("k,ki,kj->ij", prior.weights, apart, apart)
        # Any basis would do, and that of equal eigenvalues has no derivative; the variances have one.
        _, basis = jnp.linalg.eigh(jax.lax.stop_gradient(covariance))
        return Reference(mean, jnp.einsum("ij,ik,kj->j", basis, covariance, basis), basis)
    t = jnp.asarray(prior.t_min, jnp.result_type(float))
    alpha_t, sigma_t = prior.schedule(t)
    mean, variance = prior.moments(t)
    clean = jnp.maximum(variance - sigma_t**2, 0) / alpha_t**2
    return Reference(mean / alpha_t, clean.ravel(), None)
