"""Rewards, guidance, transfer and diffusion without data, against closed forms and quadrature.

Laws on the line and in the plane whose answers are known. `no weights`: reverse diffusion with the guided
score, as papers have it, 200 steps. `weighted`: the same with exact weights, 40 levels and no moves unless it
says so. Four clouds of 2,000 particles, of 8,000 without weights; `+-` is the spread over clouds. On the
line: mean, variance, log normaliser. Transfer: the variances along the two pairs of modes. Without data:
E|x|, E x^2, P(x > 0), log normaliser.
"""

import _table
import jax
import jax.numpy as jnp
import numpy as np

import numpyro_diffusion as nd

jax.config.update("jax_enable_x64", True)

LINE = nd.Gaussian([0.0], [[1.0]])
BOTH = nd.GaussianMixture([0.5, 0.5], [[-0.75], [0.75]], [[[1.0]], [[1.0]]])
CLASS = nd.Gaussian([0.75], [[1.0]])
PLACES = np.array([0.5, 0.5]), np.array([0.5, -0.5])
SOURCE, TARGET = (nd.GaussianMixture([0.5, 0.5], [c, -c], [0.1 * np.eye(2)] * 2) for c in PLACES)
GRID = np.linspace(-9, 9, 20_001)


def linear(x):
    return 1.5 * x[0]


def curved(x):
    return -2.0 * (x[0] - 1.0) ** 2


def exact_value(u, t):
    """log E[exp(curved) | u] under a standard normal."""
    width = 1.0 + LINE.schedule.noise_level(jnp.asarray(LINE.t_min)) ** 2
    tau = nd.energies.added_variance(LINE, t)
    m, v = width * u[0] / (width + tau), width * tau / (width + tau)
    return -0.5 * jnp.log1p(4 * v) - 2 * (m - 1) ** 2 / (1 + 4 * v)


def demo(x):
    return -jnp.sum((x**4 - 0.5) ** 2 + 0.04 * jnp.sin(20 * jnp.pi * x)) / 0.05


def log_ratio(x, t=None):
    t = jnp.asarray(SOURCE.t_min) if t is None else t
    return TARGET.log_density(x, t) - SOURCE.log_density(x, t)


def quadrature(log_p):
    """Mean, variance and log normaliser of a density on the line."""
    log_p = np.asarray(jax.jit(jax.vmap(log_p))(jnp.asarray(GRID[:, None])))
    log_norm = np.log(np.trapezoid(np.exp(log_p), GRID))
    p = np.exp(log_p - log_norm)
    mean = np.trapezoid(p * GRID, GRID)
    return f"{mean:.3f}, {np.trapezoid(p * (GRID - mean) ** 2, GRID):.3f}, {log_norm:.3f}"


def at_last(law):
    return lambda u: law.log_density(u, jnp.asarray(law.t_min))


def sampled(law, tiny, weighted=True, num_moves=0):
    """Particles of every cloud, their weights, and log evidences."""
    levels = 40 if weighted else 200
    if tiny:
        levels = 8
    scheme = nd.ReverseDiffusion(levels=levels, moves=num_moves, pilot=64)
    if not weighted:
        scheme = nd.schemes.unweighted(scheme)
    model = scheme(nd.from_energy(law), jax.random.key(0))
    num = 50 if tiny else 2000 if weighted else 8000
    found = nd.run_smc(jax.random.key(1), model, num_particles=num, num_chains=4)
    log_w = np.asarray(found.log_weights)
    w = np.exp(log_w - log_w.max(1, keepdims=True))
    return (
        np.asarray(found.positions["x"]),
        w / w.sum(1, keepdims=True),
        np.asarray(found.log_evidence),
    )


def words(values):
    return f"{np.mean(values):.3f} +- {np.std(values, ddof=1):.3f}"


def moments(law, tiny, **options):
    """Mean, variance and log normaliser, with their spread over clouds."""
    x, w, log_evidence = sampled(law, tiny, **options)
    mean = np.sum(w * x[..., 0], 1)
    variance = np.sum(w * (x[..., 0] - mean[:, None]) ** 2, 1)
    parts = [words(mean), words(variance)]
    if options.get("weighted", True):
        parts.append(words(log_evidence))
    return ", ".join(parts)


def rewards(tiny, show):
    for name, reward in {"linear": linear, "curved": curved}.items():
        truth = quadrature(at_last(LINE + nd.factors.Tilt(reward)))
        show(f"reward, {name}", "weighted", moments(LINE + nd.factors.Tilt(reward), tiny), truth)
    values = {
        "of 32 draws": nd.factors.MonteCarloValue(32),
        "exact": nd.factors.ExactValue(exact_value),
    }
    steps = 10 if tiny else 1500
    values["learned"] = nd.train.fit_soft_value(
        jax.random.key(2), LINE, curved, steps=steps, progress_bar=False
    )
    plain = LINE + nd.factors.Tilt(curved)
    show("reward, curved", "no weights", moments(plain, tiny, weighted=False), truth)
    show("reward, curved", "weighted, one move", moments(plain, tiny, num_moves=1), truth)
    for name, value in values.items():
        law = LINE + nd.factors.Tilt(curved, value=value)
        show("reward, curved", f"weighted, value {name}", moments(law, tiny), truth)


