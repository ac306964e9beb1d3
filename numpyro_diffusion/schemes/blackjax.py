r"""`BlackJAXTempered`: BlackJAX's tempered SMC as a scheme.

BlackJAX moves a cloud at a power of the likelihood, weighs it with the likelihood to the power that is still
missing, and resamples. Each of these is a statement about one particle but for two: the next power, which its
adaptive driver chooses from the weights of the cloud, and the resampling. Here the driver runs once, on a
pilot cloud, and its powers are frozen; the engine resamples.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .. import _faq
from .._arguments import whole_number
from .._prng import key_or_zero, lean
from .._progress import progress
from .._typing import Array, Position, PRNGKey
from ..bridge import Bridge
from ..smc import Claims, FeynmanKac
from ..smc.moves import hmc
from ..smc.tempering import adaptive_step, started
from ..twists import AbstractTwist, Identity
from .base import AbstractScheme
from .particle import finite
from .pilot import PilotError
from .powers import PowerChain, PowerLevel, PowerParticle
from .settings import Moves, Pilot

__all__ = ["BlackJAXTempered"]


INNER = Moves(hmc(4), 5)
DRIVER = Pilot(512, 0.5, 200)


def _inner(given: Any) -> Moves:
    """The joint move and its number; the rest of the settings would mean nothing here."""
    moves = INNER.but(given)
    idle = [n for n in ("other", "num_other", "rank") if getattr(moves, n) is not None]
    if idle or moves.num == "pilot":
        raise ValueError(
            "`BlackJAXTempered` has one inner kernel, for all sites, and a number of moves that is given: "
            f"`nd.schemes.Moves(joint=..., num=...)`; got {', '.join(idle) or 'num=pilot'} too. For moves by "
            f"site give `nd.moves.sequence(nd.moves.on_sites(...), ...)`. {_faq.moves}"
        )
    return moves


class BlackJAXTempered(AbstractScheme):
    r"""BlackJAX's adaptive tempered SMC, with an evidence, a summary and ArviZ.

    From exact draws of the prior through $p(z)\, p(y \mid z)^\beta$ to the posterior. A pilot cloud runs
    `blackjax.adaptive_tempered_smc` itself: each $\beta$ keeps at least about `conditional_ess` of the
    particles (it is chosen before they are resampled and moved), the mass of the inner kernel is the inverse
    variance of the particles, and its step size follows the acceptance rate. Powers, masses and step sizes
    are then frozen, which makes the evidence unbiased where the adaptive driver's has a bias. A last level
    moves the particles at the posterior.

    Noise levels play no part, as in `LikelihoodTempered`, which also makes a cloud of a learned prior.

    Attributes:
        moves: The inner kernel, any move such as `nd.moves.from_blackjax(...)`, and how often it is run; a
            move alone, a number alone, or `nd.schemes.Moves(joint, num)`.
        levels: `None` for the pilot's choice, or the frozen levels of an earlier run.
        pilot: The cloud that BlackJAX's driver runs on. Its `conditional_ess` is the driver's `target_ess`.

    References:
        Del Moral, Doucet & Jasra (2006), Sequential Monte Carlo samplers, JRSS B. Cabezas et al. (2024),
        BlackJAX, arXiv 2402.10797.
    """

    moves: Moves = eqx.field(default=INNER, converter=_inner)
    levels: PowerLevel | None = None
    pilot: Pilot = eqx.field(default=DRIVER, converter=DRIVER.but)

    twist: ClassVar[AbstractTwist] = Identity()

    def __check_init__(self):
        whole_number("num` of `moves", self.moves.num, 1)
        if self.levels is None:
            return
        if not isinstance(self.levels, PowerLevel):
            raise TypeError(
                "`levels` of `BlackJAXTempered` are those of an earlier run of its own, in `result.levels`, "
                f"or `None`; got {type(self.levels).__name__}. {_faq.levels}"
            )
        power, after = np.asarray(self.levels.power), np.asarray(self.levels.next_power)
        if (
            power[0] != 0
            or after[-1] != 1
            or np.any(power[1:] != after[:-1])
            or np.any(after < power)
        ):
            raise ValueError(
                "the powers of the likelihood must rise without gaps from 0, where particles come from the "
                f"prior, to 1; got {power} -> {after}. {_faq.levels}"
            )

    def __call__(
        self, bridge: Bridge, key: PRNGKey | None = None, *, progress_bar: bool = False
    ) -> FeynmanKac:
        """Choose the powers with a pilot cloud unless they are frozen, and return the Feynman-Kac model.

        Args:
            bridge: The densities.
            key: PRNG key of the pilot; a fixed one if left out.
            progress_bar: Show the pilot's progress.

        Raises:
            ValueError: If the prior can't be drawn exactly, frozen levels do not fit, or the bridge starts
                from a proposal.
            PilotError: If there are too many powers, or every particle of the pilot is impossible.
        """
        if bridge.proposal is not None:
            raise ValueError(
                "`BlackJAXTempered` starts from draws of the prior, and the bridge from a proposal. Use "
                f"`nd.schemes.DataTempered()`, or a bridge without a proposal. {_faq.exact_draws}"
            )
        if bridge.diffusion_sites and not bridge.exact_prior:
            raise ValueError(
                "`BlackJAXTempered` starts from exact draws of the prior; got a learned prior at "
                f"{list(bridge.diffusion_sites)}. Use `nd.LikelihoodTempered()`, which brings a cloud down "
                "from noise, or `numpyro.handlers.reparam(model, "
                f"config={{site: nd.NoiseReparam()}})`. {_faq.exact_draws}"
            )
        chain = PowerChain(bridge, self.moves.joint, self.moves.num)  # type: ignore[arg-type]
        shapes = jax.eval_shape(bridge.sample_prior, jax.random.key(0))
        size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        levels = self.levels
        if levels is None:
            key = key_or_zero(key)
            levels = self._tuned(key, chain, size, progress_bar)
        elif np.shape(levels.scale)[1] != size:
            raise ValueError(
                f"the frozen levels hold scales of {np.shape(levels.scale)[1]} coordinates, but a position "
                f"of this model has {size}. Levels are for one model: let a pilot choose new "
                f"ones. {_faq.levels}"
            )
        return FeynmanKac(
            chain.init,
            chain.step,
            levels,
            _position,
            Claims(bridge.target, "p(y) under the prior as it is drawn", normalized=True),
            rejuvenate=chain.rejuvenate,
            advance=chain.advance,
        )

    def _tuned(
        self, key: PRNGKey, chain: "PowerChain", size: int, progress_bar: bool
    ) -> PowerLevel:
        key_draws, key = jax.random.split(lean(key))
        bar = progress(
            total=100, enabled=progress_bar, desc="pilot",
            compiles="model and moves (once for a model)",
        )  # fmt: skip
        with bar:
            state, scale = _start(chain, key_draws, self.pilot.num_particles)
            log_step = jnp.full(
                np.shape(self.moves.joint.targets), np.log(0.5 * size ** (-1 / 3)), scale.dtype
            )
            rows: list[Any] = []
            while True:
                now = jax.random.fold_in(key, len(rows))
                state, row, log_step, scale = _advance(
                    chain, now, state, log_step, scale, np.asarray(self.pilot.conditional_ess)
                )
                rows.append(jax.tree.map(np.asarray, row))
                power = float(row.next_power)
                if not np.isfinite(np.asarray(state.weights)).all():
                    raise PilotError(
                        f"every pilot particle has weight 0 at power {float(row.power):.3g} of the "
                        "likelihood. Look at the likelihood at draws from the prior: is it finite "
                        f"there? {_faq.pilot_weights}"
                    )
                bar.update(round(100 * power) - bar.n)
                if float(row.power) >= 1:
                    break
                if len(rows) > self.pilot.max_levels:
                    raise PilotError(
                        f"{self.pilot.max_levels} levels did not suffice: the pilot stands at power "
                        f"{power:.3g} of the likelihood. Raise `max_levels` of `pilot`, lower its "
                        "`conditional_ess`, or use `nd.Annealed()`, which comes through noise "
                        f"levels. {_faq.pilot_levels}"
                    )
        return jax.tree.map(lambda *leaves: jax.device_put(np.stack(leaves)), *rows)

    def evaluations_per_level(self, bridge, levels=None, chain_length=None):
        """Of the moves, and one where a chain begins; `None` where those of the move are not known."""
        del levels
        if not bridge.diffusion_sites:
            return 0
        if self.moves.joint.evaluations is None:
            return None
        moves = 1 + int(self.moves.num) * self.moves.joint.evaluations
        return moves if chain_length is None else moves * (1 - 1 / chain_length)


def _position(particle: PowerParticle) -> Position:
    return particle.position


def _spread(particles: Position) -> Array:
    """Standard deviation of each coordinate of the flattened positions, floored against duplicates."""
    rows = jax.vmap(lambda z: ravel_pytree(z)[0])(particles)
    variance = jnp.var(rows, 0)
    return jnp.sqrt(variance + 1e-3 * jnp.mean(variance) + 1e-12)


@eqx.filter_jit
def _start(chain: PowerChain, key: PRNGKey, number: int):
    particles = jax.vmap(chain.bridge.sample_prior)(jax.random.split(key, number))
    return started(particles), _spread(particles)


@eqx.filter_jit
def _advance(chain: PowerChain, key, state, log_step, scale, target_ess):
    """A step of BlackJAX's driver, the level that it was, and what the next one begins with."""
    power = state.tempering_param
    likelihood = lambda z: finite(chain.log_likelihood(z))
    prior = lambda z: finite(chain.log_prior(z))
    parameters = {"step_size": jnp.exp(log_step), "scale": scale}
    state, accepted = adaptive_step(
        key,
        state,
        prior,
        likelihood,
        chain.move,
        parameters,
        num_steps=chain.num_moves,
        target_ess=target_ess,
    )
    row = PowerLevel(power, state.tempering_param, *parameters.values())
    log_step = log_step + jnp.reshape(accepted, log_step.shape) - chain.move.targets
    return state, row, log_step, _spread(state.particles)
