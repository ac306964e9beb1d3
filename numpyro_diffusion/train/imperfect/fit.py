r"""Priors from imperfect data: expectation-maximisation (EM) with weighted posterior draws.

The examples $y_i = f(x_i) + \sigma_i \epsilon$ are noisy, have missing entries, or went through an operator;
the prior $p_\theta(x)$ of the clean ones is wanted. A round draws every clean example from $p_\theta(x_i \mid
y_i)$ (`posterior`), records the observed log evidence $\sum_i \log p_\theta(y_i)$ and then takes the prior,
the noise and the operator that are most likely given the draws (`maximise`). By Jensen's inequality the
observed evidence of the examples that are fitted does not fall, but for Monte Carlo error; that of others
says when to stop.
"""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ... import _faq
from ..._arguments import check_instance, whole_number, whole_numbers, whole_or_none
from ..._prng import check_key
from ..._progress import progress
from ..._typing import PRNGKey, PyTree
from ...energies import AbstractDenoiser, Gaussian, GaussianMixture, Standardized
from ..options import Optimizer
from ..settings import forgetful
from .data import Noise, Observe, UnknownNoise, check_data, check_noise
from .maximise import GaussianPart, MixturePart
from .network import NetworkPart, clean
from .result import ImperfectResult
from .rounds import Problem, Record, Sampler, expect, maximise

__all__ = ["fit_imperfect"]


