"""Is an energy better distilled from a plain denoiser than trained on data?

On each set a plain denoiser is trained first, for five times the steps: the pretrained teacher. Then an
energy of the same backbone is trained on data by denoising alone (direct), and another is distilled from the
teacher, whose weights it starts from (distilled): with the same data, batches, steps and optimiser. Weights
are averaged and the best on held-out examples kept. Mean +- standard error over seeds; the last two columns
count the seeds in which distilled is ahead of direct.

- `loss over teacher`: denoising loss on test examples against the teacher's, in per cent, same noise.
- `log density`: mean over test examples noised to `t_min`, in nats. In two dimensions of the energy,
  normalised on a grid; else by the score formula.
- `SW2`, `MMD`: sliced Wasserstein-2 distance (200 directions) and maximum mean discrepancy (Gaussian kernel
  at the median distance) of draws by the reverse process to test examples noised to `t_min`.
- `accuracy`: share of draws under a label that a logistic regression, fitted to real digits, gives that
  label.
- `ms a step`: process time over steps, compilation apart (by a first run of a few steps).
"""

import time
from typing import NamedTuple

import _table
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import numpyro_diffusion as nd
from numpyro_diffusion.energies import NetworkDenoiser
from numpyro_diffusion.energies.reverse import reverse_process
from numpyro_diffusion.train import denoising_loss, score_log_density
from numpyro_diffusion.train.distill import from_teacher


