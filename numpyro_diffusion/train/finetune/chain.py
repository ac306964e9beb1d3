r"""The reverse diffusion of a prior as a chain of Gaussian steps, and what it costs to steer it.

From noise level $s_t$ to $s_s$, with $r = s_s^2 / s_t^2$ and $\hat x$ the denoised mean of a model, in data
units:

$$p(u_s \mid u_t) = \mathcal{N}\big(r u_t + (1 - r) \hat x(u_t),\ s_s^2 (1 - r) + (1 - r)^2
\varsigma_t^2\big), \qquad
  \varsigma_t^2 = \frac{s_t^2 d^2}{s_t^2 + d^2}.$$

$\varsigma_t$ is what the denoised mean leaves open in a Gaussian of the prior's scale $d$: for such a prior
the chain is exact, however few its steps. A steered model has another mean and the same variance, so that a
step costs $\tfrac12 |\delta|^2$ nats of divergence, $\delta = (1 - r)(\hat x_\theta - \hat x) / \text{sd}$.
As steps become many the sum is Girsanov's $\tfrac12 \int |u|^2 / g^2\, dt$ of a control $u$ and the noise $g$
of the reverse equation.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from ..._arguments import whole_number
from ..._typing import Array, PRNGKey, Scalar
from ...energies import AbstractDenoiser
from ...schedules import log_snr_grid

__all__ = ["Path", "ReverseChain"]


class Path(NamedTuple):
    """One path of `num_steps` steps.

    Attributes:
        points: $u$ at all levels, of shape `(num_steps + 1, *shape)`, noise first.
        divergences: $\\tfrac12 |\\delta|^2$ of each step, of shape `(num_steps,)`, in nats.
    """

    points: Array
    divergences: Array


class ReverseChain(eqx.Module):
    """The chain of a prior, for models that are steered away from it. Methods act on ONE path.

    Args:
        prior: The prior, an energy or a denoiser.
        num_steps: Steps, equal in log-SNR from `t_max` to `t_min`.
    """

    prior: AbstractDenoiser
    times: Array

    def __init__(self, prior: AbstractDenoiser, num_steps: int = 32):
        num_steps = whole_number("num_steps", num_steps, 1)
        self.prior = prior
        self.times = log_snr_grid(prior.schedule, num_steps, prior.t_min, prior.t_max)

    @property
    def num_steps(self) -> int:
        return len(self.times) - 1

    def start(self, key: PRNGKey) -> Array:
        """Draw $u$ at `t_max`."""
        mean, variance = self.prior.data_moments(self.times[0])
        return mean + jnp.sqrt(variance) * jax.random.normal(key, self.prior.shape, mean.dtype)

    def moments(self, model: AbstractDenoiser, u: Array, step: Array) -> tuple[Array, Array]:
        """Mean and standard deviations of a step of a model, each of the shape of `u`."""
        t, s = self.times[step], self.times[step + 1]
        schedule, t_min = self.prior.schedule, self.times[-1]
        share = -jnp.expm1(schedule.log_snr(t) - schedule.log_snr(s))  # 1 - r
        noisy, clean, last = (schedule.noise_level(a) ** 2 for a in (t, s, t_min))
        scale = jnp.maximum(self.prior.data_moments(t_min)[1] - last, 0.0)
        variance = clean * share + share**2 * noisy * scale / (noisy + scale)
        mean = u + share.astype(u.dtype) * (model.denoise(schedule(t)[0] * u, t) - u)
        return mean, jnp.sqrt(variance).astype(u.dtype)

    def path(self, model: AbstractDenoiser, key: PRNGKey, start: Array | None = None) -> Path:
        """Draw a path of a model, and what it costs; derivatives in the model go through both."""
        key_start, key = jax.random.split(key)

        @jax.checkpoint  # memory for the points alone, not for networks at all of them
        def step(u, index):
            mean, sd = self.moments(model, u, index)
            delta = (mean - self.moments(self.prior, u, index)[0]) / sd
            noise = jax.random.normal(jax.random.fold_in(key, index), u.shape, u.dtype)
            new = mean + sd * noise
            return new, (new, 0.5 * jnp.sum(delta**2))

        u = self.start(key_start) if start is None else start
        _, (points, divergences) = jax.lax.scan(step, u, jnp.arange(self.num_steps))
        return Path(jnp.concatenate([u[None], points]), divergences)

    def log_ratios(self, model: AbstractDenoiser, points: Array) -> Array:
        r"""$\log p_\theta(u_s \mid u_t) / p(u_s \mid u_t)$ of given points, shape `(num_steps,)`, in nats."""

        def one(u, new, index):
            mean, sd = self.moments(model, u, index)
            prior, _ = self.moments(self.prior, u, index)
            return jnp.sum((mean - prior) * (new - 0.5 * (mean + prior)) / sd**2)

        return jax.vmap(one)(points[:-1], points[1:], jnp.arange(self.num_steps))

    def draw(self, model: AbstractDenoiser, key: PRNGKey) -> Array:
        """Draw from a model at `t_min`, in data units."""
        return self.path(model, key).points[-1]

    def gain(self, model: AbstractDenoiser, key: PRNGKey, log_weight, start=None) -> Scalar:
        r"""$r / \alpha - \mathrm{KL}$ of one path, in nats; its mean is at most the log evidence.

        Args:
            model: The steered model.
            key: PRNG key.
            log_weight: $r / \alpha$ of ONE example.
            start: $u$ at `t_max`; drawn by default.
        """
        path = self.path(model, key, start)
        return log_weight(path.points[-1]) - jnp.sum(path.divergences)

    def log_weight(self, model: AbstractDenoiser, key: PRNGKey, log_weight) -> Scalar:
        r"""Log weight of one path, $r / \alpha - \log p_\theta(\text{path}) / p(\text{path})$, in nats.

        Its exponential has the mean $\mathbb{E}_p[e^{r / \alpha}]$ whatever the model is, and no variance
        where the paths are those of the tilted prior.
        """
        points = self.path(model, key).points
        return log_weight(points[-1]) - jnp.sum(self.log_ratios(model, points))
