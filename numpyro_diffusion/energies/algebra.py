r"""Algebra of energies: products, powers and quotients of distributions.

$\sum_i \beta_i E_i(x_t, t)$ is, at $t_{\min}$, exactly the energy of $\prod_i p_i^{\beta_i}$. At
higher noise it is *not* the noised product (noising and multiplying do not commute): there it is only
a path. Samplers that weigh their particles make its end exact.
"""

import math
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .. import _faq
from .._typing import Array, Scalar
from .base import AbstractDenoiser, Power
from .checks import check_alike, check_normalizable, is_traced
from .energy import AbstractEnergy
from .exponents import is_array_power, is_power, power_at, times_power
from .factored import factored
from .factors import AbstractFactor
from .parts import AbstractSum
from .powered import PowerEnergy, have_closed_form

__all__ = ["Composed", "ComposedDenoiser", "cfg", "combine", "score_difference"]


class _Composition(AbstractSum):
    """What compositions of energies and of denoisers share."""

    energies: eqx.AbstractVar[tuple[AbstractDenoiser, ...]]
    powers: eqx.AbstractVar[tuple[Power, ...]]

    def __check_init__(self):
        name = type(self).__name__
        if len(self.energies) != len(self.powers) or not self.energies:
            raise ValueError(
                f"`{name}` expects one power an energy and at least one energy; got "
                f"{len(self.energies)} energies and {len(self.powers)} powers. {_faq.shapes}"
            )
        check_alike("composed energies", self.energies)
        with jax.ensure_compile_time_eval():
            _, variance = self.moments(jnp.asarray(self.t_max))
        if not all(callable(power) or math.isfinite(power) for power in self.powers):
            raise ValueError(f"powers must be finite; got {self.powers}. {_faq.numbers}")
        usable = isinstance(variance, Tracer) or (np.asarray(variance) > 0) & np.isfinite(variance)
        nothing_yet = all(not callable(power) and power == 0 for power in self.powers)
        if not (np.all(usable) or nothing_yet):  # `0 * first + second` is the second
            raise ValueError(
                f"the composition with powers {self.powers} has no positive precision at t_max = "
                f"{self.t_max:.3g}, so it cannot be normalised. Raise the positive powers or lower "
                f"the negative ones. {_faq.compositions}"
            )
        if isinstance(self, AbstractEnergy):
            check_normalizable(self)

    def powers_at(self, t: Scalar) -> list[Scalar | float]:
        r"""The exponents $\beta_i$ at a time."""
        return [power_at(power, t) for power in self.powers]

    def between(self, t_min: float | None, t_max: float | None) -> tuple[Any, ...]:
        """The parts, all with these times."""
        low, high = self.t_min if t_min is None else t_min, self.t_max if t_max is None else t_max
        return tuple(e.with_horizon(t_min=low, t_max=high) for e in self.energies)


class Composed(_Composition, AbstractEnergy):
    r"""$E(x, t) = \sum_i \beta_i E_i(x, t)$: the distribution $\propto \prod_i p_i(x)^{\beta_i}$.

    Usually written with operators: `(e1 + e2) / 0.5`, `e1 - 0.3 * e2`, `e / temperature` with a temperature
    that is a function of the time. The distribution is that of the powers at `t_min`; others lead to it.

    Attributes:
        energies: The parts, all of one shape and one schedule.
        powers: Their exponents $\beta_i$, numbers or functions of the time.
        log_normalizer: Unknown (`None`) unless it is given.
        log_normalizer_error: Its standard error.

    Raises:
        ValueError: If shapes or schedules differ; if the Gaussian approximations say that the
            composition cannot be normalised at high noise ($\sum_i \beta_i / v_i \le 0$); if with a negative
            power the density grows far from the data; or if powers fall so fast with the noise that the
            noise of the composition, $s_t^2 / \sum_i \beta_i(t)$, does not grow with it.
    """

    energies: tuple[AbstractEnergy, ...]
    powers: tuple[Power, ...] = eqx.field(static=True)
    log_normalizer: float | None = eqx.field(static=True, default=None)
    log_normalizer_error: float = eqx.field(static=True, default=0.0)

    def with_horizon(self, *, t_min: float | None = None, t_max: float | None = None) -> Self:
        """Return the same composition of parts that all have these times."""
        parts = self.between(t_min, t_max)
        same = t_min is None or t_min == self.t_min
        known = (self.log_normalizer, self.log_normalizer_error) if same else (None, 0.0)
        return type(self)(parts, self.powers, *known)  # pyright: ignore[reportCallIssue]

    def energy(self, x: Array, t: Scalar) -> Scalar:
        pairs = zip(self.powers_at(t), self.energies, strict=True)
        return sum((b * e.energy(x, t) for b, e in pairs), start=jnp.zeros((), x.dtype))


class ComposedDenoiser(_Composition):
    r"""$\sum_i \beta_i \nabla \log p_i(x, t)$: a composition of which only the scores are known.

    Written with the same operators, where a part is a denoiser without an energy. Reverse diffusion with
    these scores samples another distribution than $\prod_i p_i^{\beta_i}$; `ScoreComposition` weighs its
    particles for that.

    Attributes:
        energies: The parts, denoisers of one shape and one schedule.
        powers: Their exponents $\beta_i$, numbers.
    """

    energies: tuple[AbstractDenoiser, ...]
    powers: tuple[Power, ...] = eqx.field(static=True)

    def with_horizon(self, *, t_min: float | None = None, t_max: float | None = None) -> Self:
        """Return the same composition of parts that all have these times."""
        return type(self)(self.between(t_min, t_max), self.powers)  # pyright: ignore[reportCallIssue]

    def denoise(self, x: Array, t: Scalar) -> Array:
        r"""$\hat x_0 = (x_t + \sigma_t^2 \sum_i \beta_i \nabla \log p_i) / \alpha_t$."""
        alpha_t, _ = self.schedule(t)
        u = x / alpha_t
        pairs = zip(self.powers_at(t), self.energies, strict=True)
        return u + sum(b * (e.denoise(x, t) - u) for b, e in pairs)


