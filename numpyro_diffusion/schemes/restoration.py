r"""Restoration steps: Gaussian draws along the singular vectors of a linear operator (DDRM, DDNM, DiffPIR).

Methods of image restoration put the denoised mean $\hat x$ right where linear data $y = H x + e$ say
something, and draw a Gaussian around it. In units of the data's standard deviations let $\Sigma_y^{-1/2} H =
U S V^\top$. Then $\bar y_i = (U^\top \Sigma_y^{-1/2} y)_i / S_i$ is a measurement of the coordinate $(V^\top
x)_i$ with standard deviation $\varsigma_i = 1 / S_i$, and the other coordinates are not seen at all.
"""

import abc
import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from .. import _faq
from .._typing import Array, Scalar
from .._written import one_line
from ..bridge import Bridge, Seen
from .conjugate import linear_data
from .guided import Guided
from .transport import AbstractTransport

__all__ = ["AbstractProposal", "AbstractRestoration", "Draw", "Restored", "Spectral"]


class AbstractProposal(eqx.Module):
    """Steps of `Twisted` that are steered otherwise than by the gradient of the likelihood.

    Attributes:
        weighed: Whether draws can be weighed at all; if not, they are for `schemes.unweighted` alone.
    """

    __repr__ = one_line

    weighed = True

    @abc.abstractmethod
    def over(self, sampler: Guided, bridge: Bridge) -> AbstractTransport:
        """The transport that draws from it, weighed against the steps of a sampler.

        Raises:
            ValueError: If the bridge is not what it needs.
        """


class Spectral(NamedTuple):
    r"""A particle before a step, in the coordinates of the singular vectors; arrays of shape `(d,)`.

    Attributes:
        u: $V^\top u_t$.
        x_hat: $V^\top \hat x$.
        datum: $\bar y$; 0 where nothing is seen.
        deviation: $\varsigma$; infinite where nothing is seen.
        noisy: Noise level $s_t$, shape `()`.
        clean: Noise level $s_s$.
        own: Variance of the sampler's own step.
    """

    u: Array
    x_hat: Array
    datum: Array
    deviation: Array
    noisy: Scalar
    clean: Scalar
    own: Array

    @property
    def seen(self) -> Array:
        return jnp.isfinite(self.deviation)

    @property
    def share(self) -> Scalar:
        r"""$1 - s_s^2 / s_t^2$: the share of the noise that a step takes away."""
        return (self.noisy - self.clean) * (self.noisy + self.clean) / self.noisy**2


class Draw(NamedTuple):
    """A Gaussian with independent coordinates.

    Attributes:
        mean: Shape `(d,)`.
        variance: Shape `(d,)`.
        own: Coordinates that take the noise of the sampler's own step instead, with its correlations.
    """

    mean: Array
    variance: Array
    own: Array


class AbstractRestoration(AbstractProposal):
    """A restoration method for linear Gaussian data, by the distribution of one step.

    Where the data are not linear it is taken about the denoised mean; where they are not Gaussian their
    Fisher information stands for the precision. A matrix of all data is decomposed a step: for hundreds of
    data.

    Attributes:
        num_repeats: Draws from each level to the next, with noise added back in between.
    """

    num_repeats = 1

    @abc.abstractmethod
    def draw(self, at: Spectral, published: bool) -> Draw:
        """Distribution of the next value; as `published`, or such that it can be weighed."""

    def over(self, sampler, bridge):
        name = type(self).__name__
        if len(bridge.diffusion_sites) != 1:
            raise ValueError(
                f"`{name}` decomposes the operator of one diffusion variable with one noise "
                f"level; the model has"
                f" {list(bridge.diffusion_sites)}. Put a plate around one site, or use "
                f"`Twisted(conjugate=True)`. {_faq.operator}"
            )
        if bridge.laws({}) is None:
            raise ValueError(
                f"`{name}` reads operator and noise off a NumPyro model; the bridge of "
                f"`from_energy` has a log"
                " likelihood alone. Use `from_model`, or `Twisted()` without a "
                f"proposal. {_faq.operator}"
            )
        return Restored(sampler, self)


