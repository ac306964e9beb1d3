"""`DiscreteDiffusionPrior`: a masked diffusion over tokens as a distribution of NumPyro."""

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution, constraints

from .. import _faq
from .._arguments import check_instance, whole_or_none
from .._typing import Array
from ..ppl.packed import Packed
from .energies import AutoregressiveEnergy, ResidualEnergy, check_energy_function
from .exact import all_examples, log_mass
from .masked import MaskedDiffusion, chosen, reveals
from .sample import sample_tokens

__all__ = ["DiscreteDiffusionPrior"]

_MOST = 1024  # examples, as many as discrete sites are summed over
_CANDIDATES = 32


class DiscreteDiffusionPrior(Distribution):
    r"""The distribution of the examples that a masked diffusion draws, with or without a residual energy.

    Its event is `num_tokens` integers, which depend on one another. Of few tokens, up to 1024 examples, all
    probabilities are computed here, once, so that `nd.SMC` sums the site out beside sites of any other
    kind. Of more, `log_prob` is known in one step alone or for an `AutoregressiveEnergy`;
    `sample_posterior` needs none.

    Make it outside of the model.

    Args:
        model: The masked diffusion.
        energy: A residual energy; none by default. The distribution is then that of the chain whose steps
            have the kernels $p_\theta e^{-E}$ (see `masked_chain`), divided by its mass where that is
            known; with an `AutoregressiveEnergy` it is that density itself.
        steps: Steps from all masked to none; one a token by default. More steps know more of dependence.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If `steps` is out of range; from `log_prob`, if it is not known.
    """

    arg_constraints = {}
    pytree_data_fields = ("_packed", "log_probs")
    pytree_aux_fields = ("steps", "num_tokens", "num_values", "log_normalizer")
    has_enumerate_support = True

    def __init__(
        self,
        model: MaskedDiffusion,
        energy: ResidualEnergy | None = None,
        *,
        steps: int | None = None,
        validate_args: bool | None = None,
    ):
        steps = whole_or_none("steps", steps, 1)
        check_instance("model", model, MaskedDiffusion, "MaskedDiffusion(...)", optional=False)
        check_energy_function(energy)
        self.num_tokens, self.num_values = model.num_tokens, model.num_values
        self.steps = len(reveals(model.num_tokens, steps)) - 1
        self._packed: Any = Packed((model, energy))  # pyright: ignore[reportArgumentType]
        self.log_probs, self.log_normalizer = None, 0.0 if energy is None else None
        if self.num_values**self.num_tokens <= _MOST:
            with jax.ensure_compile_time_eval():
                mass = self._log_mass()
                self.log_normalizer = float(jax.nn.logsumexp(mass))
            self.log_probs = mass - self.log_normalizer
        super().__init__((), (self.num_tokens,), validate_args=validate_args)

    @property
    def model(self) -> MaskedDiffusion:
        """The masked diffusion."""
        return self._packed.unpack()[0]

    @property
    def energy(self) -> ResidualEnergy | None:
        """The residual energy."""
        return self._packed.unpack()[1]

    @property
    def support(self):
        """Integers, one a token."""
        return constraints.independent(constraints.integer_interval(0, self.num_values - 1), 1)

    @property
    def entry_values(self) -> np.ndarray:
        """Values of one token."""
        return np.arange(self.num_values)

    def _log_mass(self) -> Array:
        model, energy = self.model, self.energy
        if not isinstance(energy, AutoregressiveEnergy):
            return log_mass(model, energy, steps=self.steps)
        examples = jnp.asarray(all_examples(self.num_tokens, self.num_values))
        values = jax.lax.map(energy.log_density, examples, batch_size=256)
        return values.reshape((self.num_values,) * self.num_tokens)

    def log_prob(self, value) -> Array:
        """Log probability, of shape `sample_shape`; up to the logarithm of a constant where
        `log_normalizer` is `None`.
        """
        value = jnp.asarray(value)
        allowed = jnp.all((value >= 0) & (value < self.num_values), -1)
        x = jnp.clip(value, 0, self.num_values - 1).astype(int)
        if self.log_probs is not None:
            found = self.log_probs[tuple(jnp.moveaxis(x, -1, 0))]
        else:
            rows = jax.vmap(self._log_density())(x.reshape(-1, self.num_tokens))
            found = rows.reshape(x.shape[:-1])
        return jnp.where(allowed, found, -jnp.inf)

    def _log_density(self):
        model, energy = self.model, self.energy
        if isinstance(energy, AutoregressiveEnergy):
            return energy.log_density
        if self.steps > 1:
            raise ValueError(
                f"the probability of one of {self.num_values}^{self.num_tokens} examples is a sum over all "
                f"orders in which tokens are revealed, and known up to {_MOST} examples. For a posterior use "
                "`nd.discrete.sample_posterior`, which needs none; or `steps=1` with a residual energy, or "
                f"an `AutoregressiveEnergy`. {_faq.many_values}"
            )
        table, masked = model.log_probs(model.all_masked), model.all_masked
        factorised = lambda x: chosen(table, x).sum()
        return factorised if energy is None else lambda x: factorised(x) - energy(x, masked)

    def sample(self, key, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of shape `sample_shape + (num_tokens,)`.

        Warns:
            UserWarning: If there is an energy and probabilities are not known, so that draws are those of
                `sample_tokens` with 32 candidates.
        """
        if key is None:
            raise ValueError(
                f"`{type(self).__name__}.sample` expects a PRNG key; got None. Seed the model: "
                f"`numpyro.handlers.seed(model, jax.random.key(0))`. {_faq.keys}"
            )
        keys = jax.random.split(key, math.prod(sample_shape))
        if self.log_probs is not None:
            flat, values = self.log_probs.ravel(), all_examples(self.num_tokens, self.num_values)
            one = lambda key: jnp.asarray(values)[jax.random.categorical(key, flat)]
        else:
            model, energy = self.model, self.energy
            if energy is not None:
                warnings.warn(
                    f"draws of a `{type(self).__name__}` with an energy are chosen among {_CANDIDATES} "
                    "candidates a step: nearly but not exactly its distribution. Weighted draws are exact: "
                    f"`nd.run_smc` on `masked_chain`. {_faq.exact_draws}",
                    stacklevel=2,
                )
            one = lambda key: (
                sample_tokens(key, model, energy, candidates=_CANDIDATES, steps=self.steps).x
            )
        return jax.vmap(one)(keys).reshape(*sample_shape, self.num_tokens)

    def enumerate_support(self, expand: bool = True) -> Array:
        """All examples, of shape `(num_values**num_tokens, num_tokens)`.

        Raises:
            ValueError: If there are more than 1024.
        """
        del expand  # there is no batch
        if self.num_values**self.num_tokens > _MOST:
            raise ValueError(
                f"expected at most {_MOST} examples to enumerate; got {self.num_values}^{self.num_tokens}. "
                f"Use `nd.discrete.sample_posterior`. {_faq.many_values}"
            )
        return jnp.asarray(all_examples(self.num_tokens, self.num_values))
