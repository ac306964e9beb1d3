r"""Conversions of what a network predicts (noise, v, score, data) to the denoised mean.

With $x_t = \alpha_t x_0 + \sigma_t \epsilon$ a network may give any one of score, noise, data or velocity;
each is a linear function of $x_t$ and $\hat x_0$. A new convention is one class.
"""

import abc

import equinox as eqx

from .._typing import Array, Scalar
from .._written import one_line

__all__ = ["AbstractPrediction", "Denoised", "FlowVelocity", "Noise", "Score", "Velocity"]


class AbstractPrediction(eqx.Module):
    r"""A map from a network's output to $\hat x_0 = \mathbb{E}[x_0 \mid x_t]$."""

    __repr__ = one_line

    @abc.abstractmethod
    def __call__(self, output: Array, x: Array, alpha_t: Scalar, sigma_t: Scalar) -> Array:
        r"""$\hat x_0$, of the shape of `x`, from the network's `output` at $x_t$ = `x`."""


class Score(AbstractPrediction):
    r"""$s = \nabla \log p_t(x_t)$, so that $\hat x_0 = (x_t + \sigma_t^2 s) / \alpha_t$."""

    def __call__(self, output, x, alpha_t, sigma_t):
        return (x + sigma_t**2 * output) / alpha_t


class Noise(AbstractPrediction):
    r"""$\hat\epsilon = \mathbb{E}[\epsilon \mid x_t]$.

    $\hat x_0 = (x_t - \sigma_t \hat\epsilon) / \alpha_t$.
    """

    def __call__(self, output, x, alpha_t, sigma_t):
        return (x - sigma_t * output) / alpha_t


class Denoised(AbstractPrediction):
    r"""$\hat x_0$ itself."""

    def __call__(self, output, x, alpha_t, sigma_t):
        return output


class Velocity(AbstractPrediction):
    r"""$\hat v = \alpha_t \hat\epsilon - \sigma_t \hat x_0$.

    $\hat x_0 = (\alpha_t x_t - \sigma_t \hat v) / (\alpha_t^2 + \sigma_t^2)$.

    References:
        Salimans & Ho (2022), Progressive Distillation for Fast Sampling of Diffusion Models, ICLR.
    """

    def __call__(self, output, x, alpha_t, sigma_t):
        return (alpha_t * x - sigma_t * output) / (alpha_t**2 + sigma_t**2)


class FlowVelocity(AbstractPrediction):
    r"""$\hat v = \hat\epsilon - \hat x_0$, the slope of straight lines from data to noise.

    $\hat x_0 = (x_t - \sigma_t \hat v) / (\alpha_t + \sigma_t)$.

    References:
        Lipman et al. (2023), Flow Matching for Generative Modeling, ICLR.
    """

    def __call__(self, output, x, alpha_t, sigma_t):
        return (x - sigma_t * output) / (alpha_t + sigma_t)
