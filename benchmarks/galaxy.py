"""A galaxy prior that others trained: read, checked, made an energy, and used on a noisy image.

The teacher is the HSC network of galaxygrad 0.2.1 for 32 x 32 pixels, read from the wheel that is named on
the command line (`pip download --no-deps galaxygrad==0.2.1`; it states no licence, so none of it is kept).
It lives in y = log(x + 1) / 0.1 of the flux x. Its training images are not published: data are draws from
its own reverse process, from noise level 100 down to 0.1, denoised at the end. Columns are noise levels s in
units of y. `curl` is the antisymmetric over the symmetric part of the Jacobian of the teacher's score, which
no energy can have.
Errors are those of the denoiser beside the teacher's, root mean square over fresh draws, relative to how far
the teacher moves a noisy image (the error of the score) and, in brackets, to how far its answer is from the
mean galaxy. `Gaussian` is where a student starts that knows the draws' covariance alone, `teacher's weights`
an inner-product energy with the teacher's network as backbone, counted half, before and after distillation.
"""

import time

import _table
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax

import numpyro_diffusion as nd
from numpyro_diffusion.auditing import curl_ratio, rest_of_data

LEVELS = (0.15, 0.3, 1.0, 3.0, 10.0)
# At time 1 of galaxygrad, the score of pixel (16, 17) of the image in `check`, by its own code.
REFERENCE = 0.12967898


@eqx.filter_jit
def denoised(model, u, s):
    """Denoised means of points `u` at noise level `s`."""
    t = model.schedule.time(-2 * jnp.log(s)).astype(u.dtype)
    alpha, _ = model.schedule(t)
    return jax.lax.map(lambda v: model.denoise(alpha * v, t), u, batch_size=32)


def compare(model, teacher, fresh):
    """Errors by level, as cells of the table."""
    cells = []
    for s in LEVELS:
        u = fresh + s * jax.random.normal(jax.random.key(9), fresh.shape)
        target, found = (denoised(m, u, jnp.float32(s)) for m in (teacher, model))
        size = lambda a: float(jnp.sqrt(jnp.mean(a**2)))
        gap = size(found - target)
        cells.append(f"{gap / size(target - u):.3f} ({gap / size(target - fresh.mean(0)):.2f})")
    return cells


def check(teacher):
    """One score value against that of the original code."""
    i = np.arange(32)
    galaxy = 3 * np.exp(-((i[:, None] - 16) ** 2 + (i - 14.5) ** 2) / 40)
    y = jnp.asarray(galaxy + 0.1 * np.sin(i[:, None] + 2 * i), jnp.float32)
    found = float(teacher.output(y, jnp.float32(0.1))[16, 17])
    assert abs(found / REFERENCE - 1) < 2e-5, (found, REFERENCE)


def draw(teacher, num, steps):
    data = nd.teachers.draw_data(jax.random.key(0), teacher, num, num_steps=steps, batch_size=128)
    return np.asarray(data)


def observe(teacher, truth, sigma=0.1):
    """A galaxy in units of flux, and what a camera of unknown noise sees of it."""
    flux = np.asarray(teacher.card.decode(truth[None])[0])
    return flux, flux + sigma * np.random.default_rng(3).normal(size=flux.shape).astype(np.float32)


def posterior(prior, transform, image, particles):
    """The whole model, and a sampler for which a denoiser is enough."""

    def model(image):
        y = numpyro.sample("y", nd.DiffusionPrior(prior))
        sigma = numpyro.sample("sigma", dist.HalfNormal(0.3))
        numpyro.sample("image", dist.Normal(transform.inverse(y), sigma).to_event(2), obs=image)

    scheme = nd.Twisted(levels=100, pilot=particles)
    smc = nd.SMC(model, scheme, num_particles=particles, num_chains=2, progress_bar=False)
    smc.run(jax.random.key(5), image)
    return smc


