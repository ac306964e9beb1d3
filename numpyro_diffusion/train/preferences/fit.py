r"""`fit_preferences`: fine-tuning of a diffusion model by pairs of examples, one preferred to the other."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ... import _faq
from ..._arguments import check_callable, check_instance
from ..._records import record, record_page
from ..._typing import Array, PRNGKey, PyTree
from ...energies import AbstractDenoiser, Standardized
from ..examples import check_examples
from ..fit import fit
from ..options import Optimizer
from ..result import FitResult, TrainingDiverged
from ..settings import forgetful, trainable_of
from .log_ratio import LogRatio, denoising_log_ratio
from .losses import DMPO, DPO

__all__ = ["PreferenceResult", "fit_preferences"]


class PreferenceResult(NamedTuple):
    """Result of `fit_preferences`.

    Attributes:
        energy: The fine-tuned model, with the averaged weights of the best validation loss.
        history: Arrays of one length: `step`, `train_loss` and `validation_loss`.
        best_step: Step of the returned weights; 0 if no check was better than the start.
        best_loss: Their validation loss.
        stopped: Why training ended: `"steps"`, `"patience"` or `"interrupted"`.
        target: The distribution that is learned, in words, and in which limit.
    """

    energy: AbstractDenoiser
    history: dict[str, np.ndarray]
    best_step: int
    best_loss: float
    stopped: str
    target: str

    __repr__ = record
    _repr_html_ = record_page

    learned = FitResult.learned
    verdict = FitResult.verdict


class _Pairs(eqx.Module):
    """What `fit` trains here; an example is a pair, and its condition the chance that it is right."""

    energy: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return (2, *self.energy.shape)

    def given(self, chance: Any) -> "_Pairs":
        del chance
        return self


def fit_preferences(
    key: PRNGKey,
    energy: AbstractDenoiser,
    winners,
    losers,
    *,
    chances=None,
    loss: DPO | DMPO = DPO(),  # noqa: B008 - it never changes
    beta: float = 1.0,
    log_ratio: LogRatio | None = None,
    trainable: Callable[[Any], PyTree] | None = None,
    optimizer: Optimizer = Optimizer(),  # noqa: B008
    **options: Any,
) -> PreferenceResult:
    r"""Fine-tune a model to pairs $(x_w, x_l)$ of which the first is preferred.

    Where preferences follow the Bradley-Terry model of a reward, $P(x_w \succ x_l) = \sigma(r(x_w) -
    r(x_l))$, DPO and DMPO with soft labels lead to $p(x)\, e^{r(x) / \beta}$, $p$ the model at the start:
    exact as pairs, levels and steps become many, if the model can be that distribution at all levels. DMPO
    with hard labels leads to a sharper one. The reward itself is never made.

    Args:
        key: PRNG key.
        energy: The prior to start from, an energy or a denoiser; or a `Standardized` distribution, with pairs
            in its units.
        winners: Preferred examples, of shape `(num, *energy.shape)`, in data units.
        losers: The others, of the same shape.
        chances: Soft labels, shape `(num,)`: with which chance the winner is preferred, for instance the
            share of experts who said so. 1 for all by default.
        loss: `DPO()`, or `DMPO(flip_rate=...)`.
        beta: $\beta$, what a nat of divergence from the prior costs in nats of reward: the larger, the less
            is changed.
        log_ratio: `denoising_log_ratio()`, or `energy_log_ratio` for energies.
        trainable: Selects what is trained of the model; network and offset by default.
        optimizer: See `Optimizer`; weight decay, which pulls to 0 and not to the prior, is 0 by default.
        **options: Those of `fit`, except `condition`, `weights`, `augment` and `checkpoint`. `validation` is
            a pair `(winners, losers)`, or has their chances as a third.

    Raises:
        TypeError: If examples are not floating, or an option is none of those.
        ValueError: If shapes disagree, or `beta`, chances or an option are out of range.
        TrainingDiverged: If the loss becomes non-finite; it carries the last good weights.
    """
    for name in ("condition", "weights", "augment", "checkpoint", "null_rate"):
        if options.pop(name, None) is not None:
            raise TypeError(
                f"`fit_preferences` takes no `{name}`; use `fit` for that. {_faq.together}"
            )
    if not isinstance(loss, DPO | DMPO):
        raise TypeError(
            "`loss` must be `train.DPO()` or `train.DMPO(flip_rate=0.01)`; got "
            f"{loss!r}. {_faq.kinds}"
        )
    check_instance("optimizer", optimizer, Optimizer, "train.Optimizer(ema=0.99)", optional=False)
    if not (beta > 0 and np.isfinite(beta)):
        raise ValueError(
            f"`beta` of `fit_preferences` must be positive and finite; got {beta}. {_faq.numbers}"
        )
    log_ratio = denoising_log_ratio() if log_ratio is None else log_ratio
    check_callable("log_ratio", log_ratio, "(model, prior, key, winner, loser) -> nats")
    units = energy if isinstance(energy, Standardized) else None
    prior = forgetful(energy if units is None else units.energy)
    pairs, chances = _as_pairs(energy, winners, losers, chances)
    loss.check(chances)
    if (validation := options.pop("validation", None)) is not None:
        options["validation"] = _as_pairs(energy, *validation)

    def objective(pair, key, batch, condition):
        def one(key, both, chance):
            g = log_ratio(pair.energy, prior, key, *both)  # pyright: ignore[reportCallIssue]
            return loss(beta * g, chance)

        return jnp.mean(jax.vmap(one)(jax.random.split(key, len(batch)), batch, condition))

    chosen = trainable_of(prior, trainable)
    start: Any = _Pairs(prior)
    restored = lambda model: model if units is None else units.with_energy(model)
    try:
        found = fit(
            key, start, pairs, condition=chances, null_rate=0.0, loss=objective,
            trainable=lambda pair: chosen(pair.energy), optimizer=optimizer.with_decay(0.0), **options,
        )  # fmt: skip
    except TrainingDiverged as error:
        error.energy = restored(error.energy.energy)  # pyright: ignore
        raise
    model = restored(found.energy.energy)  # pyright: ignore[reportAttributeAccessIssue]
    best = found.best_step, found.best_loss, found.stopped
    return PreferenceResult(model, found.history, *best, _target(loss, chances, beta))


def _as_pairs(energy: Any, winners, losers, chances=None) -> tuple[Array, Array]:
    """Pairs of shape `(num, 2, *shape)` in the units of the network, and a chance each."""
    both = [
        check_examples(examples, energy.shape, what, np)
        for what, examples in (("winners", winners), ("losers", losers))
    ]
    num = len(both[0])
    if len(both[1]) != num:
        raise ValueError(
            f"expected as many losers as winners; got {num} winners and {len(both[1])} losers. Row i of "
            f"one is compared with row i of the other. {_faq.examples}"
        )
    chances = np.ones(num) if chances is None else np.asarray(chances, float)
    if chances.shape != (num,) or not ((chances >= 0) & (chances <= 1)).all():
        raise ValueError(
            f"`chances` must be {num} numbers in [0, 1], with which winners are preferred; got shape "
            f"{chances.shape}{'' if chances.shape != (num,) else ' and numbers outside'}."
            f" {_faq.shapes}"
        )
    if isinstance(energy, Standardized):
        both = [energy.standardize(examples) for examples in both]
    pairs = jnp.stack([jnp.asarray(examples) for examples in both], 1)
    return pairs, jnp.asarray(chances, pairs.dtype)


def _target(loss: DPO | DMPO, chances: Array, beta: float) -> str:
    """What is learned, in words."""
    if loss.calibrated(chances):
        return (
            f"p(x) exp(r(x) / {beta:g}) for preferences that follow the Bradley-Terry model of r, as pairs "
            "and levels become many, if the model can be it at all levels"
        )
    return (
        "a heuristic: reverse divergence from hard labels sharpens. Log odds become (2 pi - 1) log((1 - "
        "e) / e) at a preference rate pi, which is not logit(pi)"
    )
