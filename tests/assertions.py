"""What tests say of a weighted cloud: evidence and posterior against a closed form."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
from closed_form import Problem

import numpyro_diffusion as nd


def by_cloud(smc: nd.SMC, function) -> np.ndarray:
    """Weighted mean of a function of the samples in each cloud, shape `(num_chains, ...)`."""
    samples, weights = smc.get_weighted_samples()
    weights = np.asarray(weights / weights.sum(1, keepdims=True))
    values = np.asarray(function({n: np.asarray(v) for n, v in samples.items()}))
    return np.einsum("cn,cn...->c...", weights, values)


def assert_near(clouds: np.ndarray, truth, floor) -> None:
    """The mean over clouds agrees with the truth within its own spread, or a share of the scale."""
    error = np.abs(clouds.mean(0) - truth)
    allowed = 4 * clouds.std(0, ddof=1) / len(clouds) ** 0.5 + floor
    assert (error < allowed).all(), f"errors {error} beyond {allowed}"


def modes(problem: Problem, x: np.ndarray) -> np.ndarray:
    """Probability of each component given a point; its posterior mean is that of the mode."""
    prior, t = problem.prior, jnp.asarray(problem.prior.t_min)
    alpha_t, _ = prior.schedule(t)
    log_p = jax.vmap(lambda u: prior.component_log_densities(alpha_t * u, t))(
        x.reshape(-1, x.shape[-1])
    )
    return np.asarray(jax.nn.softmax(log_p, -1)).reshape(*x.shape[:-1], -1)


def assert_posterior(smc: nd.SMC, problem: Problem, floor: float) -> None:
    """Means, variances and mode weights of all sites; `floor` in posterior standard deviations."""
    exact, sd = problem.exact(), np.sqrt(problem.exact().variance)
    assert_near(by_cloud(smc, lambda s: s["x"]), exact.mean, floor * sd)
    second = by_cloud(smc, lambda s: (s["x"] - exact.mean) ** 2)
    assert_near(second, exact.variance, 2 * floor * exact.variance)
    assert_near(by_cloud(smc, lambda s: modes(problem, s["x"])), exact.modes, 0.5 * floor)
    if problem.sigma is None:
        assert_near(by_cloud(smc, lambda s: s["sigma"]), exact.sigma_mean, floor * exact.sigma_sd)
    if problem.offset_scale:
        offsets = by_cloud(smc, lambda s: s["offset"])
        assert_near(offsets, exact.offset_mean, floor * exact.offset_sd)


def assert_unbiased(log_evidence, log_truth: float) -> None:
    ratio = np.exp(np.asarray(log_evidence) - log_truth)
    error = ratio.std(ddof=1) / len(ratio) ** 0.5
    assert error < 0.03
    assert abs(ratio.mean() - 1) < 2.5 * error


class Shifted(nd.AbstractEnergy):
    """An energy plus an arbitrary function of time: the same law at every level."""

    inner: nd.AbstractEnergy
    size: jax.Array

    schedule = property(lambda self: self.inner.schedule)
    shape = property(lambda self: self.inner.shape)
    t_min = property(lambda self: self.inner.t_min)
    t_max = property(lambda self: self.inner.t_max)
    log_normalizer = None
    log_normalizer_error = 0.0

    def constant(self, t):
        return self.size * (3 * jnp.sin(4 * t) + 2 * t - 1)

    def energy(self, x, t):
        return self.inner.energy(x, t) + self.constant(t)

    def moments(self, t):
        return self.inner.moments(t)


_COMPILED: list[str] = []


def _note(event: str, seconds: float, **more) -> None:
    del seconds, more
    if event == "/jax/core/compile/backend_compile_duration":
        _COMPILED.append(event)


jax.monitoring.register_event_duration_secs_listener(_note)


@contextlib.contextmanager
def counting_programs():
    """A list that gets the number of programs compiled inside."""
    before, found = len(_COMPILED), []
    yield found
    found.append(len(_COMPILED) - before)
