"""The steps of a run over a plate: reference, clouds, the next reference, and what the last clouds say."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ... import _faq
from ..._prng import lean
from ..._progress import progress
from ..._typing import Array, PRNGKey
from ...schemes.pilot import PilotError
from ..bridge import from_model
from .adapt import next_reference
from .arguments import SplitArguments
from .clouds import Clouds, Data, Program, run_clouds
from .layout import PlateModel
from .nodes import COPIES, ratios, shared_log_prior
from .reference import Reference, under_reference
from .result import PlateResult, plate_result

__all__ = ["Work", "keys_of"]


def keys_of(key: PRNGKey) -> Any:
    """Keys without end."""
    key, count = lean(key), 0
    while True:
        yield jax.random.fold_in(key, count)
        count += 1


class Work:
    """The steps of a run, which counts its network evaluations; `None` where a scheme does not say.

    Args:
        run: A `PlateSMC`, for its settings.
        arguments: Of the model.
        plate: What was seen of the model.
        keys: Gives keys.
        twist: Of the bridges.
    """

    def __init__(
        self, run: Any, arguments: SplitArguments, plate: PlateModel, keys: Any, twist: Any
    ):
        self.run, self.arguments, self.plate = run, arguments, plate
        self.keys, self.twist = keys, twist
        self.evaluations: float | None = 0.0
        self.data = Data(*arguments.leaves(), arguments.num_objects)
        self.under = under_reference(run.model, self.plate.layout)
        total = arguments.num_objects * (run.rounds + run.num_chains)
        self.bar = progress(
            total=total, enabled=run.progress_bar, desc="objects",
            compiles="levels (once for a model)",
        )  # fmt: skip

    def of_prior(self) -> Reference:
        """A reference as wide as the prior."""
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
        try:
            return Program.of(self.run.scheme, bridge, next(self.keys), False)
        except PilotError as error:
            error.add_note(f"This was the pilot over object {pilot} of the plate.")
            raise

    def clouds(
        self, program: Program, reference: Reference, num_particles: int | None = None
    ) -> Clouds:
        """One cloud of each object, of as many particles as the run has unless given.

        Raises:
            FloatingPointError: If one died.
        """
        run, num = self.run, self.data.num_objects
        size: int = num_particles or run.num_particles
        keys = jax.random.split(next(self.keys), num)
        found = run_clouds(
            program, self.data, reference, keys, size, run.threshold, run.batch_size,
            self.bar.update,
        )  # fmt: skip
        if not (alive := np.isfinite(found.log_evidence)).all():
            raise FloatingPointError(
                f"all particles of object {int(np.argmin(alive))} have weight 0 at some level. Look at its "
                f"data, and at the likelihood at draws of the prior. {_faq.dead_cloud}"
            )
        self.count(program, size)
        return found

    def count(self, program: Program, num_particles: int) -> None:
        """Add the network evaluations of one cloud an object."""
        run, levels = self.run, program.levels
        if not program.template.diffusion_sites or self.evaluations is None:
            return
        each = run.scheme.evaluations_per_level(program.template, levels)
        number = self.data.num_objects * num_particles
        total = program.template.evaluations + (each or 0) * len(np.asarray(levels.clock))
        self.evaluations = None if each is None else self.evaluations + number * total

    def log_prior(self, phis: Array, clouds: Clouds) -> np.ndarray:
        """Log prior density of shared sites, unconstrained."""
        z = {n: jnp.asarray(leaf[0, 0]) for n, leaf in clouds.positions.items()}
        plate = self.plate
        return np.asarray(shared_log_prior(plate.one.model, plate.layout, z, phis), np.float64)

    def refit(
        self, program: Program, clouds: Clouds, reference: Reference
    ) -> tuple[Reference, int]:
        """The next reference, and the object that is worst known."""
        run = self.run
        phis = reference.sample(next(self.keys), run.num_nodes)
        log_q, worst = None, 0

        def log_target(phis):
            nonlocal log_q, worst
            found = ratios(
                program.template.model, self.data, clouds, reference, phis, run.batch_size, log_q
            )
            log_q, worst = found.log_q, int(np.argmin(found.ess.mean(1)))
            return self.log_prior(phis, clouds) + found.log_ratio.astype(np.float64).sum(0)

        first = phis, log_target(phis)
        new = next_reference(lambda: next(self.keys), reference, log_target, first, run.num_nodes)
        return new, worst

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
                ratios(
                    model, self.data, clouds[-1], reference, phis, run.batch_size, None, uniforms
                )
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
