r"""Reference distribution of shared sites: a multivariate Student's t in unconstrained space.

$g(\phi) = t_\nu(\phi; m, C C^\top)$ with $\nu = 6$ degrees of freedom stands in the place of the prior of the
shared sites while each object is sampled. It is fitted to weighted draws and widened, so that it is wider
than what it is fitted to and has heavier tails than a Gaussian.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import biject_to
from numpyro.infer.reparam import Reparam

from ..._typing import Array, PRNGKey, Scalar

__all__ = ["JOINT", "Layout", "Reference", "under_reference"]

JOINT = "shared sites"  # the one latent site that holds them all
FREEDOM = 6.0
WIDER = 1.3  # scale of the reference in standard deviations of what it is fitted to


class Layout(NamedTuple):
    """Where the shared sites stand in one unconstrained vector.

    Attributes:
        shapes: Unconstrained shapes, by site, in order.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def size(self) -> int:
        """Length of the vector."""
        return int(sum(np.prod(shape, dtype=int) for _, shape in self.shapes))

    def sites(self, vector: Array) -> dict[str, Array]:
        """The unconstrained shared sites of a vector, by name."""
        out, start = {}, 0
        for name, shape in self.shapes:
            end = start + int(np.prod(shape, dtype=int))
            out[name] = vector[start:end].reshape(shape)
            start = end
        return out

    def vector(self, sites: dict[str, Array]) -> Array:
        """The vector of unconstrained shared sites."""
        return jnp.concatenate([jnp.ravel(sites[name]) for name, _ in self.shapes])


class Reference(NamedTuple):
    """A multivariate Student's t.

    Attributes:
        loc: Its centre, shape `(size,)`.
        root: Cholesky factor of its scale matrix, shape `(size, size)`.
    """

    loc: Array
    root: Array

    @property
    def distribution(self) -> dist.MultivariateStudentT:
        """As NumPyro has it."""
        return dist.MultivariateStudentT(FREEDOM, self.loc, self.root, validate_args=False)

    def log_prob(self, vector: Array) -> Scalar:
        """$\\log g(\\phi)$."""
        return self.distribution.log_prob(vector)

    def sample(self, key: PRNGKey, num: int) -> Array:
        """Draws, shape `(num, size)`."""
        return self.distribution.sample(key, (num,))

    @classmethod
    def fitted(cls, draws: np.ndarray, weights: np.ndarray | None = None) -> "Reference":
        """Fitted to draws by their moments, widened.

        Without weights draws are of a prior, which may have tails of any weight: they are clipped to their
        central 98 % first.

        Args:
            draws: Shape `(num, size)`.
            weights: Their weights, which sum to 1; `None` for equal ones.
        """
        draws = np.asarray(draws, np.float64)
        if weights is None:
            draws = np.clip(draws, *np.quantile(draws, [0.01, 0.99], axis=0))
            weights = np.full(len(draws), 1 / len(draws))
        mean = weights @ draws
        centred = draws - mean
        covariance = (weights[:, None] * centred).T @ centred
        # The variances alone stay where few draws count for more directions than they know of.
        count, size = 1 / np.sum(weights**2), draws.shape[1]
        share = size / (size + count)
        spread = np.diag(np.diag(covariance))
        covariance = (1 - share) * covariance + share * spread
        floor = 1e-10 * np.maximum(1.0, mean**2)
        root = np.linalg.cholesky(covariance + np.diag(floor))
        return cls(jnp.asarray(mean, float), jnp.asarray(WIDER * root, float))


class _Given(Reparam):
    """Replaces a site by the value that an unconstrained vector gives it."""

    def __init__(self, unconstrained: Array):
        self.unconstrained = unconstrained

    def __call__(self, name, fn, obs):
        return None, biject_to(fn.support)(self.unconstrained)


def under_reference(model: Callable, layout: Layout) -> Callable:
    """A model whose shared sites have a reference, its first argument, in the place of their prior."""

    def under(reference: tuple[Array, Array], *args: Any, **kwargs: Any) -> Any:
        vector: Any = numpyro.sample(JOINT, Reference(*reference).distribution)
        given = layout.sites(vector)

        def config(site):
            return _Given(given[site["name"]]) if site["name"] in given else None

        return numpyro.handlers.reparam(model, config=config)(*args, **kwargs)

    return under