def fit_imperfect(
    key: PRNGKey,
    energy: AbstractDenoiser | Standardized,
    examples,
    *,
    noise: Any,
    observe: Callable | None = None,
    parameters: PyTree = None,
    rounds: int = 20,
    patience: int = 3,
    held_out: float | None = None,
    num_particles: int = 16,
    num_levels: int | None = None,
    threshold: float = 0.5,
    examples_at_once: int = 256,
    steps: int = 500,
    batch_size: int = 128,
    learning_rate: Any = 1e-3,
    optimizer: Optimizer = Optimizer(),  # noqa: B008 - it never changes
    loss: Callable | None = None,
    trainable: Callable[[Any], PyTree] | None = None,
    progress_bar: bool = True,
) -> ImperfectResult:
    r"""Fit a prior to examples that are noisy, incomplete, or seen through an operator, by EM.

    $y_i = f(x_i) + \sigma_i \epsilon_i$ for the entries that are there. Each round draws all clean examples
    from their posteriors, in one program that is compiled once, and fits the prior to the weighted draws: in
    closed form for a `Gaussian` or `GaussianMixture`, by `steps` of denoising for a network. Unknown noise is
    updated in closed form, an unknown operator by gradients.

    The prior is the distribution of a reverse sampler with `num_levels` steps, which differs from the
    energy's own by an error of order one over their number, and not at all for a `Gaussian`; its evidence is
    normalised by construction. Draws follow the posterior as `num_particles` grows; for a Gaussian and a
    linear operator, at any number.

    Args:
        key: PRNG key.
        energy: Prior to start from: `Gaussian`, `GaussianMixture`, an energy or denoiser with a network, or a
            `Standardized` distribution, with examples in its units.
        examples: Floating, of shape `(num, *shape)` with the shape that `observe` returns; NaN where an entry
            is missing, at random given those that are there.
        noise: Standard deviation of the noise, which broadcasts over the examples: one number, `(num, 1,
            ...)` for one an example, or all of them; or `UnknownNoise(start)`.
        observe: What an instrument would see of ONE clean example but for noise, `observe(x)`; the identity
            by default. With `parameters` it is called `observe(x, parameters)`.
        parameters: Unknown parameters of the operator, a pytree of floats to start from; `None` if there are
            none.
        rounds: Largest number of rounds.
        patience: Rounds without a rise of the observed evidence beyond its standard error, before the fit
            stops.
        held_out: Share of the examples that are judged and not fitted. By default a tenth for networks, and
            none for Gaussians and mixtures: their evidence is then the observed-data likelihood, which EM
            raises.
        num_particles: Particles an example, at least 2.
        num_levels: Noise levels of the sampler; 4 for a `Gaussian` and 64 for others by default.
        threshold: Resample below this share of the effective sample size.
        examples_at_once: Examples that are worked on together, to bound memory.
        steps: Updates of a network a round; of an unknown operator, a tenth as many.
        batch_size: Draws an update.
        learning_rate: Of networks after a short warm-up, or an optax schedule over all rounds.
        optimizer: Weight decay and average of the weights of a network, as in `fit`.
        loss: `loss(energy, key, batch)` for a network, by default as in `fit`.
        trainable: Selects what is trained of an energy, by default its network.
        progress_bar: Show rounds, evidence and noise.

    Returns:
        Prior, noise and operator of the round with the largest observed evidence; see `ImperfectResult`.

    Raises:
        TypeError: If examples are not floating, or the energy is none that can be fitted.
        ValueError: If shapes disagree, an entry is missing everywhere, an example has none, noise is not
            positive, or a number is out of range.
        FloatingPointError: If no particle of an example is possible, or a loss becomes non-finite.

    Warns:
        UserWarning: If nothing was learned; if the data cannot tell noise and prior apart.

    References:
        Dempster, Laird & Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm, JRSS B.
        Wei & Tanner (1990), A Monte Carlo implementation of the EM algorithm, JASA. Rozet, Andry, Lanusse &
        Louppe (2024), Learning diffusion priors from observations by expectation maximization, NeurIPS.
    """
    key = check_key(key)
    rounds, patience, steps, batch_size, at_once = whole_numbers(
        1, rounds=rounds, patience=patience, steps=steps, batch_size=batch_size,
        examples_at_once=examples_at_once,
    )  # fmt: skip
    num_particles = whole_number("num_particles", num_particles, 2)
    num_levels = whole_or_none("num_levels", num_levels, 1, "`None` for the default.")
    units = energy if isinstance(energy, Standardized) else None
    base = energy.energy if isinstance(energy, Standardized) else energy
    if not isinstance(base, AbstractDenoiser):
        raise TypeError(
            "`fit_imperfect` expects an energy or a denoiser; got "
            f"{type(energy).__name__}. {_faq.kinds}"
        )
    if held_out is not None and not 0 <= held_out < 1:
        raise ValueError(
            f"`held_out` is a share of the examples, in [0, 1); got {held_out}. {_faq.numbers}"
        )
    if not 0 <= threshold <= 1:
        raise ValueError(f"expected 0 <= threshold <= 1; got {threshold}. {_faq.numbers}")
    check_instance(
        "optimizer", optimizer, Optimizer, "train.Optimizer(weight_decay=0.1)", optional=False
    )
    if optimizer.accumulate != 1 or optimizer.devices is not None:
        raise ValueError(
            "of `optimizer` only `weight_decay` and `ema` count here; got `accumulate` or `devices`, "
            f"which are for `fit`. Leave them out. {_faq.together}"
        )
    if parameters is not None and observe is None:
        raise ValueError(f"`parameters` are those of `observe`, which is missing. {_faq.together}")
    base = forgetful(base)
    y, seen = check_data(examples, base.shape, observe, parameters)
    of_noise = check_noise(noise, y, np.shape(examples)[1:])
    parametric = isinstance(base, Gaussian | GaussianMixture)
    _warn_if_confounded(parametric, observe, of_noise)
    if isinstance(base, Gaussian):
        part = GaussianPart(base)
    elif isinstance(base, GaussianMixture):
        part = MixturePart(base)
    else:
        part = NetworkPart(
            base, trainable, loss, steps=steps, batch_size=batch_size, learning_rate=learning_rate,
            optimizer=optimizer,
        )  # fmt: skip
    key, key_split = jax.random.split(key)
    share = (0.0 if parametric else 0.1) if held_out is None else held_out
    fitted, judged = _split(key_split, len(y), share)
    if num_levels is None:
        num_levels = 4 if isinstance(base, Gaussian) else 64
    place = (None, None) if units is None else (units.location, units.scale)
    operator = Observe(observe, base.shape, *place, parameters is not None)
    problem = Problem(y, seen, fitted, judged, operator, max(1, steps // 10))
    sampler = Sampler(num_levels, num_particles, threshold, at_once)
    parameters = jax.tree.map(lambda a: jnp.asarray(a, jnp.result_type(float)), parameters)
    record, stopped = Record(share > 0), "rounds"
    bar = progress(
        total=rounds,
        enabled=progress_bar,
        desc="fit_imperfect",
        compiles="a round (once for each call)",
    )
    with bar:
        try:
            for number in range(rounds + 1):
                key, key_draw, key_fit = jax.random.split(key, 3)
                tell = lambda words: bar.set_postfix_str(f"{words}; {record.words}")
                run = expect(key_draw, part, problem, of_noise, parameters, sampler, tell)
                record.add(run, problem, part.energy, of_noise, parameters)
                bar.set_postfix_str(record.words)
                if record.misses >= patience:
                    stopped = "patience"
                    break
                if number < rounds:
                    found = maximise(key_fit, run, part, problem, of_noise, parameters)
                    of_noise, parameters = found
                    bar.update(1)
        except KeyboardInterrupt:
            if record.best is None:
                raise
            stopped = "interrupted"
        verdict = record.verdict(stopped)
        if record.best_round == 0:
            bar.set_postfix_str(verdict)
    if record.best_round == 0:
        warnings.warn(f"`fit_imperfect` {verdict}", stacklevel=2)
    prior, of_noise, parameters, run = record.best
    return ImperfectResult(
        prior if units is None else units.with_energy(prior),
        _noise_of(of_noise, noise, np.shape(examples)[1:]),
        parameters,
        _one_draw_each(key, prior, run, units),
        record.arrays,
        record.best_round,
        stopped,
        judged if share else np.zeros(0, int),
    )


def _split(key: PRNGKey, num: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices of examples that are fitted, and of those that are judged: the same if none are held out."""
    if not share:
        return np.arange(num), np.arange(num)
    count = max(1, round(share * num))
    if count >= num:
        raise ValueError(
            f"`held_out` of {share} leaves none of {num} examples to fit. {_faq.examples}"
        )
    judged = np.sort(np.asarray(jax.random.permutation(key, num))[:count])
    return np.setdiff1d(np.arange(num), judged), judged


def _noise_of(found: Noise, given: Any, shape: tuple[int, ...]) -> Any:
    if not isinstance(given, UnknownNoise):
        return given
    return float(found.scale) if np.ndim(found.scale) == 0 else found.scale.reshape(shape)


def _one_draw_each(key: PRNGKey, energy, run, units) -> np.ndarray:
    """A draw of every clean example by its weights, in the units of the user."""
    key_choice, key_clean = jax.random.split(key)
    chosen = jax.random.categorical(key_choice, run.log_weights)
    draws = jnp.take_along_axis(run.particles, chosen[:, None, None], 1)[:, 0]
    draws = clean(energy, key_clean, draws).reshape(-1, *energy.shape)
    return np.asarray(draws if units is None else units.restore(draws))


def _warn_if_confounded(parametric: bool, observe: Any, noise: Noise) -> None:
    """Warn of one noise level, seen once and directly: its sum with the covariance is all that is known."""
    alike = np.all(noise.relative == noise.relative.flat[0])
    if parametric and observe is None and noise.unknown and noise.prior is None and alike:
        warnings.warn(
            "the data cannot tell the noise from the spread of the prior: of a Gaussian seen directly "
            "the likelihood knows S + sigma^2 I alone. Examples seen twice (`observe`), noise with known "
            "ratios (`UnknownNoise(relative=...)`) or a prior on it tell them apart; otherwise the fit ends "
            f"near its start. {_faq.examples}",
            stacklevel=3,
        )
