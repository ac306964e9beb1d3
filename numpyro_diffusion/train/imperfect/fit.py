r"""Priors from imperfect data: expectation-maximisation (EM) with posterior draws by a sampler with exact weights.

The examples $y_i = f(x_i) + \sigma_i \epsilon$ are noisy, have missing entries, or went through an operator; the
prior $p_\theta(x)$ of the clean ones is wanted. A round draws every clean example from $p_\theta(x_i \mid y_i)$
(`posterior`), records the observed log evidence $\sum_i \log p_\theta(y_i)$ and then takes the prior, the noise and
the operator that are most likely given the draws (`maximise`). By Jensen's inequality the observed evidence of the
examples that are fitted does not fall, but for Monte Carlo error; that of others says when to stop.
"""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from ..._arguments import whole_number, whole_numbers, whole_or_none
from ..._prng import check_key
from ..._typing import PRNGKey, PyTree
from ...energies import AbstractDenoiser, Gaussian, GaussianMixture, Standardized
from ..settings import forgetful
from .data import Noise, Observe, UnknownNoise, check_data, check_noise, data_of
from .maximise import (
    AbstractPart,
    GaussianPart,
    MixturePart,
    NetworkPart,
    clean,
    fit_operator,
    mean_squares,
)
from .posterior import posteriors
from .result import ImperfectResult, imperfect_verdict

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
    weight_decay: float | None = None,
    ema: float = 0.999,
    loss: Callable | None = None,
    trainable: Callable[[Any], PyTree] | None = None,
    progress_bar: bool = True,
) -> ImperfectResult:
    r"""Fit a prior to examples that are noisy, incomplete, or seen through an operator, by EM.

    $y_i = f(x_i) + \sigma_i \epsilon_i$ for the entries that are there. Each round draws all clean examples from
    their posteriors, in one program that is compiled once, and fits the prior to the weighted draws: in closed
    form for a `Gaussian` or `GaussianMixture`, by `steps` of denoising for a network. Unknown noise is updated in
    closed form, an unknown operator by gradients.

    The prior is the distribution of a reverse sampler with `num_levels` steps, which differs from the energy's own
    by an error of order one over their number, and not at all for a `Gaussian`; its evidence is normalised by
    construction. Draws follow the posterior as `num_particles` grows; for a Gaussian and a linear operator, at any
    number.

    Args:
        key: PRNG key.
        energy: Prior to start from: `Gaussian`, `GaussianMixture`, an energy or denoiser with a network, or a
            `Standardized` distribution, with examples in its units.
        examples: Floating, of shape `(num, *shape)` with the shape that `observe` returns; NaN where an entry is
            missing, at random given those that are there.
        noise: Standard deviation of the noise, which broadcasts over the examples: one number, `(num, 1, ...)` for
            one an example, or all of them; or `UnknownNoise(start)`.
        observe: What an instrument would see of ONE clean example but for noise, `observe(x)`; the identity by
            default. With `parameters` it is called `observe(x, parameters)`.
        parameters: Unknown parameters of the operator, a pytree of floats to start from; `None` if there are none.
        rounds: Largest number of rounds.
        patience: Rounds without a rise of the observed evidence beyond its standard error, before the fit stops.
        held_out: Share of the examples that are judged and not fitted. By default a tenth for networks, and none for
            Gaussians and mixtures: their evidence is then the observed-data likelihood, which EM raises.
        num_particles: Particles an example, at least 2.
        num_levels: Noise levels of the sampler; 4 for a `Gaussian` and 64 for others by default.
        threshold: Resample below this share of the effective sample size.
        examples_at_once: Examples that are worked on together, to bound memory.
        steps: Updates of a network a round; of an unknown operator, a tenth as many.
        batch_size: Draws an update.
        learning_rate: Of networks after a short warm-up, or an optax schedule over all rounds.
        weight_decay: Decay of matrices; by default as in `fit`.
        ema: Decay of the average of the weights.
        loss: `loss(energy, key, batch)` for a network, by default as in `fit`.
        trainable: Selects what is trained of an energy, by default its network.
        progress_bar: Show rounds, evidence and noise.

    Returns:
        Prior, noise and operator of the round with the largest observed evidence; see `ImperfectResult`.

    Raises:
        TypeError: If examples are not floating, or the energy is none that can be fitted.
        ValueError: If shapes disagree, an entry is missing everywhere, an example has none, noise is not positive, or
            a number is out of range.
        FloatingPointError: If no particle of an example is possible, or a loss becomes non-finite.

    Warns:
        UserWarning: If nothing was learned; if the data cannot tell noise and prior apart.

    References:
        Dempster, Laird & Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm, JRSS B.
        Wei & Tanner (1990), A Monte Carlo implementation of the EM algorithm, JASA. Rozet, Andry, Lanusse & Louppe
        (2024), Learning diffusion priors from observations by expectation maximization, NeurIPS.
    """
    key = check_key(key)
    rounds, patience, steps, batch_size, examples_at_once = whole_numbers(
        1, rounds=rounds, patience=patience, steps=steps, batch_size=batch_size,
        examples_at_once=examples_at_once,
    )  # fmt: skip
    num_particles = whole_number("num_particles", num_particles, 2)
    num_levels = whole_or_none("num_levels", num_levels, 1, "`None` for the default.")
    units = energy if isinstance(energy, Standardized) else None
    base = energy.energy if isinstance(energy, Standardized) else energy
    if not isinstance(base, AbstractDenoiser):
        raise TypeError(
            f"`fit_imperfect` expects an energy or a denoiser; got {type(energy).__name__}."
        )
    if held_out is not None and not 0 <= held_out < 1:
        raise ValueError(f"`held_out` is a share of the examples, in [0, 1); got {held_out}.")
    if not 0 <= threshold <= 1 or not 0 <= ema < 1:
        raise ValueError(
            f"expected 0 <= threshold <= 1 and 0 <= ema < 1; got {threshold} and {ema}."
        )
    if parameters is not None and observe is None:
        raise ValueError("`parameters` are those of `observe`, which is missing.")
    base = forgetful(base)
    y, seen = check_data(examples, base.shape, observe, parameters)
    of_noise = check_noise(noise, y, np.shape(examples)[1:])
    parametric = isinstance(base, Gaussian | GaussianMixture)
    if num_levels is None:
        num_levels = 4 if isinstance(base, Gaussian) else 64
    part: AbstractPart
    if isinstance(base, Gaussian):
        part = GaussianPart(base)
    elif isinstance(base, GaussianMixture):
        part = MixturePart(base)
    else:
        part = NetworkPart(
            base, trainable, loss, steps=steps, batch_size=batch_size, learning_rate=learning_rate,
            weight_decay=weight_decay, ema=ema,
        )  # fmt: skip
    _warn_if_confounded(parametric, observe, of_noise)
    share = (0.0 if parametric else 0.1) if held_out is None else held_out
    key, key_split = jax.random.split(key)
    order = np.asarray(jax.random.permutation(key_split, len(y)))
    judged = np.sort(order[: max(1, round(share * len(y)))] if share else order)
    fitted = np.setdiff1d(np.arange(len(y)), judged) if share else np.arange(len(y))
    if not len(fitted):
        raise ValueError(f"`held_out` of {held_out} leaves none of {len(y)} examples to fit.")
    place = (None, None) if units is None else (units.location, units.scale)
    operator = Observe(observe, base.shape, *place, parameters is not None)
    parameters = jax.tree.map(lambda a: jnp.asarray(a, jnp.result_type(float)), parameters)

    def expect(key):
        """Weighted draws of all examples, their evidences and errors."""
        data = data_of(y, seen, of_noise)
        like, keys, runs = part.reference(), jax.random.split(key, len(y)), []
        size = min(examples_at_once, len(y))
        for start in range(0, len(y), size):
            # The last rows overlap with those before, so that no rest needs a program of its own.
            index = np.minimum(np.arange(start, start + size), len(y) - 1)
            some = jax.tree.map(lambda leaf: leaf[index], data)
            run = posteriors(
                keys[index], part.energy, like, operator, parameters, some, num_levels, num_particles, threshold
            )
            runs.append(jax.tree.map(lambda leaf: leaf[: len(y) - start], run))
            bar.set_postfix_str(f"examples {min(start + size, len(y))} of {len(y)}; {words}")
        run = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *runs)
        dead = np.flatnonzero(~np.isfinite(np.asarray(run.log_evidence)))
        if len(dead):
            raise FloatingPointError(
                f"no particle of {len(dead)} examples is possible (first: {dead[0]}): their evidence is 0 or "
                "not a number. Is `observe` finite at draws of the prior, and `noise` not far too small?"
            )
        return run

    history: dict[str, list] = {
        n: [] for n in ("round", "log_evidence", "error", "train_evidence", "ess", "noise")
    }
    best: Any = None
    level, misses, stopped, words = -np.inf, 0, "rounds", ""
    with tqdm(total=rounds, disable=not progress_bar, desc="fit_imperfect") as bar:
        try:
            for number in range(rounds + 1):
                key, key_draw, key_fit = jax.random.split(key, 3)
                run = expect(key_draw)
                evidence = np.asarray(run.log_evidence, float)
                errors = np.asarray(run.log_evidence_error, float)
                value = float(evidence[judged].mean())
                error = float(np.sqrt(np.sum(errors[judged] ** 2)) / len(judged))
                rms = float(np.sqrt(np.mean(np.square(of_noise.scale))))
                row = number, value, error, evidence[fitted].mean(), np.mean(run.ess), rms
                for name, entry in zip(history, row, strict=True):
                    history[name].append(entry)
                score = value + of_noise.log_prior / len(y)
                if best is None or score > best[0]:
                    best = score, number, part.energy, of_noise, parameters, run, key_fit
                if score > level + (0.0 if number == 0 else np.hypot(error, level_error)):
                    level, level_error, misses = score, error, 0
                else:
                    misses += 1
                words = f"log evidence {value:.4f} +- {error:.4f}, best {best[0]:.4f}"
                if of_noise.unknown:
                    words += f", noise {rms:.4g}"
                bar.set_postfix_str(words)
                if misses >= patience:
                    stopped = "patience"
                    break
                if number == rounds:
                    break
                weights = jax.nn.softmax(run.log_weights, -1)
                take = lambda leaf: leaf[fitted]
                draws, shares = take(run.particles), take(weights)
                if parameters is not None:
                    scale = (of_noise.scale * of_noise.relative)[fitted]
                    parameters = fit_operator(
                        operator, parameters, draws, shares, y[fitted].astype(draws.dtype), seen[fitted],
                        scale.astype(draws.dtype), max(1, steps // 10), 1e-2,
                    )  # fmt: skip
                if of_noise.unknown:
                    of_y = y[fitted].astype(draws.dtype)
                    squares = mean_squares(operator, parameters, draws, shares, of_y)
                    some = of_noise._replace(relative=of_noise.relative[fitted])
                    scale = some.update(np.asarray(squares, float), seen[fitted]).scale
                    of_noise = of_noise._replace(scale=scale)
                part.update(key_fit, draws, shares)
                bar.update(1)
        except KeyboardInterrupt:
            if best is None:
                raise
            stopped = "interrupted"
        arrays = {name: np.asarray(values) for name, values in history.items()}
        _, best_round, prior, of_noise, parameters, run, key_fit = best
        if best_round == 0:
            bar.set_postfix_str(
                imperfect_verdict(arrays, best_round, stopped, share > 0)
            )
    if best_round == 0:
        verdict = imperfect_verdict(arrays, best_round, stopped, share > 0)
        warnings.warn(f"`fit_imperfect` {verdict}", stacklevel=2)
    return ImperfectResult(
        prior if units is None else units.with_energy(prior),
        _noise_of(of_noise, noise, np.shape(examples)[1:]),
        parameters,
        _one_draw_each(key_fit, prior, run, units),
        arrays,
        best_round,
        stopped,
        judged if share else np.zeros(0, int),
    )


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
    """Noise of one level, seen once and directly: only its sum with the covariance of the prior is identified."""
    alike = np.all(noise.relative == noise.relative.flat[0])
    if parametric and observe is None and noise.unknown and noise.prior is None and alike:
        warnings.warn(
            "the data cannot tell the noise from the spread of the prior: for a Gaussian that is seen directly, "
            "S + sigma^2 I is all that the likelihood depends on. Examples seen twice (`observe`), noise with "
            "known ratios (`UnknownNoise(relative=...)`) or a prior on it tell them apart; otherwise the fit ends "
            "near its start.",
            stacklevel=3,
        )
