"""How each peer of `peers25.py` is called; imported in the peers' own environment by `_peers.py`.

Only public interfaces are called, and nothing of ours is imported. The score is exact, in float32 for PyTorch
(as JAX has it) and in float64 for NumPy. A run has `size` particles, unless the peer counts otherwise, and
returns `size` equally weighted draws and the log evidence, if there is one. `mcg_diff` (GPL-3) is run, never
copied: it is the package of `gabrielvc/mcg_diff` at 498a883.
"""

from functools import lru_cache

import numpy as np
from scipy.special import logsumexp

STEPS = 100


class Counter:
    """Evaluations of the prior, one for each row."""

    rows = 0


class Mixture:
    """The prior, as `particles` asks for it."""

    def __init__(self, problem, counter):
        self.weights = problem["weights"] / problem["weights"].sum()  # stored in single precision
        self.means = problem["means"]
        self.constant = -0.5 * self.means.shape[1] * np.log(2 * np.pi)
        self.counter = counter

    def logpdf(self, x):
        self.counter.rows += len(x)
        squares = (x**2).sum(1)[:, None] - 2 * x @ self.means.T + (self.means**2).sum(1)
        return self.constant + logsumexp(np.log(self.weights) - 0.5 * squares, axis=1)

    def rvs(self, size=1):
        k = np.random.choice(len(self.weights), size, p=self.weights)
        return self.means[k] + np.random.standard_normal((size, self.means.shape[1]))


def by_particles(problem, size, seed, counter, chains=200, length=50):
    import particles
    from particles import resampling, smc_samplers

    operator, y, sigma = problem["operator"], problem["y"], problem["sigma"]

    class Model(smc_samplers.StaticModel):
        def loglik(self, theta, t=None):
            squares = ((theta @ operator.T - y) ** 2).sum(1) / sigma**2
            return -0.5 * (squares + len(y) * np.log(2 * np.pi * sigma**2))

    np.random.seed(seed)
    # The data are inside the likelihood; `StaticModel` wants some.
    model = Model(data=y, prior=Mixture(problem, counter))
    sampler = smc_samplers.AdaptiveTempering(model=model, wastefree=True, len_chain=length)
    run = particles.SMC(fk=sampler, N=chains)
    run.run()
    index = resampling.systematic(run.W, M=size)
    return run.X.theta[index], run.logLt


def torch_mean(problem, counter):
    """E(x_0 | x_t) of the prior at x_t = alpha x_0 + sigma z."""
    import torch

    means = torch.as_tensor(problem["means"], dtype=torch.float32)
    log_weights = torch.log(torch.as_tensor(problem["weights"], dtype=torch.float32))
    norms = (means**2).sum(1)

    def mean(x, alpha, sigma):
        counter.rows += len(x)
        variance = alpha**2 + sigma**2
        # The square of x is the same for every component, and cancels.
        logits = log_weights + alpha * (x @ means.T - 0.5 * alpha * norms) / variance
        average = torch.softmax(logits, -1) @ means
        return average + alpha / variance * (x - alpha * average)

    return mean


def by_mcg_diff(problem, size, seed, counter, eta=0.85, kappa=1e-2):
    import torch
    from mcg_diff import particle_filter, sgm, utils

    torch.manual_seed(seed)
    operator = torch.as_tensor(problem["operator"], dtype=torch.float32)
    variance = torch.as_tensor(problem["sigma"] ** 2, dtype=torch.float32)
    # The schedule and the placement of the steps of the paper's experiment.
    alphas = torch.cumprod(torch.cat([torch.ones(1), 1 - torch.linspace(0.02, 1e-4, 999)]), 0)
    u, values, mask, v = utils.build_extended_svd(operator)
    mean = torch_mean(problem, counter)

    def noise(x, t):
        alpha, sigma = alphas[t] ** 0.5, (1 - alphas[t]) ** 0.5
        return (x - alpha * mean(x, alpha, sigma)) / sigma.clip(1e-6)

    steps = utils.get_optimal_timesteps_from_singular_values(
        alphas_cumprod=alphas, singular_value=values, n_timesteps=STEPS, var=variance, mode="else"
    )
    x, log_weights = particle_filter.mcg_diff(
        initial_particles=torch.randn(size, operator.shape[1]),
        observation=u.T @ torch.as_tensor(problem["y"], dtype=torch.float32),
        score_model=sgm.ScoreModel(utils.NetReparametrized(noise, v), alphas, "cpu"),
        coordinates_mask=mask.bool(),
        timesteps=steps,
        likelihood_diagonal=values,
        var_observation=variance,
        eta=eta,
        gaussian_var=kappa,
    )
    # Its last weights are left to the caller.
    index = torch.multinomial(torch.softmax(log_weights, 0), size, replacement=True)
    return (x[index] @ v).numpy(), np.nan


