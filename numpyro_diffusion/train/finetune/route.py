"""What all routes of fine-tuning share: the task, the result, and the class of routes."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..._records import record, record_page
from ..._typing import PRNGKey, PyTree, Scalar
from ...energies import AbstractDenoiser
from ...energies.reverse import has_exact_draws
from ..options import EarlyStopping, Optimizer
from ..value import draws_of
from .chain import ReverseChain

__all__ = ["LIMIT", "AbstractRoute", "FinetuneResult", "Task", "evidence", "prior_draws"]

LIMIT = "p(x) exp(r(x) / alpha), in the limit of many steps of the chain and of training"
_CHECKED = 1000  # paths that a model is judged by


class FinetuneResult(NamedTuple):
    r"""Result of `finetune`.

    Attributes:
        energy: The fine-tuned model, which stands for $p(x)\, e^{r(x) / \alpha}$.
        history: Arrays of one length: `step`, `train_loss`, `validation_loss`.
        log_normalizer: $\log \mathbb{E}_p[e^{r / \alpha}]$ in nats, from the path weights of `ess`.
        ess: Effective sample size a draw, in (0, 1], of 1,000 paths of the fine-tuned model weighed with
            $e^{r / \alpha}\, p(\text{path}) / p_\theta(\text{path})$: 1 where its paths are those of the
            tilted prior. Steps of a few Gaussian kernels are not, so that less than 1 does not say that draws
            are wrong; a small number says that some are missing, or that there are other ways to them.
        evaluations: Evaluations of a network in updates, of the prior's or an own one, for one example; one
            with a gradient counts three.
        target: The distribution that is aimed at, in words, and in which limit it is reached.
    """

    energy: AbstractDenoiser
    history: dict[str, np.ndarray]
    log_normalizer: float
    ess: float
    evaluations: int
    target: str

    __repr__ = record
    _repr_html_ = record_page


class Task(NamedTuple):
    """What is to be done, in the units of the network; see `finetune`."""

    energy: Any
    reward: Callable[..., Scalar]
    temperature: float
    data: Any
    steps: int
    batch_size: int
    learning_rate: Any
    trainable: Callable[[Any], PyTree] | None
    optimizer: Optimizer
    stopping: EarlyStopping
    progress_bar: bool

    def log_weight(self, x) -> Scalar:
        r"""$r(x) / \alpha$ of ONE example, in nats."""
        return self.reward(x) / self.temperature

    def options(self) -> dict[str, Any]:
        """Options of `fit`."""
        names = ("steps", "batch_size", "learning_rate", "stopping", "progress_bar")
        return {name: getattr(self, name) for name in names}


class AbstractRoute(abc.ABC):
    """A route to the tilted distribution: an immutable record of its options, with one method."""

    @abc.abstractmethod
    def run(self, key: PRNGKey, task: Task) -> FinetuneResult:
        """Fine-tune; called by `finetune`, which has checked the task."""


def prior_draws(key: PRNGKey, task: Task, num: int, num_steps: int):
    """The data of a task; or draws of the prior, exact ones where it has them, else of its chain."""
    if task.data is not None:
        return task.data
    if has_exact_draws(task.energy):
        draw = draws_of(task.energy)
    else:
        chain = ReverseChain(task.energy, num_steps)
        draw = lambda key: chain.draw(chain.prior, key)
    return jax.jit(lambda keys: jax.lax.map(draw, keys, batch_size=1000))(
        jax.random.split(key, num)
    )


def evidence(key: PRNGKey, chain: ReverseChain, model: Any, log_weight) -> tuple[float, float]:
    r"""$\log \mathbb{E}_p[e^{r / \alpha}]$ by importance sampling of paths, and their effective share."""
    one = lambda key: chain.log_weight(model, key, log_weight)
    weights = jax.jit(jax.vmap(one))(jax.random.split(key, _CHECKED))
    total = jax.nn.logsumexp(weights)
    ess = jnp.exp(2 * total - jax.nn.logsumexp(2 * weights)) / len(weights)
    return float(total - jnp.log(len(weights))), float(ess)
