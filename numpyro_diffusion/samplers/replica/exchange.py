r"""Replica exchange: chains at all noise levels at once, with swaps of neighbours.

Where SMC takes a cloud from noise to data once, here one chain stands at each level, and neighbours propose
to swap what they hold, carried from level to level. A state that comes down from the noise has crossed every
level in equilibrium, so separate modes are visited with their weights, and more time makes the answer better
where a cloud would need more memory.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ... import _faq
from ..._arguments import positive, whole_number, whole_numbers, whole_or_none
from ..._familiar import familiar
from ..._prng import check_key, lean
from ..._progress import progress
from ..._staging import fingerprint
from ..._typing import PRNGKey
from ...bridge import Bridge, PathBridge
from ...schemes import Annealed, Carry, TunedScheme
from ...schemes.checks import check_tuned
from ...schemes.kept import KeptPilots
from ...smc.interrupt import Deferred, Terminable
from ...smc.spread import chains_over
from ..kept import KeptChains, template_of_rows
from .ladder import Ladder, advance, rungs, walk
from .result import ReplicaResult, make_result

__all__ = ["replica_exchange"]

_WALKERS = 64  # that measure how far the levels are apart


@familiar
def replica_exchange(
    key: PRNGKey,
    bridge: Bridge,
    scheme: TunedScheme | None = None,
    *,
    num_draws: int = 1000,
    num_burn_in: int = 200,
    num_chains: int = 4,
    num_replicas: int | None = None,
    thinning: int = 1,
    devices: Sequence[Any] | Mesh | None = None,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: float = 60.0,
    progress_bar: bool = False,
) -> ReplicaResult:
    r"""Draws of a bridge's end by replica exchange (parallel tempering) along its noise levels.

    At every sweep each replica makes the scheme's moves at its own level, and then every other pair of
    neighbours $(z_k, z_{k+1})$ proposes $(T^{-1} z_{k+1},\ T z_k)$ with $T$ the linear map that carries a
    position from level $k$ to level $k + 1$. This is an involution with Jacobian 1 and is accepted with
    probability $\min(1, e^a)$,

    $$a = \log \gamma_k(T^{-1} z_{k+1}) + \log \gamma_{k+1}(T z_k) - \log \gamma_k(z_k)
    - \log \gamma_{k+1}(z_{k+1}),$$

    in which the unknown constant of each level cancels. Even and odd pairs take turns, so that states travel
    instead of wandering. Beyond the noisiest level the distribution that particles start from is a replica
    too, drawn afresh at every sweep. The acceptances also tell the ratios of the normalisers (`bennett`),
    whose sum is the log evidence.

    Args:
        key: PRNG key.
        bridge: From `nd.from_energy` or `nd.from_model`.
        scheme: Where levels, step sizes and moves come from; `Annealed()` by default. Its transport and
            weights play no part.
        num_draws: Draws of each ladder that are kept.
        num_burn_in: Draws before them that are not.
        num_chains: Independent ladders.
        num_replicas: Levels that hold a replica, chosen evenly among those of the scheme; by default as many
            that about half of the swaps are accepted.
        thinning: Sweeps from one draw to the next.
        devices: Devices over which the ladders are shared out, a multiple of their number.
        checkpoint: A file to which the ladders are written as they go, the pilot's levels to `.pilot` beside
            it, and from which the same call goes on to the same bits if the process was killed.
        checkpoint_every: Seconds between two writings.
        progress_bar: Show the pilot's progress and that of the draws.

    Returns:
        Draws by ladder, the log evidence, and how well states travelled.

    Raises:
        ValueError: If the bridge is in path space, the scheme makes no moves, a number is out of range, or
            the checkpoint is of another run.
        RuntimeError: If another run writes to the checkpoint.
        TypeError: If the scheme has no moves to be taken out, as one with no more than a call.
        PilotError: If the model is too hard for the scheme's pilot.
        FloatingPointError: If a log density was +inf; what was computed is its `result`. A warning tells of
            NaN.
        KeyboardInterrupt: Once the draws at hand are done, and are in the checkpoint; its attribute `result`
            holds those so far, or `None` during the burn-in.

    Example:
        >>> bridge = nd.from_energy(digits + leaning)
        >>> found = nd.replica_exchange(jax.random.key(0), bridge)
        >>> found.positions["x"].shape  # (num_chains, num_draws, *shape)

    References:
        Okabe, Kawata, Okamoto & Mikami (2001), Replica-exchange Monte Carlo method for the
        isobaric-isothermal ensemble, Chemical Physics Letters. Syed, Bouchard-Côté, Deligiannidis & Doucet
        (2022), Non-reversible parallel tempering, JRSS B, for turns and the distribution beyond. He et al.
        (2025), CREPE, for diffusion paths.
    """
    key = check_key(key)
    check_tuned("replica_exchange", scheme)
    num_burn_in = whole_number("num_burn_in", num_burn_in, 0)
    num_chains, thinning = whole_numbers(1, num_chains=num_chains, thinning=thinning)
    num_draws = whole_number("num_draws", num_draws, 2)
    remedy = "They hold the noisy end and the target; `None` chooses."
    num_replicas = whole_or_none("num_replicas", num_replicas, 2, remedy)
    scheme = Annealed() if scheme is None else scheme
    if isinstance(bridge, PathBridge):
        raise ValueError(
            "replica exchange compares densities at every level, and a bridge in path space has none. Make "
            f"a `DensityBridge`, from an energy. {_faq.bridge_type}"
        )
    key_pilot, key_walk, key_run = jax.random.split(lean(key), 3)
    with KeptPilots(checkpoint, positive("checkpoint_every", checkpoint_every)):
        model = scheme(bridge, key_pilot, progress_bar=progress_bar)
    kernels = scheme.kernels(bridge)
    if not kernels.has_joint_moves:
        raise ValueError(
            f"replica exchange needs moves within the levels, and `{type(scheme).__name__}` has "
            f"none. Use `nd.Annealed()`, or `moves=1`. {_faq.moves}"
        )
    kernels = dataclasses.replace(kernels, transport=Carry())
    fine = model.levels
    if float(fine.clock[-1]) != 0 or float(fine.power[-1]) != 1:
        raise ValueError(
            "a replica stands where the last of the levels begins, which must be clock 0 and power 1; got "
            f"{float(fine.clock[-1]):.3g} and {float(fine.power[-1]):.3g}. Use a pilot's "
            f"levels. {_faq.levels}"
        )
    total = num_burn_in + num_draws
    num_chunks = max(1, min(20, total // 50))
    # Chunks of one length, so that they compile once; what they add lengthens the burn-in.
    size = -(-total // num_chunks)
    bar = progress(
        total=num_chunks * size, enabled=progress_bar, desc="draws",
        compiles="sweeps (once for a model)",
    )  # fmt: skip
    with bar:
        walkers = jax.random.split(key_walk, max(_WALKERS, num_chains))
        walked, shares = walk(kernels, fine, walkers, num_chains)
        chosen = rungs(np.asarray(shares), num_replicas, int(model.evidence_from))
        levels = jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf)[chosen]), fine)
        after = np.append(chosen[1:], chosen[-1])
        levels = levels._replace(
            next_clock=fine.clock[after],
            next_power=fine.power[after],
            next_floor={name: floor[after] for name, floor in fine.floor.items()},
        )
        particles = jax.tree.map(lambda leaf: leaf[:, chosen], walked)
        fresh = jnp.zeros(particles.log_density.shape, bool)
        ladder = Ladder(particles, fresh, jnp.asarray(True))

        ladder, (kernels, levels) = chains_over(devices, num_chains, ladder, (kernels, levels))
        first = int(np.argmax(np.asarray(chosen) >= model.evidence_from))
        claims, steps = scheme.claims(bridge), (len(walkers), len(shares))

        def result_of(rows, count) -> ReplicaResult:
            rows = jax.tree.map(lambda *parts: np.concatenate(parts), *rows)
            return make_result(kernels, claims, levels, rows, count, first, *steps)

        settings = {
            "num_draws": num_draws,
            "num_burn_in": num_burn_in,
            "num_chains": num_chains,
            "thinning": thinning,
        }
        before = num_chunks * size - num_draws  # draws that are not kept
        sweep = lambda: fingerprint(lambda *args: advance(kernels, levels, *args), ladder, key_run)
        drawn = lambda state, key: _draws(kernels, levels, state, key, size, thinning)
        kept = KeptChains(checkpoint, checkpoint_every, "replica exchange", key, sweep, settings)
        with kept, Terminable():
            row = lambda: template_of_rows(lambda: drawn(ladder, key_run))
            ladder, rows, done = kept.read(ladder, row)
            ladder, _ = chains_over(devices, num_chains, ladder, ())
            bar.update(done)
            for i in range(done // size, num_chunks):
                with Deferred() as interrupt:
                    ladder, row = drawn(ladder, jax.random.fold_in(key_run, i))
                    rows.append(jax.tree.map(np.asarray, row))
                    done += size
                    kept.keep(ladder, rows, done, interrupt.pending or i == num_chunks - 1)
                bar.update(size)
                if interrupt.pending:
                    ready = done - before
                    error = KeyboardInterrupt()
                    error.result = result_of(rows, ready) if ready >= 2 else None  # type: ignore[attr-defined]
                    error.add_note(
                        f"{max(ready, 0)} of {num_draws} draws are done; they are in `result` of this "
                        "exception."
                    )
                    raise error
        return result_of(rows, num_draws)


@eqx.filter_jit
def _draws(kernels, levels, ladder: Ladder, key: PRNGKey, size: int, thinning: int):
    """So many draws of all ladders; what happened at each sweep between two of them."""

    def one(ladder, key):
        sweeps = jax.random.split(key, thinning)
        ladder, exchanges = jax.lax.scan(
            lambda state, k: advance(kernels, levels, state, k), ladder, sweeps
        )
        at_target = jax.tree.map(lambda leaf: leaf[:, -1], ladder.particles.position)
        return ladder, (at_target, exchanges)

    return jax.lax.scan(one, ladder, jax.random.split(key, size))
