r"""Powers that may be latent variables, and what they cost: $\log \int \prod_i p_i(x)^{\beta_i} dx$.

That integral depends on the powers. For Gaussians it has a closed form, at every level; for anything else
a table of it is made beforehand (`normalizers.tabulate`), and without one a latent power is refused.
"""

from collections.abc import Sequence
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp

from .. import _faq
from .._typing import Array, PRNGKey, Scalar
from .base import AbstractDenoiser
from .checks import check_alike, is_traced
from .energy import AbstractEnergy
from .gaussian import Gaussian
from .parts import AbstractSum

__all__ = ["Guidance", "PowerEnergy", "Powers", "have_closed_form", "refuse_unknown_normalizer"]

_REMEDY = (
    "Make a table of it: `family = nd.normalizers.tabulate(energy, grid, key=key)` outside the model, and "
    "`family.given(power)` inside (of several parts, `tabulate(nd.energies.Powers(first, second), ...)`)."
)


def have_closed_form(energies: Sequence[Any]) -> bool:
    """Whether the integral of a product of powers of these is known."""
    return all(isinstance(energy, Gaussian) for energy in energies)


class PowerEnergy(AbstractSum, AbstractEnergy):
    r"""$E(x, t) = \sum_i \beta_i E_i(x, t) + L(t; \beta)$ with powers that are arrays, and may be traced.

    Where all parts are Gaussians $L(t; \beta) = \log \int \prod_i p_i(x_t)^{\beta_i} dx_t$, in closed form,
    so that the distribution is normalised at every level; with precisions $P_i$ and $\Lambda = \sum_i
    \beta_i P_i$, $h = \sum_i \beta_i P_i m_i$

    $$L = \tfrac12 \Big(d \log 2\pi - \log \det \Lambda + h^\top \Lambda^{-1} h
      - \sum_i \beta_i (m_i^\top P_i m_i + \log \det 2\pi P_i^{-1})\Big) ,$$

    NaN where $\Lambda$ is not positive definite, which is no distribution. Otherwise $L = 0$ and
    `log_normalizer` is `None`: a `DiffusionPrior` refuses it. What `power * energy` makes of an array; of
    plain numbers it makes `Composed`, which knows no normaliser.

    Attributes:
        energies: The parts, all of one shape and one schedule.
        powers: Their exponents, shape `(num_parts,)`.
    """

    energies: tuple[AbstractEnergy, ...]
    powers: Array
    log_normalizer: float | None = eqx.field(static=True, default=None)
    log_normalizer_error: float = eqx.field(static=True, default=0.0)

    @classmethod
    def of(cls, energies: Sequence[AbstractDenoiser], powers: Sequence[Any]) -> Self:
        """Of parts and powers, of which one is an array.

        Raises:
            TypeError: If a part is no energy, or another power is a function of the time.
            ValueError: If shapes or schedules differ.
        """
        if not all(isinstance(energy, AbstractEnergy) for energy in energies):
            raise TypeError(
                "a latent power needs energies; got a denoiser, which has no density to raise to a "
                "power. Train or "
                f"distil an energy. {_faq.score_only}"
            )
        if any(map(callable, powers)):
            raise TypeError(
                "a latent power goes with numbers, not with functions of the time. Every level is "
                "weighed anew, so a function of the time is not needed: leave it "
                f"out. {_faq.kinds}"
            )
        return cls(tuple(energies), jnp.stack([jnp.asarray(b, float) for b in powers]))  # pyright: ignore

    def __init__(self, energies, powers, log_normalizer=None, log_normalizer_error=0.0):
        check_alike("composed energies", energies)
        powers = jnp.asarray(powers)
        if not jnp.issubdtype(powers.dtype, jnp.floating):
            powers = powers.astype(float)
        if powers.shape != (len(energies),) or not energies:
            raise ValueError(
                f"`PowerEnergy` expects one power an energy; got {len(energies)} energies and powers of "
                f"shape {powers.shape}. For a power of each example in a plate see "
                f"`nd.energies.Joint`. {_faq.shapes}"
            )
        self.energies, self.powers = tuple(energies), powers
        known = have_closed_form(energies)
        self.log_normalizer = 0.0 if known else log_normalizer
        self.log_normalizer_error = log_normalizer_error

    @property
    def normalized(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return have_closed_form(self.energies)

    def powers_at(self, t: Scalar) -> list[Scalar | float]:
        """The powers, at every time."""
        del t
        return list(self.powers)

    def with_horizon(self, *, t_min: float | None = None, t_max: float | None = None) -> Self:
        """The same powers of parts that all have these times."""
        low, high = self.t_min if t_min is None else t_min, self.t_max if t_max is None else t_max
        parts = tuple(e.with_horizon(t_min=low, t_max=high) for e in self.energies)
        return type(self)(parts, self.powers)

    def energy(self, x: Array, t: Scalar) -> Scalar:
        powers = self.powers.astype(x.dtype)
        total = sum(
            (b * e.energy(x, t) for b, e in zip(powers, self.energies, strict=True)),
            start=jnp.zeros((), x.dtype),
        )
        return total + self.log_integral(t).astype(x.dtype) if self.normalized else total

    def log_integral(self, t: Scalar) -> Scalar:
        r"""$L(t; \beta)$ of Gaussian parts."""
        if len(self.energies) == 1:
            (power,), logs = self.powers, self.energies[0].log_variances(t)  # pyright: ignore
            known = power > 0
            log_power = jnp.where(known, jnp.log(jnp.where(known, power, 1.0)), jnp.nan)
            return 0.5 * jnp.sum((1 - power) * (jnp.log(2 * jnp.pi) + logs) - log_power)
        root, linear, constant = self._natural(t)
        half = jax.scipy.linalg.solve_triangular(root, linear, lower=True)
        log_det = 2 * jnp.sum(jnp.log(jnp.diag(root)))
        return 0.5 * (linear.size * jnp.log(2 * jnp.pi) - log_det + half @ half - constant)

    def _natural(self, t: Scalar) -> tuple[Array, Array, Any]:
        r"""Cholesky root of $\Lambda$, $h$, and the sum of what does not depend on $x$."""
        parts = [e.natural(t) for e in self.energies]  # pyright: ignore[reportAttributeAccessIssue]
        total: Any = (
            sum(b * part[i] for b, part in zip(self.powers, parts, strict=True)) for i in range(3)
        )
        precision, linear, constant = total
        return jnp.linalg.cholesky(precision), linear, constant

    def moments(self, t: Scalar) -> tuple[Array, Array]:
        if not self.normalized:
            return super().moments(t)
        if len(self.energies) == 1:
            mean, variance = self.energies[0].moments(t)
            return mean, variance / jnp.where(self.powers[0] > 0, self.powers[0], jnp.nan)
        root, linear, _ = self._natural(t)
        inverse = jax.scipy.linalg.solve_triangular(
            root, jnp.eye(linear.size, dtype=linear.dtype), lower=True
        )
        return inverse.T @ (inverse @ linear), jnp.sum(inverse**2, 0)

    def draw(self, key: PRNGKey, t: Scalar) -> Array | None:
        """Exact where the parts are Gaussians."""
        if not self.normalized:
            return None
        root, linear, _ = self._natural(t)
        half = jax.scipy.linalg.solve_triangular(root, linear, lower=True)
        white = jax.random.normal(key, self.shape, linear.dtype)
        return jax.scipy.linalg.solve_triangular(root.T, half + white, lower=False)


def refuse_unknown_normalizer(energy: AbstractDenoiser) -> None:
    """Refuse a distribution with a latent power, or made of a distribution with latent parameters, that is
    not normalised.

    Raises:
        TypeError: For such a distribution. The posterior of its parameters would be another, and nothing
            would tell.
    """
    from .family import Family

    if getattr(energy, "log_normalizer", 0.0) is not None:
        return
    known = lambda part: isinstance(part, PowerEnergy | Family)
    parts = [p for p in jax.tree.leaves(energy, is_leaf=known) if known(p)]
    if any(is_traced(p.powers if isinstance(p, PowerEnergy) else p.theta) for p in parts):
        raise TypeError(
            f"the normaliser of this {type(energy).__name__} depends on a power, or another parameter, that "
            "is not known in advance, such as a latent variable; it has no closed form. "
            f"{_REMEDY} {_faq.normaliser}"
        )


class Powers(eqx.Module):
    r"""The family $p(x \mid \beta) \propto \prod_i p_i(x)^{\beta_i}$, as a function of the powers.

    Args:
        *energies: The parts. Of one part `theta` has shape `()`, else `(num_parts,)`.
    """

    energies: tuple[AbstractEnergy, ...]

    def __init__(self, *energies: AbstractEnergy):
        self.energies = energies

    def __call__(self, theta) -> PowerEnergy:
        return PowerEnergy(self.energies, jnp.atleast_1d(jnp.asarray(theta)))


class Guidance(eqx.Module):
    r"""The family $p(x \mid w) \propto p(x)^{1 - w} p(x \mid c)^w$; `theta` is $w$, of shape `()`.

    Args:
        unconditional: $p(x)$.
        conditional: $p(x \mid c)$.
    """

    unconditional: AbstractEnergy
    conditional: AbstractEnergy

    def __call__(self, theta) -> PowerEnergy:
        theta = jnp.asarray(theta, jnp.result_type(float))
        return PowerEnergy((self.unconditional, self.conditional), jnp.stack([1 - theta, theta]))
