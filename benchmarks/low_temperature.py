"""Powers and products of a mixture: kernels raised to the powers of the laws, or left as they are.

A mixture of two Gaussians on the line to the power 2 and 4 (temperatures 1/2 and 1/4), and times another one.
Forty levels, 4,000 particles, no moves, clouds as repeats. `log constant` is the mean error of the logarithm
of the normaliser against quadrature and its spread over clouds, `P(x < 0)` likewise. `as they are`: proposals
and backward kernels with the noise of a single law, as samplers that scale a score use them, with the same
weights.
"""

import _table
import jax
import jax.numpy as jnp
import numpy as np

import numpyro_diffusion as nd

jax.config.update("jax_enable_x64", True)

GRID = np.linspace(-9, 9, 20_001)
ONE = nd.GaussianMixture([0.3, 0.7], [[-2.0], [1.0]], [[[0.3]], [[0.6]]])
OTHER = nd.GaussianMixture([0.6, 0.4], [[-1.0], [2.0]], [[[0.8]], [[0.5]]])
LAWS = {"power 2": 2 * ONE, "power 4": 4 * ONE, "product": ONE + OTHER}
COVARIANCES = {"diagonal": nd.schemes.Diagonal(), "each particle": nd.schemes.Local()}


class Unaware(nd.AbstractEnergy):
    """A composed energy that passes for a single one."""

    inner: nd.AbstractEnergy

    schedule = property(lambda self: self.inner.schedule)
    shape = property(lambda self: self.inner.shape)
    t_min = property(lambda self: self.inner.t_min)
    t_max = property(lambda self: self.inner.t_max)
    log_normalizer = None
    log_normalizer_error = 0.0

    def energy(self, x, t):
        return self.inner.energy(x, t)

    def moments(self, t):
        return self.inner.moments(t)


def main() -> None:
    options = _table.parser(__doc__).parse_args()
    particles, clouds = (100, 2) if options.tiny else (4000, 24)
    rows = []
    for law, energy in LAWS.items():
        t = jnp.asarray(energy.t_min)
        points = jnp.asarray(GRID[:, None])
        log_p = np.asarray(jax.vmap(lambda u, e=energy, t=t: e.log_density(u, t))(points))
        truth = np.log(np.trapezoid(np.exp(log_p), GRID))
        below = np.trapezoid(np.exp(log_p - truth) * (GRID < 0), GRID)
        for kernels, target in {"as they are": Unaware(energy), "to the power": energy}.items():
            for name, covariance in COVARIANCES.items():
                scheme = nd.ReverseDiffusion(levels=40, covariance=covariance, moves=0)
                model = scheme(nd.from_energy(target), jax.random.key(0))
                found = nd.run_smc(
                    jax.random.key(1), model, num_particles=particles, num_chains=clouds
                )
                error = np.asarray(found.log_evidence) - truth
                weights = np.exp(np.asarray(found.log_weights))
                inside = np.asarray(found.positions["x"])[..., 0] < 0
                share = np.sum(weights * inside, 1) / np.sum(weights, 1) - below
                both = [f"{v.mean():.3f} +- {v.std(ddof=1):.3f}" for v in (error, share)]
                rows.append([law, kernels, name, *both])
                print("|", *(f"{cell} |" for cell in rows[-1]), flush=True)
    columns = ["law", "kernels", "covariance", "log constant", "P(x < 0)"]
    _table.emit("low_temperature", __doc__, columns, rows, options.save)


if __name__ == "__main__":
    main()
