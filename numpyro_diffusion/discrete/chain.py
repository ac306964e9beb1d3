r"""The denoising chain of a masked diffusion as a Feynman-Kac model, with energy and data as weights.

A particle is an example of which some tokens are masked, the order in which they are revealed, and other
unknowns. A step reveals tokens of a candidate. Weights make up for the choice, so that what is weighed is
exact for any number of candidates.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _faq
from .._arguments import check_instance, whole_numbers, whole_or_none
from .._typing import Position, PRNGKey, Scalar
from ..smc import FeynmanKac, log_mean_exp
from ..smc.claims import Claims
from ..smc.moves import Move
from ..smc.preconditioner import Preconditioner
from .data import AbstractTokenData, TokenTable
from .energies import AutoregressiveEnergy, ResidualEnergy, check_energy_function
from .masked import MaskedDiffusion, chosen, reveals
from .particle import TokenInfo, TokenLevel, TokenParticle
from .sample import check_window, within

__all__ = ["masked_chain"]


class _Chain(eqx.Module):
    model: MaskedDiffusion
    energy: ResidualEnergy | None
    joint: AutoregressiveEnergy | None
    data: AbstractTokenData
    candidates: int = eqx.field(static=True)
    completions: int = eqx.field(static=True)
    num_moves: int = eqx.field(static=True)
    move: Move | None
    first_power: float = eqx.field(static=True)

    def init(self, key: PRNGKey):
        """All tokens masked; other unknowns from their prior, given a draw of the denoiser."""
        key_rank, key_x, key_z, key_new = jax.random.split(key, 4)
        rank = jax.random.permutation(key_rank, self.model.num_tokens)
        x = self.model.all_masked
        log_probs = self.model.log_probs(x)
        drawn = jax.random.categorical(key_x, log_probs, axis=-1)
        z = self.data.draw_others(drawn, key_z)
        power = jnp.asarray(self.first_power, log_probs.dtype)
        particle = self.arrived(key_new, x, rank, z, log_probs, power)
        log_prior, _ = self.data.log_prior_and_likelihood(z, drawn)
        info = TokenInfo.of(particle, jnp.zeros_like(particle.log_twist))
        return particle, particle.log_twist - log_prior, info

    def step(self, key: PRNGKey, particle: TokenParticle, level: TokenLevel):
        """Move the other unknowns, choose a candidate, reveal some of its tokens, and weigh."""
        key_move, key_draw, key_choice, key_new = jax.random.split(key, 4)
        particle = self.moved(key_move, particle, level.power)
        x, rank, log_probs = particle.x, particle.rank, particle.log_probs
        block = (rank >= level.revealed) & (rank < level.next_revealed)
        table = self.data.tables(particle.z, level.next_power)[1]
        tilted = log_probs + table
        shape = (self.candidates if self.energy is not None else 1, len(x))
        logits = jnp.where(block[:, None], tilted, log_probs)
        draws = jax.random.categorical(key_draw, logits, shape=shape)
        log_weights = jnp.zeros(len(draws), log_probs.dtype)
        if self.energy is not None:
            energies = jax.vmap(lambda draw: self.energy(draw, x))(draws)  # type: ignore
            log_weights = jnp.where(level.uses_energy, -energies, 0.0)
        best = draws[jax.random.categorical(key_choice, log_weights)]
        new = jnp.where(block, best, x)
        log_normalizer = log_mean_exp(log_weights)
        # The draw was from the denoiser times the table: its log density over the denoiser's.
        excess = chosen(table + jnp.zeros_like(tilted), best) - jax.nn.logsumexp(tilted, -1)
        log_ratio = log_normalizer - jnp.sum(jnp.where(block, excess, 0.0))
        if self.joint is not None:  # the denoiser only proposes
            log_ratio = log_ratio - jnp.sum(jnp.where(block, chosen(log_probs, best), 0.0))
        arrived = self.arrived(
            key_new, new, rank, particle.z, self.model.log_probs(new), level.next_power
        )
        log_weight = log_ratio + arrived.log_twist - particle.log_twist
        dead = particle.log_twist == -jnp.inf  # stays so
        log_weight = jnp.where(dead, -jnp.inf, log_weight)
        return arrived, log_weight, TokenInfo.of(arrived, log_normalizer)

    def arrived(self, key, x, rank, z, log_probs, power) -> TokenParticle:
        """The particle at a place, with completions drawn and its twist computed."""
        shape = (self.completions if self.completing else 0, *log_probs.shape)
        noise = jax.random.gumbel(key, shape, log_probs.dtype)
        particle = TokenParticle(x, rank, z, log_probs, noise, jnp.zeros((), log_probs.dtype))
        return particle._replace(log_twist=self.log_twist(particle, z, power))

    @property
    def completing(self) -> bool:
        return self.joint is not None or not self.data.by_token

    def log_twist(self, particle: TokenParticle, z: Position, power: Scalar) -> Scalar:
        """What stands for density and data while tokens are masked; itself when none is."""
        base, table = self.data.tables(z, power)
        tilted = particle.log_probs + table
        log_sums = jax.nn.logsumexp(tilted, -1)
        if not self.completing:
            return base + jnp.sum(log_sums)

        def one(noise):
            x = jnp.argmax(tilted + noise, -1)  # a draw of the denoiser times the table
            value = base + jnp.sum(log_sums)
            if not self.data.by_token:  # there is no table
                log_prior, log_likelihood = self.data.log_prior_and_likelihood(z, x)
                value = value + log_prior + power * log_likelihood
            if self.joint is not None:
                log_denoiser = jnp.sum(chosen(particle.log_probs, x))
                value = value + self.joint.log_density(x) - log_denoiser
            return value

        return log_mean_exp(jax.vmap(one)(particle.noise))

    def moved(self, key: PRNGKey, particle: TokenParticle, power: Scalar) -> TokenParticle:
        """Moves of the other unknowns, which leave the level's distribution as it is."""
        if self.move is None or not particle.z or not self.num_moves:
            return particle
        move, density = self.move, lambda z: self.log_twist(particle, z, power)
        preconditioner = Preconditioner(jax.tree.map(jnp.ones_like, particle.z))
        state = move.init(particle.z, density, preconditioner)
        body = lambda state, key: (move.step(key, state, density, 1.0, preconditioner)[0], None)
        state, _ = jax.lax.scan(body, state, jax.random.split(key, self.num_moves))
        z = preconditioner.to_model(state.position)
        return particle._replace(z=z, log_twist=density(z))

    def position(self, particle: TokenParticle) -> Position:
        """Tokens and other unknowns."""
        return {"tokens": particle.x, **particle.z}


