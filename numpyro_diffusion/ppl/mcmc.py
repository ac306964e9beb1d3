"""NumPyro's `MCMC` with a file from which a killed run goes on to the same bits."""

import os
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import MCMC
from numpyro.util import is_prng_key

from .. import _faq
from .._arguments import positive
from .._progress import progress
from .._staging import fingerprint
from .._typing import PRNGKey
from ..samplers.kept import KeptChains, template_of_rows
from ..schemes.kept import KeptPilots
from ..smc.identity import digest
from ..smc.interrupt import Deferred, Terminable
from .chains import check_by_chain, over_chains, several_steps

__all__ = ["CheckpointedMCMC"]

_CHUNKS = 50  # of draws, between which the chains are looked at


class CheckpointedMCMC(MCMC):
    """NumPyro's `MCMC` with its chains kept in a file as they go, warm-up included.

    For every kernel: those of this package and NumPyro's, alone or in `Gibbs`. If the process is killed, the
    same script goes on from the last writing and ends with the same bits; a finished file answers at once.
    Ctrl-C and SIGTERM wait for the chunk of steps at hand, write the file and raise `KeyboardInterrupt`; the
    draws so far are there, `get_samples()`. The file is safetensors, with the one before it kept as
    `.previous`, and a kernel's pilot, if it has one, in `.pilot`. It is known by key, kernel, model, data and
    numbers of steps, the kernel's step by the program that it compiles to.

    Args:
        sampler: A kernel.
        num_warmup: Steps of the warm-up.
        num_samples: Steps after it.
        checkpoint: The file.
        checkpoint_every: Seconds between two writings.
        **options: Of `numpyro.infer.MCMC`, such as `num_chains` and `chain_method`.

    Raises:
        ValueError: By `run`, if the file is of another run, or damaged with none before it.
        RuntimeError: By `run`, if another run writes to the file.
        NotImplementedError: By `warmup`, which `run` does.
        KeyboardInterrupt: By `run`, once the steps at hand are done.

    Example:
        >>> kernel = Gibbs([(nd.ParticleGibbs(model), ["x"]), (NUTS(model), None)])
        >>> mcmc = nd.ppl.CheckpointedMCMC(
        ...     kernel, num_warmup=500, num_samples=10_000, checkpoint="chains.safetensors"
        ... )
        >>> mcmc.run(jax.random.key(0), y=y)
    """

    def __init__(
        self,
        sampler: Any,
        *,
        num_warmup: int,
        num_samples: int,
        checkpoint: str | os.PathLike,
        checkpoint_every: float = 60.0,
        **options: Any,
    ):
        super().__init__(sampler, num_warmup=num_warmup, num_samples=num_samples, **options)
        self.checkpoint = checkpoint
        self.checkpoint_every = positive("checkpoint_every", checkpoint_every)

    def warmup(self, *args: Any, **kwargs: Any) -> None:
        """Refused: the warm-up is part of `run`, and of its file."""
        raise NotImplementedError(
            "`CheckpointedMCMC` keeps warm-up and draws in one file: expected a call of `run`; got one of "
            f"`warmup`. Call `run`, which does both, or use NumPyro's `MCMC`. {_faq.checkpoint}"
        )

    def run(self, rng_key, *args, extra_fields=(), init_params=None, **kwargs):
        """Draw, or go on with what the file has; arguments as those of `numpyro.infer.MCMC.run`.

        Raises:
            ValueError: If the file is of another run, or `post_warmup_state` is set.
            RuntimeError: If another run writes to the file.
        """
        if self.post_warmup_state is not None:
            raise ValueError(
                "`CheckpointedMCMC` starts with its own warm-up, or where its file is: expected no "
                "`post_warmup_state`; got one. Set it to `None`, or use NumPyro's `MCMC`. "
                f"{_faq.checkpoint}"
            )
        check_by_chain(self.num_chains, rng_key, init_params)
        self._args, self._kwargs = args, kwargs
        self._states = self._states_flat = None
        with KeptPilots(self.checkpoint, self.checkpoint_every):
            state = self._first(rng_key, init_params, args, kwargs)
        settings = {
            "kernel": type(self.sampler).__name__,
            "num_warmup": self.num_warmup,
            "num_samples": self.num_samples,
            "num_chains": self.num_chains,
            "thinning": self.thinning,
            "chain_method": getattr(self.chain_method, "__name__", self.chain_method),
            "extra_fields": list(extra_fields),
            # Settings of a kernel, such as a first step size, may be seen there alone.
            "first_state": digest(state),
        }
        one = state if self._together else jax.tree.map(lambda leaf: leaf[0], state)
        step = lambda: fingerprint(lambda state: self.sampler.sample(state, args, kwargs), one)
        # What `thinning` leaves over goes first, as in NumPyro.
        before = self.num_warmup + self.num_samples % self.thinning
        num_draws = self.num_samples // self.thinning
        size = max(1, (before + num_draws) // _CHUNKS)
        self._last_state = state
        steps = partial(several_steps, self.sampler, self._row(extra_fields), args, kwargs, size)
        mapped, rows = over_chains(steps, self.chain_method, self.num_chains, self._together), []
        kept = KeptChains(
            self.checkpoint, self.checkpoint_every, "chain", rng_key, step, settings, axis=1
        )
        try:
            with kept, Terminable():
                first = lambda: template_of_rows(lambda: steps(one, 1, 1))
                self._last_state, rows, done = kept.read(state, first)
                bar = progress(
                    total=before + num_draws, initial=done, enabled=self.progress_bar, desc="chains",
                    compiles="steps (once for a model and its data)",
                )  # fmt: skip
                with bar:
                    self._draw(mapped, kept, rows, done, before, num_draws, size, bar)
        finally:
            self._states_flat = None
            join = lambda *parts: jnp.asarray(np.concatenate(parts, 1))
            self._states = jax.tree.map(join, *rows) if rows else None

    def _draw(self, mapped, kept, rows, done, before, num_draws, size, bar):
        """The steps of the warm-up and the draws that are missing, in chunks."""
        while done < before + num_draws:
            warms_up = done < before
            count = min(size, (0 if warms_up else num_draws) + before - done)
            # Numbers of Python would be static.
            each, number = np.asarray(1 if warms_up else self.thinning), np.asarray(count)
            with Deferred() as interrupt:
                self._last_state, row = mapped(self._last_state, each, number)
                if not warms_up:
                    rows.append(jax.tree.map(lambda leaf, n=count: np.asarray(leaf)[:, :n], row))
                done += count
                over = done == before + num_draws
                kept.keep(self._last_state, rows, done, interrupt.pending or over)
            bar.update(count)
            if interrupt.pending:
                error = KeyboardInterrupt()
                error.add_note(
                    f"{max(0, done - before)} of {num_draws} draws of each chain are done, and kept in "
                    f"{self.checkpoint}; the same call goes on from there."
                )
                raise error

    @property
    def _is_ensemble(self) -> bool:
        return bool(self.sampler.is_ensemble_kernel)

    @property
    def _together(self) -> bool:
        """Whether all chains are one state of the kernel."""
        return self.num_chains == 1 or self.chain_method == "vectorized" or self._is_ensemble

    def _first(
        self, rng_key: PRNGKey, init_params: Any, args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        """The state of all chains before the first step."""
        init_params = jax.tree.map(jnp.asarray, init_params)
        keys = rng_key
        if self.num_chains > 1 and is_prng_key(rng_key):
            keys = jax.random.split(rng_key, self.num_chains)
        begin = lambda key, values: self.sampler.init(
            key, self.num_warmup, values, model_args=args, model_kwargs=kwargs
        )
        if self._together:
            return jax.tree.map(
                jnp.asarray, begin(keys, init_params)
            )  # some hold numbers of Python
        chains = [
            begin(keys[i], jax.tree.map(lambda leaf, i=i: leaf[i], init_params))
            for i in range(self.num_chains)
        ]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *chains)

    def _row(self, extra_fields: Any) -> Callable[[Any], dict[str, Any]]:
        """Function from a state to what is collected of it."""
        own = self.sampler.postprocess_fn(self._args, self._kwargs)
        constrain = own if self.postprocess_fn is None else self.postprocess_fn
        if self.chain_method == "vectorized" and self.num_chains > 1:
            constrain = jax.vmap(constrain)
        names = dict.fromkeys((self._sample_field, *self._default_fields, *extra_fields))
        left_out = [name for name in names if name.startswith("~")]

        def row(state):
            found = {name: attrgetter(name)(state) for name in names if name not in left_out}
            draws = constrain(found[self._sample_field])
            gone = [name.removeprefix(f"~{self._sample_field}.") for name in left_out]
            if gone:
                draws = {name: leaf for name, leaf in draws.items() if name not in gone}
            return found | {self._sample_field: draws}

        return row