def by_azula(problem, size, seed, counter, name, **settings):
    import torch
    from azula.denoise import Denoiser, DiracPosterior
    from azula.guidance import DPSSampler, MMPSDenoiser, PGDMSampler, TDSSampler
    from azula.linalg.covariance import IsotropicCovariance
    from azula.noise import VPSchedule
    from azula.sample import DDPMSampler

    class Exact(Denoiser):
        def __init__(self):
            super().__init__()
            self.schedule, self.mean = VPSchedule(), torch_mean(problem, counter)

        def forward(self, x_t, t, **kwargs):
            return DiracPosterior(self.mean(x_t, *self.schedule(t)))

    torch.manual_seed(seed)
    operator, y = (torch.as_tensor(problem[k], dtype=torch.float32) for k in ("operator", "y"))
    variance = float(problem["sigma"]) ** 2
    forward = lambda x: x @ operator.T
    common = {"steps": STEPS, "silent": True}
    if name == "TDS":
        values, vectors = torch.linalg.eigh(operator @ operator.T)

        def twist(x, ratio):
            # Each component has unit covariance, so given x_t it has covariance r^2 / (1 + r^2). `wide`
            # takes the operator's singular values for 1, at most which they are.
            spread = torch.ones_like(values) if settings["wide"] else values.clip(0)
            scale = variance + spread * ratio**2 / (1 + ratio**2)
            return -0.5 * ((forward(x) - y) @ vectors) ** 2 / scale - 0.5 * torch.log(scale)

        sampler = TDSSampler(Exact(), lambda x, ratio: twist(x, ratio).sum(-1), **common)
    elif name == "MMPS":
        # As many iterations as data solve its linear system; with one datum it is TMPD.
        denoiser = MMPSDenoiser(
            Exact(), y, forward, IsotropicCovariance(variance), iterations=len(y)
        )
        sampler = DDPMSampler(denoiser, **common)
    elif name == "PGDM":
        inverse = torch.linalg.pinv(operator)
        sampler = PGDMSampler(Exact(), y, forward, lambda v: v @ inverse.T, **settings, **common)
    else:
        # It takes one norm over the batch: the root makes the guidance independent of the batch's size.
        zeta = settings["zeta"] * size**0.5
        sampler = DPSSampler(Exact(), y, forward, zeta=zeta, **common)
    return sampler(sampler.init((size, operator.shape[1]))).numpy(), np.nan


@lru_cache
def diffusionjax_sampler(size, steps):
    """A compiled sampler, which a new problem of the same shapes does not compile again."""
    import jax
    import jax.numpy as jnp
    from diffusionjax import inverse_problems, sde, solvers, utils

    times, _ = utils.get_times(num_steps=steps)  # checks its own values: not under `jit`

    @jax.jit
    def sample(key, operator, y, sigma, weights, means):
        process = sde.VP(*utils.get_linear_beta_function(beta_min=0.1, beta_max=25.0))

        def log_density(x, t):
            alpha = process.mean_coeff(t)
            squares = jnp.sum(x**2) - alpha * (2 * means @ x - alpha * jnp.sum(means**2, -1))
            return jax.nn.logsumexp(jnp.log(weights) - 0.5 * squares)

        reverse = process.reverse(jax.vmap(jax.grad(log_density)))
        shape = size, operator.shape[1]
        data = jnp.tile(y, (size, 1))
        guide, forward = inverse_problems.get_pseudo_inverse_guidance, lambda x: operator @ x
        guided = reverse.guide(guide, forward, data, sigma, operator @ operator.T)
        return utils.get_sampler(shape, solvers.EulerMaruyama(guided, times))(key)[0]

    return sample


def by_diffusionjax(problem, size, seed, counter, steps=1000):
    import jax
    import jax.numpy as jnp

    names = ("operator", "y", "sigma", "weights", "means")
    arrays = [jnp.asarray(problem[k], jnp.float32) for k in names]
    counter.rows += steps * size
    x = diffusionjax_sampler(size, steps)(jax.random.PRNGKey(seed), *arrays)
    return np.asarray(x), np.nan
