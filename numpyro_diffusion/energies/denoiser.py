r"""A network as a plain denoiser: the usual diffusion model, and the teacher in distillation."""

import equinox as eqx
import jax.numpy as jnp

from .._typing import Array, Scalar
from .coordinates import cast_floats
from .network import InnerProductEnergy
from .parts import AbstractWrapper
from .preconditioned import AbstractNetworkEnergy

__all__ = ["NetworkDenoiser"]


class NetworkDenoiser(AbstractWrapper):
    r"""The denoiser $c_{skip} v + c_{out} F(w, c_{noise})$ over coordinates and backbone of an energy.

    With $v = B^\top (x_t / \alpha_t - m)$ and $w$ as in `AbstractNetworkEnergy`, for each coordinate
    $c_{skip} = d^2 / (s^2 + d^2)$ and $c_{out} = s d / \sqrt{s^2 + d^2}$. It is what most released models
    are: cheaper to train than an energy, and the gradient of nothing. `distill` makes an energy of it.

    Attributes:
        base: An energy whose coordinates, backbone, schedule, times and condition are used, and whose form is
            not. Train it with `fit(..., trainable=lambda denoiser: denoiser.base.net)`.

    References:
        Karras et al. (2022), Elucidating the Design Space of Diffusion-Based Generative Models, Table 1.
    """

    base: AbstractNetworkEnergy = eqx.field(default_factory=InnerProductEnergy)

    @property
    def net(self):
        """The backbone."""
        return self.base.net

    def given(self, condition) -> "NetworkDenoiser":
        """Return the same denoiser under a condition, as `AbstractNetworkEnergy.given`."""
        return _of(self.base.given(condition))

    def with_horizon(self, *, t_min: float | None = None, t_max: float | None = None):
        """Return the same model with other first and last times."""
        return _of(self.base.with_horizon(t_min=t_min, t_max=t_max))

    def denoise(self, x: Array, t: Scalar) -> Array:
        base = self.base
        mean, scales, basis = cast_floats((base.mean, base.scales, base.basis), x.dtype)
        w, s = base.whitened(x, t)
        root = jnp.sqrt(s**2 + scales**2)
        v = scales**2 / root * w + s * scales / root * base.backbone(w, s)
        u = v if basis is None else basis @ v
        return u.reshape(self.shape) + mean


def _of(base: AbstractNetworkEnergy) -> NetworkDenoiser:
    # Schedule, shape and times are properties here; the type checker takes them for arguments.
    return NetworkDenoiser(base)  # pyright: ignore[reportCallIssue]
