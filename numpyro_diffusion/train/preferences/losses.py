r"""Losses of preferences: a divergence between what a pair says and what a model says of it.

Of a pair with log ratio $g = \log\frac{p_\theta}{p}(x_w) - \log\frac{p_\theta}{p}(x_l)$ a model says that
$x_w$ is preferred with chance $\hat p = \sigma(\beta g)$; the label says $q$. *Direct preference
optimisation* (DPO) takes $\mathrm{KL}(q \,\|\, \hat p)$, up to a number the log likelihood of the
Bradley-Terry model; *divergence minimisation preference optimisation* (DMPO) takes $\mathrm{KL}(\hat p \,\|\,
q)$, which prefers to be sure.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ... import _faq
from ..._numbers import number
from ..._typing import Scalar

__all__ = ["DMPO", "DPO"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPO:
    r"""Cross-entropy of the label, $-q \log \sigma(h) - (1 - q) \log \sigma(-h)$ with $h = \beta g$ (DPO).

    Where a share $\pi$ of pairs of one kind is won by the first, or each says $q = \pi$, it is least at
    $h = \mathrm{logit}\,\pi$: calibrated.

    References:
        Rafailov et al. (2023), arXiv 2305.18290. Wallace et al. (2023), arXiv 2311.12908, for diffusion
        models.
    """

    def check(self, chances) -> None:
        """Any chances in [0, 1] will do."""
        del chances

    def __call__(self, h: Scalar, chance: Scalar) -> Scalar:
        r"""Loss of ONE pair, shape `()`, in nats.

        Args:
            h: $\beta$ times the log ratio of the winner, less that of the loser.
            chance: $q$, with which the winner is preferred; 1 for a hard label.
        """
        return -chance * jax.nn.log_sigmoid(h) - (1 - chance) * jax.nn.log_sigmoid(-h)

    def calibrated(self, chances) -> bool:
        """Whether its optimum is the log odds of the preferences."""
        del chances
        return True


@dataclasses.dataclass(frozen=True, kw_only=True)
class DMPO:
    r"""Reverse divergence from the label (DMPO).

    $$\mathrm{KL}\big((\hat p, 1 - \hat p) \,\|\, (q', 1 - q')\big), \quad q' = (1 - \epsilon) q + \epsilon (1
    - q).$$

    $\hat p = \sigma(h)$ with $h$ as for `DPO`. With *soft* labels, $q$ the chance
    that the winner is preferred and $\epsilon = 0$, it is least at $h = \mathrm{logit}\, q$. With *hard*
    labels, $q = 1$, of which a share $\pi$ goes one way, it is least at $h = (2 \pi - 1) \log\frac{1 -
    \epsilon}{\epsilon}$. That is not the logit of $\pi$: hard labels sharpen by an amount that $\epsilon$
    chooses, and nothing calibrates them.

    **Why.** The slope in $h$ is $\hat p\, (1 - \hat p)\, (h - \mathrm{logit}\, q')$, so that of labels that
    differ their *logits* are averaged: $h = \mathbb{E}\, \mathrm{logit}\, q'$, a geometric mean, where `DPO`
    averages the labels themselves. Soft labels of a Bradley-Terry reward $r$ all have slope 0 where $\log
    p_\theta / p = r / \beta$ but for a constant, and nowhere else if they connect all examples: the tilted
    distribution $p\, e^{r / \beta}$, whatever pairs were shown. The loss is not convex in $h$. Its value at a
    mean log ratio is therefore no bound of its mean over noise levels, and `fit_preferences` averages the log
    ratio over levels first.

    **What was checked.** The loss of a pair is that of equation 16 of Ji et al. as public implementations
    have it (their own, and TRL's `exo_pair`), which take $\hat p$ and $q'$ from a softmax over two, and
    $\epsilon = e^{-10}$ or $10^{-3}$; $h$ is that of Wallace et al. Of Li et al. the abstract and reviews
    were read, and no code was found: that their loss is this one for the $h$ of diffusion models rests on
    these. Slopes, both optima and the tilted distribution of a table of examples are tested.

    Attributes:
        flip_rate: $\epsilon$, the chance that a label is the wrong way round, in [0, 0.5). Hard labels need
            one above 0.

    Raises:
        ValueError: If the rate is out of range.

    References:
        Li et al. (2025), Divergence Minimization Preference Optimization for Diffusion Model Alignment, arXiv
        2507.07510. Ji et al. (2024), Towards Efficient Exact Optimization of Language Model Alignment, arXiv
        2402.00856, for the loss.
    """

    flip_rate: float = 0.0

    def __post_init__(self):
        remedy = "It is a share of wrong labels: swap winners and losers if most are wrong."
        name = "flip_rate` of `DMPO"
        object.__setattr__(
            self, "flip_rate", number(name, self.flip_rate, least=0, below=0.5, remedy=remedy)
        )

    def check(self, chances) -> None:
        """Refuse hard labels that are sure to be right: their divergence is infinite wherever one is not."""
        target = self._target(jnp.asarray(chances))
        if not bool(jnp.all((target > 0) & (target < 1))):
            raise ValueError(
                "`DMPO` expects `chances` in (0, 1), or a flip rate above 0; got a hard label (a chance "
                f"of 0 or 1 in {target.dtype}) and `flip_rate={self.flip_rate:g}`. Take "
                f"`DMPO(flip_rate=0.01)`, or `DPO()`, which is calibrated. {_faq.numbers}"
            )

    def __call__(self, h: Scalar, chance: Scalar) -> Scalar:
        r"""Loss of ONE pair, shape `()`, in nats; arguments as those of `DPO`."""
        target = self._target(chance)
        won = jax.nn.sigmoid(h) * (jax.nn.log_sigmoid(h) - jnp.log(target))
        return won + jax.nn.sigmoid(-h) * (jax.nn.log_sigmoid(-h) - jnp.log1p(-target))

    def _target(self, chance):
        """$q'$."""
        return (1 - self.flip_rate) * chance + self.flip_rate * (1 - chance)

    def calibrated(self, chances) -> bool:
        """Whether its optimum is the log odds of the preferences: for soft labels, all right."""
        return self.flip_rate == 0 and bool(jnp.all((chances > 0) & (chances < 1)))
