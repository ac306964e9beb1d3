r"""`PlateSMC`: a plate of many independent objects under shared sites, at a cost linear in their number.

Divide-and-conquer SMC. With $\phi$ the shared sites and $z_i$ those of object $i$, diffusion variables among
them, the posterior of the shared sites is

$$p(\phi \mid y) \propto p(\phi) \prod_i Z_i(\phi) , \qquad
Z_i(\phi) = \int p(z_i \mid \phi)\, p(y_i \mid z_i, \phi)\, dz_i .$$

Each object is sampled alone, with a reference $g(\phi)$ in the place of the prior of the shared sites, which
gives weighted particles $(z_{ij}, W_{ij})$ of $p(z_i \mid y_i)$ under it and an unbiased
$Z_i^g = \int g\, Z_i$. Since $p(z_i, y_i \mid g) = \int g(\phi)\, p(z_i, y_i \mid \phi)\, d\phi$,

$$\frac{Z_i(\phi)}{Z_i^g} =
\mathbb{E}\left[ \frac{p(z_i, y_i \mid \phi)}{p(z_i, y_i \mid g)} \,\middle|\, y_i, g \right]$$

is a mean over the cloud for any $\phi$ (`nodes`). Draws of $g$, the nodes, then count by
$p(\phi) / g(\phi) \prod_i Z_i(\phi)$ (`result`), and given a node the objects are independent: each
takes a particle of its own clouds. The narrower $g$ is, the more even are the ratios; it is refitted in a few
rounds (`adapt`). One cloud over all objects would need a weight that is the product of all.

Conditionally on the reference, $Z_i^g$ is unbiased; draws and evidence are consistent as particles and nodes
become many, whatever the reference.

References:
    Lindsten et al. (2017), Divide-and-conquer with sequential Monte Carlo, JCGS, arXiv 1406.4993. Hogg,
    Myers & Bovy (2010), Inferring the eccentricity distribution, ApJ, arXiv 1008.4146, for populations from
    samples of each object.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from ... import _faq
from ..._arguments import check_instance, whole_number, whole_numbers, whole_or_none
from ..._familiar import elsewhere, familiar
from ..._prng import check_key
from ..._typing import PRNGKey
from ..._written import one_line
from ...schemes import Annealed, TunedScheme
from ...smc.resampling import check_threshold
from ...twists import AbstractTwist
from ..checks import check_model
from .arguments import SplitArguments
from .draws import AbstractPlateRun
from .layout import look_at_plate
from .result import PlateResult
from .work import Work, keys_of

__all__ = ["PlateSMC"]


class PlateSMC(AbstractPlateRun):
    r"""Sampler of a plate of independent objects with shared sites, linear in the number of objects.

    The model takes any number of objects: with the split arguments cut to one object it is the model of that
    object. Shared sites need priors with a density; diffusion sites belong to objects, and no energy depends
    on a shared site.

    Args:
        model: A NumPyro model.
        scheme: For one object; `Annealed()` by default.
        split: Names of the arguments that lead with an axis of objects.
        num_particles: Particles an object and replicate.
        num_chains: Independent replicates; two or more give an error of the evidence.
        num_nodes: Values of the shared sites, of which each replicate has a share to itself.
        rounds: Rounds, of one cloud an object, that fit the reference.
        round_particles: Particles of these clouds; `num_particles` by default.
        twist: What the likelihood sees at noisy levels; what the scheme prefers by default.
        threshold: Resample below this share of the effective sample size.
        batch_size: Objects at once, to bound memory.
        progress_bar: Show progress.

    Raises:
        ValueError: If a number is out of range.
        TypeError: If an argument is of another kind.

    Example:
        >>> plates = nd.ppl.PlateSMC(model, split=("y",), num_particles=512)
        >>> plates.run(jax.random.key(0), y)
        >>> plates.print_summary()
    """

    __repr__ = one_line

    def __init__(
        self,
        model: Callable,
        scheme: TunedScheme | None = None,
        *,
        split: Sequence[str],
        num_particles: int = 512,
        num_chains: int = 4,
        num_nodes: int = 1024,
        rounds: int = 2,
        round_particles: int | None = None,
        twist: AbstractTwist | None = None,
        threshold: float = 0.5,
        batch_size: int = 16,
        progress_bar: bool = True,
        **others: Any,
    ):
        if others:
            name = next(iter(others))
            if sentence := elsewhere(name, inspect.signature(PlateSMC).parameters):
                raise TypeError(f"`PlateSMC` has no argument `{name}`. {sentence} {_faq.keywords}")
            raise TypeError(
                f"`PlateSMC` has no argument `{name}`: a plate is sampled in rounds of one "
                "cloud an object, in one sitting on one device. For `checkpoint`, `devices`, `max_seconds` "
                "and `max_evaluations` use `nd.SMC` over all objects together; to shorten a run take fewer "
                f"`num_particles` or `rounds`. {_faq.plates}"
            )
        check_model(model)
        check_instance("scheme", scheme, TunedScheme, "nd.Annealed()")
        check_instance("twist", twist, AbstractTwist, "nd.Tweedie()")
        if isinstance(split, str) or not split or not all(isinstance(n, str) for n in split):
            raise ValueError(
                "`split` names the arguments of the model that lead with an axis of objects, such as "
                f'`("y",)`; got {split!r}. {_faq.plates}'
            )
        self.model, self.split = model, tuple(split)
        self.scheme = Annealed() if scheme is None else scheme
        self.num_particles = whole_number("num_particles", num_particles, 2)
        self.num_chains, self.batch_size = whole_numbers(
            1, num_chains=num_chains, batch_size=batch_size
        )
        least = "Each replicate has two nodes or more to itself."
        self.num_nodes = whole_number("num_nodes", num_nodes, 2 * self.num_chains, least)
        self.rounds = whole_number("rounds", rounds, 0)
        remedy = "`None` for `num_particles`."
        self.round_particles = whole_or_none("round_particles", round_particles, 2, remedy)
        self.twist, self.threshold = twist, check_threshold(threshold)
        self.progress_bar = progress_bar
        self._result: PlateResult | None = None

    @familiar
    def run(self, key: PRNGKey, *args: Any, **kwargs: Any) -> "PlateSMC":
        """Sample the posterior of the model at these arguments.

        Args:
            key: PRNG key.
            *args: Arguments of the model.
            **kwargs: Keyword arguments of the model.

        Raises:
            ValueError: If there is no such argument, lengths differ, there is one object, or the model is no
                plate of independent objects under shared sites in closed form; the message names the site.
            PilotError: If the model of an object is too hard for the allowed number of levels.
            FloatingPointError: If all particles of an object have weight 0; the message names the object.
        """
        arguments = SplitArguments.of(self.model, self.split, args, kwargs)
        keys = keys_of(check_key(key))
        self._result = None
        self._arguments = arguments
        self._keys = {"draw": next(keys)}
        twist = self.scheme.twist if self.twist is None else self.twist
        self._plate = look_at_plate(self.model, arguments, self.scheme.bridge_type, twist)
        work = Work(self, arguments, self._plate, keys, twist)
        with work.bar:
            reference, worst = work.of_prior(), 0
            for _ in range(self.rounds):
                program = work.program(reference, worst)
                clouds = work.clouds(program, reference, self.round_particles)
                reference, worst = work.refit(program, clouds, reference)
            program = work.program(reference, worst)
            self._result = work.finish(program, reference)
        self._evaluations = work.evaluations
        return self
