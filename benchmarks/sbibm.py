"""Six tasks of simulation-based inference: exact diffused priors under arbitrary likelihoods.

Priors, likelihoods, observations and reference draws are those of sbibm (see `data/README.md`). The priors
have a closed form at every noise level (a Gaussian, or `Box`) and stand where a learned energy would; the
likelihoods are ordinary NumPyro models. `C2ST` is the accuracy of a classifier that tells 2,000 draws from
2,000 reference draws: 5-fold, two hidden layers of ten units a dimension, inputs scaled by the reference,
seed 1; 0.5 is perfect. Each cell holds observations 1 to 5, then on how many the bar is met: 0.56, or 0.60
for slcp and two_moons. `LikelihoodTempered` starts from exact draws of the prior, which the prior of a
simulator always has; `Annealed`, the default of `SMC`, comes from noise. Both run 4 clouds of 1,000
particles, otherwise by default, or with 20 moves a level where said: Hamiltonian moves are refused at the
walls of a box, and every coordinate has two. Priors have walls that are soft over 0.4 % of a unit. BlackJAX's
adaptive tempering has the exact prior, 4,000 particles, 5 HMC moves of 5 steps a stage and the best of
three step sizes on observation 1, in units of the prior's standard deviation. `reference` compares
reference draws among themselves, 1,000 with 1,000. `s` is the median time of a run, without the first of
a task, which compiles. `nan`: no draws. Under the hard support of two_moons the denoised mean of pure
noise has likelihood 0, so that `Annealed` cannot start, and says so.
"""

import sys
import time
import warnings
from pathlib import Path

import _table
import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from blackjax.smc.tempered import TemperedSMCState
from equinox import filter_jit
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier

import numpyro_diffusion as nd
from numpyro_diffusion.schemes.pilot import PilotError
from numpyro_diffusion.smc import resample_equal

DATA = np.load(Path(__file__).parent / "data" / "sbibm.npz")
SCHEMES = {
    "LikelihoodTempered": nd.LikelihoodTempered(),
    "LikelihoodTempered, 20 moves": nd.LikelihoodTempered(moves=20),
    "Annealed": nd.Annealed(),
}
STEP_SIZES = (0.02, 0.1, 0.3)


def linear(theta):
    return dist.Normal(theta, 0.1**0.5).to_event(1)


def mixture(theta):
    scales = jnp.array([1.0, 0.1])
    parts = dist.Normal(theta, scales[:, None]).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(probs=jnp.array([0.5, 0.5])), parts)


def slcp(theta):
    s1, s2, rho = theta[2] ** 2, theta[3] ** 2, jnp.tanh(theta[4])
    cross = rho * s1 * s2
    covariance = jnp.array([[s1**2, cross], [cross, s2**2]]) + 1e-6 * jnp.eye(2)
    return dist.MultivariateNormal(theta[:2], covariance).expand([4]).to_event(1)


def spikes(theta):
    return dist.Bernoulli(logits=jnp.asarray(DATA["design"]) @ theta).to_event(1)


def moons(theta, y):
    """Log likelihood of a half moon: the right half of a ring of radius 0.1, moved by the parameters."""
    c = 0.5**0.5
    u = y[0] + jnp.abs(c * (theta[0] + theta[1])) - 0.25
    v = y[1] - c * (theta[1] - theta[0])
    inside = u >= 0
    r = jnp.sqrt(jnp.where(inside, u**2 + v**2, 0.01))
    log_density = dist.Normal(0.1, 0.01).log_prob(r) - jnp.log(jnp.pi * r)
    return jnp.where(inside, log_density, -jnp.inf)


def smooth_walk():
    """Prior covariance of the filter of `bernoulli_glm`: an offset, and a walk with smooth steps."""
    step = np.eye(9) - np.eye(9, k=-1)
    walk = step @ step + np.diag((np.arange(9) / 9) ** 0.5)
    precision = np.zeros((10, 10))
    precision[0, 0], precision[1:, 1:] = 0.5, walk.T @ walk
    return np.linalg.inv(precision)


def box(side: float, dimension: int):
    return nd.energies.Box(np.full(dimension, -side), np.full(dimension, side))


def flat(side: float, dimension: int):
    return dist.Uniform(-side, side).expand([dimension]).to_event(1)


def gaussian(covariance):
    mean = np.zeros(len(covariance))
    return nd.Gaussian(mean, covariance), dist.MultivariateNormal(mean, covariance)


TASKS = {  # diffused prior, exact prior, likelihood
    "gaussian_linear": (*gaussian(0.1 * np.eye(10)), linear),
    "gaussian_linear_uniform": (box(1.0, 10), flat(1.0, 10), linear),
    "gaussian_mixture": (box(10.0, 2), flat(10.0, 2), mixture),
    "two_moons": (box(1.0, 2), flat(1.0, 2), moons),
    "slcp": (box(3.0, 5), flat(3.0, 5), slcp),
    "bernoulli_glm": (*gaussian(smooth_walk()), spikes),
}


def model_of(energy, likelihood):
    def model(y):
        theta = numpyro.sample("theta", nd.DiffusionPrior(energy))
        if likelihood is moons:
            numpyro.factor("y", moons(theta, y))
        else:
            numpyro.sample("y", likelihood(theta), obs=y)

    return model


