r"""`PlateSMC`: a plate of many independent objects under shared sites, at a cost linear in their number.

Divide-and-conquer SMC. With $\phi$ the shared sites and $z_i$ those of object $i$, diffusion variables among
them, the posterior of the shared sites is

$$p(\phi \mid y) \propto p(\phi) \prod_i Z_i(\phi) , \qquad
Z_i(\phi) = \int p(z_i \mid \phi)\, p(y_i \mid z_i, \phi)\, dz_i .$$

Each object is sampled alone, with a reference $g(\phi)$ in the place of the prior of the shared sites, which
gives weighted particles $(z_{ij}, W_{ij})$ of $p(z_i \mid y_i)$ under it and an unbiased
$Z_i^g = \int g\, Z_i$. Since $p(z_i, y_i \mid g) = \int g(\phi)\, p(z_i, y_i \mid \phi)\, d\phi$,

$$\frac{Z_i(\phi)}{Z_i^g} = \mathbb{E}\left[ \frac{p(z_i, y_i \mid \phi)}{p(z_i, y_i \mid g)} \,\middle|\, y_i, g \right]$$

is a mean over the cloud for any $\phi$ (`nodes`). Draws of $g$, the nodes, then count by
$p(\phi) / g(\phi) \prod_i Z_i(\phi)$ (`result`), and given a node the objects are independent: each
takes a particle of its own clouds. The narrower $g$ is, the more even are the ratios; it is refitted in a few
rounds (`adapt`). One cloud over all objects would need a weight that is the product of all.

Conditionally on the reference, $Z_i^g$ is unbiased; draws and evidence are consistent as particles and nodes
become many, whatever the reference.

References:
    Lindsten et al. (2017), Divide-and-conquer with sequential Monte Carlo, JCGS, arXiv 1406.4993. Hogg, Myers &
    Bovy (2010), Inferring the eccentricity distribution, ApJ, arXiv 1008.4146, for populations from samples of
    each object.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from ..._arguments import check_instance, whole_number, whole_numbers
from ..._prng import check_key, lean
from ..._typing import Array, PRNGKey
from ...schemes import Annealed, TunedScheme
from ...smc.resampling import check_threshold
from ...twists import AbstractTwist
from ..bridge import from_model
from ..checks import check_model
from .adapt import next_reference
from .arguments import SplitArguments
from .clouds import Clouds, Data, Program, run_clouds
from .draws import AbstractPlateRun
from .layout import PlateModel, look_at_plate
from .nodes import COPIES, ratios, shared_log_prior
from .reference import Reference, under_reference
from .result import PlateResult, plate_result

__all__ = ["PlateSMC"]


class PlateSMC(AbstractPlateRun):
    r"""Sampler of a plate of independent objects with shared sites, linear in the number of objects.

    The model takes any number of objects: with the split arguments cut to one object it is that object's model.
    Shared sites need priors with a density; diffusion sites belong to objects, and no energy depends on a shared
    site.

    Args:
        model: A NumPyro model.
        scheme: For one object; `Annealed()` by default.
        split: Names of the arguments that lead with an axis of objects.
        num_particles: Particles an object and replicate.
        num_chains: Independent replicates; two or more give an error of the evidence.
        num_nodes: Values of the shared sites, of which each replicate has a share to itself.
        rounds: Rounds, of one cloud an object, that fit the reference.
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
        twist: AbstractTwist | None = None,
        threshold: float = 0.5,
        batch_size: int = 16,
        progress_bar: bool = True,
    ):
        check_model(model)
        check_instance("scheme", scheme, TunedScheme, "nd.Annealed()")
        check_instance("twist", twist, AbstractTwist, "nd.Tweedie()")
        if isinstance(split, str) or not split or not all(isinstance(n, str) for n in split):
            raise ValueError(
                "`split` names the arguments of the model that lead with an axis of objects, such as "
                f'`("y",)`; got {split!r}.'
            )
        self.model, self.split = model, tuple(split)
        self.scheme = Annealed() if scheme is None else scheme
        self.num_particles, self.num_nodes = whole_numbers(
            2, num_particles=num_particles, num_nodes=num_nodes
        )
        self.num_chains, self.batch_size = whole_numbers(
            1, num_chains=num_chains, batch_size=batch_size
        )
        self.rounds = whole_number("rounds", rounds, 0)
        self.twist, self.threshold = twist, check_threshold(threshold)
        self.progress_bar = progress_bar
        self._result: PlateResult | None = None

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
        keys = iter_keys(check_key(key))
        self._result = None
        self._arguments = arguments
        self._keys = {"draw": next(keys)}
        twist = self.scheme.twist if self.twist is None else self.twist
        self._plate = look_at_plate(self.model, arguments, self.scheme.bridge_type, twist)
        self._evaluations: float | None = 0.0
        work = _Work(self, arguments, keys, twist)
        reference, worst = work.of_prior(), 0
        for _ in range(self.rounds):
            program = work.program(reference, worst)
            clouds = work.clouds(program, reference)
            reference, worst = work.refit(program, clouds, reference)
        program = work.program(reference, worst)
        self._result = work.finish(program, reference)
        work.bar.close()
        return self


