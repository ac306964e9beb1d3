r"""Importance-weight corrections for reverse diffusion with composed scores (FKC, RNE).

The distribution of a composition is $\pi_t \propto \prod_i p_{i,t}^{\beta_i}$, of which only the scores
$s_i$ are known, and $S = \sum_i \beta_i s_i$. In units of the data the variance $v$ of the noise is a clock:
a noised distribution solves $\partial_v p = \tfrac12 \Delta p$, and from one level to the next $v$ falls by
$\Delta = s_t^2 - s_s^2$. A correction gives a Gaussian step $M_0(u_s \mid u_t)$ and a log weight $c(u_t,
u_s)$ such that particles which follow the one and are weighed by the other go from $\pi_t$ to $\pi_s$, as
levels become many.
"""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from .._arguments import check_counts, plain
from .._typing import Array, Position, PRNGKey, Scalar
from .._written import one_line
from ..bridge import Bridge
from ..energies.normal import log_normal
from .proposals import spread

__all__ = ["AbstractCorrection", "FeynmanKacCorrection", "RadonNikodym", "Step", "probes"]


class Step(NamedTuple):
    """Step from one level to the next, at one site of one particle.

    Attributes:
        u: Where the particle is.
        scores: Of the parts there, leading with their number.
        powers: Their exponents.
        noisy: Noise level $s_t$ of the level.
        clean: Noise level $s_s$ of the next one.
        moves: Whether the two differ.
        jacobian: `direction -> ` derivative of `scores` along it.
        measured: What `measure` found of this site, at this level.
        key: For probes.
    """

    u: Array
    scores: Array
    powers: Array
    noisy: Scalar
    clean: Scalar
    moves: Array
    jacobian: Any
    measured: Any
    key: PRNGKey

    @property
    def variance(self) -> Scalar:
        r"""$\Delta$; 1 where nothing moves."""
        gap = (self.noisy - self.clean) * (self.noisy + self.clean)
        return jnp.where(self.moves, gap, 1.0)

    @property
    def total(self) -> Array:
        r"""$S$."""
        return jnp.tensordot(self.powers, self.scores, 1)

    @property
    def concentration(self) -> Scalar:
        r"""$B = \sum_i \beta_i$."""
        return jnp.sum(self.powers)

    def divergences(self, num_probes: int) -> Array:
        """Divergences of the scores of the parts, shape `(num_parts,)`: exact, or from random directions."""
        size, shape = self.u.size, self.u.shape
        exact = size <= num_probes
        if exact:
            directions = jnp.eye(size, dtype=self.u.dtype)
        else:
            directions = jax.random.rademacher(self.key, (num_probes, size), self.u.dtype)

        def along(direction):
            derivative = self.jacobian(direction.reshape(shape))
            return derivative.reshape(len(self.scores), -1) @ direction

        total = jnp.sum(jax.vmap(along)(directions), 0)
        return jnp.nan_to_num(total if exact else total / num_probes, posinf=0.0, neginf=0.0)


def probes(bridge: Bridge, num_probes: int) -> int:
    """Evaluations that the divergences of all sites cost."""
    shapes = jax.eval_shape(bridge.sample_base, jax.random.key(0))
    return sum(min(shapes[name].size, num_probes) for name in bridge.diffusion_sites)


class AbstractCorrection(eqx.Module):
    """A step of the composition, and its weight."""

    __repr__ = one_line

    def measure(
        self, key: PRNGKey, bridge: Bridge, cloud: Position, clock: Scalar, power: Scalar
    ) -> Any:
        """Estimate from a pilot cloud what the correction needs to know of a level, by site."""
        del key, cloud, clock, power
        return {name: jnp.zeros(()) for name in bridge.diffusion_sites}

    def evaluations(self, bridge: Bridge) -> int:
        """Evaluations of the scores a step, beside the one at the particle."""
        del bridge
        return 0

    @abc.abstractmethod
    def step(self, step: Step) -> tuple[Array, Array]:
        """Mean and variances of $M_0$, of the shape of `u`."""

    @abc.abstractmethod
    def log_weight(self, step: Step, new: Array) -> Scalar:
        r"""$c(u_t, u_s)$, of shape `()`."""


class FeynmanKacCorrection(AbstractCorrection):
    r"""Weights in continuous time: $c = \tfrac12 (|S|^2 - \sum_i \beta_i |s_i|^2)\, \Delta$.

    For $M_0 = \mathcal{N}(u_t + \tfrac12 (1 + b^2) S \Delta,\ b^2 \Delta)$ with any noise $b$: a drift
    and noise that leave $\pi_t$ alone may be added, and with this drift all divergences cancel. With $S =
    \beta s$ it is $\tfrac12 \beta (\beta - 1) |s|^2$, for guidance $\tfrac12 \beta (\beta - 1) |s_1 -
    s_2|^2$. Right as levels become many, and if the scores are those of noised distributions.

    Attributes:
        noise: $b^2$: 1 for the noise of one distribution ("target score"), `None` for $1 / B$ ("tempered
            noise"), which is what $\pi_t$ has at high noise.

    References:
        Skreta et al. (2025), Feynman-Kac Correctors in Diffusion, ICML, propositions 3.1 to 3.3.
    """

    noise: float | None = None

    def share(self, step: Step) -> Scalar:
        r"""$b^2$."""
        tempered = 1 / jnp.where(step.concentration > 0, step.concentration, 1.0)
        return tempered if self.noise is None else jnp.asarray(self.noise)

    def step(self, step):
        noise = self.share(step)
        mean = step.u + 0.5 * (1 + noise) * step.variance * step.total
        return mean, jnp.full_like(step.u, 1.0) * noise * step.variance

    def log_weight(self, step, new):
        del new
        axes = tuple(range(1, step.scores.ndim))
        each = jnp.sum(step.scores**2, axes)
        rate = jnp.sum(step.total**2) - jnp.sum(step.powers * each)
        return 0.5 * rate * step.variance


