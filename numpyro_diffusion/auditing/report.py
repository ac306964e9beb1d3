r"""The audit: all measurements of a prior in one report."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._html import page
from .._prng import check_key, lean
from .._progress import progress
from .._typing import PRNGKey
from ..density.paths import check_data
from ..energies import AbstractDenoiser, AbstractEnergy, Standardized
from ..energies.columns import few_values
from .curl import Curl, curl_ratio
from .denoising import Denoising, denoising_residual
from .draws import Draws, compare_draws, many_draws, noised_to_prior
from .gradient import Agreement, gradient_agreement
from .levels import check_times, level_times, noise_levels
from .membership import Membership, membership_audit
from .rest import Rest, rest_of_data
from .spectrum import Spectrum, posterior_spectrum
from .spread import Offsets, normalizer_spread
from .table import table
from .untrained import is_affine
from .words import findings, verdict

__all__ = ["AuditReport", "audit"]


class AuditReport(NamedTuple):
    r"""Results of `audit`. Printing it gives the table and the verdict.

    Attributes:
        prior: Name of the prior's class.
        shape: Shape of one example.
        num_data: Number of examples that the prior was trained on.
        num_held_out: Number of those that it never saw; 0 where none were given.
        times: The levels, shape `(num_levels,)`.
        noise_levels: $\sigma_t / \alpha_t$, in the units of the data.
        log_normalizer: The stored $L(t_{\min})$ in nats, NaN where there is none.
        log_normalizer_error: Its standard error.
        draws_from: Where the draws came from.
        denoising: Residual of the denoiser.
        curl: Curl of the score.
        spectrum: Positivity of Tweedie's covariance.
        gradient: Density against score; `None` for a denoiser alone.
        offsets: The normaliser point by point; `None` for a denoiser alone.
        rest: Where chains lead from the data; `None` for a denoiser alone.
        draws: Draws against data.
        membership: Memorisation; `None` without held-out examples.
        skipped: What was left out and why, one sentence each.
        untrained: Whether a network prior has an affine denoiser, that of a Gaussian, at every level.
        few_values: Columns of few values with gaps between them, in flat examples, and how many values.
    """

    prior: str
    shape: tuple[int, ...]
    num_data: int
    num_held_out: int
    times: np.ndarray
    noise_levels: np.ndarray
    log_normalizer: float
    log_normalizer_error: float
    draws_from: str
    denoising: Denoising
    curl: Curl
    spectrum: Spectrum
    gradient: Agreement | None
    offsets: Offsets | None
    rest: Rest | None
    draws: Draws
    membership: Membership | None
    skipped: tuple[str, ...]
    untrained: bool
    few_values: dict[int, int]

    @property
    def findings(self) -> list[str]:
        """Problems found, each with a remedy; empty if there are none."""
        return findings(self)

    @property
    def verdict(self) -> list[str]:
        """The findings, then what is fine, then what was not asked."""
        return verdict(self)

    def print_table(self) -> None:
        """Print the numbers and the verdict."""
        print(self)

    def _repr_html_(self) -> str:
        return page(f"audit of {self.prior}", {}, str(self))

    def __str__(self) -> str:
        return "\n".join([table(self), "", *self.verdict])


def audit(
    prior: AbstractDenoiser | Standardized,
    data,
    *,
    key: PRNGKey,
    held_out=None,
    times=None,
    num_levels: int = 8,
    draws=None,
    num_draws: int = 1000,
    num_steps: int = 200,
    num_examples: int = 100,
    batch_size: int | None = 4096,
    progress_bar: bool = True,
) -> AuditReport:
    r"""Measure whether a learned prior is what it says it is.

    Eight questions, each a function of this package with its own standard error: does it denoise better
    than a straight line (`denoising_residual`), is its score a gradient (`curl_ratio`), is its posterior
    covariance one (`posterior_spectrum`), do density and score agree (`gradient_agreement`), do energies lie
    where the scores put them (`normalizer_spread`), do chains of the energy leave data where they are
    (`rest_of_data`), do its draws look like data (`compare_draws`), and has it memorised its training
    examples (`membership_audit`)?

    All but the last are asked of the held-out examples where there are some. A denoiser alone is not asked
    the three questions about energies. The last needs held-out examples. Beside these, a network that is
    still the Gaussian it started from is named, and columns of few values, between which chains do not move.

    Args:
        prior: An energy or a denoiser; or a `Standardized` distribution, with data, held-out examples and
            draws in its units, and noise levels in standard deviations.
        data: The examples that it was trained on, clean, of shape `(num, *shape)`.
        key: PRNG key.
        held_out: Examples of the same distribution that training never saw.
        times: Levels to look at; by default `num_levels` in equal steps of log noise.
        num_levels: Number of levels where `times` is not given.
        draws: Draws of the prior of shape `(num, *shape)`, in the units of the data and with the noise that
            the prior keeps at `t_min`, for instance from a chain. By default they are drawn here.
        num_draws: Number of draws otherwise.
        num_steps: Steps of the reverse process, where draws have no closed form.
        num_examples: Examples that the derivatives and densities are measured at, chosen at random.
        batch_size: Bound on the evaluations of the prior at once, which bounds memory; none if `None`.
        progress_bar: Whether to show which measurement is under way.

    Raises:
        ValueError: If data, times or numbers cannot be used.
    """
    key = check_key(key)
    law: AbstractDenoiser
    if isinstance(prior, Standardized):
        units, law = prior, prior.energy
        standard = lambda x: x if x is None else units.standardize(np.asarray(x))
        data, held_out, draws = standard(data), standard(held_out), standard(draws)
    else:
        law = prior
    counts = {"num_levels": num_levels, "num_draws": num_draws, "num_steps": num_steps}
    data = check_data(law, data, num_examples=num_examples, batch_size=batch_size, **counts)
    held_out = None if held_out is None else check_data(law, held_out)
    times = check_times(law, level_times(law, num_levels) if times is None else times)
    judged = data if held_out is None else held_out
    key_some, key_noise, key_draw, *keys = jax.random.split(lean(key), 12)
    some = judged[jax.random.permutation(key_some, len(judged))[:num_examples]]
    rest: dict[str, Any] = {"batch_size": batch_size}

    def compared():
        cloud = draws
        if cloud is None:
            cloud = many_draws(law, key_draw, num_draws, num_steps=num_steps, **rest)
        return compare_draws(cloud, noised_to_prior(law, judged, key_noise), keys[5])

    jobs: dict[str, Callable[[], Any]] = {
        "denoising": lambda: denoising_residual(
            law, judged, keys[0], times, reference=data, **rest
        ),
        "curl": lambda: curl_ratio(law, some, keys[1], times, **rest),
        "spectrum": lambda: posterior_spectrum(law, some, keys[2], times, **rest),
        "draws": compared,
    }
    skipped = []
    if isinstance(law, AbstractEnergy):
        energy = law
        jobs["gradient"] = lambda: gradient_agreement(energy, some, keys[3], times, **rest)
        jobs["offsets"] = lambda: normalizer_spread(energy, some, keys[4], times, **rest)
        jobs["rest"] = lambda: rest_of_data(energy, some, keys[7], **rest)
    else:
        skipped.append(
            "Not asked: whether density and score agree, energies lie right and chains stay. A denoiser "
            "alone has no density."
        )
    if held_out is None:
        skipped.append("Not asked: memorisation. It takes held-out examples: pass `held_out`.")
    else:
        jobs["membership"] = lambda: membership_audit(law, data, held_out, keys[6], times, **rest)
    found: dict[str, Any] = {"gradient": None, "offsets": None, "rest": None, "membership": None}
    found |= _run(jobs, progress_bar)
    stored = getattr(law, "log_normalizer", None)
    return AuditReport(
        type(law).__name__,
        tuple(law.shape),
        len(data),
        0 if held_out is None else len(held_out),
        times,
        noise_levels(law, times),
        float("nan") if stored is None else float(stored),
        float(getattr(law, "log_normalizer_error", 0.0)),
        _source(law, draws, num_steps),
        **found,
        skipped=tuple(skipped),
        untrained=hasattr(law, "net") and is_affine(law, some, keys[8], times),
        few_values=few_values(data, float(noise_levels(law, np.array([law.t_min]))[0])),
    )


def _run(jobs: dict[str, Callable[[], Any]], progress_bar: bool) -> dict[str, Any]:
    found = {}
    bar = progress(
        total=len(jobs),
        desc="audit",
        enabled=progress_bar,
        compiles="the questions (each once)",
    )
    with bar:
        for name, job in jobs.items():
            if found:  # before that the bar says what it waits for
                bar.set_postfix_str(name)
            found[name] = job()
            bar.update()
    return found


def _source(prior: AbstractDenoiser, draws: Any, num_steps: int) -> str:
    if draws is not None:
        return "given"
    if isinstance(prior, AbstractEnergy):
        t_min = jnp.asarray(prior.t_min, jnp.result_type(float))
        if jax.eval_shape(prior.draw, jax.random.key(0), t_min) is not None:
            return "its closed form"
    return f"the reverse process, {num_steps} steps"
