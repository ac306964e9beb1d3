r"""`at_level`: a level of a bridge as the potential that NumPyro's kernels run on."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from .. import _faq
from .._arguments import check_instance, whole_or_none
from .._typing import Array, Position, PRNGKey, Scalar
from .base import Bridge
from .combined import log_density
from .forms import PathBridge

__all__ = ["Potential", "at_level"]


class Potential(NamedTuple):
    r"""A level of a bridge, as functions of ONE position: unconstrained sites by name.

    Attributes:
        potential_fn: `z -> ()`: $-\log \gamma_{c, \beta}(z)$ in nats.
        init_params: `(key, num_chains=None) -> z`: where chains may start; with a number, that many along a
            leading axis. From the Gaussian approximation of the level, the other sites from their prior:
            near the distribution at clock 1, rough below.
        postprocess_fn: `z -> values` of all latent and deterministic sites. Diffusion sites keep the noised
            variable $u = x_t / \alpha_t$ that was sampled; all else is what the model makes of $\hat x(u)$,
            which it sees in its place. At clock 0 the two are the same.
    """

    potential_fn: Callable[[Position], Scalar]
    init_params: Callable[..., Position]
    postprocess_fn: Callable[[Position], dict[str, Array]]


def at_level(bridge: Bridge, clock: Any = 0.0, power: Any = 1.0) -> Potential:
    r"""The distribution $\gamma_{c, \beta}$ of a bridge for samplers that take a potential.

    NumPyro's `HMC`, `NUTS`, `BarkerMH`, `SA` and its ensemble samplers run on the whole noised model, at any
    noise level: at clock 0 and power 1 on the user's posterior, at clock 0 and power 0 on the prior, and
    above on the distributions that a sampler of particles goes through, to see how they mix.

    Args:
        bridge: From `nd.from_model` or `nd.from_energy`.
        clock: Noise level, from 1 (noise) to 0 (the model). May be traced.
        power: Exponent of the likelihood, at least 0. May be traced.

    Raises:
        ValueError: If the bridge is in path space, which has no density; or a number is out of range.

    Example:
        >>> level = nd.bridge.at_level(nd.from_model(model, y=y), clock=0.4)
        >>> mcmc = MCMC(
        ...     NUTS(potential_fn=level.potential_fn), num_warmup=500, num_samples=1000, num_chains=4,
        ...     postprocess_fn=level.postprocess_fn, chain_method="vectorized",
        ... )
        >>> mcmc.run(jax.random.key(0), init_params=level.init_params(jax.random.key(1), 4))
    """
    check_instance("bridge", bridge, Bridge, "nd.from_model(model, y=y)", optional=False)
    if isinstance(bridge, PathBridge):
        raise ValueError(
            "a level has a potential where the prior has a density; got a bridge in path space, whose prior "
            "is known by the steps of a sampler alone. Make a `nd.bridge.DensityBridge`, of an "
            f"energy. {_faq.bridge_type}"
        )
    _check("clock", clock, 1.0, "1 is noise, 0 the model")
    _check("power", power, math.inf, "1 is the likelihood itself")
    c, beta = (jnp.asarray(value, jnp.result_type(float)) for value in (clock, power))

    def potential_fn(z):
        return -log_density(bridge, z, c, beta)[0]

    def start(key):
        z = bridge.sample_base(key)
        return bridge.carry(z, jnp.ones_like(c), c)[0]

    def init_params(key: PRNGKey, num_chains: int | None = None):
        number = whole_or_none(
            "num_chains", num_chains, 1, "`None` for one position without a leading axis."
        )
        if number is None:
            return start(key)
        return jax.vmap(start)(jax.random.split(key, number))

    def postprocess_fn(z):
        if not bridge.diffusion_sites:
            return bridge.constrain(z)
        values = bridge.constrain({**z, **bridge.see(z, c).x_hat})
        return {**values, **{name: z[name] for name in bridge.diffusion_sites}}

    return Potential(potential_fn, init_params, postprocess_fn)


def _check(name: str, value: Any, largest: float, meaning: str) -> None:
    if isinstance(value, Tracer):
        return
    usable = not isinstance(value, str | bool | None) and not jnp.ndim(value)
    if not usable or not 0 <= float(value) <= largest or math.isinf(float(value)):  # type: ignore
        end = f"at most {largest:g}" if math.isfinite(largest) else "finite"
        raise ValueError(
            f"`{name}` is one number, at least 0 and {end} ({meaning}); got {value}. {_faq.numbers}"
        )
