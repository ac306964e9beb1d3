"""Evidence and posterior by default settings, against closed forms.

Each row pools `--seeds` independent runs of `nd.SMC` with default settings, 1,000 particles and 4 clouds.
`error` is the difference to the exact log evidence in nats (mean over runs, then the worst), `stated` the
mean standard error that the runs report, `z` the root mean square of error / stated (1 if honest, below 1
if cautious). `TV` is the mean total variation of the mode probabilities, `mean` and `sd` the worst error over
coordinates of posterior mean and standard deviation, in posterior standard deviations.
"""

import time

import _table
import jax
import numpy as np
from closed_form import eight_dimensional, two_dimensional

import numpyro_diffusion as nd

PROBLEMS = {
    "2-D, sigma known": two_dimensional(sigma=0.3),
    "2-D, sigma unknown": two_dimensional(),
    "2-D, offset unknown": two_dimensional(sigma=0.3, offset_scale=0.7),
    "8-D, sigma known": eight_dimensional(sigma=0.2),
    "8-D, sigma unknown": eight_dimensional(),
    "8-D, offset and sigma unknown": eight_dimensional(offset_scale=0.5),
}


def measure(problem, num_seeds: int, num_particles: int) -> list:
    exact = problem.exact()
    errors, stated, distances, means, sds = [], [], [], [], []
    started = time.perf_counter()
    for seed in range(num_seeds):
        smc = nd.SMC(problem.model, num_particles=num_particles, progress_bar=False)
        smc.run(jax.random.key(seed), problem.operator, y=problem.data)
        errors.append(smc.log_evidence - exact.log_evidence)
        stated.append(smc.log_evidence_error)
        samples, weights = smc.get_weighted_samples()
        x, w = np.asarray(samples["x"]), np.asarray(weights)
        mode = problem.component(x)
        found = np.array([w[mode == k].sum() for k in range(len(problem.weights))])
        distances.append(0.5 * np.abs(found - exact.modes).sum())
        mean = np.einsum("cn,cni->i", w, x)
        variance = np.einsum("cn,cni->i", w, x**2) - mean**2
        means.append(np.abs((mean - exact.mean) / np.sqrt(exact.variance)).max())
        sds.append(np.abs(np.sqrt(variance / exact.variance) - 1).max())
    errors, stated = np.array(errors), np.array(stated)
    return [
        len(smc.result.levels.clock),
        f"{exact.log_evidence:.3f}",
        f"{errors.mean():+.3f} +- {errors.std(ddof=1) / len(errors) ** 0.5:.3f}",
        f"{np.abs(errors).max():.3f}",
        f"{stated.mean():.3f}",
        f"{np.sqrt(((errors / stated) ** 2).mean()):.2f}",
        f"{np.mean(distances):.3f}",
        f"{np.mean(means):.3f}",
        f"{np.mean(sds):.3f}",
        f"{(time.perf_counter() - started) / num_seeds:.1f}",
    ]


def main() -> None:
    options = _table.parser(__doc__).parse_args()
    seeds, particles = (2, 64) if options.tiny else (options.seeds, 1000)
    columns = "problem levels exact error worst stated z TV mean sd".split() + ["s a run"]
    rows = [[name, *measure(p, seeds, particles)] for name, p in PROBLEMS.items()]
    _table.emit("evidence", __doc__, columns, rows, options.save)


if __name__ == "__main__":
    main()
