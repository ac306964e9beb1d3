"""Signals with heavy-tailed steps: posteriors under exact diffused priors against Gibbs sampling.

A signal is the sum of 64 independent increments, Laplace(1) or Student-t with 3 degrees of freedom, seen
through one of four operators at 25 dB (see `data/README.md`); two signals a cell. The increments are the
diffusion site. Both laws are scale mixtures of Gaussians, which a sum over some 30 scales gives at every
noise level (its error, by quadrature, is printed first). The reference is a Gibbs sampler over increments
and scales, 16 chains of 1,500 sweeps, 500 of them left out. `mean`: largest difference of posterior means
over the 64 samples of the signal; `interval`: of the ends of 90 % intervals; both in posterior standard
deviations, the worse of the two signals; the bars are 0.15 and 0.2. `Gibbs again` has other seeds and as
many draws: what the reference itself can tell; `Gibbs, stored` is a run by another program. SMC has
4 clouds of 1,000 particles; `rank 64` is `Moves(rank=64)`: sums of increments are seen, so the
posterior is long and thin along many directions at once, of which scales of single increments tell the moves
nothing. NUTS has 2 chains of 500 + 1,500 draws. `s` is the time of the second signal.
"""

import time
from itertools import pairwise
from pathlib import Path

import _table
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from equinox import field, filter_jit
from numpyro.infer import MCMC, NUTS, init_to_sample
from scipy import integrate, stats

import numpyro_diffusion as nd
from numpyro_diffusion.schedules import AbstractSchedule, VariancePreserving

DATA = np.load(Path(__file__).parent / "data" / "levy64.npz")
OPERATORS = ("identity", "convolution", "sample", "fourier")
FACTORS = ("laplace1", "student3")


class ScaleMixture(nd.AbstractEnergy):
    """Independent coordinates, each a mixture of centred Gaussians, noised exactly."""

    log_weights: jax.Array
    variances: jax.Array
    size: int = field(static=True)
    schedule: AbstractSchedule
    t_min: float = field(static=True)
    t_max: float = field(static=True)
    log_normalizer: float | None = field(static=True)
    log_normalizer_error: float = field(static=True)
    normalized = True

    def __init__(self, factor: str, size: int = 64):
        if factor == "laplace1":  # variances are exponential of mean 2
            tau = np.arange(-16.0, 5.3, 0.6)
            weights = stats.expon.pdf(np.exp(tau), scale=2.0) * np.exp(tau)
        else:  # inverse gamma
            tau = np.arange(-3.2, 12.0, 0.5)
            weights = stats.invgamma.pdf(np.exp(tau), 1.5, scale=1.5) * np.exp(tau)
        self.log_weights = jnp.asarray(np.log(weights / weights.sum()))
        self.variances, self.size = jnp.asarray(np.exp(tau)), size
        self.schedule = VariancePreserving()
        self.t_min, self.t_max = self.schedule.horizon()
        self.log_normalizer, self.log_normalizer_error = 0.0, 0.0

    @property
    def shape(self):
        return (self.size,)

    def energy(self, x, t):
        alpha_t, sigma_t = self.schedule(t)
        variances = alpha_t**2 * self.variances + sigma_t**2
        logs = self.log_weights - 0.5 * jnp.log(2 * jnp.pi * variances)
        return -jnp.sum(jax.nn.logsumexp(logs - 0.5 * x[:, None] ** 2 / variances, -1))

    def moments(self, t):
        alpha_t, sigma_t = self.schedule(t)
        variance = jnp.exp(self.log_weights) @ self.variances
        spread = alpha_t**2 * variance + sigma_t**2
        return jnp.zeros(self.size), jnp.full(self.size, spread)

    def draw(self, key, t):
        key_scale, key_noise = jax.random.split(key)
        alpha_t, sigma_t = self.schedule(t)
        k = jax.random.categorical(key_scale, self.log_weights, shape=(self.size,))
        scale = jnp.sqrt(alpha_t**2 * self.variances[k] + sigma_t**2)
        return scale * jax.random.normal(key_noise, (self.size,))


def check() -> float:
    """Largest error of the noised log densities against quadrature over the noise-free law."""
    worst = 0.0
    for factor, law in zip(FACTORS, (stats.laplace(), stats.t(3)), strict=True):
        with jax.enable_x64(True):
            energy = ScaleMixture(factor, 1)
            log_density = filter_jit(energy.log_density)
            for log_snr in (11.0, 4.0, 0.0, -4.0):
                t = energy.schedule.time(jnp.asarray(log_snr))
                s = float(energy.schedule.noise_level(t))
                for u in (0.0, 0.3, 2.0, 8.0):
                    under = lambda z, u=u, s=s, law=law: stats.norm.pdf(z) * law.pdf(u + s * z)
                    ends = sorted({-9.0, 0.0, 9.0, float(np.clip(-u / s, -9, 9))})
                    parts = [integrate.quad(under, a, b, epsabs=0)[0] for a, b in pairwise(ends)]
                    found = float(log_density(jnp.array([u]), t))
                    worst = max(worst, abs(found - np.log(sum(parts))))
    return worst


