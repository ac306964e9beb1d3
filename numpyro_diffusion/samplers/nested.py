r"""Nested sampling of the end of a bridge: an evidence that is independent of the particle samplers.

It knows the prior by exact draws and its density, and the data by the likelihood alone; noise levels play no
part. For models whose prior can be drawn exactly: diffusion sites with a closed form, or under
`NoiseReparam`, and any other sites.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.ns.from_mcmc import update_with_mcmc_take_last
from blackjax.ns.utils import finalise, log_weights
from jax.sharding import Mesh

from .. import _faq
from .._arguments import whole_number, whole_or_none
from .._familiar import familiar
from .._finite import NonFinite, non_finite
from .._prng import check_key, lean
from .._records import record, record_page
from .._typing import Array, Position, PRNGKey
from ..bridge import Bridge
from ..smc.spread import Spread, blocks_over

__all__ = ["NestedResult", "nested_sampling"]

REMAINDER = 1e-3  # share of the evidence that may be left with the live points


class NestedResult(NamedTuple):
    """Evidence and weighted draws.

    Attributes:
        log_evidence: In nats, of the distribution of the model under its prior as it is drawn.
        log_evidence_error: Standard error from the unknown volumes. It knows nothing of chains within
            contours that do not mix.
        positions: All points, live ones included, in unconstrained space; leading axis `(num,)`.
        log_weights: Of the points, shape `(num,)`; their exponentials sum to 1.
        num_evaluations: Of the likelihood.
    """

    log_evidence: float
    log_evidence_error: float
    positions: Position
    log_weights: Array
    num_evaluations: int

    __repr__ = record
    _repr_html_ = record_page


@familiar
def nested_sampling(
    key: PRNGKey,
    bridge: Bridge,
    *,
    num_live: int = 500,
    num_inner_steps: int | None = None,
    num_delete: int | None = None,
    devices: Sequence[Any] | Mesh | None = None,
) -> NestedResult:
    r"""Evidence and posterior of a model by nested slice sampling.

    $Z = \int_0^1 L(X)\, dX$ over the prior mass $X$ inside a contour of the likelihood. The worst points are
    replaced by the ends of chains of slice steps inside the contour that they leave, until the live points
    hold less than a thousandth of the evidence.

    Args:
        key: PRNG key.
        bridge: From `nd.from_model` or `nd.from_energy`.
        num_live: Live points. The error of the log evidence falls as one over its square root.
        num_inner_steps: Slice steps of a chain; by default ten times the number of coordinates. Too few are
            felt in several modes: with three times, evidences in 8 dimensions spread four times their error.
        num_delete: Points that are replaced at once; by default a tenth of the live ones, rounded up to a
            multiple of the number of devices.
        devices: Devices, or a mesh of them, over which the points that are replaced at once are shared out in
            equal blocks. With the same `num_delete` numbers are those of one device but for rounding.

    Raises:
        ValueError: If the prior cannot be drawn exactly, a number is out of range, or points cannot be shared
            out equally.
        FloatingPointError: If a log density is NaN or +inf at a point; the message names the site.

    Example:
        >>> in_noise = numpyro.handlers.reparam(model, config={"x": nd.NoiseReparam()})
        >>> bridge = nd.from_model(in_noise, y=y)
        >>> nd.nested_sampling(jax.random.key(0), bridge).log_evidence

    References:
        Skilling (2006), Nested sampling for general Bayesian computation, Bayesian Analysis. Yallup, Kroupa &
        Handley (2026), Nested Slice Sampling, arXiv 2601.23252, for the chains.
    """
    key = check_key(key)
    num_live = whole_number("num_live", num_live, 2)
    num_inner_steps = whole_or_none(
        "num_inner_steps", num_inner_steps, 1, "`None` takes ten a coordinate."
    )
    num_delete = whole_or_none(
        "num_delete", num_delete, 1, "`None` takes a tenth of the live points."
    )
    if bridge.diffusion_sites and not bridge.exact_prior:
        raise ValueError(
            "nested sampling starts from exact draws of the prior; got a learned prior at "
            f"{list(bridge.diffusion_sites)}. Use `numpyro.handlers.reparam(model, config={{site: "
            f"nd.NoiseReparam()}})`, or `nd.SMC`. {_faq.exact_draws}"
        )
    if num_delete is None:
        among = 1 if devices is None else blocks_over(devices, 0, "points").mesh.size  # type: ignore[union-attr]
        num_delete = -(-max(1, num_live // 10) // among) * among
    if not 1 <= num_delete < num_live:
        raise ValueError(
            "`num_delete` must be at least 1 and less than `num_live`; got "
            f"{num_delete} and {num_live}. {_faq.numbers}"
        )
    spread = blocks_over(devices, num_delete, "points that are replaced at once (`num_delete`)")
    key_draws, key_steps, key_weights = jax.random.split(lean(key), 3)
    draws = jax.jit(jax.vmap(bridge.sample_prior))(jax.random.split(key_draws, num_live))
    size = sum(leaf[0].size for leaf in jax.tree.leaves(draws))
    zero = jnp.zeros(())

    def rest(z):
        return bridge.rest(z, {name: z[name] for name in bridge.diffusion_sites})

    def log_prior(z):
        seen = bridge.see(z, zero).log_density if bridge.diffusion_sites else zero
        return seen + rest(z).log_prior

    algorithm = blackjax.nss(
        log_prior,
        lambda z: rest(z).log_likelihood,
        num_inner_steps=10 * size if num_inner_steps is None else num_inner_steps,
        num_delete=num_delete,
        update_strategy=functools.partial(_replaced, spread),
    )
    if spread is not None:
        draws = spread.everywhere(draws)
    sites = jax.jit(jax.vmap(lambda z: non_finite(rest(z).sites)))
    _refuse(sites(draws), "draws of the prior")
    state, step = jax.jit(algorithm.init)(draws), jax.jit(algorithm.step)
    dead, number = [], 0
    while _goes_on(state.integrator):
        state, info = step(jax.random.fold_in(key_steps, number), state)
        dead.append(jax.device_get(info))
        number += 1
    # A slice step looks at both ends of its bracket, at each end that it moves, and at what it proposes.
    slices = [info.update_info for info in dead]
    evaluations = num_live + sum(int(np.sum(s.num_expansions + s.num_shrink + 2)) for s in slices)
    points = finalise(state, dead, update_info=False)
    _refuse(sites(points.particles.position), "points")
    return _summary(key_weights, points, evaluations)


def _replaced(spread: Spread | None, step: Callable, num_steps: int, num_delete: int) -> Callable:
    """BlackJAX's replacement of points, each device with its own block of chains."""
    if spread is None:
        return update_with_mcmc_take_last(step, num_steps, num_delete)

    def replace(key, state, loglikelihood_0, **parameters):
        key_choice, key_chains = jax.random.split(key)
        alive = (state.particles.loglikelihood > loglikelihood_0).astype(jnp.float32)
        alive = jnp.where(alive.sum() > 0, alive, jnp.ones_like(alive))
        chosen = jax.random.choice(key_choice, len(alive), (num_delete,), p=alive / alive.sum())
        starts = spread.split(jax.tree.map(lambda leaf: leaf[chosen], state.particles))

        def chain(key, start):
            one = lambda state, key: step(key, state, loglikelihood_0=loglikelihood_0, **parameters)
            return jax.lax.scan(one, start, jax.random.split(key, num_steps))

        keys = spread.split(jax.random.split(key_chains, num_delete))
        new, infos = spread.whole(jax.vmap(chain)(keys, starts))
        birth = jnp.full_like(new.loglikelihood_birth, loglikelihood_0)
        return new._replace(loglikelihood_birth=birth), infos

    return replace