class Set(NamedTuple):
    """Data in three parts, and how to make a backbone for them."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    labels: tuple[np.ndarray, ...] | None
    noise: tuple[float, float]
    backbone: object
    diagonal: bool


def checkerboard(rng, num):
    cell = rng.integers(0, 8, num)
    row, column = cell // 2, 2 * (cell % 2) + (cell // 2) % 2
    return np.stack([column, row], 1) - 2 + rng.uniform(size=(num, 2))


def spirals(rng, num):
    angle = 3 * np.pi * np.sqrt(rng.uniform(0.05, 1, num))
    sign = rng.choice([-1, 1], num, p=[0.35, 0.65])
    points = sign[:, None] * angle[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1) / 5
    return points + 0.06 * rng.standard_normal((num, 2))


def mixture(rng, num):
    law = nd.GaussianMixture()
    keys = jax.random.split(jax.random.key(rng.integers(2**31)), num)
    return np.asarray(jax.vmap(lambda key: law.draw(key, jnp.asarray(0.0)))(keys))


def plane(draw):
    def make(seed):
        rng = np.random.default_rng(seed)
        parts = [draw(rng, num).astype(np.float32) for num in (10_000, 1_000, 2_000)]
        net = lambda key: nd.nets.ResidualMLP(key, (2,), width=64)
        return Set(*parts, None, (0.05, 20.0), net, False)

    return make


def digits(seed):
    from numpyro_diffusion.pretrained import load_digits

    parts, labels = zip(*(load_digits(p) for p in ("train", "validation", "test")), strict=True)
    told = lambda key: nd.nets.Labels(jax.random.fold_in(key, 1), 10)
    net = lambda key: nd.nets.ResidualMLP(key, (8, 8), condition=told(key))
    return Set(*parts, labels, (0.0625, 10.0), net, False)


def patches(seed):
    """8 x 8 patches of the two photographs that come with scikit-learn, grey, without their means."""
    from sklearn.datasets import load_sample_images

    rng, found = np.random.default_rng(seed), []
    for image in load_sample_images().images:
        grey = image.mean(2) / 64.0 - 2.0
        corners = rng.integers(0, np.array(grey.shape) - 8, (3_500, 2))
        found += [grey[i : i + 8, j : j + 8] for i, j in corners]
    found = np.stack(found).astype(np.float32)[rng.permutation(len(found))]
    net = lambda key: nd.nets.UNet(key, (8, 8), channels=(16, 32))
    return Set(found[:5000], found[5000:6000], found[6000:], None, (0.05, 20.0), net, True)


NAMES = ["loss over teacher [%]", "log density", "SW2", "MMD", "accuracy", "ms a step"]
COLUMNS = ["set", "model", *NAMES, "loss ahead", "log density ahead"]
SETS = {
    "checkerboard": plane(checkerboard),
    "spirals": plane(spirals),
    "asymmetric mixture": plane(mixture),
    "digits by label": digits,
    "image patches": patches,
}


def fitted(key, data: Set, steps: int):
    """Teacher, direct and distilled, and the milliseconds of a step of each."""
    low, high = data.noise
    scale = float(np.sqrt(data.train.var(0).mean()))
    untrained = nd.InnerProductEnergy.from_data(
        data.backbone(key), data.train, noise_min=low, noise_max=high, diagonal=data.diagonal
    )
    told = {} if data.labels is None else {"condition": data.labels[0], "null_rate": 0.0}
    held = (
        data.validation if data.labels is None else (data.validation, jnp.asarray(data.labels[1]))
    )
    common = {**told, "validation": held, "progress_bar": False}
    common["stopping"] = nd.train.EarlyStopping(patience=1000)
    on_data = lambda e, k, x, **c: denoising_loss(e, k, x, data_scale=scale, **c)
    models, milliseconds = {}, {}

    def timed(name, run):
        started = time.process_time()
        run(10)
        compiled = time.process_time()
        models[name] = run(steps).energy
        done = time.process_time()
        trained = steps * (5 if name == "teacher" else 1)
        milliseconds[name] = 1000 * (done - compiled - (compiled - started)) / trained

    plain = NetworkDenoiser(untrained)
    whole = {"loss": on_data, "trainable": lambda d: d.base.net, **common}
    timed("teacher", lambda n: nd.fit(key, plain, data.train, steps=5 * n, **whole))
    timed("direct", lambda n: nd.fit(key, untrained, data.train, steps=n, loss=on_data, **common))
    student = from_teacher(untrained, models["teacher"])
    timed("distilled", lambda n: nd.distill(
        key, models["teacher"], student, data.train, steps=n, **common
    ))  # fmt: skip
    return models, milliseconds, scale


@eqx.filter_jit
def held_out_loss(model, images, labels, scale):
    told = {} if labels is None else {"condition": labels}
    one = lambda key: denoising_loss(model, key, images, data_scale=scale, **told)
    return jnp.mean(jax.lax.map(one, jax.random.split(jax.random.key(5), 32)))


def noised_to_prior(model, images, seed=6):
    s = float(model.schedule.noise_level(jnp.asarray(model.t_min)))
    return images + s * jax.random.normal(jax.random.key(seed), images.shape)


@eqx.filter_jit
def log_density(model, points, labels):
    """Mean log density at `t_min` in nats."""
    t = jnp.asarray(model.t_min)
    if points.shape[1:] == (2,) and isinstance(model, nd.AbstractEnergy):
        at = jax.vmap(lambda u: model.log_density(u, t))
        low, high = points.min(0) - 1, points.max(0) + 1
        axes = [jnp.linspace(low[i], high[i], 512) for i in range(2)]
        grid = jnp.stack(jnp.meshgrid(*axes), -1).reshape(-1, 2)
        volume = jnp.log(jnp.prod((high - low) / 511))
        return at(points).mean() - jax.nn.logsumexp(at(grid)) - volume

    def one(argument):
        key, u, c = argument
        told = model if c is None else model.given(c)
        return score_log_density(told, key, u, t, num_levels=32, num_draws=16)

    keys = jax.random.split(jax.random.key(7), len(points))
    return jnp.mean(jax.lax.map(one, (keys, points, labels), batch_size=50))


@eqx.filter_jit
def draws(model, num, labels):
    def one(argument):
        key, c = argument
        told = model if c is None else model.given(c)
        return reverse_process(told, key, 200) / told.schedule(jnp.asarray(told.t_min))[0]

    return jax.lax.map(one, (jax.random.split(jax.random.key(8), num), labels), batch_size=100)


def distances(a, b):
    a, b = (np.asarray(x, float).reshape(len(x), -1) for x in (a, b))
    size = min(len(a), len(b))
    a, b = a[:size], b[:size]
    directions = np.random.default_rng(0).standard_normal((a.shape[1], 200))
    directions /= np.linalg.norm(directions, axis=0)
    sliced = np.sqrt(((np.sort(a @ directions, 0) - np.sort(b @ directions, 0)) ** 2).mean())
    square = lambda x, y: ((x[:, None] - y[None]) ** 2).sum(-1)
    a, b = a[:1000], b[:1000]
    width = np.median(square(b, b))
    kernel = lambda x, y: np.exp(-square(x, y) / width)
    off = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))
    mmd = off(kernel(a, a)) + off(kernel(b, b)) - 2 * kernel(a, b).mean()
    return sliced, np.sqrt(max(mmd, 0.0))


def judged(model, teacher, data: Set, scale):
    labels = None if data.labels is None else jnp.asarray(data.labels[2])
    test = jnp.asarray(data.test)
    mine, best = (float(held_out_loss(m, test, labels, scale)) for m in (model, teacher))
    points = noised_to_prior(model, test)
    sampled = draws(model, len(test), labels)
    row = {
        "loss over teacher [%]": 100 * (mine / best - 1),
        "log density": float(log_density(model, points, labels)),
    }
    row["SW2"], row["MMD"] = distances(sampled, points)
    if labels is not None:
        from sklearn.linear_model import LogisticRegression

        flat = lambda x: np.asarray(x).reshape(len(x), -1)
        classifier = LogisticRegression(max_iter=2000).fit(flat(data.train), data.labels[0])
        row["accuracy"] = classifier.score(flat(sampled), data.labels[2])
    return row


def main() -> None:
    options = _table.parser(__doc__)
    options.add_argument("--steps", type=int, default=3000, help="a third of it for image patches")
    options.add_argument("--sets", nargs="+", default=list(SETS))
    options = options.parse_args()
    seeds, steps = (1, 5) if options.tiny else (options.seeds, options.steps)
    rows = []
    for which in options.sets:
        found: dict[str, list[dict]] = {"teacher": [], "direct": [], "distilled": []}
        for seed in range(seeds):
            data = SETS[which](seed)
            if options.tiny:
                small = lambda a: a[:40]
                labels = data.labels and tuple(map(small, data.labels))
                data = data._replace(
                    labels=labels, **{n: small(getattr(data, n)) for n in Set._fields[:3]}
                )
            models, milliseconds, scale = fitted(
                jax.random.key(seed),
                data,
                max(2, steps // 3) if which == "image patches" else steps,
            )
            for name, model in models.items():
                row = judged(model, models["teacher"], data, scale)
                found[name].append({**row, "ms a step": milliseconds[name]})
            print(which, seed, {n: found[n][-1] for n in found}, flush=True)
            # After every seed, so that an interrupted run leaves what it has done.
            name = "distilled_against_direct"
            if options.sets != list(SETS):  # a file of its own for a part
                name += "-" + "-".join(which.split()[0] for which in options.sets)
            shown = rows + table_rows(which, found)
            _table.emit(name, __doc__, COLUMNS, shown, options.save)
        rows += table_rows(which, found)


def table_rows(which: str, found) -> list[list[str]]:
    seeds, rows = len(found["teacher"]), []
    counts = [
        f"{ahead(found, 'loss over teacher [%]', 1)} of {seeds}",
        f"{ahead(found, 'log density', -1)} of {seeds}",
    ]
    for name, values in found.items():
        cells = [_cell([v[n] for v in values]) if n in values[0] else "" for n in NAMES]
        rows.append([which, name, *cells, *(counts if name == "distilled" else ["", ""])])
    return rows


def ahead(found, name: str, sign: int) -> int:
    """Seeds in which distilled is ahead of direct; `sign` is -1 where more is better."""
    pairs = zip(found["distilled"], found["direct"], strict=True)
    return sum(sign * (a[name] - b[name]) < 0 for a, b in pairs)


def _cell(values) -> str:
    values = np.asarray(values, float)
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{values.mean():.3g} +- {error:.1g}"


if __name__ == "__main__":
    main()
