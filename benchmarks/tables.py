"""Tables of some hundred rows: is a prior trained by default ahead of a Gaussian on held-out rows?

Three tables that come with scikit-learn: the ten means of the breast cancer table (569 rows), diabetes (442
rows, ten columns, one of them binary, which no Gaussian fits) and wine (178 rows, 13 columns, three kinds). A
seed holds out a fifth of the rows and draws weights and noise. The prior is
`ProperEnergy.from_data(ResidualMLP(key, shape), rows, noise_min=0.1, noise_max=20, standardize=True)`
after `fit` with its defaults, but for `patience=3`, which ends it sooner; it is normalised by
`prior_normalizer`. Log densities are of held-out rows with the noise of `t_min`, 20 draws each, in nats a
row; the Gaussian is the untrained prior, with the same noise. Gains are over that Gaussian: mean +- standard
deviation over seeds; `least` is the smallest gain of the prior. `shrunk` is the Gaussian of Ledoit and Wolf's
covariance, `mixture` two Gaussians by maximum likelihood.
"""

import time
import warnings

import _table
import jax
import jax.numpy as jnp
import numpy as np
from sklearn import datasets
from sklearn.covariance import LedoitWolf
from sklearn.mixture import GaussianMixture

import numpyro_diffusion as nd

NOISE = 0.1
COPIES = 20
TABLES = {
    "breast cancer": lambda: datasets.load_breast_cancer().data[:, :10],
    "diabetes": lambda: datasets.load_diabetes().data,
    "wine": lambda: datasets.load_wine().data,
}


def noised(energy):
    """The law at t_min as a function of many rows in standard units."""
    t = jnp.asarray(energy.t_min)
    return jax.jit(jax.vmap(lambda u: energy.log_density(u, t)))


def gains(rows, seed: int, fit: dict, num_particles: int):
    """Gains over the Gaussian in nats a row, with what training said of itself."""
    rng = np.random.default_rng(seed)
    order, num = rng.permutation(len(rows)), len(rows) // 5
    train, test = rows[order[num:]], rows[order[:num]]
    key_net, key_fit, key_norm = jax.random.split(jax.random.key(seed), 3)
    net = nd.nets.ResidualMLP(key_net, rows.shape[1:])
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # the binary column; nothing learned is in the table
        law = nd.ProperEnergy.from_data(
            net, train, noise_min=NOISE, noise_max=20.0, standardize=True
        )
        started = time.perf_counter()
        found = nd.fit(key_fit, law, train, progress_bar=False, **fit)
    seconds = time.perf_counter() - started
    energy = found.energy.energy
    norm = nd.prior_normalizer(energy, key_norm, num_particles=num_particles)
    energy = energy.with_log_normalizer(norm.value, norm.standard_error)
    u = np.repeat(law.standardize(test), COPIES, 0)
    u += NOISE * rng.normal(size=u.shape)
    flat = nd.InnerProductEnergy(
        None, np.zeros(rows.shape[1]), np.cov(law.standardize(train).T, bias=True),
        law.energy.schedule, law.energy.t_min, law.energy.t_max,
    )  # fmt: skip
    gaussian = np.mean(noised(flat)(jnp.asarray(u, jnp.float32)))
    prior = np.mean(noised(energy)(jnp.asarray(u, jnp.float32)))
    z = law.standardize(train)
    add = NOISE**2 * np.eye(z.shape[1])
    shrunk = LedoitWolf().fit(z).covariance_ + add
    inverse, log_det = np.linalg.inv(shrunk), np.linalg.slogdet(2 * np.pi * shrunk)[1]
    shrunk = np.mean(-0.5 * (np.sum((u - z.mean(0)) @ inverse * (u - z.mean(0)), 1) + log_det))
    smooth = np.repeat(z, COPIES, 0) + NOISE * rng.normal(size=(len(z) * COPIES, z.shape[1]))
    mixture = GaussianMixture(2, n_init=3, random_state=seed).fit(smooth).score(u)
    print(f"seed {seed}: {found.verdict}", flush=True)
    others = shrunk - gaussian, mixture - gaussian
    return prior - gaussian, *others, gaussian, norm.standard_error, found.best_step, seconds


def main() -> None:
    parser = _table.parser(__doc__)
    parser.add_argument("--only", help="one of " + ", ".join(TABLES))
    parser.add_argument("--weight-decay", type=float, help="another weight decay than the default")
    options = parser.parse_args()
    stopping = {"check_every": 10} if options.tiny else {"patience": 3}
    fit = {"steps": 20, "batch_size": 16} if options.tiny else {}
    fit["stopping"] = nd.train.EarlyStopping(**stopping)
    fit["optimizer"] = nd.train.Optimizer(weight_decay=options.weight_decay)
    particles, seeds = (100, 1) if options.tiny else (500, options.seeds)
    spread = lambda values: f"{np.mean(values):.2f} +- {np.std(values):.2f}"
    rows = []
    for name, load in TABLES.items():
        if options.only not in (None, name):
            continue
        table = load()
        found = np.array([gains(table, seed, fit, particles) for seed in range(seeds)]).T
        prior, shrunk, mixture, gaussian, error, best, seconds = found
        rows.append(
            [
                name, f"{len(table)} x {table.shape[1]}", spread(gaussian), spread(prior),
                f"{prior.min():.2f}", f"{error.max():.2f}", spread(shrunk), spread(mixture),
                ", ".join(f"{step:.0f}" for step in best), f"{np.mean(seconds):.0f}",
            ]
        )  # fmt: skip
        print(*rows[-1], sep=" | ", flush=True)
    columns = ["table", "size", "Gaussian", "prior", "least", "error of the normaliser", "shrunk", "mixture",
               "best steps", "seconds"]  # fmt: skip
    name = "tables" if options.weight_decay is None else f"tables-decay-{options.weight_decay:g}"
    _table.emit(name, __doc__, columns, rows, options.save)


if __name__ == "__main__":
    main()
