"""The M-step of a network: denoising on weighted draws, from where the last round left it."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ... import _faq
from ..._typing import Array, PRNGKey, PyTree
from ...energies import AbstractDenoiser, NetworkDenoiser
from ...energies.preconditioned import AbstractNetworkEnergy
from ..options import Optimizer
from ..settings import default_decay, default_loss, make_optimiser
from ..sources import Batch, Examples
from .maximise import AbstractPart, moments
from .posterior import Reference

__all__ = ["NetworkPart", "clean"]

_LEAST = 1e-8  # least variance of the Gaussian like the prior


@eqx.filter_jit
def clean(energy: AbstractDenoiser, key: PRNGKey, draws: Array) -> Array:
    r"""Flat draws of $x_{t_{\min}}$ with its noise taken off: draws of $x_0$ given each, nearly.

    $2 \hat x - D(\hat x + s_0 \epsilon)$ with $D$ the denoiser at `t_min` and $\hat x = D(u)$: for a Gaussian
    with variance $d^2$ its mean is right, and its variance to $s_0^4 d^2 / (d^2 + s_0^2)^2$, a quarter of
    $s_0^2$ at most.
    """
    t = jnp.asarray(energy.t_min, draws.dtype)
    alpha, sigma = energy.schedule(t)
    denoise = lambda u: energy.denoise(alpha * u.reshape(energy.shape), t).ravel()

    def one(u, key):
        x_hat = denoise(u)
        noise = sigma / alpha * jax.random.normal(key, u.shape, u.dtype)
        return 2 * x_hat - denoise(x_hat + noise)

    flat = draws.reshape(-1, draws.shape[-1])
    keys = jax.random.split(key, len(flat))
    return jax.lax.map(lambda arg: one(*arg), (flat, keys), batch_size=4096).reshape(draws.shape)


class NetworkPart(AbstractPart):
    """A network: denoising on the draws, from where the last round left it; one program for all rounds."""

    def __init__(
        self,
        energy: AbstractDenoiser,
        trainable: Callable[[Any], PyTree] | None,
        loss: Callable | None,
        *,
        steps: int,
        batch_size: int,
        learning_rate: float | optax.Schedule,
        optimizer: Optimizer,
    ):
        self.energy, self.trainable, self.loss = energy, trainable or _trainable(energy), loss
        self.steps, self.batch_size = steps, batch_size
        self.learning_rate, self.optimizer = learning_rate, optimizer
        self.carry, self.step, self.like = None, 0, _own_gaussian(energy)

    def update(self, key, draws, weights):
        key_clean, key_run = jax.random.split(key)
        draws = clean(self.energy, key_clean, draws)
        host, shares = np.asarray(draws, float), np.asarray(weights, float)
        self.like = Reference.of(*moments(host, shares), least=_LEAST)
        pool = draws.reshape(*draws.shape[:2], *self.energy.shape)
        if self.carry is None:
            self._start(pool[:, 0])
        log_weights = jnp.log(jnp.maximum(weights, jnp.finfo(weights.dtype).tiny))
        self.carry, losses = self.run(self.carry, key_run, self.step, pool, log_weights)
        if not np.isfinite(np.asarray(losses)).all():
            raise FloatingPointError(
                "the loss became non-finite in the M-step. Lower `learning_rate`, or scale the data to "
                f"order one. {_faq.diverged}"
            )
        self.step += self.steps
        self.energy = self.rebuild(self.carry[1])

    def _start(self, examples: Array) -> None:
        """Settle what depends on the data: scale of the loss and weight decay, once for all rounds."""
        source = Examples(examples)
        loss = self.loss or default_loss(self.energy, Batch(examples), source)
        optimizer = self.optimizer.with_decay(default_decay(source, self.energy.shape))
        rate = self.learning_rate
        if not callable(rate):
            rate = optax.warmup_constant_schedule(0.0, rate, min(200, self.steps))
        optimiser = make_optimiser(rate, optimizer.weight_decay, self.steps)
        weights, static = eqx.partition(self.trainable(self.energy), eqx.is_inexact_array)
        energy, trainable, ema = self.energy, self.trainable, optimizer.ema

        def rebuild(weights):
            return eqx.tree_at(trainable, energy, eqx.combine(weights, static))

        def update(carry, step, pool, log_weights):
            weights, average, state = carry
            step, key = step
            key_example, key_draw, key_loss = jax.random.split(key, 3)
            index = jax.random.randint(key_example, (self.batch_size,), 0, len(pool))
            chosen = jax.random.categorical(key_draw, log_weights[index])
            value, slope = jax.value_and_grad(
                lambda w: loss(rebuild(w), key_loss, pool[index, chosen])
            )(weights)
            change, state = optimiser.update(slope, state, weights)
            weights = optax.apply_updates(weights, change)
            share = jnp.minimum(ema, (1 + step) / (10 + step)).astype(value.dtype)
            average = jax.tree.map(
                lambda a, w: (share * a + (1 - share) * w).astype(w.dtype), average, weights
            )
            return (weights, average, state), value

        @jax.jit
        def run(carry, key, first, pool, log_weights):
            steps = first + jnp.arange(self.steps), jax.random.split(key, self.steps)
            return jax.lax.scan(lambda c, s: update(c, s, pool, log_weights), carry, steps)

        self.rebuild, self.run = rebuild, run
        self.carry = weights, weights, optimiser.init(weights)

    def reference(self):
        return self.like


def _trainable(energy: Any) -> Callable[[Any], PyTree]:
    if isinstance(energy, NetworkDenoiser):
        return lambda denoiser: denoiser.base.net
    if isinstance(energy, AbstractNetworkEnergy):
        return lambda energy: (energy.net, energy.offset)
    raise TypeError(
        f"`fit_imperfect` knows how to fit `Gaussian`, `GaussianMixture` and networks; of a "
        f"`{type(energy).__name__}` say what is trained: `trainable=lambda energy: "
        f"energy.net`. {_faq.kinds}"
    )


def _own_gaussian(energy: Any) -> Reference:
    """The Gaussian that a network energy begins with; else one of independent coordinates."""
    base = energy.base if isinstance(energy, NetworkDenoiser) else energy
    if isinstance(base, AbstractNetworkEnergy) and base.basis is not None:
        return Reference(base.mean.ravel(), base.scales**2, base.basis)
    t = jnp.asarray(energy.t_min, jnp.result_type(float))
    mean, variance = (np.asarray(part, float).ravel() for part in energy.data_moments(t))
    floor = float(energy.schedule.noise_level(t))
    return Reference.of(mean, np.diag(np.maximum(variance - floor**2, _LEAST)))