class Restored(AbstractTransport):
    r"""A draw of a restoration method, weighed against the sampler's own step.

    $\log R = \log p(u_s \mid u_t) - \log M(u_s \mid u_t)$ with $p$ the step of `sampler` (see `Guided`).
    Without weights, as published, it is 0.

    Attributes:
        sampler: The steps without data.
        method: The distribution $M$.
        weighed: Whether draws are weighed.
    """

    sampler: Guided
    method: AbstractRestoration
    weighed: bool = eqx.field(static=True, default=True)

    def evaluations(self, bridge):
        return (self.method.num_repeats - 1) * bridge.evaluations

    def unweighed(self):
        return dataclasses.replace(self, weighed=False)

    def __call__(self, key, bridge, position, gradient, seen, level):
        del gradient
        if self.weighed and not self.method.weighed:
            raise ValueError(
                f"draws of `{type(self.method).__name__}` have no weights of use: as published they are"
                " `nd.schemes.unweighted(nd.Twisted(proposal=...))`. For the posterior use"
                " `nd.Twisted(conjugate=True)` with "
                f"`twist=nd.twists.NoisedObservation()`. {_faq.a_heuristic}"
            )
        assert seen is not None
        (name,) = bridge.diffusion_sites
        moves = level.next_clock < level.clock
        noisy, clean = bridge.noise(level.clock)[name], bridge.noise(level.next_clock)[name]
        key, key_repeats = jax.random.split(key)

        def once(key, u, scores):
            return self._once(key, bridge, {**position, name: u}, scores, level, noisy, clean)

        def again(i, carry):
            u, scores = carry
            key_step, key_noise = jax.random.split(jax.random.fold_in(key_repeats, i))
            u, _ = once(key_step, u, scores)
            added = jnp.sqrt(jnp.maximum((noisy - clean) * (noisy + clean), 0.0))
            u = u + added * jax.random.normal(key_noise, u.shape, u.dtype)
            return u, bridge.see({**position, name: u}, level.clock).scores[name]

        start = position[name], seen.scores[name]
        if self.method.num_repeats > 1:
            start = jax.lax.fori_loop(1, self.method.num_repeats, again, start)
        new, log_ratio = once(key, *start)
        new = jnp.where(moves, new, position[name])
        return {**position, name: new}, jnp.where(moves & self.weighed, log_ratio, 0.0)

    def _once(self, key, bridge: Bridge, position, scores: Array, level, noisy, clean):
        (name,) = bridge.diffusion_sites
        u = position[name]
        step = self.sampler.steps(bridge, Seen(jnp.zeros(()), {}, {}, {}, {name: scores}), level)[
            name
        ]
        x_hat = u + noisy**2 * scores
        operator, residual = linear_data(bridge, position, {name: x_hat})
        vectors, datum, deviation = spectrum(operator, residual)
        # The covariance of the sampler's own step in these coordinates.
        roots = jax.vmap(lambda row: step.root * step.along(row))(vectors)
        along = lambda v: vectors @ v.ravel()
        at = Spectral(along(u), along(x_hat), datum, deviation, noisy, clean, jnp.sum(roots**2, 1))
        draw = self.method.draw(at, not self.weighed)
        noise = jax.random.normal(key, at.u.shape, u.dtype)
        if not self.weighed:
            new = draw.mean + jnp.sqrt(jnp.maximum(draw.variance, 0.0)) * noise
            return (vectors.T @ new).reshape(u.shape), jnp.zeros(())
        both = draw.own[:, None] & draw.own
        covariance = jnp.where(
            both, roots @ roots.T, jnp.diag(jnp.where(draw.own, 1.0, draw.variance))
        )
        factor = jnp.linalg.cholesky(self.sampler.inflation * covariance)
        new = (vectors.T @ (draw.mean + factor @ noise)).reshape(u.shape)
        own = step.noise((new - u).ravel() - step.mean)
        log_ratio = 0.5 * jnp.sum(noise**2 - own**2) - jnp.sum(jnp.log(step.root))
        return new, log_ratio + jnp.sum(jnp.log(jnp.diagonal(factor)))


def spectrum(operator: Array, residual: Array) -> tuple[Array, Array, Array]:
    r"""All right singular vectors as rows, the data along them, and their standard deviations.

    Args:
        operator: $\Sigma_y^{-1/2} H$, shape `(m, d)`.
        residual: $\Sigma_y^{-1/2} y$, shape `(m,)`.

    Returns:
        $V^\top$ of shape `(d, d)`, $\bar y$ and $\varsigma$ of shape `(d,)`: 0 and infinite where nothing is
        seen.
    """
    size = operator.shape[1]
    left, values, vectors = jnp.linalg.svd(operator, full_matrices=True)
    count = values.shape[0]
    least = max(operator.shape) * jnp.finfo(values.dtype).eps * jnp.max(values, initial=0.0)
    values = jnp.pad(values, (0, size - count))
    data = jnp.pad((left.T @ residual)[:count], (0, size - count))
    seen = values > least
    safe = jnp.where(seen, values, 1.0)
    return vectors, jnp.where(seen, data / safe, 0.0), jnp.where(seen, 1 / safe, jnp.inf)
