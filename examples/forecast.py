"""Sunspots, eight years ahead: a learned prior over windows of a series, as one site of a time-series model.

Two priors over 24 years are trained on the years before 1900: one by denoising, one also with targets of
four-year means (MG-TSD). A forecast is a posterior: 16 years are seen, three of them are missing, a level and
a trend over the window are unknown beside the prior's path, and the last 8 years have no data. Its ranked
probability score (CRPS), in sunspots, stands beside that of a Gaussian process with a quasi-periodic kernel,
fitted to the same years, which sees the same data.

    python examples/forecast.py            about five minutes on two cores
    python examples/forecast.py --tiny     a check that everything runs
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.optimize import minimize

import numpyro_diffusion as nd

DATA = Path(__file__).parent / "data" / "sunspots.csv"
SEEN, AHEAD = 16, 8
LENGTH = SEEN + AHEAD
MISSING = [3, 8, 12]  # of the years that are seen
TREND = jnp.linspace(-1.0, 1.0, LENGTH)
UNIT, CENTRE = 3.0, 6.2  # of the root of the number, whose spread is about the same at all levels


def to_units(sunspots):
    return (np.sqrt(sunspots) - CENTRE) / UNIT


def to_sunspots(z):
    return np.maximum(UNIT * z + CENTRE, 0.0) ** 2


def windows(z):
    return np.lib.stride_tricks.sliding_window_view(z, LENGTH)


def model(energy, y, seen):
    """Level, trend over the window and the prior's path, seen with a little noise."""
    x = numpyro.sample("x", nd.DiffusionPrior(energy))
    level = numpyro.sample("level", dist.Normal(0.0, 0.2))
    slope = numpyro.sample("slope", dist.Normal(0.0, 0.2))
    sigma = numpyro.sample("sigma", dist.HalfNormal(0.1))
    path = numpyro.deterministic("path", x + level + slope * TREND)
    numpyro.sample("y", dist.Normal(path, sigma).mask(seen), obs=y)


def train(key, z, held_out, loss, steps: int):
    key_net, key_fit = jax.random.split(key)
    net = nd.nets.ResidualMLP(key_net, (LENGTH,), width=64)
    start = nd.ProperEnergy.from_data(net, z, noise_min=0.1, noise_max=15.0)
    both = lambda energy, key, batch: (
        loss(energy, key, batch) + 0.1 * nd.train.level_loss(energy, key, batch)
    )
    stopping = nd.train.EarlyStopping(patience=5)
    fitted = nd.fit(
        key_fit, start, z, validation=held_out, loss=both, steps=steps, batch_size=128,
        learning_rate=2e-3, stopping=stopping, progress_bar=False,
    )  # fmt: skip
    print(f"  step {fitted.best_step}, held out {fitted.best_loss:.3f}")
    return fitted.energy


def covariance(p, gap):
    """A wave of about eleven years that changes slowly, and a slower level."""
    scale, decay, period, shape, slow, slow_decay = jnp.exp(p[:6])
    wave = -0.5 * (gap / decay) ** 2 - 2 * jnp.sin(jnp.pi * gap / period) ** 2 / shape**2
    return scale**2 * jnp.exp(wave) + slow**2 * jnp.exp(-0.5 * (gap / slow_decay) ** 2)


def gaussian_process(z):
    """Parameters of the kernel, mean and noise that make the training years most likely."""
    year = np.arange(len(z))

    @jax.value_and_grad
    def loss(p):
        k = covariance(p, year[:, None] - year) + jnp.exp(2 * p[6]) * jnp.eye(len(z))
        return -dist.MultivariateNormal(p[7], k).log_prob(z)

    loss = jax.jit(loss)
    as_float = lambda p: tuple(np.asarray(v, float) for v in loss(jnp.asarray(p, float)))
    starts = [
        np.append(np.log([1.0, decay, period, shape, 0.5, 40.0, 0.2]), 0.0)
        for decay, period, shape in ((10.0, 10.5, 1.0), (30.0, 11.0, 1.0), (15.0, 11.0, 2.0))
    ]
    ends = [minimize(as_float, start, jac=True, method="L-BFGS-B") for start in starts]
    return jnp.asarray(min(ends, key=lambda end: end.fun).x)


def of_process(p):
    """Mean and covariance of a window under the Gaussian process, noise included."""
    year = np.arange(LENGTH)
    k = np.asarray(covariance(p, jnp.asarray(year[:, None] - year)), float)
    return np.full(LENGTH, float(p[7])), k + np.exp(2 * float(p[6])) * np.eye(LENGTH)


def of_windows(past):
    """Mean and covariance of the training windows, with what the model has beside the prior."""
    trend = np.asarray(TREND, float)
    beside = 0.04 * (1 + np.outer(trend, trend)) + 2 * 0.1**2 * np.eye(LENGTH)
    return past.mean(0), np.cov(past.T) + beside


def gaussian_forecast(law, y, seen, num: int, rng):
    mean, k = law
    gain = np.linalg.solve(k[np.ix_(seen, seen)], k[seen][:, SEEN:]).T
    ahead = mean[SEEN:] + gain @ (y[seen] - mean[seen])
    left = k[SEEN:, SEEN:] - gain @ k[seen][:, SEEN:]
    return rng.multivariate_normal(ahead, 0.5 * (left + left.T), num)


