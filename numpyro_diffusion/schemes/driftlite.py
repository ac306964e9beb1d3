r"""DriftLite: control variates in the drift that reduce the variance of continuous-time weights."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .._arguments import check_counts, plain
from .._typing import Array, Position, PRNGKey, Scalar
from ..bridge import Bridge
from .corrections import AbstractCorrection, FeynmanKacCorrection, Step, probes

__all__ = ["DriftLite"]


class DriftLite(AbstractCorrection):
    r"""`FeynmanKacCorrection` with a drift $b = \sum_j \theta_j b_j$ on top, and what it owes to that.

    A drift $b \Delta$ more needs the weight $h \Delta$ more, $h = S \cdot b + \nabla \cdot b$, whose mean
    under $\pi_t$ is 0. A pilot cloud finds the $\theta$ with the least variance of all of $c$, and they
    are frozen: the weights stay valid whatever it found. The $b_j$ are the scores of the parts and $u$
    itself. Divergences cost an evaluation a coordinate, or one a probe.

    Attributes:
        base: Noise and weights without the drift.
        num_probes: Random directions for divergences; exact for no more coordinates than that.
        ridge: Added to the normal equations, as a share of their diagonal.

    References:
        Ren et al. (2025), DriftLite: lightweight drift control for inference-time scaling of diffusion
        models, arXiv 2509.21655.
    """

    base: FeynmanKacCorrection = eqx.field(default_factory=FeynmanKacCorrection)
    num_probes: int = eqx.field(static=True, converter=plain, default=8)
    ridge: float = 1e-3

    def __check_init__(self):
        check_counts(self, num_probes=1)

    def evaluations(self, bridge: Bridge) -> int:
        return probes(bridge, self.num_probes)

    def measure(
        self, key: PRNGKey, bridge: Bridge, cloud: Position, clock: Scalar, power: Scalar
    ) -> Any:
        del power
        noisy = bridge.noise(clock)
        count = jax.tree.leaves(cloud)[0].shape[0]

        def rates(key, z, name):
            # A step of variance 1: the rate itself.
            step = self.at(key, bridge, z, clock, name, noisy[name])
            return self.base.log_weight(step, z[name]), self.controls(step)[1]

        found = {}
        for name in bridge.diffusion_sites:
            keys = jax.random.split(jax.random.fold_in(key, len(found)), count)
            rate, h = jax.vmap(lambda k, z, name=name: rates(k, z, name))(keys, cloud)
            rate, h = (jnp.nan_to_num(v, posinf=0.0, neginf=0.0) for v in (rate, h))
            rate, h = rate - jnp.mean(rate), h - jnp.mean(h, 0)
            normal = h.T @ h
            normal = normal + self.ridge * jnp.diag(jnp.diag(normal)) + 1e-12 * jnp.eye(h.shape[1])
            found[name] = jnp.nan_to_num(jnp.linalg.solve(normal, -h.T @ rate))
        return found

    def at(self, key, bridge: Bridge, z: Position, clock: Scalar, name: str, noisy: Scalar) -> Step:
        """A step of variance 1 at a particle."""
        see = lambda u: bridge.see({**z, name: u}, clock).scores[name]
        scores, jacobian = jax.linearize(see, z[name])
        powers = jnp.asarray(bridge.powers[name], scores.dtype)
        still = jnp.asarray(False)
        return Step(z[name], scores, powers, noisy, noisy, still, jacobian, None, key)

    def controls(self, step: Step) -> tuple[Array, Array]:
        """Directions $b_j$, leading with their number, and their rates $h_j$."""
        basis = jnp.concatenate([step.scores, step.u[None]])
        axes = tuple(range(1, basis.ndim))
        divergences = jnp.concatenate(
            [step.divergences(self.num_probes), jnp.full(1, float(step.u.size))]
        )
        return basis, jnp.sum(step.total * basis, axes) + divergences

    def step(self, step):
        mean, variance = self.base.step(step)
        drift = jnp.tensordot(step.measured, self.controls(step)[0], 1)
        return mean + step.variance * drift, variance

    def log_weight(self, step, new):
        rate = jnp.sum(step.measured * self.controls(step)[1])
        return self.base.log_weight(step, new) + rate * step.variance
