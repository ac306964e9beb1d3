"""Models rewritten: transforms of diffusion sites, and latent choices as quantiles of uniform variables."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.infer.reparam import Reparam, TransformReparam

from .. import _faq
from .sites import is_discrete, is_prior, site_shape, unwrapped
from .tracing import Watched

__all__ = ["ChoiceReparam", "choice_values", "is_choice", "taken_apart"]


def is_choice(site: dict) -> bool:
    """Whether it is one latent choice among finitely many values, outside of plates."""
    fn = site["fn"]
    latent = site["value"] is None and not site["is_observed"]
    if not (latent and isinstance(fn, dist.Distribution) and fn.is_discrete):
        return False
    return fn.has_enumerate_support and site_shape(site) == () and site["scale"] is None


class ChoiceReparam(Reparam):
    r"""Replaces a latent choice `c` by a uniform variable `c_base`, of which it is the quantile.

    $c$ is the first of the values whose probabilities add up to more than $u \sim \mathcal{U}(0, 1)$, so that
    its distribution is the same. Moves that ask for a gradient meet steps, which their acceptance pays for.
    """

    def __call__(self, name, fn, obs):
        assert obs is None
        with jax.ensure_compile_time_eval():  # parameters do not change them
            values = fn.enumerate_support(expand=False)
        ends = jnp.cumsum(jnp.exp(fn.log_prob(values)))[:-1]
        base = numpyro.sample(f"{name}_base", dist.Uniform(0.0, 1.0), infer={"choice": values})
        return None, values[jnp.sum(base > ends)]


def choice_values(trace: dict[str, dict], name: str) -> np.ndarray:
    """The values of a latent choice, of a model as `look` sees it.

    Raises:
        ValueError: If there is none of that name.
    """
    found = {n: s["support"] for n, s in trace.items() if is_discrete(s) and site_shape(s) == ()}
    if name not in found:
        raise ValueError(
            f"expected a latent site with finitely many values, outside of plates; got {name!r}, and there "
            f"are {sorted(found)}. {_faq.discrete_site}"
        )
    return np.asarray(found[name])


def taken_apart(model: Callable, chosen: tuple[str, ...] = (), drawn: bool = True) -> Callable:
    """The model in which `x = f(diffusion)` is a diffusion site `x_base` and its transform `x`.

    A latent choice `c` among finitely many values, on which an energy depends, is likewise one of a uniform
    `c_base`.

    Args:
        model: The model.
        chosen: Names of such choices.
        drawn: Whether it is run to draw from it; if not, it is refused if it draws without a site.
    """

    def config(site):
        fn = unwrapped(site["fn"])
        if site["name"] in chosen and is_choice(site):
            return ChoiceReparam()
        transformed = isinstance(fn, dist.TransformedDistribution)
        if site["value"] is None and transformed and is_prior(fn.base_dist):
            return TransformReparam()
        return None

    return handlers.reparam(Watched(model, drawn), config=config)
