"""The posterior of a NumPyro model with a site of tokens, sampled along the mask levels."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import diagnostics
from .._arguments import check_instance, whole_number, whole_numbers
from .._prng import check_key
from .._typing import Array, Position, PRNGKey
from ..ppl.draws import drawn, drawn_by_cloud, log_mean, pooled_log_weights, take
from ..smc import SMCResult, run_smc
from ..smc.moves import Move
from .chain import masked_chain
from .many_scales import many_scales
from .model_data import ModelData, model_data
from .prior import DiscreteDiffusionPrior

__all__ = ["TokenPosterior", "sample_posterior"]

_PRIOR_DRAWS = 512


class TokenPosterior(eqx.Module):
    """Weighted particles of a model with a site of tokens, and what follows from them.

    Attributes:
        result: The run, with an axis of clouds; continuous sites are unconstrained in it.
        prior: The prior of the tokens.
        data: The rest of the model.
        key: Of the draws.
    """

    result: SMCResult
    prior: DiscreteDiffusionPrior
    data: ModelData
    key: PRNGKey

    @property
    def log_evidence(self) -> float:
        r"""$\log p(y)$ in nats: log of the mean of the clouds' estimates.

        It holds the logarithm of the prior's mass where `evidence_is_normalized` is not true.
        """
        return log_mean(self.result.log_evidence) - (self.prior.log_normalizer or 0.0)

    @property
    def log_evidence_error(self) -> float:
        """Standard error of `log_evidence`."""
        return diagnostics.log_evidence_error(self.result)

    @property
    def evidence_is_normalized(self) -> bool:
        """Whether the mass of the prior is known: that of few tokens, and of any without an energy."""
        return self.prior.log_normalizer is not None

    @property
    def probabilities(self) -> Array:
        """Posterior probabilities of each token's values, shape `(num_tokens, num_values)`."""
        weights = jnp.exp(pooled_log_weights(self.result))
        return jnp.tensordot(weights, self._hot, 2)

    @property
    def probability_errors(self) -> Array:
        """Their standard errors, from the spread of the clouds, of which there must be two."""
        log_weights = pooled_log_weights(self.result)
        weights = jax.nn.softmax(log_weights, -1)
        each = jnp.einsum("cn,cniv->civ", weights, self._hot)
        shares = jnp.exp(jax.nn.logsumexp(log_weights, 1))[:, None, None]
        gaps = shares * (each - jnp.sum(shares * each, 0))
        count = len(each)
        return (
            jnp.sqrt(jnp.sum(gaps**2, 0) * count / (count - 1)) if count > 1 else jnp.nan * each[0]
        )

    @property
    def _hot(self) -> Array:
        return jax.nn.one_hot(self.result.positions["tokens"], self.prior.num_values)

    def get_samples(self) -> dict[str, Array]:
        """Equally weighted draws of all latent and deterministic sites, as many as there are particles."""
        return self._sites(drawn(self.key, self.result), 1)

    def get_weighted_samples(self) -> tuple[dict[str, Array], Array]:
        """All particles and their weights, which sum to 1: both lead with `(num_chains, num_particles)`."""
        return self._sites(self.result.positions, 2), jnp.exp(pooled_log_weights(self.result))

    def to_arviz(self) -> Any:
        """The draws of each cloud as chains of an ArviZ object, with the evidence among the attributes."""
        index = drawn_by_cloud(self.key, self.result)
        draws = self._sites(take(index, self.result.positions), 2)
        attributes = {
            "log_evidence": self.log_evidence,
            "log_evidence_error": self.log_evidence_error,
            "evidence_is_normalized": self.evidence_is_normalized,
            "target": self.result.target,
            "exact": self.result.exact,
        }
        return diagnostics.to_arviz({"posterior": draws}, self.result, None, attributes)

    def _sites(self, positions: Position, num_axes: int) -> dict[str, Array]:
        z = {n: v for n, v in positions.items() if n != "tokens"}
        return _values(self.data, {self.data.site: positions["tokens"], **z}, num_axes)