def masked_chain(
    model: MaskedDiffusion,
    energy: ResidualEnergy | None = None,
    data: AbstractTokenData | None = None,
    *,
    steps: int | None = None,
    candidates: int = 4,
    completions: int = 8,
    window: tuple[float, float] = (0.0, 1.0),
    tempering: int = 0,
    move: Move | None = None,
    num_moves: int = 4,
) -> FeynmanKac:
    r"""The denoising chain of a masked diffusion, weighed by an energy and by data, for `run_smc`.

    Its target is the chain in which each step draws $x_0$ from $p_\theta(x_0 \mid x_t)\, e^{-E(x_0, x_t)}$
    and reveals some of its tokens, times the likelihood of the example in the end. The evidence is its
    total mass. The steps' kernels are not normalised by $Z(x_t)$, which noise-contrastive estimation makes
    1: without data the log evidence says by how much that fails (see `log_mass`). With an
    `AutoregressiveEnergy` the target is $p_{AR}$ itself times the likelihood, and the masked diffusion only
    proposes.

    While tokens are masked, data stand in by what they say of the denoiser's $x_0$: in full where they see
    each token by itself (`TokenTable`), and otherwise in the mean over `completions` draws of the denoiser.

    Args:
        model: The masked diffusion.
        energy: The residual energy; none by default.
        data: The likelihood, `TokenTable(table)` or `TokenLikelihood(function)`; none by default.
        steps: Steps from all masked to none, no more than tokens; one a token by default.
        candidates: Draws a step among which the energy chooses. More make weights more even.
        completions: Draws for the mean over the denoiser; more make weights more even.
        window: The energy is used while the share of masked tokens lies within; 1 is the first step.
        tempering: Levels before the first step over which the likelihood comes in, by its power.
        move: MCMC move of the other unknowns that `data` may have.
        num_moves: How many of them before each step, and at the end.

    Raises:
        ValueError: If a number is out of range.
        TypeError: If an argument is of another kind.

    References:
        Xu et al. (2025), arXiv 2410.21357, for the energy. Wu, Trippe, Naesseth, Blei & Cunningham (2023),
        Practical and asymptotically exact conditional sampling in diffusion models, NeurIPS, for twists
        along a diffusion.
    """
    candidates, completions = whole_numbers(1, candidates=candidates, completions=completions)
    tempering, num_moves = whole_numbers(0, tempering=tempering, num_moves=num_moves)
    steps = whole_or_none("steps", steps, 1)
    check_instance("model", model, MaskedDiffusion, "MaskedDiffusion(...)", optional=False)
    check_energy_function(energy)
    check_instance("data", data, AbstractTokenData, "TokenTable(table)")
    check_instance("move", move, Move, "nd.moves.elliptical_slice()")
    shape = (model.num_tokens, model.num_values)
    data = TokenTable(jnp.zeros(shape)) if data is None else data
    if isinstance(data, TokenTable) and data.table.shape != shape:
        raise ValueError(
            f"`table` must have shape {shape}, a row a token; got {data.table.shape}. {_faq.shapes}"
        )
    joint = energy if isinstance(energy, AutoregressiveEnergy) else None
    chain = _Chain(
        model, None if joint else energy, joint, data, candidates, completions, num_moves, move,
        0.0 if tempering else 1.0,
    )  # fmt: skip
    levels = _levels(model, reveals(model.num_tokens, steps), check_window(window), tempering)
    prior = "the masked diffusion" if energy is None else "the chain of kernels p exp(-E)"
    prior = "the density that the energy was given" if joint else prior
    evidence = (
        "the mean of the likelihood under " if energy is None else "the mass of likelihood times "
    )
    claims = Claims(f"{prior}, times the likelihood", evidence + prior, normalized=energy is None)
    return FeynmanKac(chain.init, chain.step, levels, chain.position, claims)


def _levels(model, ends: np.ndarray, window, tempering: int) -> TokenLevel:
    """Powers first, then reveals, and a last level for moves alone."""
    powers = np.linspace(0.0, 1.0, tempering + 1) if tempering else np.ones(1)
    revealed = np.concatenate([np.zeros(tempering, np.int32), ends, ends[-1:]])
    power = np.concatenate([powers, np.ones(len(ends))])
    uses = within(revealed[:-1], model.num_tokens, window) & (revealed[:-1] < revealed[1:])
    return TokenLevel(
        revealed[:-1], revealed[1:], power[:-1].astype(float), power[1:].astype(float), uses
    )
