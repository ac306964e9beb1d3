"""Rates of the empirical score stopped early, in one dimension: a benchmark of a theorem, not a proof of it.

With the empirical score of n examples the reverse diffusion, stopped at noise level h, draws from a Gaussian
kernel density estimate of bandwidth h. Its total variation (TV) and Wasserstein-1 distance (W1) to the
truth, an asymmetric mixture of two Gaussians, are integrals over a grid; n runs from 500 to 128,000 by
factors of 2. The slope of the mean log distance against log n, with its standard error over data sets, and
what theory says: TV is of order n^(-2/5) at the bandwidth that the rate asks for, h = sd n^(-1/5)
(`rate_optimal_times`); too small a bandwidth leaves the noise, of order (n h)^(-1/2), too large a one the
bias, of order h^2. W1 has the noise n^(-1/2) of the data at any small bandwidth, and the same bias.
"""

import _table
import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.special import ndtr

import numpyro_diffusion as nd

SHARES, MEANS, SDS = np.array([0.4, 0.6]), np.array([-1.5, 1.0]), np.array([0.6, 0.8])
EDGES = np.linspace(-12.0, 12.0, 12_001)
GRID, STEP = 0.5 * (EDGES[1:] + EDGES[:-1]), EDGES[1] - EDGES[0]
SD = float(np.sqrt(SHARES @ (SDS**2 + MEANS**2) - (SHARES @ MEANS) ** 2))
POWERS = {
    "n^(-1/5), the rate's": 1 / 5,
    "n^(-1/2), stopped too late": 1 / 2,
    "n^(-1/12), stopped too early": 1 / 12,
    "n^(-1/4), for W1": 1 / 4,
}
THEORY = {
    1 / 5: (-0.4, -0.4),
    1 / 2: (-0.25, -0.5),
    1 / 12: (-1 / 6, -1 / 6),
    1 / 4: (-0.375, -0.5),
}


def truth():
    """Probabilities of the cells of the grid."""
    cumulative = ndtr((EDGES[:, None] - MEANS) / SDS) @ SHARES
    return np.diff(cumulative)


def kernel_estimate(counts, bandwidth: float):
    """Probabilities of the cells under a Gaussian kernel density estimate, by a fast Fourier transform."""
    size = next_fast_len(2 * len(counts), real=True)
    frequencies = 2 * np.pi * np.arange(size // 2 + 1) / (size * STEP)
    smooth = irfft(rfft(counts, size) * np.exp(-0.5 * (bandwidth * frequencies) ** 2), size)
    return smooth[: len(counts)] / counts.sum()


def main():
    """Fit slopes over data sets and print one table."""
    options = _table.parser(__doc__)
    options.set_defaults(seeds=20)
    options = options.parse_args()
    seeds = 2 if options.tiny else options.seeds
    sizes = 500 * 2 ** np.arange(4 if options.tiny else 9)
    exact = truth()
    distances = np.empty((seeds, len(sizes), len(POWERS), 2))
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        for i, n in enumerate(sizes):
            which = (rng.random(n) > SHARES[0]).astype(int)
            x = MEANS[which] + SDS[which] * rng.standard_normal(n)
            counts = np.histogram(x, EDGES)[0].astype(float)
            for j, power in enumerate(POWERS.values()):
                gap = kernel_estimate(counts, SD * n**-power) - exact
                distances[seed, i, j] = 0.5 * np.abs(gap).sum(), STEP * np.abs(gap.cumsum()).sum()
    bandwidth = nd.density.rate_optimal_times(int(sizes[-1]), 1, scale=SD).noise_min
    np.testing.assert_allclose(bandwidth, SD * sizes[-1] ** -0.2, rtol=1e-4)
    logs = np.log(sizes) - np.log(sizes).mean()
    slopes = np.tensordot(np.log(distances), logs, ((1,), (0,))) / (logs @ logs)
    error = slopes.std(0, ddof=1) / seeds**0.5
    rows = []
    for j, (name, power) in enumerate(POWERS.items()):
        tv, w1 = (f"{slopes[:, j, k].mean():.3f} ± {error[j, k]:.3f}" for k in (0, 1))
        known = THEORY[power]
        last = distances[:, -1, j].mean(0)
        rows.append(
            [name, tv, f"{known[0]:.3f}", f"{last[0]:.4f}", w1, f"{known[1]:.3f}", f"{last[1]:.4f}"]
        )
    columns = ["bandwidth", "TV slope", "theory", f"TV, n = {sizes[-1]:,}"]
    columns += ["W1 slope", "theory", f"W1, n = {sizes[-1]:,}"]
    _table.emit("rates", __doc__, columns, rows, options.save)


if __name__ == "__main__":
    main()
