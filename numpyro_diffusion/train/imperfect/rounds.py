"""One round of the fit: draws of all examples, what they say of prior, noise and operator, and a record."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ... import _faq
from ..._typing import PRNGKey, PyTree
from ...smc.cloud import CloudRun
from .data import Noise, Observe, data_of
from .maximise import AbstractPart, fit_operator, mean_squares
from .posterior import posteriors
from .result import imperfect_verdict

__all__ = ["Problem", "Record", "Sampler", "expect", "maximise"]


class Problem(NamedTuple):
    """What stays as it is.

    Attributes:
        y: Examples, flat, 0 where an entry is missing.
        seen: Which entries there are.
        fitted: Indices of the examples that are fitted.
        judged: Indices of those that are judged.
        operator: The operator.
        operator_steps: Updates of its unknown parameters a round.
    """

    y: np.ndarray
    seen: np.ndarray
    fitted: np.ndarray
    judged: np.ndarray
    operator: Observe
    operator_steps: int


class Sampler(NamedTuple):
    """Settings of the sampler; `at_once` is how many examples are worked on together."""

    num_levels: int
    num_particles: int
    threshold: float
    at_once: int


def expect(
    key: PRNGKey,
    part: AbstractPart,
    problem: Problem,
    noise: Noise,
    parameters: PyTree,
    sampler: Sampler,
    tell: Callable[[str], None],
) -> CloudRun:
    """The E-step: weighted draws of all examples, flat, their log evidences and errors.

    Raises:
        FloatingPointError: If no particle of an example is possible.
    """
    num = len(problem.y)
    data = data_of(problem.y, problem.seen, noise)
    like, keys, runs = part.reference(), jax.random.split(key, num), []
    size = min(sampler.at_once, num)
    for start in range(0, num, size):
        # Rows beyond the last repeat it, so that no rest needs a program of its own.
        index = np.minimum(np.arange(start, start + size), num - 1)
        some = jax.tree.map(lambda leaf, index=index: leaf[index], data)
        run = posteriors(
            keys[index], part.energy, like, problem.operator, parameters, some, *sampler[:3]
        )
        runs.append(jax.tree.map(lambda leaf, left=num - start: leaf[:left], run))
        tell(f"examples {min(start + size, num)} of {num}")
    run = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *runs)
    dead = np.flatnonzero(~np.isfinite(np.asarray(run.log_evidence)))
    if len(dead):
        raise FloatingPointError(
            f"no particle of {len(dead)} examples is possible (first: {dead[0]}): their evidence is 0 or "
            "not a number. Is `observe` finite at draws of the prior, and `noise` not far too "
            f"small? {_faq.dead_cloud}"
        )
    return run


def maximise(
    key: PRNGKey,
    run: CloudRun,
    part: AbstractPart,
    problem: Problem,
    noise: Noise,
    parameters: PyTree,
) -> tuple[Noise, PyTree]:
    """The M-step: fit the prior, and return noise and operator that are most likely given the draws."""
    fitted = problem.fitted
    draws, weights = run.particles[fitted], jax.nn.softmax(run.log_weights[fitted], -1)
    arrays = lambda a: jnp.asarray(a[fitted], draws.dtype)
    y, seen = arrays(problem.y), jnp.asarray(problem.seen[fitted])
    if parameters is not None:
        parameters = fit_operator(
            problem.operator, parameters, draws, weights, y, seen,
            arrays(noise.scale * noise.relative), problem.operator_steps, 1e-2,
        )  # fmt: skip
    if noise.unknown:
        squares = mean_squares(problem.operator, parameters, draws, weights, y)
        some = noise._replace(relative=noise.relative[fitted])
        scale = some.update(np.asarray(squares, float), problem.seen[fitted]).scale
        noise = noise._replace(scale=scale)
    part.update(key, draws, weights)
    return noise, parameters


class Record:
    """History of the rounds, the best of them, and how many there were since the evidence last rose.

    Args:
        held_out: Whether those that are judged are not fitted, for the words.
    """

    def __init__(self, held_out: bool):
        names = ("round", "log_evidence", "error", "train_evidence", "ess", "noise")
        self.history: dict[str, list] = {name: [] for name in names}
        self.held_out, self.misses, self.best_round, self.words = held_out, 0, 0, ""
        self.best: Any = None  # energy, noise, parameters, run
        self.score = self.level = -np.inf
        self.level_error = 0.0

    def add(self, run: CloudRun, problem: Problem, energy, noise: Noise, parameters) -> None:
        """Judge a round: it is better if its evidence, with the prior of the noise, is the largest so far.

        It counts as a rise if it is above the last one that did by more than the standard error.
        """
        number, judged = len(self.history["round"]), problem.judged
        evidence = np.asarray(run.log_evidence, float)
        value = float(evidence[judged].mean())
        errors = np.asarray(run.log_evidence_error, float)[judged]
        error = float(np.sqrt(np.sum(errors**2)) / len(judged))
        rms = float(np.sqrt(np.mean(np.square(noise.scale))))
        train, ess = float(evidence[problem.fitted].mean()), float(np.mean(run.ess))
        row = number, value, error, train, ess, rms
        for name, entry in zip(self.history, row, strict=True):
            self.history[name].append(entry)
        score = value + noise.log_prior / len(evidence)
        if number == 0 or score > self.score:
            self.score, self.best_round, self.best = score, number, (energy, noise, parameters, run)
        if number == 0 or score > self.level + np.hypot(error, self.level_error):
            self.level, self.level_error, self.misses = score, error, 0
        else:
            self.misses += 1
        best = self.history["log_evidence"][self.best_round]
        self.words = f"log evidence {value:.4f} +- {error:.4f}, best {best:.4f}"
        if noise.unknown:
            self.words += f", noise {rms:.4g}"

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The history as arrays."""
        return {name: np.asarray(values) for name, values in self.history.items()}

    def verdict(self, stopped: str) -> str:
        """Summary in words."""
        return imperfect_verdict(self.arrays, self.best_round, stopped, self.held_out)
