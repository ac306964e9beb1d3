r"""Steps of the reverse sampler conditioned on linear Gaussian data in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .._typing import Array, Position
from ..bridge import Bridge, Curvature, curvature
from ..energies.normal import log_normal_of_root
from .guided import Guided
from .proposals import Step
from .transport import AbstractTransport

__all__ = ["Conjugate", "linear_data"]


class Conjugate(AbstractTransport):
    r"""A draw from the product of the sampler's own step and noised data, weighed against the step.

    With $p(u_s \mid u_t) = \mathcal{N}(m, \Sigma)$ the sampler's step (see `Guided`), $H$ the operator and
    $\Sigma_y$ the covariance of the data, both read off the model and linear about the denoised mean,

    $$M(u_s \mid u_t) \propto \mathcal{N}(u_s; m, \eta \Sigma)\,
    \mathcal{N}(y; H u_s,\ \Sigma_y + \tau_s^2 H H^\top), \qquad \tau_s^2 = s_s^2 - s_{t_{\min}}^2.$$

    $\log R = \log p(u_s \mid u_t) - \log M(u_s \mid u_t)$; where the data are not linear or not Gaussian this
    is a proposal like any other. With the twist `NoisedObservation` the weight does not depend on the draw.
    A matrix of all data is factorised a step: for hundreds of them.

    Attributes:
        sampler: The steps without data.
    """

    sampler: Guided

    def evaluations(self, bridge):
        del bridge
        return 0

    def __call__(self, key, bridge, position, gradient, seen, level):
        del gradient
        assert seen is not None
        noisy, clean = bridge.noise(level.clock), bridge.noise(level.next_clock)
        end = bridge.noise(jnp.zeros(()))
        u = {name: position[name] for name in bridge.diffusion_sites}
        steps, later, mean = self.sampler.steps(bridge, seen, level), {}, {}
        for name, value in u.items():
            gap = jnp.maximum(clean[name] ** 2 - end[name] ** 2, 0.0)
            gap = jnp.where(level.next_clock <= 0, 0.0, gap)
            later[name] = jnp.full(value.size, gap, value.dtype)
            mean[name] = value + (noisy[name] ** 2 - end[name] ** 2) * seen.scores[name]
        data = linear_data(bridge, position, mean)
        drawn, log_ratio = self.draw(key, data, u, steps, later)
        new = {name: jnp.where(steps[name].moves, drawn[name], u[name]) for name in u}
        return {**position, **new}, jnp.where(level.next_clock < level.clock, log_ratio, 0.0)

    def draw(self, key, data, u: Position, steps: dict[str, Step], later: dict[str, Array]):
        r"""A draw of $M$ and $\log p / M$ there.

        Args:
            key: PRNG key.
            data: Operator $G$ and residual at 0, both in units of the data's standard deviations.
            u: $u_t$.
            steps: The sampler's own steps from there.
            later: $\tau_s^2$ of each coordinate, flat.
        """
        operator, residual = data
        start, unravel = ravel_pytree(u)
        joined = lambda parts: jnp.concatenate([parts[name] for name in sorted(steps)])
        m, tau2 = start + joined({n: step.mean for n, step in steps.items()}), joined(later)
        sizes = [steps[name].mean.size for name in sorted(steps)]

        def by_site(apply, flat):
            parts = jnp.split(flat, np.cumsum(sizes)[:-1])
            named = zip(sorted(steps), parts, strict=True)
            return jnp.concatenate([apply(steps[name], part) for name, part in named])

        keys, eta = jax.random.split(key, 3), self.sampler.inflation
        noise = jax.random.normal(keys[0], m.shape, m.dtype)
        free = m + jnp.sqrt(eta) * by_site(Step.deviation, noise)
        error = jax.random.normal(keys[1], residual.shape, residual.dtype)
        error = error + operator @ (jnp.sqrt(tau2) * jax.random.normal(keys[2], m.shape, m.dtype))
        one = jnp.eye(residual.size, dtype=m.dtype)
        noised = one + (operator * tau2) @ operator.T
        crossed = eta * jax.vmap(lambda row: by_site(Step.times_covariance, row))(operator)
        apart = jnp.linalg.cholesky(noised)
        total = jnp.linalg.cholesky(noised + crossed @ operator.T)
        # A draw of the product from a draw of both, as in Kriging.
        pull = jax.scipy.linalg.cho_solve((total, True), residual - operator @ free - error)
        drawn = free + crossed.T @ pull
        inflated = (1 / eta - 1) * by_site(Step.noise, drawn - m) ** 2 + jnp.log(eta)
        log_ratio = 0.5 * jnp.sum(inflated)
        log_ratio += log_normal_of_root(residual - operator @ m, total)
        log_ratio -= log_normal_of_root(residual - operator @ drawn, apart)
        return unravel(drawn), log_ratio


def linear_data(bridge: Bridge, position: Position, mean: Position) -> tuple[Array, Array]:
    """The operator as a matrix, and the residual that it leaves at 0."""
    at = jax.lax.stop_gradient(mean)
    bend: Curvature = curvature(bridge.laws(position), None, at)
    residual, unravel = ravel_pytree(bend.residual)
    back = lambda w: ravel_pytree(bend.back(unravel(w)))[0]  # type: ignore
    operator = jax.vmap(back)(jnp.eye(residual.size, dtype=residual.dtype))
    return operator, residual + operator @ ravel_pytree(at)[0]
