r"""Base class of factors: functions that multiply a prior, with approximations at noisy levels.

A factor $h$ is a positive function of clean data: a reward, a constraint, a ratio of densities, a cost that
couples several variables. At a noisy level a factor $h_t$ takes its place, which decides how well a sampler
is led and never where it ends: at `t_min` it is $h$ itself. The best choice is
$h_t(u) = \mathbb{E}[h(u_{t_{\min}}) \mid u_t = u]$, since $p_t h_t$ is then the noised distribution of $p h$.
"""

import abc
from typing import NamedTuple

import equinox as eqx

from .._typing import Array, Scalar
from .._written import one_line
from .base import AbstractDenoiser

__all__ = ["AbstractFactor", "Noised"]


class Noised(NamedTuple):
    r"""Arguments of a factor: values and noise level of ONE example, in units of the data.

    Attributes:
        u: The noised variable $u_t = x_t / \alpha_t$.
        x_hat: Mean of the variable at `t_min` given it; $u$ itself at `t_min`.
        variance: Roughly what that leaves open, coordinate by coordinate; 0 at `t_min`. It is
            $\tau^2 d^2 / (\tau^2 + d^2)$ with the noise $\tau$ in between and the standard deviation $d$ of
            the distribution, as for Gaussian data.
        t: Time, shape `()`.
        clean: Whether `t` is `t_min`: where a factor must be itself.
    """

    u: Array
    x_hat: Array
    variance: Array
    t: Scalar
    clean: Array


class AbstractFactor(eqx.Module):
    """A factor of a distribution; `energy + factor` is the distribution times the factor."""

    __repr__ = one_line

    def check(self, base: AbstractDenoiser) -> None:
        """Refuse a distribution that the factor makes no sense for, when it is put on it."""
        del base

    @abc.abstractmethod
    def log_value(self, noised: Noised) -> Scalar:
        r"""$\log h_t(u)$ of shape `()`, in nats; at `t_min` the log of the factor itself.

        What it does not look at costs nothing. `x_hat` costs the score, and a gradient through it a
        second derivative of the network.
        """
