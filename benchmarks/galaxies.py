"""Galaxies under a prior that others trained: one blurred, and two blended, under noise of unknown level.

The prior is the HSC score network of galaxygrad 0.2.1, read from the wheel named on the command line (see
`galaxy.py`). Scenes are fresh draws of its reverse process in 60 steps, in units of flux, blurred by a
Gaussian of 1.2 pixels, with noise whose level is log-normal around 0.05; two galaxies lie 3 rows and 4
columns apart. Unknown are all pixels and the noise level. `flux`: error of the posterior mean of a galaxy's
total flux as a share of the truth, root mean square over scenes; then how many true fluxes lie in central 50
and 90 % intervals. `pixels`: the same shares for pixels brighter than 0.1 (each galaxy's own, where two are
blended). `sigma`: error of its mean as a share, and coverage. `PSNR`: of the mean image, in decibels, with
peak 1. Coverage of 20 single values has standard errors of 11 and 7 %.

`PnPDM` asks the score alone: 4 chains of 400 + 1,000 sweeps for one galaxy and 12 of 250 + 250 for two, whose
chains forget slowly how the flux was shared out; blur 0.2 in the network's units (2 % of the flux plus one),
6 reverse steps a sweep; sigma is a site of the model. `MAP` is 600 steps of Adam on the same model, the prior
by its score. `NUTS, raw score` is what a score as a custom gradient gives: a log density that is constant,
with that gradient; from where `MAP` ends, 100 + 100 draws, trees of depth 7 at most. `s` is the median time
of a scene; evaluations are of the network, in thousands.
"""

import sys
import time
from typing import NamedTuple

import _table
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import MCMC, NUTS, init_to_value
from numpyro.infer.util import log_density

import numpyro_diffusion as nd
from numpyro_diffusion.smc.moves import hmc

OFFSETS = {"one": ((0, 0),), "two": ((0, 0), (3, 4))}
WIDTH, SIGMA, SPREAD = 1.2, 0.05, 0.5
SWEEPS = {1: (4, 400, 1000), 2: (12, 250, 250)}  # chains, their warm-up and draws
TAPS = np.exp(-0.5 * (np.arange(-4, 5) / WIDTH) ** 2)
PSF = np.outer(TAPS, TAPS) / TAPS.sum() ** 2


def rendered(fluxes, offsets):
    """Galaxies at their places, blurred."""
    rows, columns = (32 + max(o[i] for o in offsets) for i in range(2))
    scene = jnp.zeros((rows, columns))
    for flux, (i, j) in zip(fluxes, offsets, strict=True):
        scene = scene.at[i : i + 32, j : j + 32].add(flux)
    return jax.scipy.signal.convolve(scene, jnp.asarray(PSF, scene.dtype), mode="same")


def model(prior, transform, offsets, image=None):
    fluxes = []
    for k in range(len(offsets)):
        y = numpyro.sample(f"y{k}", prior(k))
        fluxes.append(transform.inverse(y))
    sigma = numpyro.sample("sigma", dist.LogNormal(jnp.log(SIGMA), SPREAD))
    noisy = dist.Normal(rendered(fluxes, offsets), sigma).to_event(2)
    numpyro.sample("image", noisy, obs=image)


class Scene(NamedTuple):
    fluxes: np.ndarray
    sigma: float
    image: jax.Array


def simulate(teacher, offsets, num: int, steps: int):
    """Scenes with galaxies of their own."""
    rng, count = np.random.default_rng(len(offsets)), num * len(offsets)
    y = nd.teachers.draw_data(jax.random.key(len(offsets)), teacher, count, num_steps=steps)
    fluxes = np.asarray(teacher.card.decode(y)).reshape(num, len(offsets), 32, 32)
    for flux in fluxes:
        sigma = SIGMA * np.exp(SPREAD * rng.standard_normal())
        seen = rendered(jnp.asarray(flux), offsets)
        noise = sigma * rng.standard_normal(seen.shape)
        yield Scene(flux, float(sigma), seen + noise.astype(np.float32))


class Raw(dist.Distribution):
    """A score as the gradient of a log density that is constant."""

    support = dist.constraints.real_matrix

    def __init__(self, score):
        self.score = score
        super().__init__(event_shape=(32, 32))

    def log_prob(self, value):
        slope = jnp.sum(jax.lax.stop_gradient(self.score(value)) * value)
        return slope - jax.lax.stop_gradient(slope)


