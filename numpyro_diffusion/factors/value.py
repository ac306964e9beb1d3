r"""Soft value functions: the log expected reward of clean data given a noised one.

$v_t(u) = \alpha \log \mathbb{E}[e^{r(u_{t_{\min}}) / \alpha} \mid u_t = u]$, in units of the reward. With it
$p_t e^{v_t / \alpha}$ is the noised distribution of $p\, e^{r / \alpha}$, and no step of a sampler is
wasted; anything else leads particles less well and to the same distribution.
"""

import abc
import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp

from .. import _faq
from .._arguments import check_counts, plain
from .._typing import Array, Scalar
from .._written import one_line
from ..energies import Noised
from ..nets.scalar import ScalarHead

__all__ = ["AbstractValue", "ExactValue", "LearnedValue", "MonteCarloValue", "TweedieValue"]

Reward = Callable[[Array], Scalar]
"""`reward(x)` of shape `()` for ONE example of clean data, in data units."""


class AbstractValue(eqx.Module):
    """Value function of a reward: an estimate of the reward of the clean data, given noisy data."""

    __repr__ = one_line

    @abc.abstractmethod
    def __call__(self, reward: Reward, alpha: Scalar | float, noised: Noised) -> Scalar:
        r"""$v_t(u)$ of shape `()`, in units of the reward. It is not asked at `t_min`."""


class TweedieValue(AbstractValue):
    r"""The reward of the denoised mean, $v_t(u) = r(\hat x(u))$.

    Exact for a reward that is linear and a Gaussian posterior, less a number; too sure of itself for a
    reward that is curved. A score an evaluation, and one evaluation of the reward.
    """

    def __call__(self, reward, alpha, noised):
        del alpha
        return reward(noised.x_hat)


class MonteCarloValue(AbstractValue):
    r"""The soft mean of the reward around the denoised mean,
    $v_t(u) = \alpha \log \tfrac1n \sum_i e^{r(\hat x + \varsigma_t \xi_i) / \alpha}$.

    $\varsigma_t^2$ is roughly what the denoised mean leaves open, coordinate by coordinate. The normals
    $\xi_i$ come in mirrored pairs and never change, so that the value is a smooth function of $u$ like any
    other. A score an evaluation, and `num_draws` evaluations of the reward.

    Attributes:
        num_draws: Number of normals, even.
        seed: Chooses them.

    Raises:
        ValueError: If `num_draws` is not an even number of at least 2.
    """

    num_draws: int = eqx.field(static=True, converter=plain, default=16)
    seed: int = eqx.field(static=True, converter=plain, default=0)

    def __check_init__(self):
        check_counts(self, num_draws=2)
        if self.num_draws % 2:
            raise ValueError(
                "`num_draws` of `MonteCarloValue` must be even, for pairs of mirrored normals; got "
                f"{self.num_draws}. {_faq.numbers}"
            )

    def __call__(self, reward, alpha, noised):
        u = noised.u
        normals = jax.random.normal(
            jax.random.key(self.seed), (self.num_draws // 2, *u.shape), u.dtype
        )
        step = jnp.sqrt(noised.variance) * jnp.concatenate([normals, -normals])
        rewards = jax.vmap(reward)(noised.x_hat + step)
        return alpha * (jax.nn.logsumexp(rewards / alpha) - math.log(self.num_draws))


class ExactValue(AbstractValue):
    r"""A value in closed form, or of any other origin: $v_t(u) = $ `fn(u, t)`.

    It takes no score: the cheapest value there is.

    Attributes:
        fn: `fn(u, t)` of shape `()`, in units of the reward; `u` in units of the data.
    """

    fn: Callable[[Array, Scalar], Scalar] = lambda u, t: jnp.zeros((), u.dtype)

    def __call__(self, reward, alpha, noised):
        del reward, alpha
        return self.fn(noised.u, noised.t)


class LearnedValue(AbstractValue):
    r"""A network for the logarithm, $v_t(u) = \alpha_0 f(u, t)$, from `fit_soft_value`.

    No score and no reward an evaluation.

    Attributes:
        net: $f(u, t)$ of shape `()`, which approximates $\log \mathbb{E}[e^{r / \alpha_0} \mid u_t = u]$.
        alpha: $\alpha_0$, the temperature that it was trained for. It may serve others near it.
    """

    net: Callable[[Array, Scalar], Scalar] = eqx.field(default_factory=ScalarHead)
    alpha: float = 1.0

    def __call__(self, reward, alpha, noised):
        del reward, alpha
        return self.alpha * self.net(noised.u, noised.t)
