"""A NumPyro model as compiled programs, which new data do not trace again."""

import dataclasses

import equinox as eqx
import jax.numpy as jnp

from .. import _faq
from .._prng import threefry
from .._staging import Settled
from .._typing import Array
from ..bridge import AbstractModel, LabelsGiven
from .dependence import with_arrays

__all__ = ["AbstractNumPyroModel", "SettledModel"]


class AbstractNumPyroModel(AbstractModel):
    """The other sites and the data of a NumPyro model."""

    def target(self, prior):
        return f"the posterior of the model under {prior}" if self.diffusion else "the posterior"


class SettledModel(AbstractNumPyroModel):
    """The programs of a NumPyro model, and one data set.

    Equal programs compile once, whatever function they came from; what the model read when it was traced is
    data or part of the program.
    """

    diffusion: tuple[str, ...] = eqx.field(static=True)
    others: tuple[str, ...] = eqx.field(static=True)
    discrete: tuple[str, ...] = eqx.field(static=True)
    data: list[Array]
    draw: Settled
    density: Settled
    values: Settled
    labels: Settled | None
    observed: Settled | str
    varying: tuple[tuple[str, int], ...] = eqx.field(static=True, default=())
    energies: Settled | None = None
    drivers: tuple[str, ...] = eqx.field(static=True, default=())  # pyright: ignore
    choices: tuple[str, ...] = eqx.field(static=True, default=())  # pyright: ignore

    def sites_at(self, sites, z):
        assert self.energies is not None
        x = {name: site.centre for name, site in sites.items()}  # no energy depends on it
        new = dict(zip(self.varying, self.energies(self.data, self._others(z), x), strict=True))
        of = lambda name: {i: leaf for (n, i), leaf in new.items() if n == name}
        return {
            n: dataclasses.replace(s, energy=with_arrays(s.energy, of(n))) for n, s in sites.items()
        }

    def draw_others(self, x, key):
        return self.draw(self.data, self._diffusion(x), threefry(key))

    def rest(self, z, x_hat):
        return self.density(self.data, self._others(z), self._diffusion(x_hat))

    def constrain(self, z):
        missing = [name for name in self.discrete if name not in z]
        if missing:
            raise ValueError(
                f"the discrete sites {missing} are summed out, and no part of a position. Draw them first: "
                f"`bridge.constrain({{**z, **bridge.draw_discrete(z, key)}})`."
                f" {_faq.discrete_site}"
            )
        discrete = {name: z[name] for name in self.discrete}
        return self.values(self.data, {**self._diffusion(z), **self._others(z), **discrete})

    def discrete_given(self, z, key):
        if self.labels is None:
            return LabelsGiven({}, {}, jnp.ones((), bool))
        return self.labels(self.data, self._others(z), self._diffusion(z), threefry(key))

    def laws(self, z):
        if isinstance(self.observed, str):
            raise ValueError(f"{_faq.bare(self.observed)} {_faq.operator}")
        observed = self.observed
        return lambda x: observed(self.data, self._others(z), self._diffusion(x))

    def _others(self, z):
        return {name: z[name] for name in self.others}

    def _diffusion(self, x):
        return {name: x[name] for name in self.diffusion}
