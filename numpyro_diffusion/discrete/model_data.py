"""What a NumPyro model says of the tokens of one site, with its continuous sites beside."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

from .. import _faq
from .._arguments import as_arrays, is_data
from .._prng import lean, threefry
from .._staging import Settled, settle
from ..ppl.checks import check_model, values_needed
from ..ppl.look import look
from ..ppl.model_bridge import LiveModel
from ..ppl.owners import owners_of
from ..ppl.runs import NUM_PLACES, Enumeration
from ..ppl.site_checks import check_site
from ..ppl.sites import is_diffusion, is_discrete, is_other, site_shape, unwrapped
from ..ppl.summation import rest_of, sums_of
from .data import AbstractTokenData
from .prior import DiscreteDiffusionPrior

__all__ = ["ModelData", "model_data"]


class ModelData(AbstractTokenData):
    """A NumPyro model and its arguments, as programs.

    Attributes:
        data: Arrays among the arguments.
        others: Names of the continuous sites.
        draw: Draws them from their prior.
        density: Log prior and log likelihood.
        table: The same by token, prior and likelihood; `None` where data see tokens together.
        values: Values of all sites.
        site: Name of the site of tokens.
    """

    data: list[Any]
    draw: Settled
    density: Settled
    table: Settled | None
    values: Settled
    site: str = eqx.field(static=True)
    others: tuple[str, ...] = eqx.field(static=True)

    @property
    def by_token(self) -> bool:
        """Whether no log density of the model depends on two tokens."""
        return self.table is not None

    def draw_others(self, x, key):
        """Continuous sites from their prior."""
        return self.draw(self.data, x, threefry(key))

    def log_prior_and_likelihood(self, z, x):
        """Of the continuous sites, and of all that is observed."""
        return self.density(self.data, z, x)

    def tables(self, z, power):
        """Prior and likelihood by token."""
        if self.table is None:
            return jnp.zeros(()), jnp.zeros((1, 1))
        prior, likelihood = self.table(self.data, z)
        raised = [jnp.where(power > 0, power * part, 0.0) for part in likelihood]
        return prior[0] + raised[0], prior[1] + raised[1]


def model_data(
    model: Callable, args: tuple, kwargs: dict[str, Any]
) -> tuple[DiscreteDiffusionPrior, ModelData]:
    """The prior of the tokens of a NumPyro model, and everything else in it.

    Raises:
        ValueError: If there is not one site with a `DiscreteDiffusionPrior`, or one of another kind beside
            it that is not continuous.
    """
    check_model(model)
    args, kwargs = as_arrays(model, args, kwargs)
    blank = lambda site: jnp.zeros(site["fn"].event_shape, int) if _is_tokens(site) else None
    seen = handlers.substitute(model, substitute_fn=blank)
    trace = look(LiveModel((), (), (), seen, args, kwargs), 0.0)
    name = _only_site(trace)
    for other, site in trace.items():
        check_site(other, site, trace)
    others = tuple(n for n, site in trace.items() if is_other(site))
    prior = unwrapped(trace[name]["fn"])
    live = LiveModel((name,), others, (), model, args, kwargs)
    with values_needed((name,)):
        return prior, _programs(live, name, prior)


def _programs(live: LiveModel, name: str, prior: DiscreteDiffusionPrior) -> ModelData:
    dynamic, static = eqx.partition((live.args, live.kwargs), is_data)
    data, structure = jax.tree.flatten(dynamic)

    def at(data):
        args, kwargs = eqx.combine(jax.tree.unflatten(structure, data), static)
        return dataclasses.replace(live, args=args, kwargs=kwargs)

    x = jnp.zeros(prior.num_tokens, int)
    draws = lambda data, x, key: at(data).draw_others({name: x}, key)
    draw = settle(draws, data, x, lean(jax.random.key(0)))
    z = jax.eval_shape(draws, data, x, jax.random.key(0))
    run = lambda data, z, x, labels: at(data).terms(z, labels)
    terms = settle(run, data, z, x, {name: x})

    def density(data, z, x):
        rest = rest_of(terms(data, z, x, {name: x}))
        return rest.log_prior, rest.log_likelihood

    values = prior.entry_values
    found = Enumeration({name: values}, {name: x.shape}, {}, ({name: values},), {})
    together = "one token"
    if prior.num_tokens > 1:
        owners, together = owners_of(found, terms, data, lambda: _points(draw, data, prior))
        found = found._replace(owners=owners)

    def table(data, z):
        each = found.each_run(lambda labels: terms(data, z, x, labels))
        rest = rest_of({k: term[0, 0] for k, term in each.items() if k not in found.owners})
        prior, likelihood = (
            sums_of(each, kinds, found) for kinds in (("prior", "volume"), ("smooth", "edge"))
        )
        of = lambda sums, value: (value + sums.shared[0], sums.groups[0][0].T)
        return of(prior, rest.log_prior), of(likelihood, rest.log_likelihood)

    sites = lambda data, z: at(data).constrain(z)
    return ModelData(
        data, draw, settle(density, data, z, x), None if together else settle(table, data, z),
        settle(sites, data, {name: x, **z}), name, live.others,
    )  # fmt: skip


def _points(draw: Settled, data: list[Any], prior: DiscreteDiffusionPrior):
    """Continuous sites and tokens at some places, to look what depends on which token."""
    numbers = np.random.default_rng(0)
    x = jnp.asarray(numbers.integers(prior.num_values, size=(NUM_PLACES, prior.num_tokens)))
    keys = jax.random.split(lean(jax.random.key(0)), NUM_PLACES)
    return jax.vmap(lambda x, key: draw(data, x, key))(x, keys), x


def _is_tokens(site: dict) -> bool:
    latent = site["type"] == "sample" and not site.get("is_observed")
    return latent and isinstance(unwrapped(site["fn"]), DiscreteDiffusionPrior)


def _only_site(trace: dict[str, dict]) -> str:
    """The name of the site of tokens, if all others are continuous or observed."""
    names = [name for name, site in trace.items() if _is_tokens(site)]
    if len(names) != 1 or len(site_shape(trace[names[0]])) != 1:
        raise ValueError(
            "expected one latent site with a `DiscreteDiffusionPrior`, outside of plates; got "
            f"{names or 'none'}. Several make one of more tokens: let the model take it "
            f"apart. {_faq.discrete_site}"
        )
    for name, site in trace.items():
        if is_diffusion(site) or (is_discrete(site) and name not in names):
            raise ValueError(
                f"expected continuous sites beside `{names[0]}`; got the site `{name}` with a "
                f"{type(unwrapped(site['fn'])).__name__}. `nd.SMC` takes it, and sums over all examples of "
                f"`{names[0]}` where there are at most 1024. {_faq.discrete_site}"
            )
    return names[0]