def gibbs(
    rng, factor: str, operator, y, s2: float, chains: int = 16, sweeps: int = 1500, burn: int = 500
):
    """Draws of the signal, from increments given scales and scales given increments."""
    h = operator @ np.tril(np.ones((64, 64)))
    gram, projected = h.T @ h / s2, h.T @ y / s2
    u, kept = rng.standard_normal((chains, 64)), []
    for sweep in range(sweeps):
        if factor == "laplace1":
            precision = rng.wald(1 / np.maximum(np.abs(u), 1e-9), 1.0)
        else:
            precision = rng.gamma(2.0, 2 / (3 + u**2))
        root = np.linalg.cholesky(gram + precision[:, :, None] * np.eye(64))
        white = np.linalg.solve(root, np.broadcast_to(projected[:, None], (chains, 64, 1)))
        noise = rng.standard_normal((chains, 64, 1))
        u = np.linalg.solve(np.swapaxes(root, 1, 2), white + noise)[..., 0]
        if sweep >= burn:
            kept.append(np.cumsum(u, -1))
    return np.concatenate(kept)


def model(energy, operator, y, sigma):
    u = numpyro.sample("u", nd.DiffusionPrior(energy))
    x = numpyro.deterministic("x", jnp.cumsum(u))
    numpyro.sample("y", dist.Normal(operator @ x, sigma).to_event(1), obs=y)


def by_smc(scheme, tiny):
    clouds, size = (2, 32) if tiny else (4, 1000)
    smc = nd.SMC(model, scheme, num_particles=size, num_chains=clouds, progress_bar=False)

    def run(seed, *args):
        smc.run(jax.random.key(seed), *args)
        return np.asarray(smc.get_samples()["x"])

    return run


def by_nuts(tiny):
    warmup, num = (10, 10) if tiny else (500, 1500)
    kernel = NUTS(model, init_strategy=init_to_sample)
    mcmc = MCMC(
        kernel,
        num_warmup=warmup,
        num_samples=num,
        num_chains=2,
        chain_method="sequential",
        jit_model_args=True,  # new data compile nothing
        progress_bar=False,
    )

    def run(seed, *args):
        mcmc.run(jax.random.key(seed), *args)
        return np.asarray(mcmc.get_samples()["x"])

    return run


def differences(x, reference):
    """Largest difference of means and of interval ends, in standard deviations of the reference."""
    sd = reference.std(0)
    ends = np.quantile(x, [0.05, 0.95], axis=0) - np.quantile(reference, [0.05, 0.95], axis=0)
    return np.abs((x.mean(0) - reference.mean(0)) / sd).max(), np.abs(ends / sd).max()


def compare(factor: str, name: str, i: int, runs, chains: int) -> dict:
    """Differences from the reference, and seconds, by method, for one signal."""
    operator, found = DATA[name], {}
    y, s2, mean, variance = (DATA[f"{factor}_{name}_{i}_{n}"] for n in ("y", "s2", "mean", "var"))
    rngs = [np.random.default_rng([i, k]) for k in range(2)]
    started = time.perf_counter()
    one, two = (gibbs(rng, factor, operator.astype(float), y, float(s2), chains) for rng in rngs)
    seconds = 0.5 * (time.perf_counter() - started)
    stored = np.abs((one.mean(0) - mean) / np.sqrt(variance)).max()
    found["Gibbs, stored"] = stored, np.nan, np.nan
    found["Gibbs again"] = *differences(two, one), seconds
    data = jnp.asarray(operator), jnp.asarray(y), jnp.sqrt(jnp.asarray(s2))
    for label, run in runs.items():
        started = time.perf_counter()
        x = run(i, ScaleMixture(factor), *data)
        found[label] = *differences(x, one), time.perf_counter() - started
    return found


def main() -> None:
    parser = _table.parser(__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=FACTORS, default=FACTORS, help="one of the laws"
    )
    options = parser.parse_args()
    print(f"noised densities off by at most {check():.1e} nats")
    signals, chains = (1, 4) if options.tiny else (2, 16)
    tempered = nd.LikelihoodTempered(moves=nd.schemes.Moves(rank=64))
    runs = {
        "LikelihoodTempered, rank 64": by_smc(tempered, options.tiny),
        "Annealed, rank 64": by_smc(nd.Annealed(moves=nd.schemes.Moves(rank=64)), options.tiny),
        "Annealed": by_smc(nd.Annealed(), options.tiny),
        "NUTS": by_nuts(options.tiny),
    }
    rows = []
    for factor in options.only:
        for name in OPERATORS:
            found = [compare(factor, name, i, runs, chains) for i in range(signals)]
            for label in found[0]:
                means, ends, seconds = np.array([one[label] for one in found]).T
                cells = f"{means.max():.3f}", f"{ends.max():.3f}", f"{seconds[-1]:.1f}"
                rows.append([factor, name, label, *cells])
            # The table is kept as it grows.
            columns = ["increments", "operator", "method", "mean", "interval", "s"]
            _table.emit("levy", __doc__, columns, rows, options.save)


if __name__ == "__main__":
    main()
