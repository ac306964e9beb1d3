"""A joint model of a diffusion variable and another latent one, against its closed form.

A 2-D mixture of three full-covariance Gaussians as prior of x, theta ~ N(0, 1), and two data
y = H x + theta + N(0, 0.4^2): the posterior has two modes. 2,000 particles; 40 levels, equal in log-SNR,
where a row says so, otherwise the pilot's. `error` is that of log p(y) over seeds, mean +- standard
deviation, and
`RMSE` the root mean square error of the posterior means of x and theta. `P` is the posterior probability of
the left mode, x_1 < -0.5. `Z-hat / Z` is the mean over 200 clouds of 250 particles with its standard error.
`shifted` rows add 3 sin 4t + 2t - 1 to the energy: an evidence that needs the normaliser is then off by its
value at t_min, which is taken out. `CPU s` is without pilot and compilation.
"""

import time

import _table
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from assertions import Shifted
from closed_form import three_modes

import numpyro_diffusion as nd

PROBLEM = three_modes()
FIXED = {"moves": 1, "levels": 40}
SCHEMES = {
    "ReverseDiffusion, 40 levels": (nd.ReverseDiffusion(**FIXED), nd.Tweedie()),
    "ReverseDiffusion, 40 levels, Widened": (nd.ReverseDiffusion(**FIXED), nd.Widened()),
    "ReverseDiffusion, 40 levels, Moments": (nd.ReverseDiffusion(**FIXED), nd.twists.Moments()),
    "ReverseDiffusion": (nd.ReverseDiffusion(), nd.Tweedie()),
    "ReverseDiffusion, shifted": (nd.ReverseDiffusion(), nd.Tweedie()),
    "Annealed": (nd.Annealed(), nd.Tweedie()),
    "LikelihoodTempered": (nd.LikelihoodTempered(), nd.twists.Identity()),
    "LikelihoodTempered, shifted": (nd.LikelihoodTempered(), nd.twists.Identity()),
    "Twisted, 40 levels": (nd.Twisted(levels=40), nd.Tweedie()),
    "Twisted, 40 levels, Widened": (nd.Twisted(levels=40), nd.Widened()),
    "Twisted, 40 levels, Moments": (nd.Twisted(levels=40), nd.twists.Moments()),
}


def model_with(prior):
    def model(operator, y):
        x = numpyro.sample("x", nd.DiffusionPrior(prior))
        offset = numpyro.sample("offset", dist.Normal(0.0, PROBLEM.offset_scale))
        numpyro.sample("y", dist.Normal(operator @ x + offset, PROBLEM.sigma).to_event(1), obs=y)

    return model


def left_mode() -> float:
    """Posterior probability of x_1 < -0.5, by a long run of exact draws."""
    rng = np.random.default_rng(0)
    draws = exact_draws(rng, 400_000)
    return float(np.mean(draws[:, 0] < -0.5))


def exact_draws(rng, size: int) -> np.ndarray:
    p = PROBLEM
    prior = p.prior
    floor = float(prior.schedule.noise_level(jnp.asarray(prior.t_min))) ** 2
    total = p.offset_scale**2 * np.ones((2, 2)) + p.sigma**2 * np.eye(2)
    means, roots = [], []
    for mean, covariance in zip(p.means, p.covariances, strict=True):
        covariance = covariance + floor * np.eye(2)
        gain = (
            covariance
            @ p.operator.T
            @ np.linalg.inv(p.operator @ covariance @ p.operator.T + total)
        )
        means.append(mean + gain @ (p.data - p.operator @ mean))
        roots.append(np.linalg.cholesky(covariance - gain @ p.operator @ covariance))
    k = rng.choice(len(means), size, p=p.exact().modes)
    noise = rng.standard_normal((size, 2))
    return np.array(means)[k] + np.einsum("nij,nj->ni", np.array(roots)[k], noise)


def measure(name: str, seeds: int, size: int, clouds: int):
    scheme, twist = SCHEMES[name]
    prior, shift = PROBLEM.prior, 0.0
    if "shifted" in name:
        prior = Shifted(prior, jnp.asarray(1.0))
        if not isinstance(scheme, nd.LikelihoodTempered):
            shift = float(prior.constant(jnp.asarray(prior.t_min)))
    bridge = nd.from_model(
        model_with(prior),
        jnp.asarray(PROBLEM.operator),
        y=jnp.asarray(PROBLEM.data),
        twist=twist,
        bridge_type=scheme.bridge_type,
    )
    exact = PROBLEM.exact()
    evidences, x, offsets, left, seconds = [], [], [], [], []
    steps = scheme(bridge, jax.random.key(0))
    jax.block_until_ready(nd.run_smc(jax.random.key(99), steps, size))
    for seed in range(seeds):
        started = time.process_time()
        result = jax.block_until_ready(nd.run_smc(jax.random.key(seed), steps, size))
        seconds.append(time.process_time() - started)
        weights = np.asarray(jax.nn.softmax(result.log_weights))
        points = np.asarray(result.positions["x"])
        evidences.append(float(result.log_evidence) + shift - exact.log_evidence)
        x.append(weights @ points)
        offsets.append(weights @ np.asarray(result.positions["offset"]))
        left.append(weights @ (points[:, 0] < -0.5))
    many = nd.run_smc(jax.random.key(1), steps, size // 8, num_chains=clouds)
    ratio = np.exp(np.asarray(many.log_evidence) + shift - exact.log_evidence)
    rms = lambda values, truth: np.sqrt(np.mean((np.asarray(values) - truth) ** 2))
    return [
        name,
        len(steps.levels.clock),
        f"{np.mean(evidences):+.3f} +- {np.std(evidences):.3f}",
        f"{rms(x, exact.mean):.3f} / {rms(offsets, exact.offset_mean):.3f}",
        f"{np.mean(left):.3f} +- {np.std(left):.3f}",
        f"{ratio.mean():.3f} +- {ratio.std() / len(ratio) ** 0.5:.3f}",
        f"{np.mean(seconds):.2f}",
    ]


def main() -> None:
    options = _table.parser(__doc__).parse_args()
    names, seeds, size, clouds = list(SCHEMES), options.seeds, 2000, 200
    if options.tiny:
        names, seeds, size, clouds = names[1:2], 1, 64, 4
    rows = [["exact", "", "", "", f"{left_mode():.3f}", "", ""]]
    for name in names:
        rows.append(measure(name, seeds, size, clouds))
        print(*rows[-1], sep=" | ", flush=True)
    columns = ["method", "levels", "error", "RMSE x / theta", "P", "Z-hat / Z", "CPU s"]
    _table.emit("joint", __doc__, columns, rows, options.save)


if __name__ == "__main__":
    main()
