r"""Observed distributions of a model: parameters and Fisher information, read off the NumPyro trace.

Each distribution has a parameter $\eta$ that the model computes from its latent sites, and Fisher information
about it: the mean and one over the variance, for a Gaussian. Twists use both to know in which directions,
and how sharply, data speak. They guide proposals; weights use the distribution itself.
"""

from functools import singledispatch
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist

from .. import _faq
from .._typing import Array
from ..bridge import Observed

__all__ = ["observed_law", "observed_laws"]


@singledispatch
def observed_law(fn: Any, value: Array) -> tuple[Array, Array, Array]:
    r"""Information of one datum about the parameter $\eta$ of its distribution.

    For other distributions than NumPyro's own, register a function: `@observed_law.register(MyDistribution)`.

    Args:
        fn: The distribution of an observed site.
        value: The datum.

    Returns:
        $\eta$, of shape `batch_shape + event_shape`; the Fisher information about it, of the same shape,
        or symmetric matrices `batch_shape + event_shape + event_shape` for vectors; and how far the datum
        is from $\eta$: the score over the information. By default the mean, one over the variance, and
        the datum less the mean.

    Raises:
        NotImplementedError: If the distribution has no mean and variance and nothing is registered for it.
    """
    try:
        return fn.mean, 1 / fn.variance, value - fn.mean
    except (AttributeError, NotImplementedError) as error:
        raise NotImplementedError(
            f"{type(fn).__name__} has no mean and variance. Say what a datum tells about its parameter: "
            "`@numpyro_diffusion.ppl.observed_law.register(...)`, a function of the distribution "
            "and the datum that "
            "returns the parameter, the Fisher information about it, and the score over the "
            f"information. {_faq.operator}"
        ) from error


@observed_law.register(dist.Normal)
def _normal(fn, value):
    return fn.loc, fn.scale**-2.0, value - fn.loc


@observed_law.register(dist.MultivariateNormal)
def _multivariate_normal(fn, value):
    shape = fn.batch_shape + fn.event_shape
    precision = jnp.broadcast_to(fn.precision_matrix, (*shape, shape[-1]))
    return jnp.broadcast_to(fn.loc, shape), precision, value - fn.loc


@observed_law.register(dist.StudentT)
def _student(fn, value):
    gap, scale2 = value - fn.loc, fn.scale**2
    information = (fn.df + 1) / ((fn.df + 3) * scale2)
    return fn.loc, information, (fn.df + 3) * gap / (fn.df + gap**2 / scale2)


@observed_law.register(dist.Cauchy)
def _cauchy(fn, value):
    gap = value - fn.loc
    return fn.loc, 0.5 * fn.scale**-2.0, 4 * gap / (1 + (gap / fn.scale) ** 2)


@observed_law.register(dist.Laplace)
def _laplace(fn, value):
    return fn.loc, fn.scale**-2.0, fn.scale * jnp.sign(value - fn.loc)


@observed_law.register(dist.Logistic)
def _logistic(fn, value):
    gap = (value - fn.loc) / fn.scale
    return fn.loc, fn.scale**-2.0 / 3, 3 * fn.scale * jnp.tanh(0.5 * gap)


@observed_law.register(dist.LogNormal)
def _log_normal(fn, value):
    return fn.loc, fn.scale**-2.0, jnp.log(value) - fn.loc


@observed_law.register(dist.BernoulliLogits)
def _bernoulli(fn, value):
    information = fn.probs * (1 - fn.probs)
    return fn.logits, information, (value - fn.probs) / jnp.maximum(information, 1e-6)


@observed_law.register(dist.BinomialLogits)
def _binomial(fn, value):
    each = fn.probs * (1 - fn.probs)
    gap = value / fn.total_count - fn.probs
    return fn.logits, fn.total_count * each, gap / jnp.maximum(each, 1e-6)


@observed_law.register(dist.Poisson)
def _poisson(fn, value):
    # About a rate near 0 the information is infinite; about the root of any rate it is 4.
    root = jnp.sqrt(jnp.maximum(fn.rate, 1e-12))
    return root, jnp.full_like(root, 4.0), 0.5 * (value - fn.rate) / root


@observed_law.register(dist.ExpandedDistribution)
@observed_law.register(dist.Independent)
def _wrapped(fn, value):
    return observed_law(fn.base_dist, value)


@observed_law.register(dist.MaskedDistribution)
def _masked(fn, value):
    centre, information, residual = _whole(fn.base_dist, value)
    mask = lambda leaf: jnp.reshape(
        jnp.broadcast_to(fn._mask, fn.batch_shape),
        fn.batch_shape + (1,) * (leaf.ndim - len(fn.batch_shape)),
    )
    keep = lambda leaf: jnp.where(mask(leaf), leaf, 0.0)
    return centre, keep(information), keep(residual)


def _whole(fn: Any, value: Array) -> tuple[Array, Array, Array]:
    """The three parts, each of the full shape of the distribution."""
    centre, information, residual = (jnp.asarray(part) for part in observed_law(fn, value))
    shape = fn.batch_shape + fn.event_shape
    inner = fn
    while isinstance(inner, dist.ExpandedDistribution | dist.Independent | dist.MaskedDistribution):
        inner = inner.base_dist
    matrix = inner.event_shape if information.ndim > centre.ndim else ()
    whole = lambda leaf: jnp.broadcast_to(leaf, shape)
    return whole(centre), jnp.broadcast_to(information, shape + matrix), whole(residual)


def observed_laws(trace: dict[str, dict]) -> Observed:
    """Information of all observed sites of a trace; factors have no distribution and contribute none.

    Raises:
        ValueError: If a distribution is not known; the message names the site.
    """
    found = Observed({}, {}, {})
    for name, site in trace.items():
        if site["type"] != "sample" or not site["is_observed"]:
            continue
        if isinstance(site["fn"], dist.Unit):
            continue
        try:
            centre, information, residual = _whole(site["fn"], site["value"])
        except NotImplementedError as error:
            raise ValueError(
                f"observed site `{name}`: {_faq.bare(error)} {_faq.operator}"
            ) from error
        if site["scale"] is not None:
            information = information * site["scale"]
        parts = centre, information, residual
        for field, part in zip(found, parts, strict=True):
            field[name] = part
    return found