def c2st(draws, reference) -> float:
    """Cross-validated accuracy of a classifier between two samples."""
    size = min(len(draws), len(reference))
    both = np.concatenate([draws[:size], reference[:size]]).astype(float)
    both = (both - reference.mean(0, dtype=float)) / reference.std(0, dtype=float)
    hidden = 10 * both.shape[1]
    net = MLPClassifier((hidden, hidden), max_iter=1000, random_state=1)
    folds = KFold(5, shuffle=True, random_state=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return float(np.mean(cross_val_score(net, both, np.repeat([0, 1], size), cv=folds)))


def by_smc(scheme, task, tiny):
    energy, _, likelihood = task
    clouds, size = (2, 64) if tiny else (4, 1000)
    smc = nd.SMC(
        model_of(energy, likelihood),
        scheme,
        num_particles=size,
        num_chains=clouds,
        progress_bar=False,
    )

    def run(y, seed):
        smc.run(jax.random.key(seed), y)
        return np.asarray(smc.get_samples()["theta"])

    return run


def by_blackjax(step_size, task, tiny):
    _, prior, likelihood = task
    size = 128 if tiny else 4000
    scale = jnp.asarray(np.broadcast_to(np.asarray(prior.variance), prior.event_shape), jnp.float32)

    @filter_jit
    def step(key, state, y):
        # Outside a box the density is 0; NumPyro's own check of arguments would only raise there.
        inside = lambda theta: jnp.all(prior.support(theta))
        logprior = lambda theta: jnp.where(inside(theta), prior.log_prob(theta), -jnp.inf)
        if likelihood is moons:
            loglikelihood = lambda theta: moons(theta, y)
        else:
            loglikelihood = lambda theta: likelihood(theta).log_prob(y)
        algorithm = blackjax.adaptive_tempered_smc(
            logprior,
            loglikelihood,
            blackjax.hmc.build_kernel(),
            blackjax.hmc.init,
            {
                "step_size": jnp.array([step_size]),
                "inverse_mass_matrix": scale[None],
                "num_integration_steps": jnp.array([5]),
            },
            blackjax.smc.resampling.systematic,
            0.5,
            num_mcmc_steps=5,
        )
        return algorithm.step(key, state)[0]

    def run(y, seed):
        key, key_draw = jax.random.split(jax.random.key(seed))
        draws = prior.sample(key_draw, (size,))
        state = TemperedSMCState(draws, jnp.full(size, 1 / size), jnp.asarray(0.0))
        for _ in range(200):
            key, key_step = jax.random.split(key)
            state = step(key_step, state, y)
            power = float(state.tempering_param)
            if not power < 1:
                break
        draws = state.particles[resample_equal(key, jnp.log(state.weights), size)]
        return np.asarray(draws)

    return run


def against_reference(run, name: str, observations, num: int):
    """C2ST of a sampler at each observation, and its seconds."""
    found, seconds = [], []
    for i in observations:
        started = time.perf_counter()
        try:
            draws = run(jnp.asarray(DATA[f"{name}_{i}_y"]), i)
        except PilotError as error:
            print(f"{name} {i}: {error}", file=sys.stderr)
            draws = np.full((1, 1), np.nan)
        seconds.append(time.perf_counter() - started)
        draws = draws[np.random.default_rng(i).permutation(len(draws))[:num]]
        finite = np.isfinite(draws).all()
        found.append(c2st(draws, DATA[f"{name}_{i}_draws"][:num]) if finite else np.nan)
    return found, seconds


def compare(name: str, methods, tiny: bool):
    """Rows of one task."""
    task, bar = TASKS[name], 0.60 if name in ("slcp", "two_moons") else 0.56
    observations, num = ([1], 60) if tiny else (range(1, 6), 2000)
    references = [DATA[f"{name}_{i}_draws"][:num] for i in observations]
    yield name, "reference", *_cells([c2st(*np.split(r, 2)) for r in references], bar), ""

    def row(label, run):
        found, seconds = against_reference(run, name, observations, num)
        return name, label, *_cells(found, bar), f"{np.median(seconds[1:] or seconds):.1f}"

    for label in methods:
        if label != "BlackJAX":
            yield row(label, by_smc(SCHEMES[label], task, tiny))
    if "BlackJAX" in methods:
        trials = [by_blackjax(size, task, tiny) for size in STEP_SIZES]
        first = [against_reference(run, name, [1], num)[0][0] for run in trials]
        best = int(np.nanargmin(first)) if np.isfinite(first).any() else 0
        yield row(f"BlackJAX, step {STEP_SIZES[best]}", trials[best])


def _cells(found, bar):
    met = sum(value <= bar for value in found)
    return " ".join(f"{value:.3f}" for value in found), f"{met} of {len(found)}"


def main() -> None:
    parser = _table.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS), help="some tasks")
    methods = [*SCHEMES, "BlackJAX"]
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    options = parser.parse_args()
    rows = []
    for name in options.only:
        for row in compare(name, options.methods, options.tiny):
            rows.append(list(row))
        # The table is kept as it grows.
        columns = ["task", "draws from", "C2ST", "bar met", "s"]
        chosen = [] if options.methods == methods else options.methods
        table = "-".join(
            ["sbibm", *(label.replace(", ", "-").replace(" ", "-") for label in chosen)]
        )
        _table.emit(table, __doc__, columns, rows, options.save)


if __name__ == "__main__":
    main()
