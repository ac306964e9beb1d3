"""What a run over a plate answers: draws, evidence, a summary and a verdict."""

import abc
import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ... import _faq, diagnostics
from ..._typing import Array, PRNGKey
from ...bridge import Bridge
from ...schemes import TunedScheme
from ...smc import resample_equal
from ..shown import normaliser_in_words
from .arguments import SplitArguments
from .clouds import Data
from .groups import Asked, plate_groups
from .layout import PlateModel
from .nodes import COPIES
from .result import PlateResult, verdict

__all__ = ["AbstractPlateRun"]


class AbstractPlateRun(abc.ABC):
    """A run over a plate of objects, and all that can be asked of it.

    Attributes:
        model: The model of all objects.
        scheme: For one object.
        num_particles: Particles an object and replicate.
        num_chains: Independent replicates.
    """

    model: Callable
    scheme: TunedScheme
    num_particles: int
    num_chains: int
    num_nodes: int
    _arguments: SplitArguments
    _plate: PlateModel
    _keys: dict[str, PRNGKey]
    _result: PlateResult | None
    _evaluations: float | None

    @property
    def result(self) -> PlateResult:
        """Clouds, nodes and weights, by replicate."""
        if self._result is None:
            raise RuntimeError(f"there is no result yet; call `run` first. {_faq.no_result}")
        return self._result

    @property
    def log_evidence(self) -> float:
        r"""$\log p(y)$ of all objects, in nats; up to their prior's normalisers unless these are known (see
        `evidence_is_normalized`).
        """
        return self.result.log_evidence

    @property
    def log_evidence_error(self) -> float:
        """Standard error of `log_evidence`, in nats, from the spread of replicates; NaN for one.

        With that of the prior's normaliser, which all objects share, where it enters.
        """
        error = self.result.log_evidence_error
        if self.result.normalized:
            return error
        one = self._plate.one.log_normalizer_error or 0.0
        return math.hypot(error, self._arguments.num_objects * one)

    @property
    def evidence_is_normalized(self) -> bool:
        """True if the scheme needs no normaliser, or that of every diffusion prior is known."""
        return self.result.normalized or self._plate.one.log_normalizer_error is not None

    @property
    def network_evaluations(self) -> int | None:
        """Network evaluations of all rounds and replicates, pilots apart; `None` if the scheme says none."""
        return None if self._evaluations is None else round(self._evaluations)

    def get_samples(self, group_by_chain: bool = False) -> dict[str, Any]:
        """Equally weighted draws of latent and deterministic sites, in the space of the model.

        Object sites have the axis of objects that the model gives them. Draws are with replacement, of the
        shared sites from the nodes and of objects from their clouds. Each object is drawn for each draw of
        the shared sites on its own, so that only together with these do objects depend on each other.

        Args:
            group_by_chain: If true, arrays lead with `(num_chains, num_particles)` and each replicate stands
                for itself, for comparisons; otherwise with `(num_chains * num_particles,)`, from all clouds
                together, for the posterior.
        """
        result, key = self.result, self._keys["draw"]
        chains, num = self.num_chains, self.num_particles
        if group_by_chain:
            keys = jax.random.split(key, chains)
            draw = lambda key, w: np.asarray(resample_equal(key, jnp.asarray(w), num))
            r = [draw(k, w) for k, w in zip(keys, result.replicate_log_weights, strict=True)]
            cloud = lambda c, r: np.full((len(r), result.index.shape[1]), c)
            parts = [self._values(cloud(c, one), one) for c, one in enumerate(r)]
            return jax.tree.map(lambda *leaves: np.stack(leaves), *parts)
        r = np.asarray(resample_equal(key, jnp.asarray(result.log_weights), chains * num))
        # Each object takes a cloud by what it says of the node, and then that cloud's particle.
        rng = np.random.default_rng(np.asarray(jax.random.bits(key, (4,), np.uint32)))
        gumbel = rng.gumbel(size=(chains, len(r), result.index.shape[1]))
        cloud = np.argmax(result.log_share[:, :, r].swapaxes(1, 2) + gumbel, 0)
        mixed = rng.permutation(len(r))  # neighbours are no copies of one node
        return {n: v[mixed] for n, v in self._values(cloud, r).items()}

    def _values(self, cloud: np.ndarray, r: np.ndarray) -> dict[str, np.ndarray]:
        """Values of all sites at some nodes in order, leading with draws; `cloud` by draw and object."""
        result, plate, copy = self.result, self._plate, _copies(r)
        data = Data(*self._arguments.leaves(), self._arguments.num_objects)
        phis, axes = jnp.asarray(result.nodes)[r], plate.value_axes
        done: list[dict[str, np.ndarray]] = []
        for i in range(data.num_objects):
            c = cloud[:, i]
            j = result.index[c, i, copy, r]
            z = {n: jnp.asarray(leaf[c, i, j]) for n, leaf in result.positions.items()}
            pairs = zip(data.leaves, data.split, strict=True)
            leaves = [leaf[i] if split else leaf for leaf, split in pairs]
            found = _constrained(plate.one, leaves, plate.layout, phis, z)
            done.append(
                {n: np.asarray(v) for n, v in found.items() if not i or axes[n] is not None}
            )

        def joined(name, value):
            axis = axes[name]
            return value if axis is None else np.concatenate([d[name] for d in done], axis + 1)

        return {name: joined(name, value) for name, value in done[0].items()}

    def to_arviz(
        self,
        predictive: bool = True,
        log_likelihood: bool = True,
        *,
        num_prior: int | None = None,
        coords: Mapping[str, Any] | None = None,
        dims: Mapping[str, Any] | None = None,
        pred_dims: Mapping[str, Any] | None = None,
    ) -> Any:
        """An ArviZ object: `InferenceData` (ArviZ 0.x) or `xarray.DataTree` (ArviZ 1.x).

        Groups: posterior (equally weighted draws, replicates as chains), prior, prior_predictive,
        posterior_predictive, log_likelihood, observed_data, constant_data, and object_stats with the
        effective particles of each object and the relative spread of its evidences. Each replicate stands
        for itself, with its own share of the nodes; `get_samples()` draws from all of them together, and
        knows more.

        Args:
            predictive: Include posterior predictive and prior draws.
            log_likelihood: Include the pointwise log likelihood, as LOO needs it.
            num_prior: Prior draws; 200 by default.
            coords: Values along dimensions, by name.
            dims: Names of the dimensions of variables after chains and draws; plates have theirs.
            pred_dims: The same for prior and posterior predictive draws alone.

        Raises:
            ValueError: If names or coordinates do not fit the shapes.
        """
        result, given = self.result, self._arguments
        asked = Asked(predictive, log_likelihood, num_prior or 200)
        samples = self.get_samples(group_by_chain=True)
        groups, known = plate_groups(
            self.model,
            (given.args, given.kwargs),
            self._plate,
            result,
            samples,
            self._keys["draw"],
            asked,
        )
        attributes = {
            "log_evidence": self.log_evidence,
            "log_evidence_error": self.log_evidence_error,
            "evidence_is_normalized": self.evidence_is_normalized,
            "evidence": result.evidence,
            "target": result.target,
            "exact": result.exact,
            "scheme": repr(self.scheme),
            "chains": "replicates, each with its own share of the nodes",
            "verdict": verdict(result),
        }
        return diagnostics.to_arviz(
            groups, None, None, attributes, coords=coords, dims=dims, pred_dims=pred_dims,
            known_dims=known,
        )  # fmt: skip

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: a plate of other data is sampled anew.

        Raises:
            NotImplementedError: Always; the message says what to do.
        """
        del args, kwargs
        raise NotImplementedError(
            "expected `run`; got `update`, which goes on from one cloud over all sites, where a plate has "
            "one an object. Call `run` with all data: new objects cost as much as old ones. `nd.SMC` has "
            f"`update`. {_faq.plates}"
        )

    def print_summary(self, prob: float = 0.9, max_rows: int = 24) -> None:
        """Print a table of the posterior, the evidence, and a verdict on the run in plain words.

        Args:
            prob: Probability of the central interval.
            max_rows: Rows printed a site; the rest is summed up in one line.
        """
        result, count = self.result, self.network_evaluations
        print(diagnostics.summary_table(self.get_samples(group_by_chain=True), prob, max_rows))
        kind = normaliser_in_words(self._plate.one, result.normalized)
        print(
            f"\nlog evidence {self.log_evidence:.3f} +- {self.log_evidence_error:.3f} nats ({kind})\n"
            f"evidence: {result.evidence}\n"
            f"target: {result.target}; "
            f"{'exact as particles and nodes become many' if result.exact else 'heuristic'}\n"
            f"{self._arguments.num_objects} objects, {self.num_chains} replicates of {self.num_particles} "
            f"particles an object, {self.num_nodes} nodes, "
            f"{'unknown number of' if count is None else f'{count:,}'} network evaluations\n"
            f"{verdict(result)}"
        )


def _copies(r: np.ndarray) -> np.ndarray:
    """How often the same node came before in a sorted list, modulo the draws that there are of each."""
    start = np.maximum.accumulate(np.where(np.r_[True, np.diff(r) != 0], np.arange(len(r)), 0))
    return (np.arange(len(r)) - start) % COPIES


@eqx.filter_jit
def _constrained(bridge: Bridge, data: list[Array], layout: Any, phis: Array, z: Any) -> Any:
    model = eqx.tree_at(lambda m: m.data, bridge.model, data)
    return jax.vmap(lambda phi, z: model.constrain({**layout.sites(phi), **z}))(phis, z)