def raw(teacher):
    """The score of the galaxies with the least noise that the network knows."""
    alpha, sigma = teacher.schedule(jnp.asarray(teacher.t_min))
    at = lambda y: (
        (teacher.denoise(alpha * y, jnp.asarray(teacher.t_min)) - y) / (sigma / alpha) ** 2
    )
    return lambda k: Raw(at)


def by_split(teacher, offsets, tiny: bool):
    chains, burn_in, num = (2, 3, 3) if tiny else SWEEPS[len(offsets)]
    steps = 2 if tiny else 6
    prior, transform = (lambda k: nd.DiffusionPrior(teacher)), teacher.card.transform
    sampler = nd.samplers.PnPDM(
        0.2, weights="none", num_steps=steps, data_move=hmc(5), num_data_moves=3
    )

    def run(seed, image):
        bridge = nd.from_model(
            model, prior, transform, offsets, image, bridge_type=nd.bridge.PathBridge
        )
        found = nd.samplers.split_gibbs(
            jax.random.key(seed),
            bridge,
            sampler,
            num_chains=chains,
            num_burn_in=burn_in,
            num_draws=num,
        )
        flat = {
            n: v.reshape(-1, *v.shape[2:]) for n, v in {**found.positions, **found.seen}.items()
        }
        return {**flat, "sigma": jnp.exp(flat["sigma"])}, found.num_evaluations

    return run


def by_map(teacher, offsets, tiny: bool):
    steps = 3 if tiny else 600
    args, optimiser = (raw(teacher), teacher.card.transform, offsets), optax.adam(0.05)

    @jax.jit
    def climb(image):
        def loss(z):
            values = {**z, "sigma": jnp.exp(z["sigma"])}
            return -log_density(model, (*args, image), {}, values)[0]

        def step(carry, _):
            z, state = carry
            updates, state = optimiser.update(jax.grad(loss)(z), state)
            return (optax.apply_updates(z, updates), state), None

        z = {f"y{k}": jnp.zeros((32, 32)) for k in range(len(offsets))}
        z["sigma"] = jnp.log(jnp.asarray(2 * SIGMA))
        return jax.lax.scan(step, (z, optimiser.init(z)), length=steps)[0][0]

    def run(seed, image):
        z = climb(image)
        z = {**z, "sigma": jnp.exp(z["sigma"])}
        return {n: v[None] for n, v in z.items()}, steps * len(offsets)

    return run


def by_nuts(teacher, offsets, tiny: bool):
    """From where `by_map` ends."""
    num, depth = (2, 2) if tiny else (100, 7)
    args = raw(teacher), teacher.card.transform, offsets
    start = by_map(teacher, offsets, tiny)

    def run(seed, image):
        best, count = start(seed, image)
        values = {n: v[0] for n, v in best.items()}
        kernel = NUTS(model, init_strategy=init_to_value(values=values), max_tree_depth=depth)
        mcmc = MCMC(kernel, num_warmup=num, num_samples=num, progress_bar=False)
        mcmc.warmup(
            jax.random.key(seed), *args, image, extra_fields=("num_steps",), collect_warmup=True
        )
        steps = mcmc.get_extra_fields()["num_steps"].sum()
        mcmc.run(jax.random.key(seed), *args, image, extra_fields=("num_steps",))
        steps = steps + mcmc.get_extra_fields()["num_steps"].sum()
        return mcmc.get_samples(), count + int(steps) * len(offsets)

    return run


def covered(draws, truth, share: float):
    """Which true values lie in central intervals of the draws, by coordinate."""
    low, high = np.quantile(draws, [0.5 - share / 2, 0.5 + share / 2], axis=0)
    return (low <= truth) & (truth <= high)


def judged(draws, scene: Scene, transform):
    """Errors and coverage of one scene."""
    names = [f"y{k}" for k in range(len(scene.fluxes))]
    fluxes = np.stack([np.asarray(transform.inverse(draws[n])) for n in names], 1)
    totals, truths = fluxes.sum((2, 3)), scene.fluxes.sum((1, 2))
    sigma, bright = np.asarray(draws["sigma"]), scene.fluxes > 0.1
    inside = [
        [covered(v, t, share).mean() for share in (0.5, 0.9)]
        for v, t in (
            (totals, truths),
            (fluxes[:, bright], scene.fluxes[bright]),
            (sigma, scene.sigma),
        )
    ]
    error = np.mean((fluxes.mean(0) - scene.fluxes) ** 2)
    return [
        np.mean((totals.mean(0) / truths - 1) ** 2),
        (sigma.mean() / scene.sigma - 1) ** 2,
        -10 * np.log10(error),
        *np.ravel(inside),
    ]


