"""Five routes of fine-tuning with a reward, and weighted samplers without training, at equal evaluations.

The prior is a standard normal, a denoiser with a small network that corrects it by nothing at first;
rewards are 1.5 x and -2 (x - 1)^2, whose tilts are N(1.5, 1) and N(0.8, 0.2) with log normalisers 1.125 and
-1.2047. A budget counts evaluations of a network for one example, one with a gradient as three, in
training; draws of the fine-tuned model then cost 32 each, and 20,000 are looked at. A weighted sampler
spends the budget on particles, 32 levels each, of four evaluations for a denoiser (denoised mean, and its
slope) and of sixteen for an energy with a move (twice a score and its slope). Of fine-tuning: mean and
variance of draws, log normaliser and effective share of weighted paths; of samplers: weighted mean and
variance, log evidence, and the effective share at the last level. `+-` is the spread over seeds.
"""

import _table
import jax
import numpy as np

import numpyro_diffusion as nd
from numpyro_diffusion import train

jax.config.update("jax_enable_x64", True)

LEVELS = 32
SOFT = nd.factors.MonteCarloValue(32)
SCHEDULE = nd.schedules.VariancePreserving()
ENDS = {"t_min": float(SCHEDULE.time_at_noise(0.05)), "t_max": float(SCHEDULE.time_at_noise(20.0))}
REWARDS = {"linear": lambda x: 1.5 * x[0], "curved": lambda x: -2.0 * (x[0] - 1.0) ** 2}
TRUTH = {"linear": "1.500, 1.000, 1.125", "curved": "0.800, 0.200, -1.205"}
# Route, examples a gradient, peak of the learning rate, evaluations an update.
ROUTES = {
    "reward-weighted": (train.RewardWeighted(num_draws=20_000), 256, 5e-3, 3 * 256),
    "value, without weights": (train.ValueWeighted(num_steps=LEVELS), 256, 3e-3, 3 * 256),
    "PPO": (train.PPO(num_steps=LEVELS), 64, 1e-2, LEVELS * 64 * (2 + 4 * 4) // 4),
    "backpropagation": (train.DirectBackprop(num_steps=LEVELS), 64, 1e-2, 6 * LEVELS * 64),
    "path consistency": (train.PathConsistency(num_steps=LEVELS), 64, 1e-2, 9 * LEVELS * 64),
}


def prior():
    net = nd.nets.ResidualMLP(jax.random.key(0), (1,), width=32, depth=1)
    return nd.NetworkDenoiser(nd.InnerProductEnergy(net, [0.0], [[1.0]], **ENDS))


def words(values):
    return f"{np.mean(values):.3f} +- {np.std(values, ddof=1):.3f}"


def sampled(law, seeds, num, weighted=True):
    """Mean, variance, log evidence and effective share of a weighted sampler, one a cloud."""
    if isinstance(law, nd.energies.AbstractEnergy):
        scheme, kind = nd.ReverseDiffusion(levels=LEVELS, moves=1), nd.bridge.DensityBridge
    else:
        scheme, kind = nd.Twisted(levels=LEVELS), nd.bridge.PathBridge
    scheme = scheme if weighted else nd.schemes.unweighted(scheme)
    bridge = nd.from_energy(law, bridge_type=kind)
    model = scheme(bridge, jax.random.key(0))
    found = nd.run_smc(jax.random.key(1), model, num_particles=num, num_chains=seeds)
    log_w = np.asarray(found.log_weights)
    w = np.exp(log_w - log_w.max(1, keepdims=True))
    w /= w.sum(1, keepdims=True)
    x = np.asarray(found.positions["x"])[..., 0]
    mean = np.sum(w * x, 1)
    variance = np.sum(w * (x - mean[:, None]) ** 2, 1)
    share = 1 / np.sum(w**2, 1) / num
    return mean, variance, np.asarray(found.log_evidence) if weighted else None, share


def fine_tuned(name, reward, budget, seeds, draws):
    """The same four of a route, one a seed; and the results."""
    route, batch, rate, cost = ROUTES[name]
    start, rows, steps = prior(), [], max(budget // cost, 4)
    chain = train.ReverseChain(start, LEVELS)
    results = [
        train.finetune(
            route, jax.random.key(seed), start, reward, steps=steps, batch_size=batch, learning_rate=rate,
            stopping=train.EarlyStopping(check_every=max(steps // 4, 1), validation_repeats=1),
            progress_bar=False,
        )
        for seed in range(seeds)
    ]  # fmt: skip
    for seed, found in enumerate(results):
        if name.startswith("value"):
            (mean, *_), (variance, *_), *_ = sampled(found.energy, 2, draws // 2, weighted=False)
        else:
            draw = jax.jit(jax.vmap(lambda key, found=found: chain.draw(found.energy, key)))
            x = np.asarray(draw(jax.random.split(jax.random.key(100 + seed), draws)))
            mean, variance = x.mean(), x.var()
        rows.append((mean, variance, found.log_normalizer, found.ess))
    return np.array(rows).T, results


def main() -> None:
    options = _table.parser(__doc__)
    options.add_argument("--budgets", type=int, nargs="+", default=[300_000])
    options.add_argument("--rewards", nargs="+", choices=list(REWARDS), default=list(REWARDS))
    options.set_defaults(seeds=3)
    options = options.parse_args()
    rows = []

    def show(*cells):
        rows.append(list(cells))
        print("|", *(f"{cell} |" for cell in cells), flush=True)

    seeds, draws = (2, 200) if options.tiny else (options.seeds, 20_000)
    budgets = [100_000] if options.tiny else options.budgets
    for label in options.rewards:
        reward = REWARDS[label]
        for budget in budgets:
            for name in ROUTES:
                numbers, results = fine_tuned(name, reward, budget, seeds, draws)
                show(label, f"{budget:.0e}", name, *map(words, numbers))
                if name.startswith("value"):
                    learned = results[0].energy
            laws = {
                "denoised mean's reward": (prior() + nd.factors.Tilt(reward), 4),
                "mean reward of 32 draws": (prior() + nd.factors.Tilt(reward, value=SOFT), 4),
                "the same, an energy, one move a level": (
                    prior().base + nd.factors.Tilt(reward, value=SOFT), 16,
                ),
                "value, its training not counted": (learned, 4),
            }  # fmt: skip
            for name, (law, cost) in laws.items():
                num = 50 if options.tiny else budget // (cost * LEVELS)
                numbers = sampled(law, seeds, num)
                show(label, f"{budget:.0e}", f"weighted, {name}", *map(words, numbers))
        show(label, "", "exact", *TRUTH[label].split(", "), "")
    columns = ["reward", "evaluations", "method", "mean", "variance", "log normaliser", "ESS"]
    alone = f"-{options.rewards[0]}" if len(options.rewards) == 1 else ""
    _table.emit(f"finetune{alone}", __doc__, columns, rows, options.save)


if __name__ == "__main__":
    main()