def _refuse(flags: NonFinite, what: str) -> None:
    """Name sites whose log density is NaN or +inf at some points."""
    for kind, each in (("NaN", flags.nan), ("+inf", flags.infinite)):
        for site, flag in each.items():
            wrong = np.asarray(flag)
            if wrong.any():
                raise FloatingPointError(
                    f"log density {kind} at site `{site}` for {wrong.sum()} of {wrong.size} {what}, the "
                    f"first is number {int(np.argmax(wrong))}. Points are ordered by their likelihood, which "
                    "such values have no place in: bound it, or give -inf where the density is "
                    f"0. {_faq.error_infinite}"
                )


def _goes_on(integrator: Any) -> bool:
    """Whether the live points hold too much of the evidence; not if that is not finite."""
    dead, live = float(integrator.logZ), float(integrator.logZ_live)
    if np.isnan(live) or live == np.inf:
        return False  # a point of infinite density was found on the way, and is named
    return live - np.logaddexp(dead, live) > np.log(REMAINDER)


def _summary(key: PRNGKey, points: Any, evaluations: int) -> NestedResult:
    """Evidence over several guesses of the volumes."""
    weights = log_weights(key, points, shape=200)
    evidences = jax.nn.logsumexp(weights, 0)
    mean = jax.nn.logsumexp(weights, 1) - jax.nn.logsumexp(weights)
    return NestedResult(
        float(jnp.mean(evidences)),
        float(jnp.std(evidences)),
        points.particles.position,
        mean,
        evaluations,
    )
