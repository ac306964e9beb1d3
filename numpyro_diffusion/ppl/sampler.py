"""A sampler as a pure function of key and data, with the levels of a finished run."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .. import _faq
from .._arguments import is_data
from .._typing import Array, PRNGKey
from ..schemes import TunedScheme
from ..smc import FeynmanKac, SMCResult
from ..smc.pure import sample
from .smc import SMC

__all__ = ["Sampler"]


class Sampler:
    """A finished run as a pure function, for many data sets: `sample(key, data) -> result`.

    Levels and step sizes are those of the run; weights are right for the posterior at any data of the same
    shapes, and less even the more these ask for other levels. What a verdict would say is not looked for.

    Args:
        run: A finished `nd.SMC` whose scheme has levels that can be frozen.

    Example:
        >>> smc = nd.SMC(model).run(jax.random.key(0), y)
        >>> sample = nd.ppl.Sampler(smc)
        >>> data = sample.stack([(y,) for y in many])
        >>> results = jax.jit(jax.vmap(sample))(jax.random.split(jax.random.key(1), len(many)), data)
        >>> results.log_evidence.shape  # (len(many), num_chains)

    Raises:
        ValueError: If the run is not finished, or its scheme's levels cannot be frozen.
    """

    def __init__(self, run: SMC):
        if not run.result.completed or not isinstance(run.scheme, TunedScheme):
            raise ValueError(
                "`Sampler` takes the levels of a finished run of a scheme of moves, a transport and weights, "
                f"such as `nd.Annealed()`; got {run!r}. Call `run` first. {_faq.no_result}"
            )
        self.run = run
        self.scheme = dataclasses.replace(run.scheme, levels=run.result.levels)
        args, kwargs = run._arguments
        leaves, self._structure = self._leaves(args, kwargs)
        again, _ = self._leaves(args, kwargs)
        # Arrays that are the same objects when the model is looked at again belong to it; the rest is data.
        self._common = [one if one is two else None for one, two in zip(leaves, again, strict=True)]

    def __repr__(self) -> str:
        return f"Sampler({self.run!r})"

    def _leaves(self, args: tuple, kwargs: dict[str, Any]) -> tuple[list[Any], Any]:
        # Copies, so that an array of the arguments is never taken for one of the model; of its own type.
        copy = lambda leaf: jnp.array(leaf, leaf.dtype) if is_data(leaf) else leaf
        args, kwargs = jax.tree.map(copy, (args, kwargs))
        model = self.scheme(self.run.bridge_at(*args, **kwargs))
        arrays, rest = eqx.partition(model, eqx.is_array)
        leaves, structure = jax.tree.flatten(arrays)
        self._rest = rest
        return leaves, (structure, jax.tree.structure(rest))

    def data(self, *args: Any, **kwargs: Any) -> list[Array]:
        """What the posterior at these arguments of the model is made of, as arrays.

        Numbers of Python and whole ones are taken as floating arrays where the run had these.

        Raises:
            ValueError: If the model is another at these arguments but for the numbers in arrays.
        """
        given, own = (args, kwargs), self.run._arguments
        if jax.tree.structure(given) == jax.tree.structure(own):
            args, kwargs = jax.tree.map(_as_floating, given, own)
        leaves, structure = self._leaves(args, kwargs)
        if structure != self._structure or len(leaves) != len(self._common):
            raise ValueError(
                "expected arguments that change numbers alone; got others, at which the model has another "
                "structure (shapes, types, sites or supports). Run `nd.SMC` for these. "
                f"{_faq.shapes}"
            )
        pairs = zip(leaves, self._common, strict=True)
        return [leaf for leaf, common in pairs if common is None]

    def stack(self, many: Iterable[tuple]) -> list[Array]:
        """The data of many calls, each given as the tuple of its arguments, with a leading axis.

        Raises:
            ValueError: As `data`; a note says which call it was, from 0.
        """
        rows = []
        for number, args in enumerate(many):
            try:
                rows.append(self.data(*args))
            except ValueError as error:
                error.add_note(f"These were the arguments of data set {number}.")
                raise
        return [jnp.stack(leaves) for leaves in zip(*rows, strict=True)]

    def __call__(self, key: PRNGKey, data: list[Array]) -> SMCResult:
        """The weighted particles at some data; pure, for `jax.jit` and `jax.vmap`."""
        own = iter(data)
        leaves = [next(own) if common is None else common for common in self._common]
        model: FeynmanKac = eqx.combine(jax.tree.unflatten(self._structure[0], leaves), self._rest)
        run = self.run
        return sample(
            key,
            model,
            run.num_particles,
            num_chains=run.num_chains,
            resampling=run.resampling,
            threshold=run.threshold,
            chain_length=run.chain_length,
            batch_size=None if isinstance(run.batch_size, str) else run.batch_size,
        )._replace(claims=())  # type: ignore[arg-type]


def _as_floating(given: Any, own: Any) -> Any:
    """A number, or an array of whole ones, in the floating type that the run had in its place."""
    if not is_data(own) or not jnp.issubdtype(own.dtype, jnp.floating):
        return given
    whole = isinstance(given, int | float) or (
        is_data(given) and jnp.issubdtype(given.dtype, jnp.integer)
    )
    return jnp.asarray(given, own.dtype) if whole and not isinstance(given, bool) else given
