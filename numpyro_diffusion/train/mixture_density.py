r"""Mixture density networks: a conditional density of vectors with draws and a normalised density.

$q(z \mid y) = \sum_k \pi_k(y)\, q_k(z \mid y)$, each component a Gaussian with a full covariance and, for a
share of its mass, Student's distribution of the same place and shape. The network runs once a datum; what it
gives is a plain mixture, whose draws and densities cost a matrix product each.

References:
    Bishop (1994), Mixture density networks, Aston University. Papamakarios & Murray (2016), Fast epsilon-free
    inference of simulation models with Bayesian conditional density estimation, NeurIPS. Hesterberg (1995),
    Weighted average importance sampling and defensive mixture distributions, Technometrics.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from .. import _faq
from .._arguments import check_counts, plain, whole_numbers
from .._typing import Array, PRNGKey, Scalar
from ..energies import StudentMixture
from ..nets import Linear
from .fit import fit
from .options import EarlyStopping
from .result import FitResult

__all__ = ["MixtureDensityNetwork", "fit_mixture_density"]

TAIL = 0.1  # share of a component's mass that is Student's
LARGEST = 512  # coordinates of z: a full covariance has half the square of that
_CLIP = 8.0  # standard deviations beyond which the regression does not go on


class MixtureDensityNetwork(eqx.Module):
    r"""$y \mapsto q(\cdot \mid y)$, a deviation from the Gaussian of a linear regression.

    With $w$ the standardised datum, the regression says $z = A w + b + L e$ with $e$ standard normal. Two
    residual layers of $\mathrm{asinh}\, w$ give the weights, means and inverse roots of a mixture for $e$;
    they start where that is near the standard normal. Of a linear Gaussian model the regression is the
    posterior.

    Attributes:
        layers: Of the backbone, and of what it writes.
        location: Of the data, shape `(m,)`.
        scale: Of the data.
        slope: $A$, shape `(d, m)`.
        offset: $b$, shape `(d,)`.
        root: $L^{-1}$, lower triangular, shape `(d, d)`.
        components: Number of components.
    """

    layers: tuple[Linear, ...]
    location: Array
    scale: Array
    slope: Array
    offset: Array
    root: Array
    components: int = eqx.field(static=True, converter=plain)

    def __check_init__(self):
        check_counts(self, components=1)

    @classmethod
    def of(
        cls, key: PRNGKey, observed: Any, latent: Any, components: int, width: int
    ) -> "MixtureDensityNetwork":
        """The regression of some pairs, and a network that has not learned anything yet.

        Args:
            key: PRNG key.
            observed: Data, of shape `(num, m)`.
            latent: What is to be found from them, of shape `(num, d)`.
            components: Of the mixture.
            width: Units of each hidden layer.
        """
        y, z = np.asarray(observed, np.float64), np.asarray(latent, np.float64)
        low, location, high = np.quantile(y, [0.16, 0.5, 0.84], axis=0)
        scale = np.where(high > low, 0.5 * (high - low), np.std(y, 0))
        scale = np.maximum(scale, 1e-30 * np.max(np.abs(y), 0))  # nothing overflows
        scale = np.where(scale > 0, scale, 1.0)
        w = np.clip((y - location) / scale, -_CLIP, _CLIP)
        centred, z_mean = w - w.mean(0), z.mean(0)
        gram = centred.T @ centred / len(w) + 1e-4 * np.eye(w.shape[1])
        slope = np.linalg.solve(gram, centred.T @ (z - z_mean) / len(w)).T
        offset = z_mean - slope @ w.mean(0)
        rest = z - w @ slope.T - offset
        floor = np.diag(1e-6 * np.var(z, 0) + 1e-12)
        root = np.linalg.inv(np.linalg.cholesky(rest.T @ rest / len(w) + floor))
        size = z.shape[1]
        keys = jax.random.split(key, 7)
        hidden = [
            Linear(k, width, width, gain) for k, gain in zip(keys[1:5], (1, 0.5) * 2, strict=True)
        ]
        write = Linear(keys[5], width, components * _outputs(size), gain=0.0)
        # Components that were alike would stay so.
        apart = jax.random.normal(keys[6], (components, size)) / math.sqrt(size)
        bias = write.bias.reshape(components, -1).at[:, 1 : 1 + size].set(apart).ravel()
        write = eqx.tree_at(lambda layer: layer.bias, write, bias)
        return cls(
            (Linear(keys[0], y.shape[1], width), *hidden, write),
            *(jnp.asarray(a) for a in (location, scale, slope, offset, root)),
            components=components,
        )  # pyright: ignore[reportCallIssue]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a datum and what is to be found from it, one behind the other."""
        return (sum(self.slope.shape),)

    def __call__(self, y: Array) -> StudentMixture:
        """The mixture given one datum of shape `(m,)`."""
        log_weights, shifts, roots, w = self._relative(y)
        whole = roots @ self.root
        means = self.slope @ w + self.offset
        means = means + jax.vmap(lambda s: solve_triangular(self.root, s, lower=True))(shifts)
        return StudentMixture(log_weights, means, whole, jnp.full_like(log_weights, TAIL))

    def log_prob(self, y: Array, z: Array) -> Scalar:
        r"""$\log q(z \mid y)$ of shape `()`, in nats."""
        log_weights, shifts, roots, w = self._relative(y)
        e = self.root @ (z - self.slope @ w - self.offset)
        mixture = StudentMixture(log_weights, shifts, roots, jnp.full_like(log_weights, TAIL))
        return mixture.log_prob(e) + jnp.sum(jnp.log(jnp.diag(self.root)))

    def _relative(self, y: Array) -> tuple[Array, Array, Array, Array]:
        """Log weights, means and inverse roots of $e$, and the datum as the regression sees it."""
        w = (y - self.location) / self.scale
        h = self.layers[0](jnp.arcsinh(w))
        for first, second in (self.layers[1:3], self.layers[3:5]):
            h = h + second(jax.nn.silu(first(jax.nn.silu(h))))
        out = self.layers[5](jax.nn.silu(h)).reshape(self.components, -1)
        size = len(self.offset)
        shifts, log_diagonals = out[:, 1 : 1 + size], out[:, 1 + size : 1 + 2 * size]
        rows, columns = np.tril_indices(size, -1)
        roots = jnp.zeros((self.components, size, size), out.dtype)
        roots = roots.at[:, rows, columns].set(out[:, 1 + 2 * size :] / math.sqrt(size))
        index = np.arange(size)
        roots = roots.at[:, index, index].set(jnp.exp(log_diagonals))
        return jax.nn.log_softmax(out[:, 0]), shifts, roots, jnp.clip(w, -_CLIP, _CLIP)


