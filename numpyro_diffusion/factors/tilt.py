r"""Reward tilting: a prior times the exponential of a reward."""

import equinox as eqx
import jax
import jax.numpy as jnp

from .. import _faq
from .._arguments import check_callable
from .._typing import Array, Scalar
from ..energies import AbstractFactor, Noised
from .value import AbstractValue, Reward, TweedieValue

__all__ = ["Tilt"]


def _first_coordinate(x: Array) -> Scalar:
    return jnp.ravel(x)[0]


class Tilt(AbstractFactor):
    r"""$h = e^{r(x) / \alpha}$: the distribution $\propto p(x)\, e^{r(x) / \alpha}$.

    Of all distributions it has the largest $\mathbb{E}[r] - \alpha\, \mathrm{KL}(\cdot \,\|\, p)$, which is
    what fine-tuning with a reward aims at; a log likelihood as reward, with $\alpha = 1$, makes it a
    posterior. The log evidence is $\log \mathbb{E}_p[e^{r / \alpha}]$.

    At `t_min` the factor is the reward itself. At noisy levels it is $e^{v_t / \alpha}$ with a soft value
    $v_t$, which decides how well particles are led and not where to: that is up to the weights.

    **A black box**, a reward without a gradient (a simulator behind `jax.pure_callback`, a count, a judge),
    is possible with `differentiable=False`: no derivative of it is then asked for. Proposals and Hamiltonian
    moves follow the gradient of the prior alone, and of the value where that has one of its own
    (`ExactValue`, `LearnedValue`); weights and acceptances hold the reward, enough for the right
    distribution.

    Args:
        reward: $r$, `reward(x)` of shape `()` for ONE example in data units. A function, or a module whose
            arrays stay arguments of the compiled program.
        alpha: $\alpha > 0$, in units of the reward: what a nat of divergence from the prior costs.
        value: What stands for the reward at noisy levels; that of the denoised mean by default.
        differentiable: Whether derivatives of the reward may be taken.

    Raises:
        ValueError: If `alpha` is not positive, or a reward is not one number.

    References:
        Uehara et al. (2024), Understanding Reinforcement Learning-Based Fine-Tuning of Diffusion Models,
        arXiv 2407.13734. Wu et al. (2023), Practical and Asymptotically Exact Conditional Sampling in
        Diffusion Models, NeurIPS.
    """

    reward: Reward
    alpha: float
    value: AbstractValue
    differentiable: bool = eqx.field(static=True)

    def __init__(
        self,
        reward: Reward = _first_coordinate,
        alpha: float = 1.0,
        value: AbstractValue | None = None,
        *,
        differentiable: bool = True,
    ):
        if not alpha > 0:
            raise ValueError(
                f"`Tilt` expects a positive `alpha`; got {alpha}. To avoid what is rewarded, turn the sign "
                f"of the reward. {_faq.numbers}"
            )
        check_callable("reward", reward, "x -> reward")
        self.reward, self.alpha = reward, alpha
        self.value = TweedieValue() if value is None else value
        self.differentiable = differentiable

    def log_value(self, noised: Noised) -> Scalar:
        def reward(x: Array) -> Scalar:
            found = jnp.asarray(self.reward(x if self.differentiable else jax.lax.stop_gradient(x)))
            if found.shape != ():
                raise ValueError(
                    f"a reward is one number, of shape (); got {found.shape} for one example of shape "
                    f"{x.shape}. Sum it. {_faq.reward}"
                )
            return found.astype(x.dtype)

        above = lambda: jnp.asarray(self.value(reward, self.alpha, noised), noised.u.dtype)
        return jax.lax.cond(noised.clean, lambda: reward(noised.u), above) / self.alpha