def training(tiny, show):
    x = np.random.default_rng(5).normal(size=(100_000, 1))
    start = nd.InnerProductEnergy.from_data(
        nd.nets.ResidualMLP(jax.random.key(0), (1,), width=32, depth=1),
        x,
        noise_min=0.3,
        noise_max=10.0,
    )
    steps = 10 if tiny else 1500
    weights = np.exp(1.5 * x[:, 0])
    fitted = nd.fit(
        jax.random.key(1), start, x, weights=weights, steps=steps, batch_size=512,
        loss=nd.train.denoising_loss, progress_bar=False,
    )  # fmt: skip
    found = quadrature(at_last(fitted.energy)).rsplit(",", 1)[0]
    method = f"training with weights, ESS {fitted.ess / 90_000:.3f} of the examples"
    show("reward, linear", method, found, "1.500, 1.090")


def guidance(tiny, show):
    for w in (1.0, 4.0):
        law = nd.cfg(BOTH, CLASS, 1 + w)
        x, _, _ = sampled(law, tiny, weighted=False)
        found = f"{words(x[..., 0].mean(1))}, {words(x[..., 0].var(1))}"
        show(f"guidance, w = {w:g}", "no weights", found, quadrature(at_last(law)))
        found = moments(law, tiny)
        show(f"guidance, w = {w:g}", "weighted", found, quadrature(at_last(law)))


def transfer(tiny, show):
    axes = np.stack(PLACES) * 2**0.5

    def variances(law, **options):
        x, w, _ = sampled(law, tiny, **options)
        along = x @ axes.T
        mean = np.einsum("cn,cni->ci", w, along)
        return ", ".join(words(v) for v in np.einsum("cn,cni->ic", w, (along - mean[:, None]) ** 2))

    draw = jax.jit(jax.vmap(lambda key: (SOURCE.draw(key, 0.0), TARGET.draw(key, 0.0))))
    keys = jax.random.split(jax.random.key(10), 150 if tiny else 6000)
    num = len(keys) * 5 // 6
    source, target = draw(keys[:num])[0], draw(keys[num:])[1]
    steps = {"steps": 10} if tiny else {}
    classifier = nd.train.density_ratio_classifier(
        jax.random.key(0), source, target, progress_bar=False, **steps
    )
    learned = nd.train.fit_ratio(
        jax.random.key(1), SOURCE, classifier, source, target, progress_bar=False, **steps
    )
    truth = "0.100, 0.600"
    show("transfer", "no guidance, no weights", variances(SOURCE, weighted=False), truth)
    exact = SOURCE + nd.factors.Ratio(log_ratio)
    show("transfer", "exact ratio, no weights", variances(exact, weighted=False), truth)
    show("transfer", "exact ratio, weighted", variances(exact), truth)
    show("transfer", "learned, no weights", variances(SOURCE + learned, weighted=False), truth)
    show("transfer", "learned, weighted", variances(SOURCE + learned), truth)


def without_data(tiny, show):
    grid = np.linspace(-2, 2, 20_001)
    p = np.exp(np.asarray(jax.vmap(demo)(jnp.asarray(grid[:, None]))))
    norm = np.trapezoid(p, grid)
    truth = [np.trapezoid(p * f, grid) / norm for f in (np.abs(grid), grid**2, grid > 0)]
    for num_draws in (32, 512):
        law = nd.energies.SmoothedDensity(demo, 1, num_draws=num_draws)
        x, w, log_evidence = sampled(law, tiny, num_moves=1)
        x = x[..., 0]
        found = [words(np.sum(w * f, 1)) for f in (np.abs(x), x**2, x > 0)]
        answer = ", ".join(f"{v:.3f}" for v in (*truth, np.log(norm)))
        method = f"{num_draws} draws, weighted, one move"
        show("without data", method, ", ".join([*found, words(log_evidence)]), answer)


def main() -> None:
    options = _table.parser(__doc__).parse_args()
    rows = []

    def show(*cells):
        rows.append(list(cells))
        print("|", *(f"{cell} |" for cell in cells), flush=True)

    for part in (rewards, training, guidance, transfer, without_data):
        part(options.tiny, show)
    _table.emit("rewards", __doc__, ["law", "method", "found", "exact"], rows, options.save)


if __name__ == "__main__":
    main()
