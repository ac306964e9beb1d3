r"""`to_blackjax`: a NumPyro model as the functions that BlackJAX asks for.

BlackJAX's samplers take a log prior and a log likelihood over positions, or their sum, and particles of the
prior to begin with. A position is a dictionary of the latent sites in unconstrained space; diffusion sites
are clean ones (clock 0), in the units of the data. Noise levels play no part.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import _faq
from .._arguments import as_arrays, whole_or_none
from .._records import record, record_page
from .._typing import Array, Position, PRNGKey, Scalar
from ..bridge import Bridge
from ..twists import Identity
from .bridge import from_model
from .model_bridge import LiveModel, chosen_sites
from .sites import log_densities

__all__ = ["BlackJAXModel", "to_blackjax"]


class BlackJAXModel(NamedTuple):
    r"""A model as functions of ONE position, a dictionary of unconstrained latent sites.

    Attributes:
        logprior_fn: `z -> ()`: log density of all latent sites, with the Jacobians of their transforms.
        loglikelihood_fn: `z -> ()`: of all observed sites and factors; $-\infty$ where data are impossible.
        logdensity_fn: `z -> ()`: their sum, from one evaluation: the model's own joint log density.
        sample_prior: `(key, num=None) -> z`: exact draws of the prior; with a number, that many along a
            leading axis. Raises `ValueError` for a diffusion site that can't be drawn exactly.
        initial_position: `(key, num=None) -> z`: where a chain of MCMC may start. Draws of the prior where
            those are exact; else of its Gaussian approximation, which is NOT the prior: they carry no weight
            and are no particles to temper from.
        constrain: `z -> values` of all latent and deterministic sites, in the space of the model.
        partial_logposterior_factory: `mask -> (z -> ())`: the log density given the data that `mask` names,
            0 or 1 for each of the `num_data`, in the order in which the model meets them.
        num_data: Number of entries of the log likelihood, over all observed sites.
        exact_prior: Whether `sample_prior` can draw.
        log_normalizer_error: Standard error of the normalisers in `logprior_fn`, in nats; `None` if one is
            not known: `logprior_fn` then holds up to a constant.
    """

    logprior_fn: Callable[[Position], Scalar]
    loglikelihood_fn: Callable[[Position], Scalar]
    logdensity_fn: Callable[[Position], Scalar]
    sample_prior: Callable[..., Position]
    initial_position: Callable[..., Position]
    constrain: Callable[[Position], dict[str, Array]]
    partial_logposterior_factory: Callable[[Array], Callable[[Position], Scalar]]
    num_data: int
    exact_prior: bool
    log_normalizer_error: float | None

    __repr__ = record
    _repr_html_ = record_page


def to_blackjax(model: Callable, *args: Any, **kwargs: Any) -> BlackJAXModel:
    r"""A NumPyro model, with or without diffusion priors, for any sampler of BlackJAX.

    `logprior_fn + loglikelihood_fn` is minus the model's `potential_energy`: the joint log density of latent
    sites and data, with Jacobians. Of an energy whose `log_normalizer` is not known the prior is left
    unnormalised. A posterior does not feel that, nor does an evidence that begins with draws of the prior:
    tempered and persistent SMC and nested sampling weigh with `loglikelihood_fn` alone, so theirs is the
    evidence under the normalised prior.

    Such samplers need exact draws. A reverse diffusion of a learned prior is none: its distribution is near
    that of the energy, not the same, and nothing would correct for it. `sample_prior` then raises an error
    that names
    the ways out: `nd.NoiseReparam`, under which the distribution of the reverse sampler is itself the prior
    and its noise is drawn exactly; or a sampler that weighs its way from noise to the prior, such as
    `nd.SMC(model, nd.LikelihoodTempered())`.

    Args:
        model: A NumPyro model; the same as for `nd.from_model`. Discrete latent sites are refused.
        *args: Its arguments, data included.
        **kwargs: Its keyword arguments.

    Raises:
        ValueError: For what `nd.from_model` refuses, such as a discrete latent site. The functions raise it
            for a position of other sites or shapes.
        TypeError: For a score-only prior, which has no density. The functions raise it for integers.

    Example:
        >>> target = nd.to_blackjax(model, y=y)
        >>> particles = target.sample_prior(jax.random.key(0), 1000)
        >>> smc = blackjax.adaptive_tempered_smc(
        ...     target.logprior_fn, target.loglikelihood_fn, blackjax.hmc.build_kernel(), blackjax.hmc.init,
        ...     parameters, blackjax.smc.resampling.systematic, target_ess=0.9, num_mcmc_steps=5,
        ... )
        >>> state = smc.init(particles)
    """
    bridge = from_model(model, *args, twist=Identity(), **kwargs)
    if bridge.discrete_sites:
        raise ValueError(
            f"`to_blackjax` expects a model of continuous sites; got the discrete "
            f"{list(bridge.discrete_sites)}. `nd.SMC` sums them out. {_faq.discrete_site}"
        )
    args, kwargs = as_arrays(model, args, kwargs)
    live = LiveModel(
        bridge.diffusion_sites, bridge.other_sites, (), model, args, kwargs, chosen_sites(bridge)
    )
    shapes = jax.eval_shape(bridge.sample_base, jax.random.key(0))
    target = _Target(bridge, live, {name: leaf.shape for name, leaf in shapes.items()})
    entries = jax.eval_shape(target.log_likelihoods, shapes)
    return BlackJAXModel(
        target.log_prior,
        target.log_likelihood,
        target.log_density,
        target.sample_prior,
        target.initial_position,
        target.constrain,
        target.partial_posterior,
        entries.size,
        target.exact,
        bridge.log_normalizer_error,
    )


class _Target:
    """A plain object: its methods can be hashed, as `jax.jit` wants of functions; data are constants."""

    def __init__(self, bridge: Bridge, live: LiveModel, shapes: dict[str, tuple[int, ...]]):
        self.bridge, self.live, self.shapes = bridge, live, shapes

    @property
    def exact(self) -> bool:
        return self.bridge.exact_prior or not self.bridge.diffusion_sites

    def rest(self, z):
        return self.bridge.rest(z, {name: z[name] for name in self.bridge.diffusion_sites})

    def diffusion_prior(self, z):
        if not self.bridge.diffusion_sites:
            return jnp.zeros(())
        return self.bridge.see(z, jnp.zeros(())).log_density

    def log_prior(self, z):
        z = self._checked(z)
        return self.diffusion_prior(z) + self.rest(z).log_prior

    def log_likelihood(self, z):
        return self.rest(self._checked(z)).log_likelihood

    def log_density(self, z):
        z = self._checked(z)
        rest = self.rest(z)
        return self.diffusion_prior(z) + rest.log_prior + rest.log_likelihood

    def log_likelihoods(self, z):
        """Of all entries of all observed sites, in one vector."""
        x = {name: z[name] for name in self.bridge.diffusion_sites}
        trace = self.live.trace(self.live.values(z, x)).values()
        observed = [site for site in trace if site["type"] == "sample" and site["is_observed"]]
        entries = [jnp.ravel(log_densities(site, site["fn"])) for site in observed]
        return jnp.concatenate(entries) if entries else jnp.zeros((0,))

    def partial_posterior(self, mask):
        mask = jnp.asarray(mask)

        def log_density(z):
            z = self._checked(z)
            terms = self.log_likelihoods(z)
            if mask.shape != terms.shape:
                raise ValueError(
                    f"the mask of a partial posterior holds 0 or 1 for each of the {terms.size} entries of "
                    f"the log likelihood; got shape {mask.shape}. {_faq.shapes}"
                )
            # Where, not a product: an infinity times 0 is no number.
            return self.log_prior(z) + jnp.sum(jnp.where(mask > 0, terms, 0.0))

        return log_density

    def sample_prior(self, key: PRNGKey, num: int | None = None):
        if not self.exact:
            raise ValueError(
                f"the prior at {list(self.bridge.diffusion_sites)} is learned and can't be drawn exactly: "
                "its reverse diffusion has a distribution near it, and no sampler of BlackJAX "
                "corrects for the "
                "difference. Make the distribution of the reverse sampler the prior, whose noise "
                "is drawn exactly: "
                "`nd.to_blackjax(numpyro.handlers.reparam(model, config={site: nd.NoiseReparam()}), ...)`; "
                "or weigh from noise to the prior: `nd.SMC(model, nd.LikelihoodTempered())`. "
                f"For MCMC alone `initial_position` is enough. {_faq.exact_draws}"
            )
        return _several(self.bridge.sample_prior, key, num)

    def initial_position(self, key: PRNGKey, num: int | None = None):
        if self.exact:
            return _several(self.bridge.sample_prior, key, num)
        return _several(self._carried, key, num)

    def _carried(self, key):
        z = self.bridge.sample_base(key)
        return self.bridge.carry(z, jnp.ones(()), jnp.zeros(()))[0]

    def constrain(self, z):
        return self.bridge.constrain(self._checked(z))

    def _checked(self, z):
        got = {name: jnp.shape(z[name]) for name in z} if isinstance(z, dict) else type(z).__name__
        if got != self.shapes:
            raise ValueError(
                f"a position of this model is a dictionary of the shapes {self.shapes}, in unconstrained "
                f"space; got {got}. Take it from `initial_position(key)`; for several at once use "
                f"`jax.vmap`. {_faq.shapes}"
            )
        for name, leaf in z.items():
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                raise TypeError(
                    f"site `{name}` of a position holds real numbers; got {jnp.result_type(leaf)}. Convert "
                    f"it: `.astype(float)`. {_faq.real_numbers}"
                )
        return z


def _several(draw: Callable[[PRNGKey], Position], key: PRNGKey, num: int | None) -> Position:
    """One draw, or `num` of them along a leading axis."""
    num = whole_or_none("num", num, 1, "`None` for one position without a leading axis.")
    return draw(key) if num is None else jax.jit(jax.vmap(draw))(jax.random.split(key, num))