def combine(parts: tuple, powers: tuple[Power, ...]) -> AbstractDenoiser:
    """Sum energies with powers, flattening sums of sums so that each part is evaluated once."""
    factors = [part for part in parts if isinstance(part, AbstractFactor)]
    if factors:
        return _with_factor(parts, powers)
    energies, exponents = [], []
    for part, power in zip(parts, powers, strict=True):
        if not isinstance(part, AbstractDenoiser):
            raise TypeError(
                "energies are added to energies, denoisers and factors, and multiplied by numbers or "
                f"functions of the time; got {type(part).__name__}. {_faq.kinds}"
            )
        if not is_power(power):
            raise TypeError(
                "a distribution is raised to a number, or a function of the time; got "
                f"{power!r:.40}. With a latent "
                "power for each example of a plate, put `nd.energies.Joint([b * energy for b in powers])` "
                f"at one site without the plate. {_faq.kinds}"
            )
        if isinstance(part, Composed | ComposedDenoiser | PowerEnergy):
            energies.extend(part.energies)
            exponents.extend(times_power(power, b) for b in part.powers)
        else:
            energies.append(part)
            exponents.append(power if callable(power) or is_array_power(power) else float(power))
    if any(is_array_power(power) for power in exponents):
        if is_traced(exponents) or have_closed_form(energies):
            return PowerEnergy.of(energies, exponents)
        exponents = [power if callable(power) else float(power) for power in exponents]
    kind = Composed if all(isinstance(e, AbstractEnergy) for e in energies) else ComposedDenoiser
    return kind(energies=tuple(energies), powers=tuple(exponents))  # pyright: ignore


def _with_factor(parts, powers):
    """A distribution times a factor; of a factor times a distribution nothing else is defined."""
    first, second = parts
    if isinstance(first, AbstractFactor):
        first, second = second, first
    if not isinstance(first, AbstractDenoiser) or powers != (1.0, 1.0):
        raise TypeError(
            "a factor is added to an energy, `energy + factor`; it has no power and is not "
            "subtracted. Put the "
            f"power into the factor itself. {_faq.kinds}"
        )
    return factored(first, second)


def cfg(
    unconditional: AbstractDenoiser, conditional: AbstractDenoiser, guidance_scale: Power
) -> Any:
    r"""Classifier-free guidance as a distribution: $p(x)^{1-w} p(x \mid c)^w \propto p(x \mid c)\, p(c \mid
    x)^{w-1}$.

    Guided samplers use the sum $(1 - w) \nabla \log p_t(x) + w \nabla \log p_t(x \mid c)$ in a reverse
    diffusion, which samples another distribution. With energies, and schemes that weigh, it is this one; with
    denoisers alone see `ScoreComposition`.

    Args:
        unconditional: $p(x)$.
        conditional: $p(x \mid c)$, for instance `energy.given(c)`.
        guidance_scale: $w$: 0 is the unconditional distribution, 1 the conditional one, and more is guidance.

    References:
        Ho & Salimans (2022), Classifier-Free Diffusion Guidance.
    """
    if callable(guidance_scale):
        other: Power = lambda t: 1.0 - guidance_scale(t)
    else:
        other = 1.0 - guidance_scale
    return combine((unconditional, conditional), (other, guidance_scale))


def score_difference(base: AbstractDenoiser, reweighted: AbstractDenoiser, strength: Power) -> Any:
    r"""Guidance away from a cost $J$: $s + w\,(s - s^J)$, the score of $p\, (p / p^J)^w$.

    With a positive cost $J$, the *reweighted* distribution is $p^J \propto J p$; it is trained like any
    other, by `fit(weights=J(data))` on the base's own data. At clean data the composition is $p\, J^{-w}$. At
    noisy levels it is $p_t\, \mathbb{E}[J \mid x_t]^{-w}$ and not $\mathbb{E}[J^{-w} \mid x_t]\, p_t$, so
    that a guided reverse diffusion lowers $\mathbb{E}[J]$ and samples neither. With energies, schemes that
    weigh their particles have $p\, J^{-w}$ as target; with scores alone see `ScoreComposition`. Only where
    $p_t$ and $p^J_t$ are shifted copies of one Gaussian, as for $J = e^{-a x}$ and $p = \mathcal{N}(m, v)$,
    do all of them agree: $\mathcal{N}(m + w a v, v)$.

    Classifier-free guidance is the case $J = 1 / p(c \mid x)$ of a conditional base, `cfg(reweighted, base, 1
    + w)`.

    Args:
        base: $p$.
        reweighted: $p^J$, of the shape and schedule of the base.
        strength: $w \ge 0$, a number or a function of the time; 0 is the base.

    Raises:
        ValueError: If `strength` is negative or not finite, or shapes or schedules differ.

    References:
        Jiao, Chen & Li (2025), Towards a unified framework for guided diffusion models, arXiv 2512.04985.
    """
    if not callable(strength) and not is_traced(strength) and not 0 <= strength < math.inf:
        raise ValueError(
            f"`strength` of `score_difference` must be finite and not negative; got {strength}. To go "
            "towards the reweighted distribution, interpolate: `cfg(base, reweighted, "
            f"w)`. {_faq.numbers}"
        )
    if callable(strength):
        return cfg(reweighted, base, lambda t: 1.0 + strength(t))
    return cfg(reweighted, base, 1.0 + strength)
