r"""Handler that turns a model into the noised models of its bridge.

`noised(model, t)` is the model in which every diffusion site holds noised data and everything
downstream sees a twist of it. At `t_min` it is the model itself; at `t_max` its diffusion sites are
nearly Gaussian. The densities in between need no code from the user.
"""

import copy
from collections.abc import Callable

import jax.numpy as jnp
import numpyro
from numpyro.distributions import (
    Distribution,
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
    TransformedDistribution,
)
from numpyro.infer.reparam import Reparam, TransformReparam
from numpyro.util import not_jax_tracer

from .. import _faq
from .._typing import PRNGKey, Scalar
from ..energies.energy import AbstractEnergy
from ..twists import AbstractTwist, Tweedie
from .base_distribution import batched
from .distributions import DiffusionPrior, NoisedPrior
from .sites import refuse_estimator

__all__ = ["NoisedReparam", "noised"]

_WRAPPERS = (ExpandedDistribution, Independent, MaskedDistribution)


def _innermost(fn: Distribution) -> Distribution:
    """What expanded, masked and `to_event` distributions are made of."""
    while isinstance(fn, _WRAPPERS):
        fn = fn.base_dist
    return fn


def _replace(fn: Distribution, new: Distribution) -> Distribution:
    """`fn` with its innermost distribution replaced by one of the same shapes."""
    if not isinstance(fn, _WRAPPERS):
        return new
    wrapper = copy.copy(fn)
    wrapper.base_dist = _replace(fn.base_dist, new)
    return wrapper


class NoisedReparam(Reparam):
    r"""Replaces the diffusion site `x` by the latent site `x_noised`, and its value by a twist.

    `x_noised` holds $u_t = x_t / \alpha_t$, the noised variable in the units of the data, under
    `NoisedPrior`; `x` becomes the deterministic site $\hat x(u_t)$.

    Args:
        t: Time, shape `()`; may be traced.
        twist: What the rest of the model sees of $u_t$. The default is `Tweedie()`.
        rng_key: As given to `numpyro.sample` at the site, like the next two.
        sample_shape: As above.
        infer: As above.
    """

    def __init__(
        self,
        t: Scalar | float,
        twist: AbstractTwist | None = None,
        *,
        rng_key: PRNGKey | None = None,
        sample_shape: tuple[int, ...] = (),
        infer: dict | None = None,
    ):
        self.t, self.twist = t, Tweedie() if twist is None else twist
        self.options = {"rng_key": rng_key, "sample_shape": sample_shape, "infer": infer}

    def __call__(self, name, fn, obs):
        prior = _innermost(fn)
        if not isinstance(prior, DiffusionPrior) or obs is not None:
            raise ValueError(
                f"`NoisedReparam` expects a latent site with a `DiffusionPrior`; site {name!r} has a "
                f"{type(prior).__name__}{'' if obs is None else ' and is observed'}. Use "
                f"`noised(model, t)`, which leaves other sites alone. {_faq.site_kind}"
            )
        energy = prior.energy
        refuse_estimator(name, prior)
        if not isinstance(energy, AbstractEnergy):
            raise TypeError(
                f"`noised` needs an energy at site {name!r}; got the score-only prior "
                f"{type(energy).__name__}, which has no density to noise. Train or distil an energy, "
                f"or use a scheme in path space. {_faq.score_only}"
            )
        t = jnp.clip(self.t, energy.t_min, energy.t_max)
        # A different type than `DiffusionPrior`, or this site would be intercepted for ever.
        noised_prior = NoisedPrior(
            energy, t, num_steps=prior.num_steps, validate_args=prior._validate_args
        )
        u = numpyro.sample(f"{name}_noised", _replace(fn, noised_prior), **self.options)
        twist = lambda u: self.twist(energy, u, t.astype(u.dtype))[1]
        return None, batched(twist, jnp.ndim(u) - prior.event_dim)(u)


def noised(model: Callable, t: Scalar | float, twist: AbstractTwist | None = None) -> Callable:
    r"""The model at noise level $t$: a bridge between noise and the model itself.

    Every latent `DiffusionPrior` site `x`, in plates and under masks too, is replaced by a latent site
    `x_noised` that holds $u_t = x_t / \alpha_t$, with log density
    $-E(\alpha_t u_t, t) + d \log \alpha_t - L(t_{\min})$. The rest of the model sees the deterministic
    site $x = \hat x(u_t)$. At `t_min`, and so at 0, the log density is exactly that of `model`.

    Observed and substituted diffusion sites keep their value and their prior, if `model` itself holds
    the value: condition `model`, not what comes out. A `TransformedDistribution` of a diffusion prior
    is taken apart first: the diffusion site is then `x_base`, and `x` its transform.

    Args:
        model: A NumPyro model.
        t: Time, shape `()`, from 1 (noise) to 0 (data), clipped to the `t_min` and `t_max` of each
            energy; may be traced, so that one compilation serves all levels.
        twist: What the rest of the model sees of $u_t$. The default is `Tweedie()`.

    Returns:
        A NumPyro model with the same arguments.

    Raises:
        TypeError: If `twist` is not a twist, or, when the model runs, for score-only priors.
        ValueError: If `t` is not one number in [0, 1].

    Example:
        >>> import jax, numpyro, numpyro_diffusion as nd
        >>> def model():
        ...     numpyro.sample("x", nd.DiffusionPrior(nd.Gaussian()))
        >>> seeded = numpyro.handlers.seed(nd.noised(model, 0.5), jax.random.key(0))
        >>> list(numpyro.handlers.trace(seeded).get_trace())
        ['x_noised', 'x']
    """
    if not (twist is None or isinstance(twist, AbstractTwist)):
        raise TypeError(
            f"`twist` must be a twist, e.g. `Tweedie()`; got {twist!r}. Instantiate the class, or "
            f"subclass `AbstractTwist`. {_faq.kinds}"
        )
    if jnp.ndim(t) != 0 or (not_jax_tracer(t) and not 0 <= t <= 1):
        raise ValueError(
            f"`noised` expects one time in [0, 1], 0 for data; got {t}. Map over several with "
            f"`vmap`. {_faq.numbers}"
        )

    def config(site):
        if site["value"] is not None:
            return None
        fn = _innermost(site["fn"])
        if isinstance(fn, DiffusionPrior):
            return NoisedReparam(t, twist, **site["kwargs"], infer=site["infer"])
        if isinstance(fn, TransformedDistribution) and isinstance(
            _innermost(fn.base_dist), DiffusionPrior
        ):
            if isinstance(site["fn"], MaskedDistribution) or site["kwargs"].get("sample_shape"):
                raise ValueError(
                    f"`noised` cannot take apart the transformed diffusion site {site['name']!r} under "
                    "a mask or with a `sample_shape`. Sample the `DiffusionPrior` itself and transform "
                    f"its value in the model. {_faq.site_kind}"
                )
            return TransformReparam()
        return None

    return numpyro.handlers.reparam(model, config=config)