@eqx.filter_jit
def _values(data: ModelData, positions: Position, num_axes: int) -> dict[str, Array]:
    function = lambda z: data.values(data.data, z)
    for _ in range(num_axes):
        function = jax.vmap(function)
    return function(positions)


def sample_posterior(
    key: PRNGKey,
    model: Callable,
    *args: Any,
    num_particles: int = 1024,
    num_chains: int = 4,
    candidates: int = 4,
    completions: int = 16,
    tempering: int = 8,
    move: Move | None = None,
    num_moves: int = 8,
    progress_bar: bool = False,
    **kwargs: Any,
) -> TokenPosterior:
    r"""Sample a NumPyro model in which one site has a `DiscreteDiffusionPrior`, of any number of tokens.

    Sequential Monte Carlo along the mask levels. With all tokens masked the likelihood comes in by its
    power; then tokens are revealed, each drawn from the denoiser times what the data say of it, and the
    continuous sites are moved by MCMC at each level given what is revealed, with what is not summed out
    under the denoiser. Where each log density of the model depends on one token at most, which is found,
    that sum is exact; otherwise it is the mean over `completions` draws. Weights make up for both: exact as
    particles become many.

    Args:
        key: PRNG key.
        model: A NumPyro model. The other latent sites are continuous.
        *args: Arguments of the model.
        num_particles: Particles a cloud.
        num_chains: Independent clouds.
        candidates: As of `masked_chain`, like the next one.
        completions: Draws of the denoiser, where data see tokens together.
        tempering: Levels over which the likelihood comes in.
        move: MCMC move of the continuous sites, with a step size of 1 in unconstrained space. By default
            `many_scales` of the prior, random walks that need no tuning, good for a dozen coordinates.
        num_moves: How many of them at a level.
        progress_bar: Show progress.
        **kwargs: Keyword arguments of the model.

    Raises:
        ValueError: If the model does not fit, or a number is out of range.
        TypeError: If an argument is of another kind.
        FloatingPointError: If every particle has weight 0.
    """
    key_run, key_draw, key_prior = jax.random.split(check_key(key), 3)
    num_chains = whole_number("num_chains", num_chains, 1)
    num_particles = whole_number("num_particles", num_particles, 2)
    candidates, completions = whole_numbers(1, candidates=candidates, completions=completions)
    tempering, num_moves = whole_numbers(0, tempering=tempering, num_moves=num_moves)
    check_instance("move", move, Move, "nd.moves.elliptical_slice()")
    prior, data = model_data(model, args, kwargs)
    if move is None and data.others:
        move = many_scales(_scales(key_prior, prior, data))
    chain = masked_chain(
        prior.model, prior.energy, data, steps=prior.steps, candidates=candidates,
        completions=completions, tempering=tempering, move=move, num_moves=num_moves,
    )  # fmt: skip
    result = run_smc(
        key_run, chain, num_particles, num_chains=num_chains, progress_bar=progress_bar
    )
    return TokenPosterior(result, prior, data, key_draw)


def _scales(key: PRNGKey, prior: DiscreteDiffusionPrior, data: ModelData) -> Position:
    """Half of the middle 68 % of draws of the continuous sites from their prior."""
    model = prior.model

    def one(key):
        key_x, key_z = jax.random.split(key)
        return data.draw_others(model.draw_given(key_x, model.all_masked), key_z)

    draws = jax.jit(jax.vmap(one))(jax.random.split(key, _PRIOR_DRAWS))
    low, high = ({n: np.quantile(z, q, 0) for n, z in draws.items()} for q in (0.16, 0.84))
    scales = {n: np.where(high[n] > low[n], (high[n] - low[n]) / 2, 1.0) for n in draws}
    return {n: jnp.asarray(scale, draws[n].dtype) for n, scale in scales.items()}