def picture(teacher, tiny: bool) -> None:
    """Truth, data, posterior means and spreads of the first scene of each kind."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 5, figsize=(8, 4.9), layout="constrained")
    lines = iter(axes)
    for offsets in OFFSETS.values():
        scene = next(simulate(teacher, offsets, 1, 5 if tiny else 60))
        draws, _ = by_split(teacher, offsets, tiny)(0, scene.image)
        for k, truth in enumerate(scene.fluxes):
            flux = np.asarray(teacher.card.transform.inverse(draws[f"y{k}"]))
            low, high = np.quantile(flux.sum((1, 2)), [0.05, 0.95])
            line = next(lines)
            shown = {
                f"truth, flux {truth.sum():.1f}": truth,
                f"data, noise {scene.sigma:.3f}": np.asarray(scene.image),
                f"mean, flux {low:.1f} to {high:.1f}": flux.mean(0),
                "one draw": flux[-1],
                "standard deviation": flux.std(0),
            }
            for axis, (name, image) in zip(line, shown.items(), strict=True):
                top = 0.3 if name.startswith("standard") else 0.8
                axis.imshow(image, vmin=0, vmax=top, cmap="magma", origin="lower")
                axis.set(xticks=[], yticks=[])
                axis.set_title(name, fontsize=7)
    figure.savefig(_table.ROOT / "docs" / "images" / "galaxies.png", dpi=110)


METHODS = {"PnPDM": by_split, "MAP": by_map, "NUTS, raw score": by_nuts}


def main() -> None:
    parser = _table.parser(__doc__)
    parser.add_argument("wheel", help="path of galaxygrad-0.2.1-py3-none-any.whl")
    parser.add_argument("--only", choices=OFFSETS, nargs="+", default=list(OFFSETS))
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=list(METHODS))
    parser.add_argument("--picture", action="store_true", help="only draw the first scenes")
    parser.set_defaults(seeds=20)
    options = parser.parse_args()
    num, steps = (1, 5) if options.tiny else (options.seeds, 60)
    teacher, rows = nd.teachers.galaxygrad(options.wheel), []
    if options.picture or options.save:
        picture(teacher, options.tiny)
    if options.picture:
        return
    for which in options.only:
        scenes = list(simulate(teacher, OFFSETS[which], num, steps))
        for name in options.methods:
            method = METHODS[name]
            run, found, seconds, evaluations = (
                method(teacher, OFFSETS[which], options.tiny),
                [],
                [],
                0,
            )
            for seed, scene in enumerate(scenes):
                started = time.perf_counter()
                draws, evaluations = run(seed, scene.image)
                draws = {n: np.asarray(v) for n, v in draws.items()}
                seconds.append(time.perf_counter() - started)
                found.append(judged(draws, scene, teacher.card.transform))
                print(
                    which,
                    name,
                    seed,
                    np.round(found[-1], 3),
                    f"{seconds[-1]:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
            flux, sigma, ratio, *inside = np.mean(found, 0)
            single = len(draws["sigma"]) == 1
            share = lambda k, inside=inside, single=single: (
                "" if single else f"{inside[k]:.2f}, {inside[k + 1]:.2f}"
            )
            cells = [
                which,
                name,
                f"{np.sqrt(flux):.3f}",
                share(0),
                share(2),
                f"{np.sqrt(sigma):.3f}",
                share(4),
                f"{ratio:.1f}",
                f"{evaluations / 1000:.1f}",
                f"{np.median(seconds):.0f}",
            ]
            rows.append(cells)
            # The table is kept as it grows.
            columns = [
                "galaxies",
                "method",
                "flux",
                "covered",
                "pixels covered",
                "sigma",
                "covered",
                "PSNR",
                "evaluations / 1000",
                "s",
            ]
            parts = [options.only if options.only != list(OFFSETS) else []]
            parts.append(options.methods if options.methods != list(METHODS) else [])
            table = "-".join(["galaxies", *sum(parts, [])])
            _table.emit(table, __doc__, columns, rows, options.save)


if __name__ == "__main__":
    main()
