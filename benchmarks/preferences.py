"""Preferences on a line: do DPO and DMPO find the tilt of a Bradley-Terry reward?

The family is N(theta, 1), the prior theta = 0, the reward r = x and beta = 2, so that theta = 0.5 is right.
Pairs are draws of the prior, labelled hard, by a coin with the chance of Bradley and Terry, or soft, by
that chance. A log ratio of one level a pair, with noise shared in it, or not as a warning. `+-` is the
spread over seeds.
"""

import _table
import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit

import numpyro_diffusion as nd
from numpyro_diffusion.train import DMPO, DPO, EarlyStopping

jax.config.update("jax_enable_x64", True)

PRIOR = nd.Gaussian([0.0], [[1.0]])
SHARED = nd.train.denoising_log_ratio(1)


def independent(model, prior, key, winner, loser):
    """The same with a time and noise of its own for each of the two."""

    def alone(x, key):
        key_level, key_noise = jax.random.split(key)
        s = jnp.exp(0.5 * jax.random.logistic(key_level))
        s = jnp.clip(
            s, *(prior.schedule.noise_level(jnp.asarray(t)) for t in (prior.t_min, prior.t_max))
        )
        t = prior.schedule.time_at_noise(s)
        x_t = prior.schedule(t)[0] * (x + s * jax.random.normal(key_noise, x.shape))
        ours, theirs = (jnp.sum((law.denoise(x_t, t) - x) ** 2) for law in (model, prior))
        return (1 + s**2) ** 2 / (2 * s**4) * (theirs - ours)

    first, second = jax.random.split(key)
    return alone(winner, first) - alone(loser, second)


def fitted(loss, soft, log_ratio, seed, num, steps):
    """The shift that is found from so many pairs, half of which judge it."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, num, 1))
    chances = expit(x - y)
    first = rng.uniform(size=(num, 1)) < chances
    columns = (x, y, chances[:, 0]) if soft else (np.where(first, x, y), np.where(first, y, x))
    winners, losers, *told = (column[: num // 2] for column in columns)
    found = nd.train.fit_preferences(
        jax.random.key(seed), PRIOR, winners, losers, chances=told[0] if soft else None, loss=loss,
        beta=2.0, validation=tuple(column[num // 2 :] for column in columns), log_ratio=log_ratio,
        trainable=lambda law: law.mean, steps=steps, batch_size=1024, learning_rate=0.02,
        stopping=EarlyStopping(check_every=max(steps // 4, 1), validation_repeats=1),
        progress_bar=False,
    )  # fmt: skip
    return float(found.energy.mean[0])


def main() -> None:
    options = _table.parser(__doc__)
    options.set_defaults(seeds=3)
    options = options.parse_args()
    num, steps = (2000, 20) if options.tiny else (400_000, 600)
    rows = []
    cases = {
        "DPO, hard labels": (DPO(), False, SHARED),
        "DPO, soft labels": (DPO(), True, SHARED),
        "DMPO, soft labels": (DMPO(), True, SHARED),
        "DMPO, hard labels, flip rate 0.01": (DMPO(flip_rate=0.01), False, SHARED),
        "DPO, hard labels, independent noise": (DPO(), False, independent),
        "DMPO, hard labels, independent noise": (DMPO(flip_rate=0.01), False, independent),
    }
    for name, case in cases.items():
        found = [fitted(*case, seed, num, steps) for seed in range(options.seeds)]
        exact = "1.0160 (sharpened)" if "DMPO, hard" in name else "0.5"
        rows.append([name, f"{np.mean(found):.4f} +- {np.std(found, ddof=1):.4f}", exact])
        print(rows[-1], flush=True)
    _table.emit("preferences", __doc__, ["loss", "theta", "exact"], rows, options.save)


if __name__ == "__main__":
    main()
