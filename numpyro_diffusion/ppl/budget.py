"""Budgets of a run, in seconds or network evaluations: a stop at a level, or a finish by fewer levels."""

import warnings
from collections.abc import Callable
from time import monotonic
from typing import Any, NamedTuple

import jax
import numpy as np

from .. import _faq
from .._arguments import positive
from .._finite import outside
from ..schemes import AbstractScheme, Level
from ..schemes.coarse import coarsened, fitting
from ..smc import FeynmanKac, SMCResult

__all__ = ["Budget", "costs_of", "stopped"]


class Budget(NamedTuple):
    """What a call may cost.

    Attributes:
        seconds: Of the whole call; `None` without bound.
        evaluations: Of the network, over particles, levels and clouds; `None` without bound.
        finish: Whether the run takes fewer levels, to end at the posterior within the budget.
    """

    seconds: float | None = None
    evaluations: float | None = None
    finish: bool = False

    @classmethod
    def of(cls, max_seconds: Any, max_evaluations: Any, finish: Any, checkpoint: Any) -> "Budget":
        """From the arguments of `SMC`.

        Raises:
            ValueError: If they are no positive numbers, or do not go together.
        """
        seconds = None if max_seconds is None else positive("max_seconds", max_seconds)
        most = None if max_evaluations is None else positive("max_evaluations", max_evaluations)
        if finish and seconds is None and most is None:
            raise ValueError(
                "`finish=True` asks for an end within a budget; got none. Give `max_seconds` or "
                f"`max_evaluations`. {_faq.budget}"
            )
        if finish and seconds is not None and checkpoint is not None:
            raise ValueError(
                "`max_seconds` with `finish=True` chooses levels by the time that they take, which another "
                "process would not find again; got a `checkpoint` beside it. Use "
                f"`max_evaluations`. {_faq.budget}"
            )
        return cls(seconds, most, bool(finish))

    @property
    def is_open(self) -> bool:
        """Whether there is no bound."""
        return self.seconds is None and self.evaluations is None

    def run(
        self,
        run: Callable[..., SMCResult],
        model: FeynmanKac,
        state: SMCResult | None,
        costs: np.ndarray | None,
        start: float,
        since: float,
    ) -> SMCResult:
        """A run within the bounds.

        Args:
            run: `(model, **options) -> result`, one call of the engine.
            model: What the scheme made.
            state: What to go on from.
            costs: Network evaluations of each level; `None` if they are not known.
            start: Those of the particles' start.
            since: When the call began, on the monotonic clock.

        Raises:
            ValueError: If the budget does not pay for a level.
        """
        done = 0 if state is None else state.num_levels_run
        cheaper, last = self._planned(model, costs, done, start if state is None else 0.0)
        if cheaper is not model and state is not None:
            state = state._replace(identity=None)
        if self.seconds is None:
            return run(cheaper, state=state, max_levels=last)
        spent = monotonic() - since
        if spent >= self.seconds:
            raise ValueError(
                f"`max_seconds` must leave time for a level, expected more than the {spent:.1f} s of the "
                f"pilot; got {self.seconds:g}. Allow more, or take a smaller `pilot` in the "
                f"scheme. {_faq.budget}"
            )
        if not self.finish:
            return run(cheaper, state=state, max_levels=last, max_seconds=self.seconds - spent)
        number = len(np.asarray(jax.tree.leaves(cheaper.levels)[0]))
        even = np.ones(number) if costs is None or len(costs) != number else costs
        return self._finished(run, cheaper, state, even, since)

    def _planned(
        self, model: FeynmanKac, costs: np.ndarray | None, done: int, start: float
    ) -> tuple[FeynmanKac, int | None]:
        """The model to run under a bound of evaluations, and the number of levels at which to stop.

        Args:
            model: What the scheme made.
            costs: Network evaluations of each level; `None` if they are not known.
            done: Levels that were run.
            start: Network evaluations of the start, if that is still to come.

        Raises:
            ValueError: If the budget does not pay for a level, or costs are not known.
        """
        if self.evaluations is None:
            return model, None
        if costs is None:
            raise ValueError(
                "`max_evaluations` needs to know what a level costs, and this scheme does not say: it has no "
                f"`evaluations_per_level`. Use `max_seconds`. {_faq.budget}"
            )
        most = self.evaluations - start
        if self.finish:
            return self._coarse(model, costs, most, done, "network evaluations"), None
        paid = int(np.sum(np.cumsum(costs[done:]) <= most))
        if not paid:
            raise ValueError(
                f"`max_evaluations` must pay for a level, expected at least {start + costs[done]:,.0f}; got "
                f"{self.evaluations:,.0f}. Take fewer particles, or allow more. {_faq.budget}"
            )
        return model, done + paid

    def _coarse(self, model, costs, budget, done, unit) -> FeynmanKac:
        if not isinstance(model.levels, Level):
            raise ValueError(
                "`finish=True` leaves out some of the levels that a pilot chose; got a scheme with levels of "
                f"its own. Leave `finish` out: the run then stops at a level. {_faq.budget}"
            )
        keep = fitting(model, costs, budget, done)
        if keep is None:
            least = costs[done] + costs[-1]
            raise ValueError(
                f"the budget must pay for a first and a last level, expected at least {least:,.3g} {unit}; "
                f"got {budget:,.3g}. Take fewer particles, or allow more. {_faq.budget}"
            )
        return coarsened(model, keep) if len(keep) < len(costs) else model

    def _finished(
        self, run, model: FeynmanKac, state: SMCResult | None, costs, since: float
    ) -> SMCResult:
        """Run to the end within the seconds, which the first levels measure."""
        assert self.seconds is not None
        done = 0 if state is None else state.num_levels_run
        last = len(costs)
        result: SMCResult = run(model, state=state, max_levels=min(done + 1, last))  # compiles
        if done + 1 < last:
            begin = monotonic()
            result = run(model, state=result, max_levels=done + 2)
            rate = (monotonic() - begin) / costs[done + 1]
        if done + 2 >= last:
            return result
        left = max(self.seconds - (monotonic() - since), 0.0) / rate
        cheap = self._coarse(model, costs, max(left, costs[done + 2] + costs[-1]), done + 2, "")
        return run(cheap, state=result._replace(identity=None))


def costs_of(
    scheme: AbstractScheme, bridge: Any, levels: Any, chain_length: int | None
) -> np.ndarray | None:
    """Network evaluations a particle of each level; `None` if the scheme does not say."""
    number = len(np.asarray(jax.tree.leaves(levels)[0]))
    each = []
    for i in range(number):
        one = jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i : i + 1], levels)
        each.append(scheme.evaluations_per_level(bridge, one, chain_length))
    return None if None in each else np.asarray(each, float)


def stopped(result: SMCResult) -> SMCResult:
    """A result that a budget ended, with its distribution in words; warns."""
    levels, done = result.levels, result.num_levels_run
    if isinstance(levels, Level):
        clock, power = (
            np.asarray(leaf)[done - 1] for leaf in (levels.next_clock, levels.next_power)
        )
        where = (
            f"the noised model at clock {float(clock):.3f} (1 is noise, 0 the posterior) under power "
            f"{float(power):.3g} of the likelihood, after {done} of {len(np.asarray(levels.clock))} levels"
        )
        claims = result.claims._replace(target=where, evidence=f"the integral of {where}")
        result = result._replace(claims=claims)
    warnings.warn(
        f"the budget ended this run on its way. `result` holds {result.target}; `resume()` goes on, and "
        f"`finish=True` takes fewer levels to end in time. {_faq.budget}",
        stacklevel=outside(),
    )
    return result