def _outputs(size: int) -> int:
    return 1 + 2 * size + size * (size - 1) // 2


def fit_mixture_density(
    key: PRNGKey,
    observed: Any,
    latent: Any,
    *,
    draw: Callable[[PRNGKey], tuple[Array, Array]] | None = None,
    start: tuple[Any, Any] | None = None,
    components: int = 8,
    width: int = 128,
    steps: int = 3000,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    progress_bar: bool = True,
    **options: Any,
) -> FitResult:
    r"""Fit $q(z \mid y)$ to simulated pairs by maximum likelihood: $\min - \mathbb{E} \log q(z \mid y)$.

    That is the mean over data of $\mathrm{KL}(p(z \mid y) \,\|\, q(z \mid y))$ up to a constant, so that $q$
    covers what the posterior covers. The weights that did best on pairs held out are kept; if none was better
    than the start, the Gaussian of the regression is what is returned (`result.learned` is false).

    Args:
        key: PRNG key.
        observed: Data, of shape `(num, m)`.
        latent: What is to be found from them, of shape `(num, d)`, at most 512 coordinates.
        draw: `draw(key) -> (y, z)`, new pairs to train on; `observed` and `latent`, but for a tenth that is
            held out, by default. With it, those are all held out.
        start: Other such pairs, from which the regression is; these by default.
        components: Of the mixture.
        width: Units of each hidden layer.
        steps: Largest number of updates.
        batch_size: Pairs a gradient.
        learning_rate: Peak of a warm-up and cosine decay.
        progress_bar: Show progress and losses.
        **options: Others of `fit`.

    Raises:
        ValueError: If a number is out of range, shapes do not fit, or there are too many coordinates.
        TrainingDiverged: If the loss becomes non-finite.
    """
    components, width, steps, batch_size = whole_numbers(
        1, components=components, width=width, steps=steps, batch_size=batch_size
    )
    observed, latent = (np.asarray(a, jnp.result_type(float)) for a in (observed, latent))
    if observed.ndim != 2 or latent.ndim != 2 or len(observed) != len(latent) or len(latent) < 20:
        raise ValueError(
            "expected at least 20 pairs, data of shape (num, m) and latent vectors of shape (num, d); got "
            f"{observed.shape} and {latent.shape}. {_faq.examples}"
        )
    if latent.shape[1] > LARGEST:
        raise ValueError(
            f"a mixture with full covariances has at most {LARGEST} coordinates; got {latent.shape[1]}. "
            f"Sample such a model without a proposal: `nd.SMC(model)`. {_faq.covariances}"
        )
    key_net, key = jax.random.split(key)
    first, then = (observed, latent) if start is None else start
    network = MixtureDensityNetwork.of(key_net, first, then, components, width)
    pairs = np.concatenate([observed, latent], 1)
    data: Any = pairs
    if draw is not None:
        data = lambda key: jnp.concatenate(draw(key))
        options = {"validation": pairs, **options}
    options = {"stopping": EarlyStopping(validation_repeats=1), **options}

    def loss(network, key, batch):
        del key
        size = network.slope.shape[1]
        return -jnp.mean(jax.vmap(network.log_prob)(batch[:, :size], batch[:, size:]))

    with warnings.catch_warnings():
        # The regression may be the posterior already, and then there is nothing to learn.
        warnings.filterwarnings("ignore", "training learned nothing", UserWarning)
        return fit(
            key, network, data, loss=loss, trainable=lambda net: net.layers,  # pyright: ignore
            steps=steps, batch_size=batch_size, learning_rate=learning_rate, progress_bar=progress_bar,
            **options,
        )  # fmt: skip