def iter_keys(key: PRNGKey) -> Any:
    """Keys without end."""
    key, count = lean(key), 0
    while True:
        yield jax.random.fold_in(key, count)
        count += 1


class _Work:
    """The steps of a run."""

    def __init__(self, run: PlateSMC, arguments: SplitArguments, keys: Any, twist: Any):
        self.run, self.arguments, self.keys, self.twist = run, arguments, keys, twist
        self.plate: PlateModel = run._plate
        self.data = Data(*arguments.leaves(), arguments.num_objects)
        self.under = under_reference(run.model, self.plate.layout)
        total = arguments.num_objects * (run.rounds + run.num_chains)
        self.bar = tqdm(total=total, disable=not run.progress_bar, desc="objects")

    def of_prior(self) -> Reference:
        draws = jax.random.split(next(self.keys), 1000)
        flat = lambda key: self.plate.layout.vector(self.plate.one.sample_base(key))
        return Reference.fitted(np.asarray(jax.jit(jax.vmap(flat))(draws)))

    def program(self, reference: Reference, pilot: int) -> Program:
        """The program of one object, with levels from a pilot over one."""
        args, kwargs = self.arguments.at(slice(pilot, pilot + 1))
        bridge = from_model(
            self.under,
            (reference.loc, reference.root),
            *args,
            twist=self.twist,
            bridge_type=self.run.scheme.bridge_type,
            **kwargs,
        )
        return Program.of(self.run.scheme, bridge, next(self.keys), False)

    def clouds(self, program: Program, reference: Reference) -> Clouds:
        run, num = self.run, self.data.num_objects
        keys = jax.random.split(next(self.keys), num)
        found = run_clouds(
            program, self.data, reference, keys, run.num_particles, run.threshold, run.batch_size,
            self.bar.update,
        )  # fmt: skip
        if not (alive := np.isfinite(found.log_evidence)).all():
            raise FloatingPointError(
                f"all particles of object {int(np.argmin(alive))} have weight 0 at some level. Look at its "
                "data, and at the likelihood at draws of the prior."
            )
        self.count(program)
        return found

    def count(self, program: Program) -> None:
        """Add the network evaluations of one cloud an object."""
        run, levels = self.run, program.levels
        if not program.template.diffusion_sites or run._evaluations is None:
            return
        each = run.scheme.evaluations_per_level(program.template, levels)
        number = self.data.num_objects * run.num_particles
        total = program.template.evaluations + (each or 0) * len(np.asarray(levels.clock))
        run._evaluations = None if each is None else run._evaluations + number * total

    def log_prior(self, phis: Array, clouds: Clouds) -> np.ndarray:
        z = {n: jnp.asarray(leaf[0, 0]) for n, leaf in clouds.positions.items()}
        plate = self.plate
        return np.asarray(shared_log_prior(plate.one.model, plate.layout, z, phis), np.float64)

    def refit(
        self, program: Program, clouds: Clouds, reference: Reference
    ) -> tuple[Reference, int]:
        """The next reference, and the object that is worst known."""
        run = self.run
        phis = reference.sample(next(self.keys), run.num_nodes)
        first = ratios(program.template.model, self.data, clouds, reference, phis, run.batch_size)

        def log_target(phis):
            more = ratios(
                program.template.model, self.data, clouds, reference, phis, run.batch_size, first.log_q
            )  # fmt: skip
            return self.log_prior(phis, clouds) + more.log_ratio.astype(np.float64).sum(0)

        values = self.log_prior(phis, clouds) + first.log_ratio.astype(np.float64).sum(0)
        new = next_reference(
            lambda: next(self.keys), reference, log_target, (phis, values), run.num_nodes
        )
        shares = np.exp(2 * clouds.log_weights.astype(np.float64)).sum(1)
        return new, int(np.argmax(shares))

    def finish(self, program: Program, reference: Reference) -> PlateResult:
        """Clouds of all replicates under the last reference, and what they say at its nodes."""
        run, model = self.run, program.template.model
        phis = reference.sample(next(self.keys), run.num_nodes)
        shape = (self.data.num_objects, COPIES, run.num_nodes)
        clouds, found = [], []
        for _ in range(run.num_chains):
            clouds.append(self.clouds(program, reference))
            uniforms = jax.random.uniform(next(self.keys), shape)
            found.append(
                ratios(model, self.data, clouds[-1], reference, phis, run.batch_size, None, uniforms)
            )
        stacked = lambda parts: jax.tree.map(lambda *leaves: np.stack(leaves), *parts)
        all_clouds, all_found = stacked(clouds), stacked(found)
        log_g = np.asarray(reference.distribution.log_prob(phis), np.float64)
        return plate_result(
            phis,
            self.log_prior(phis, clouds[0]) - log_g,
            all_found.log_ratio,
            all_found.index,
            all_found.ess,
            all_clouds.positions,
            all_clouds.log_evidence,
            reference,
            self.claims(program),
        )

    def claims(self, program: Program) -> tuple[str, str, bool, bool]:
        """What the result says of itself."""
        own = self.run.scheme.claims(program.template)
        evidence = f"{own.evidence}, of all objects"
        return self.plate.one.target, evidence, own.exact, own.normalized