class RadonNikodym(AbstractCorrection):
    r"""Ratios of densities from kernels: $p_{i,s}(u_s) / p_{i,t}(u_t) \approx p_i(u_s \mid u_t) / q(u_t
    \mid u_s)$.

    $$c = \sum_i \beta_i \log \frac{p_i(u_s \mid u_t)}{q(u_t \mid u_s)} + \log \frac{\mathcal{N}(u_t; u_s,
    \Delta / B)} {M_0(u_s \mid u_t)}$$

    with the noising $q = \mathcal{N}(u_s, \Delta)$ and the reverse kernels
    $p_i = \mathcal{N}(u_t + s_i \Delta,\ \Delta (1 + \Delta h_i))$, $h_i$ for the diagonal of
    $\nabla^2 \log p_{i,t}$. $M_0 \propto \prod_i p_i^{\beta_i}$: kernels to the powers of the distributions,
    whose weights are even at high noise.

    The trace of $h_i$ must be that of the particle: with noise $b^2 = 1 / B$ in the place of 1 an error
    $\epsilon$ of it weighs $\tfrac12 (b^2 - 1) \epsilon \Delta$ at each level, which does not go away as
    levels become many. It costs an evaluation a probe; how it is spread over coordinates a pilot finds.

    Attributes:
        num_probes: Random directions for the trace; exact for no more coordinates than that.

    References:
        He et al. (2025), RNE: plug-and-play diffusion inference-time control and energy-based training.
    """

    num_probes: int = eqx.field(static=True, converter=plain, default=8)

    def __check_init__(self):
        check_counts(self, num_probes=1)

    def evaluations(self, bridge):
        return probes(bridge, self.num_probes)

    def measure(self, key, bridge, cloud, clock, power):
        del power
        noise = bridge.noise(clock)
        count = jax.tree.leaves(cloud)[0].shape[0]

        def one(key, z):
            keys = dict(zip(noise, jax.random.split(key, len(noise)), strict=True))
            signs = {n: jax.random.rademacher(keys[n], z[n].shape, z[n].dtype) for n in noise}
            moved = lambda sign: {n: z[n] + sign * 0.25 * noise[n] * signs[n] for n in noise}
            above, below = (bridge.see({**z, **moved(sign)}, clock).scores for sign in (1.0, -1.0))
            return {n: signs[n] * (above[n] - below[n]) / (0.5 * noise[n]) for n in noise}

        each = jax.vmap(one)(jax.random.split(key, count), cloud)
        return {
            n: jnp.mean(jnp.nan_to_num(leaf, posinf=0.0, neginf=0.0), 0) for n, leaf in each.items()
        }

    def parts(self, step: Step) -> tuple[Array, Array]:
        """Means and variances of the reverse kernels of the parts."""
        means = step.u + step.variance * step.scores
        axes = tuple(range(1, means.ndim))
        gap = step.divergences(self.num_probes) / step.u.size - jnp.mean(step.measured, axes)
        h = step.measured + gap.reshape(-1, *(1 for _ in axes))
        return means, spread(step.noisy, step.clean, step.moves, h)[1]

    def step(self, step):
        return self.product(step, *self.parts(step))

    def product(self, step: Step, means: Array, variances: Array) -> tuple[Array, Array]:
        """Mean and variances of the product of the kernels to their powers."""
        precision = jnp.tensordot(step.powers, 1 / variances, 1)
        linear = jnp.tensordot(step.powers, (means - step.u) / variances, 1)
        # Where a negative power leaves no precision, the kernel of the sums: any is valid.
        usable = precision > 0.2 / step.variance
        safe = jnp.where(usable, precision, 1.0)
        B = jnp.where(step.concentration > 0, step.concentration, 1.0)
        mean = step.u + jnp.where(usable, linear / safe, step.variance * step.total / B)
        return mean, jnp.where(usable, 1 / safe, step.variance / B)

    def log_weight(self, step, new):
        means, variances = self.parts(step)
        axes = tuple(range(1, means.ndim))
        forth = jnp.sum(log_normal(new - means, variances), axes)
        back = jnp.sum(log_normal(new - step.u, step.variance))
        B = jnp.where(step.concentration > 0, step.concentration, 1.0)
        backward = jnp.sum(log_normal(new - step.u, step.variance / B))
        mean, variance = self.product(step, means, variances)
        own = jnp.sum(log_normal(new - mean, variance))
        return jnp.sum(step.powers * (forth - back)) + backward - own
