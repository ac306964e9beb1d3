r"""Diffusion priors as NumPyro distributions.

`DiffusionPrior(energy)` is the distribution of clean data, `NoisedPrior(energy, t)` the same distribution
with the noise of level $t$ on it. Both live in the units of the data: their variable is $u_t = x_t /
\alpha_t$. They hold the whole energy as pytree data, so that networks travel through `jit`, `vmap` and
`grad` as arguments, and never as constants.
"""

from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions import (
    TransformedDistribution,
    transforms,
)

from .. import _faq
from ..density.estimate import AbstractLogDensity
from ..energies.base import AbstractDenoiser
from ..energies.powered import refuse_unknown_normalizer
from ..energies.reverse import draw_prior
from ..energies.standardized import Standardized
from ..twists import added_variance
from .base_distribution import NoisedDistribution

__all__ = ["DiffusionPrior", "NoisedPrior"]


class DiffusionPrior(NoisedDistribution):
    r"""A learned diffusion as the prior of a NumPyro site.

    The distribution of $u = x_t / \alpha_t$ at $t_{\min}$, in the units of the data:
    $\log p(u) = -E(\alpha u, t_{\min}) + d \log \alpha - L(t_{\min})$, where $L$ is left out if the
    energy does not know it (this moves an evidence and no posterior). The gradient of `log_prob` is
    the score, so any NumPyro kernel may be used.

    Draws are exact where the energy has a closed form. Otherwise they follow the reverse process,
    discretised in `num_steps` steps, and with model error its distribution is close to that of `log_prob`
    but not the same. Of a composed energy (a product, a power, a distribution times a factor) the reverse
    process has
    another distribution, which may be far off: draws warn of it.

    A score-only prior (a denoiser that is not an energy) can be sampled but has no `log_prob`, unless an
    estimator makes one of its scores. With its noises frozen that is a deterministic function, for NUTS, SVI
    and importance sampling; the distribution is the one that the estimator names, up to its error. An energy
    may have
    an estimator too: its `log_prob` is then normalised, whatever the energy knows, and of the scores alone.

    Of a `Standardized` distribution $x = m + D z$ it makes a NumPyro `TransformedDistribution`, whose values
    are in the user's units; samplers of this package follow $z$, as the site `x_base`.

    Args:
        energy: The energy, of any event shape; or, with `log_density`, any denoiser; or a `Standardized`
            distribution.
        log_density: `None` for the energy's own, or an estimator such as `nd.density.ScoreFormula()`.
        num_steps: Number of steps of the reverse process.
        validate_args: As for every NumPyro distribution.

    Raises:
        TypeError: If `energy` is neither energy nor denoiser, or `log_density` no estimator; for a latent
            power whose normaliser is not known. `log_prob` raises it for integers, and for score-only priors
            without an estimator.
        ValueError: If `num_steps` is not a positive integer. `log_prob` raises it for wrong shapes.

    Example:
        >>> import numpyro_diffusion as nd
        >>> nd.DiffusionPrior(nd.Gaussian()).event_shape
        (2,)
    """

    pytree_data_fields = ("log_density",)

    def __new__(cls, energy: Any = None, **options: Any):
        if not isinstance(energy, Standardized):
            return super().__new__(cls)
        affine = transforms.AffineTransform(energy.location, energy.scale)
        return TransformedDistribution(cls(energy.energy, **options), affine)

    def __init__(
        self,
        energy: AbstractDenoiser | Standardized,
        *,
        log_density: AbstractLogDensity | None = None,
        num_steps: int = 200,
        validate_args=None,
    ):
        if not (log_density is None or isinstance(log_density, AbstractLogDensity)):
            raise TypeError(
                "`log_density` expects an estimator such as `nd.density.ScoreFormula()`, or None for the "
                f"energy's own; got {log_density!r}. Instantiate the class. {_faq.kinds}"
            )
        self.log_density = log_density
        if log_density is None and isinstance(energy, AbstractDenoiser):
            refuse_unknown_normalizer(energy)
        super().__init__(energy, num_steps, validate_args)

    @property
    def time(self):
        return self.energy.t_min

    def _draw(self, energy, key):
        return draw_prior(energy, key, self.num_steps)


class NoisedPrior(NoisedDistribution):
    r"""A diffusion prior under the noise of level $t$: the distribution of $u_t = x_t / \alpha_t$.

    $u_t = u_{t_{\min}} + \mathcal{N}(0, (s_t^2 - s_{t_{\min}}^2) I)$ with noise levels
    $s = \sigma / \alpha$. `noised` puts it where a model has a `DiffusionPrior`.

    Args:
        energy: The energy.
        t: Time, shape `()`; may be traced.
        num_steps: Number of steps of the reverse process behind a draw of the prior.
        validate_args: As for every NumPyro distribution.
    """

    pytree_data_fields = ("t",)

    def __init__(self, energy: AbstractDenoiser, t, *, num_steps: int = 200, validate_args=None):
        self.t = t
        super().__init__(energy, num_steps, validate_args)

    @property
    def time(self):
        return self.t

    def _draw(self, energy, key):
        key_prior, key_noise = jax.random.split(key)
        u = draw_prior(energy, key_prior, self.num_steps)
        noise = jax.random.normal(key_noise, u.shape, u.dtype)
        return u + jnp.sqrt(added_variance(energy, self.t)).astype(u.dtype) * noise