def picture(path, rows):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(rows), 8, figsize=(8, 1.15 * len(rows)))
    for (name, images), line in zip(rows.items(), axes, strict=True):
        for image, axis in zip(images, line, strict=True):
            axis.imshow(image, vmin=-1, vmax=6, cmap="magma", origin="lower")
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=6)
    figure.subplots_adjust(0.03, 0.01, 0.99, 0.99, 0.05, 0.05)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = _table.parser(__doc__)
    parser.add_argument("wheel", help="path of galaxygrad-0.2.1-py3-none-any.whl")
    parser.add_argument("--steps", type=int, default=600, help="steps of distillation")
    options = parser.parse_args()
    num, steps, particles = (136, 2, 4) if options.tiny else (1024, options.steps, 32)
    teacher = nd.teachers.galaxygrad(options.wheel)
    check(teacher)

    started, seconds = time.perf_counter(), {}
    clock = lambda name: seconds.update(
        {name: time.perf_counter() - started - sum(seconds.values())}
    )
    draws = draw(teacher, num, 5 if options.tiny else 60)
    data, fresh = draws[:-64], jnp.asarray(draws[-64:])
    clock("draws")
    times = [float(teacher.schedule.time(-2 * jnp.log(s))) for s in LEVELS]
    curl = curl_ratio(teacher, fresh[:16], jax.random.key(4), times, num_probes=2, batch_size=32)
    cells = zip(curl.ratio, curl.ratio_error, strict=True)
    rows = [["teacher", "curl", *(f"{ratio:.4f} ± {error:.4f}" for ratio, error in cells)]]
    clock("curl")

    net = nd.nets.ResidualMLP(None, teacher.shape, width=1)
    gaussian = nd.ProperEnergy.from_data(net, data, noise_min=0.1, noise_max=30.0)
    rows.append(["Gaussian of the draws", "error", *compare(gaussian, teacher, fresh)])
    start = nd.teachers.student_of(teacher, data, noise_min=0.1, noise_max=30.0)
    rows.append(["teacher's weights, halved", "error", *compare(start, teacher, fresh)])
    clock("errors")
    result = nd.distill(
        jax.random.key(2),
        teacher,
        start,
        data,
        steps=steps,
        batch_size=16,
        learning_rate=optax.cosine_decay_schedule(1.5e-3, steps, 0.05),
        optimizer=nd.train.Optimizer(ema=0.98),
        stopping=nd.train.EarlyStopping(check_every=max(steps // 4, 1), validation_repeats=1),
        trainable=nd.teachers.teacher_weights,
        progress_bar=False,
    )
    clock("distillation")
    energy = result.energy
    rows.append([f"the same after {steps} steps", "error", *compare(energy, teacher, fresh)])

    chains = 2 if options.tiny else 32
    sizes = {"num_moves": 4 if options.tiny else 100, "batch_size": 16}
    rest = rest_of_data(energy, fresh[:chains], jax.random.key(6), **sizes)
    clock("chains")

    flux, image = observe(teacher, draws[-1])
    smc = posterior(energy, teacher.card.transform, image, particles)
    clock("posterior")
    samples = smc.get_samples()
    y, sigma = np.asarray(samples["y"]), np.asarray(samples["sigma"])
    found = np.asarray(teacher.card.decode(y))
    error = np.sqrt(np.mean((found.mean(0) - flux) ** 2))
    spread, share = np.sqrt(found.var(0).mean()), len(np.unique(sigma)) / len(sigma)
    clouds = ", ".join(f"{value:.0f}" for value in np.atleast_1d(smc.result.log_evidence))
    notes = (
        "Seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()) + ".",
        f"{chains} chains under the distilled energy, from fresh draws with the prior's noise: energies fall "
        f"by {rest.fall:.0f} ± {rest.fall_error:.0f} nats in {sizes['num_moves']} Hamiltonian moves.",
        f"Posterior of one fresh draw (brightest pixel {flux.max():.2f}) seen under noise 0.1, by "
        f"`Twisted` with 2 clouds of {particles}: sigma {sigma.mean():.4f} ± {sigma.std():.4f}; flux off "
        f"by {error:.4f} (root mean square), posterior standard deviation {spread:.4f}. {share:.0%} of "
        f"the particles differ. Log evidence by cloud: {clouds}.",
    )
    columns = ["model", "", *(f"s = {s}" for s in LEVELS)]
    _table.emit("galaxy", __doc__, columns, rows, options.save, notes)
    if options.save:
        seen = np.asarray(teacher.card.transform.forward(jnp.clip(jnp.asarray(image), -0.5)))
        shown = draws[-1], seen, y.mean(0), y.std(0)  # truth, data, mean, spread, and four draws
        rows = {
            "teacher": draws[-9:-1],
            "energy": draw(energy, 8, 60),
            "posterior": [*shown, *y[:: len(y) // 4][:4]],
        }
        picture(_table.ROOT / "benchmarks" / "results" / "galaxy.png", rows)


if __name__ == "__main__":
    main()
