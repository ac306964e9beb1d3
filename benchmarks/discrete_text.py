"""Perplexity of a small text under masked diffusion, with and without a residual energy.

The text is the Apache licence that BlackJAX ships: letters in lower case and spaces, about 9,500 of them, in
windows of eight. The first 80 % train both networks, the next 10 % stop training, the last 10 % are judged:
windows that do not overlap. Fewer steps reveal more letters at a step, which a denoiser takes for
independent.

Perplexity is that of a letter, from the lower bound of the chain of so many steps,
-E sum_k log p(block_k | x_k) over random orders. With an energy p(block | x) = sum_rest p_theta exp(-E) / Z,
where both sums are means over `--draws` draws of the denoiser. `log Z` is the mean of its logarithm over all
steps, which noise-contrastive estimation brings to 0. Means over finitely many draws make both logarithms too
small; what is left of that shows beside an eighth of the draws.
"""

import functools
import importlib.metadata
import re
import time

import _table
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import numpyro_diffusion as nd
from numpyro_diffusion import discrete
from numpyro_diffusion.discrete.masked import chosen, reveals

WINDOW, VALUES = 8, 27
STEPS = (1, 2, 4, 8)


def letters() -> np.ndarray:
    """The text as integers: 0 for a space, 1 to 26 for letters."""
    files = importlib.metadata.files("blackjax") or []
    licence = next(file for file in files if file.name.startswith("LICENSE"))
    text = re.sub("[^a-z]+", " ", licence.read_text().lower()).strip()
    return np.array([0 if c == " " else ord(c) - ord("a") + 1 for c in text])


def windows(text: np.ndarray, stride: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(text, WINDOW)[::stride].copy()


def log_prob_of_step(model, energy, key, x, hidden, block, num_draws):
    """log p(block | x_t) of one step, and log Z(x_t)."""
    x_t = jnp.where(hidden, model.mask, x)
    log_probs = model.log_probs(x_t)
    factorised = jnp.sum(jnp.where(block, chosen(log_probs, x), 0.0))
    if energy is None:
        return factorised, jnp.zeros(())
    draws = jax.random.categorical(key, log_probs, shape=(2, num_draws, WINDOW))
    mean = lambda x: jax.nn.logsumexp(-jax.vmap(lambda x: energy(x, x_t))(x)) - jnp.log(num_draws)
    log_z = mean(draws[0])
    return factorised + mean(jnp.where(block, x, draws[1])) - log_z, log_z


@functools.partial(eqx.filter_jit)
def bound(model, energy, key, examples, ends, num_draws):
    """Mean log probability of the chain's lower bound over examples, and mean log Z of its steps."""

    def one(arg):
        key, x = arg
        key_order, key = jax.random.split(key)
        rank = jax.random.permutation(key_order, WINDOW)

        def step(_, level):
            key, before, after = level
            hidden = rank >= before
            block = hidden & (rank < after)
            return None, log_prob_of_step(model, energy, key, x, hidden, block, num_draws)

        levels = jax.random.split(key, len(ends) - 1), ends[:-1], ends[1:]
        values, log_z = jax.lax.scan(step, None, levels)[1]
        return values.sum(), log_z.mean()

    found = jax.lax.map(one, (jax.random.split(key, len(examples)), examples), batch_size=32)
    return found[0].mean(), found[1].mean()


def trained(seed: int, parts, steps: int, width: int):
    """A masked diffusion, and its residual energy."""
    keys = jax.random.split(jax.random.key(seed), 4)
    net = discrete.TokenNetwork(keys[0], WINDOW, VALUES, width=width)
    model = discrete.MaskedDiffusion(net, WINDOW, VALUES)
    options = {
        "validation": parts[1],
        "steps": steps,
        "progress_bar": False,
        "optimizer": nd.train.Optimizer(weight_decay=0.1, ema=0.99),
        "stopping": nd.train.EarlyStopping(check_every=100, validation_repeats=4),
    }
    model = discrete.fit(keys[1], model, parts[0], **options).energy
    energy = discrete.EnergyNetwork(keys[2], WINDOW, VALUES, width=width)
    fitted = discrete.fit_energy(keys[3], energy, model, parts[0], **options)
    return model, fitted


def main() -> None:
    options = _table.parser(__doc__)
    options.add_argument("--draws", type=int, default=256, help="of the denoiser, for sums over it")
    options.set_defaults(seeds=3)
    options = options.parse_args()
    text = letters()
    cut = [int(0.8 * len(text)), int(0.9 * len(text))]
    parts = [
        windows(text[: cut[0]], 1),
        windows(text[cut[0] : cut[1]], 2),
        windows(text[cut[1] :], WINDOW),
    ]
    steps, width, draws, repeats = (20, 16, 8, 1) if options.tiny else (2000, 64, options.draws, 2)
    seeds = 2 if options.tiny else options.seeds
    found: dict = {}
    losses, start = [], time.time()
    for seed in range(seeds):
        model, fitted = trained(seed, parts, steps, width)
        losses.append(fitted.best_loss)
        print(f"seed {seed}: {fitted.verdict}", flush=True)
        examples = jnp.tile(jnp.asarray(parts[2]), (repeats, 1))
        for num in STEPS:
            ends = jnp.asarray(reveals(WINDOW, num))
            cases = {
                "without": (None, draws),
                "with": (fitted.energy, draws),
                "fewer": (fitted.energy, draws // 8),
            }
            for name, (energy, number) in cases.items():
                key = jax.random.key(100 + seed)
                value, log_z = bound(model, energy, key, examples, ends, number)
                found.setdefault((num, name), []).append((np.exp(-value / WINDOW), log_z))
    rows = []
    for num in STEPS:
        plain, with_energy, fewer = (
            np.array(found[num, name]) for name in ("without", "with", "fewer")
        )
        gain = with_energy[:, 0] / plain[:, 0]
        cell = lambda values, digits=2: (
            f"{values.mean():.{digits}f} ({values.std(ddof=1):.{digits}f})"
        )
        rows.append(
            [
                num,
                cell(plain[:, 0]),
                cell(with_energy[:, 0]),
                cell(fewer[:, 0]),
                cell(gain, 3),
                cell(with_energy[:, 1], 3),
            ]
        )
    counts = np.bincount(text[: cut[0]], minlength=VALUES) + 0.5
    single = float(np.exp(-np.log(counts / counts.sum())[text[cut[1] :]].mean()))
    notes = (
        f"Mean and, in brackets, standard deviation over {seeds} seeds. Letters by their frequencies "
        f"alone: {single:.2f}. Held-out contrastive loss {np.mean(losses):.3f}, of an energy of 0 "
        f"{2 * np.log(2):.3f}. {len(parts[2])} windows judged, {repeats} orders each; "
        f"{(time.time() - start) / seeds:.0f} seconds a seed.",
    )
    columns = [
        "steps",
        "without energy",
        "with energy",
        "with, an eighth of the draws",
        "ratio",
        "log Z",
    ]
    _table.emit("discrete_text", __doc__, columns, rows, options.save, notes)


if __name__ == "__main__":
    main()
