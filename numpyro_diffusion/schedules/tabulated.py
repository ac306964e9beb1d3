r"""Tabulated noise schedules, as discrete-time diffusion models have them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._typing import Array
from .standard import AbstractSchedule

__all__ = ["Tabulated", "from_betas"]


def _ddpm_log_snrs() -> Array:
    return jnp.asarray(_log_snrs(np.linspace(1e-4, 0.02, 1000)))


class Tabulated(AbstractSchedule):
    r"""Variance preserving, with $\lambda_t = \log(\alpha_t^2/\sigma_t^2)$ given at equally spaced times.

    $\alpha_t^2 = 1 / (1 + e^{-\lambda_t})$, $\sigma_t^2 = 1 - \alpha_t^2$. Between the times
    $t_k = k / (K - 1)$ the log-SNR is linear, and so beyond the ends. Step $k$ of a discrete model is the
    time $t_k$.

    Attributes:
        log_snrs: $\lambda_{t_k}$ in nats, falling, shape `(K,)`. The default is that of DDPM: 1000 steps of
            betas from 0.0001 to 0.02.

    Raises:
        ValueError: If there are fewer than 2 values, or they are not finite and falling.

    References:
        Ho, Jain & Abbeel (2020), Denoising Diffusion Probabilistic Models, NeurIPS.
    """

    log_snrs: Array = eqx.field(converter=jnp.asarray, default_factory=_ddpm_log_snrs)

    def __check_init__(self):
        values = np.asarray(self.log_snrs)
        if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
            raise ValueError(
                "`Tabulated` expects at least 2 finite values of the log-SNR, shape (K,); got shape "
                f"{values.shape}. Leave out a last step without any signal. {_faq.schedules}"
            )
        if not np.all(np.diff(values) < 0):
            raise ValueError(
                "`Tabulated` expects log-SNRs that fall with time, from data to "
                f"noise. {_faq.schedules}"
            )

    def __call__(self, t):
        t = jnp.asarray(t)
        values, last = self.log_snrs.astype(t.dtype), len(self.log_snrs) - 1
        step = jnp.clip(jnp.floor(t * last), 0, last - 1).astype(int)
        log_snr = values[step] + (t * last - step) * (values[step + 1] - values[step])
        return jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))

    def time(self, log_snr):
        log_snr = jnp.asarray(log_snr)
        values, last = self.log_snrs.astype(log_snr.dtype), len(self.log_snrs) - 1
        step = jnp.clip(jnp.searchsorted(-values, -log_snr, side="right") - 1, 0, last - 1)
        part = (log_snr - values[step]) / (values[step + 1] - values[step])
        return (step + part) / last


def from_betas(betas) -> Tabulated:
    r"""The schedule of a discrete model: $\alpha_k^2 = \prod_{i \le k} (1 - \beta_i)$.

    Args:
        betas: $\beta_k$ in (0, 1), shape `(K,)`, from data to noise.

    Raises:
        ValueError: If one lies outside (0, 1).
    """
    betas = np.asarray(betas, np.float64)
    if not np.all((betas > 0) & (betas < 1)):
        raise ValueError(
            f"`from_betas` expects betas in (0, 1); got {betas.min():g} to {betas.max():g}. A step that "
            f"leaves no signal has no log-SNR: leave it out. {_faq.schedules}"
        )
    return Tabulated(_log_snrs(betas))


def _log_snrs(betas: np.ndarray) -> np.ndarray:
    log_signal = np.cumsum(np.log1p(-betas))  # log alpha^2
    return log_signal - np.log(-np.expm1(log_signal))