class Forecasts(NamedTuple):
    """Forecasts of one seed: by name, CRPS (origins, years) and CRPS_sum (origins,); draws by origin."""

    crps: dict[str, np.ndarray]
    crps_sum: dict[str, np.ndarray]
    draws: dict[int, dict[str, np.ndarray]]


def forecasts(seed: int, origins, *, steps: int, particles: int, scheme=None) -> Forecasts:
    """Train both priors, fit both Gaussians and forecast from each origin, a year."""
    year, sunspots = np.loadtxt(DATA, delimiter=",", skiprows=2).T
    z = to_units(sunspots)
    past, held_out = windows(z[year < 1856]), windows(z[(year >= 1856) & (year < 1900)])
    scale, key = float(past.std()), jax.random.key(seed)
    losses = {
        "denoising": nd.train.MultiGranularity((1,), (0.0,), (1.0,), data_scale=scale),
        "multi-granularity": nd.train.MultiGranularity(
            (1, 4), (0.0, scale), (0.8, 0.2), data_scale=scale
        ),
    }
    energies = {}
    for name, loss in losses.items():
        print(name)
        energies[name] = train(key, past, held_out, loss, steps)
    laws = {
        "Gaussian process": of_process(gaussian_process(z[year < 1900])),
        "Gaussian of the windows": of_windows(past),
    }

    seen = np.arange(LENGTH) < SEEN
    seen[MISSING] = False
    smc = nd.SMC(model, scheme, num_particles=particles, num_chains=2, progress_bar=False)
    rng, scores, sums, shown = np.random.default_rng(seed), {}, {}, {}
    for origin in origins:
        inside = (year >= origin - SEEN) & (year < origin + AHEAD)
        y, truth = np.where(seen, z[inside], 0.0), sunspots[inside][SEEN:]
        draws = {
            name: gaussian_forecast(law, y, seen, 2 * particles, rng) for name, law in laws.items()
        }
        for name, energy in energies.items():
            key_run = jax.random.fold_in(jax.random.key(origin), seed)
            smc.run(key_run, energy, jnp.asarray(y), jnp.asarray(seen))
            if origin == origins[0]:
                print(nd.diagnostics.verdict(smc.result))
            sample = smc.get_samples()
            noise = rng.standard_normal((2 * particles, AHEAD))
            draws[name] = np.asarray(sample["path"])[:, SEEN:] + (
                np.asarray(sample["sigma"])[:, None] * noise
            )
        for name, z_ahead in draws.items():
            ahead = to_sunspots(z_ahead)
            scores.setdefault(name, []).append(nd.diagnostics.crps(ahead, truth))
            total = nd.diagnostics.crps_sum(ahead[..., None], truth[:, None])
            sums.setdefault(name, []).append(total)
            shown.setdefault(origin, {})[name] = ahead
    stacked = lambda by_name: {name: np.stack(values) for name, values in by_name.items()}
    return Forecasts(stacked(scores), stacked(sums), shown)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    options = parser.parse_args(argv)
    steps, particles, every = (20, 16, 60) if options.tiny else (1500, 128, 12)
    scheme = nd.Annealed(levels=4, moves=1, pilot=8) if options.tiny else None

    scores, sums, shown = forecasts(
        options.seed, range(1916, 2002, every), steps=steps, particles=particles, scheme=scheme
    )
    first = scores["Gaussian process"].mean(1)
    for name, values in scores.items():
        gap = values.mean(1) - first
        error = gap.std(ddof=1) / len(gap) ** 0.5 if len(gap) > 1 else np.nan
        print(
            f"{name}: CRPS {values.mean():.2f} sunspots over {len(values)} forecasts, "
            f"{gap.mean():+.2f} ± {error:.2f} to the process; years 1-4 {values[:, :4].mean():.2f}, "
            f"5-8 {values[:, 4:].mean():.2f}; CRPS_sum {np.mean(sums[name]):.3f}"
        )

    year, sunspots = np.loadtxt(DATA, delimiter=",", skiprows=2).T
    seen = np.setdiff1d(np.arange(SEEN), MISSING)
    origins = list(shown)[-3:]
    figure, axes = plt.subplots(
        1, len(origins), figsize=(10, 2.8), layout="constrained", squeeze=False
    )
    for axis, origin in zip(axes[0], origins, strict=True):
        inside = (year >= origin - SEEN) & (year < origin + AHEAD)
        axis.plot(year[inside], sunspots[inside], color="black", linewidth=0.8)
        axis.plot(year[inside][seen], sunspots[inside][seen], "k.", markersize=4)
        for name, colour in (("Gaussian process", "#c8553d"), ("multi-granularity", "#30506d")):
            band = np.quantile(shown[origin][name], [0.1, 0.5, 0.9], axis=0)
            axis.fill_between(year[inside][SEEN:], band[0], band[2], color=colour, alpha=0.25)
            axis.plot(year[inside][SEEN:], band[1], color=colour, linewidth=1.2, label=name)
        axis.set(title=f"from {origin}", ylim=(0, 260))
    axes[0, 0].legend(frameon=False, fontsize=7)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "forecast.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(path)


if __name__ == "__main__":
    main()
