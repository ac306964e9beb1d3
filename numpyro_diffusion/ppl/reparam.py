r"""Reparametrisation of a diffusion site as a function of standard normal noise.

`NoiseReparam` puts the probability flow into the model: the latent variable is $z \sim \mathcal{N}(0, I)$,
and the diffusion site is $T(z)$. Nothing asks for the density of the prior any more, so a score is enough,
and every kernel, guide and sampler that NumPyro knows meets a prior without modes or scales of its own.
"""

import jax.numpy as jnp
import numpyro
from numpyro.distributions import Normal
from numpyro.infer.reparam import Reparam

from .. import _faq
from .._arguments import whole_number
from ..density.flow import FlowDensity
from ..density.flow_map import from_noise
from .base_distribution import batched
from .distributions import DiffusionPrior
from .handlers import _replace
from .sites import unwrapped

__all__ = ["NoiseReparam"]


class NoiseReparam(Reparam):
    r"""Replaces the diffusion site `x` by the latent site `x_noise` under $\mathcal{N}(0, I)$.

    `x` becomes the deterministic site $T(z)$, with $T$ the probability flow of the prior in `num_steps`
    steps. Its distribution is the push-forward of $\mathcal{N}(0, I)$ by $T$: for an exact score the prior
    itself, for a learned one the distribution of its probability flow, which is not that of its energy. It
    is normalised whatever the energy, so evidences need no normaliser, and the prior may depend on other
    sites.

    Use it on the model, as any reparameterisation of NumPyro, in plates and under `to_event` and `expand`
    too. The prior needs no density: a score will do.

    Args:
        num_steps: Steps of the flow, each four evaluations of the score, and as many derivatives of it for a
            gradient. Take more for evidences, and for data that point between the modes of the prior.
        sample_shape: As given to `numpyro.sample` at the site, which does not tell reparameterisations.

    Raises:
        ValueError: If `num_steps` is not a positive integer; when the model runs, if the site has another
            prior, is observed, or has an estimator of another distribution.

    Example:
        >>> import jax, numpyro, numpyro_diffusion as nd
        >>> def model():
        ...     numpyro.sample("x", nd.DiffusionPrior(nd.Gaussian()))
        >>> in_noise = numpyro.handlers.reparam(model, config={"x": nd.NoiseReparam()})
        >>> seeded = numpyro.handlers.seed(in_noise, jax.random.key(0))
        >>> list(numpyro.handlers.trace(seeded).get_trace())
        ['x_noise', 'x']

    References:
        Papaspiliopoulos, Roberts & Sköld (2007), A General Framework for the Parametrization of Hierarchical
        Models, Statistical Science, for non-centred parameterisations.
    """

    def __init__(self, num_steps: int = 16, *, sample_shape: tuple[int, ...] = ()):
        num_steps = whole_number("num_steps", num_steps, 1, "The default is 16.")
        self.num_steps, self.sample_shape = num_steps, sample_shape

    def __call__(self, name, fn, obs):
        prior = unwrapped(fn)
        if not isinstance(prior, DiffusionPrior):
            raise ValueError(
                f"`NoiseReparam` expects a site with a `DiffusionPrior`; site {name!r} has a "
                f"{type(prior).__name__}. Leave it out of `config`; take transformed priors apart first, "
                f"with `TransformReparam()`. {_faq.site_kind}"
            )
        if obs is not None:
            raise ValueError(
                f"`NoiseReparam` expects a latent site; site {name!r} is observed. Its log density at data "
                f"is `nd.density.probability_flow(prior, data)`. {_faq.site_kind}"
            )
        estimator = getattr(prior, "log_density", None)
        if not isinstance(estimator, FlowDensity | None):
            raise ValueError(
                f"site {name!r} has `log_density={type(estimator).__name__}`, another distribution than "
                "that of the probability flow, which `NoiseReparam` samples. Leave `log_density` "
                f"out. {_faq.site_kind}"
            )
        shape, energy = prior.event_shape, prior.energy
        noise = _replace(fn, Normal(jnp.zeros(shape), 1.0).to_event(len(shape)))
        z = numpyro.sample(f"{name}_noise", noise, sample_shape=self.sample_shape)
        map_one = lambda z: from_noise(energy, z, num_steps=self.num_steps)
        return None, batched(map_one, jnp.ndim(z) - prior.event_dim)(z)
