"""Final classes answer with the types and shapes that the methods of their base class are annotated with."""

import inspect
import math
import typing

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError, jaxtyped

import numpyro_diffusion as nd
from numpyro_diffusion.energies import AbstractFactor
from numpyro_diffusion.energies.factors import Noised
from numpyro_diffusion.schedules.standard import AbstractSchedule

T = jnp.asarray(0.4)


def as_promised(base, name):
    """The method, whose arguments and result are held against the annotations of the base class."""
    method = getattr(base, name)
    hints = typing.get_type_hints(method, include_extras=True)
    names = list(inspect.signature(method).parameters)[1:]

    def one(self, a):
        return getattr(self, name)(a) if name != "__call__" else self(a)

    def two(self, a, b):
        return getattr(self, name)(a, b) if name != "__call__" else self(a, b)

    def three(self, a, b, c):
        return self(a, b, c)

    call = [one, two, three][len(names) - 1]
    places = dict(zip("abc", names, strict=False))
    call.__annotations__ = {letter: hints[full] for letter, full in places.items()}
    call.__annotations__["return"] = hints["return"]
    return jaxtyped(call, typechecker=beartype)


def check(base, thing, **arguments):
    """Nothing is compiled: shapes are known once a function is traced."""
    for name, args in arguments.items():
        eqx.filter_eval_shape(as_promised(base, name), thing, *args)


def spread(shape):
    return jnp.linspace(-1.0, 1.0, math.prod(shape)).reshape(shape)


def example(model):
    return spread(model.shape)


def test_denoisers(denoiser):
    check(nd.AbstractDenoiser, denoiser, denoise=(example(denoiser), T), moments=(T,))


def test_energies(energy):
    at = example(energy), T
    names = "denoise", "energy", "score", "energy_and_score", "log_density", "log_density_and_score"
    check(nd.AbstractEnergy, energy, moments=(T,), **dict.fromkeys(names, at))


def test_schedules(schedule):
    check(AbstractSchedule, schedule, __call__=(T,), time=(T,), log_snr=(T,), noise_level=(T,))


def test_twists(twist):
    energy = nd.GaussianMixture()
    u = example(energy)
    check(nd.AbstractTwist, twist, __call__=(energy, u, T), of_denoised=(u, u))


def test_factors(factor):
    shape = (3, 2) if isinstance(factor, nd.factors.Coupling | nd.factors.MMD) else (2,)
    u = spread(shape)
    check(
        AbstractFactor, factor, log_value=(Noised(u, u, jnp.ones_like(u), T, jnp.asarray(False)),)
    )


class Wrong(nd.AbstractTwist):
    """Its value is a number where it should be of the shape of `u`."""

    def __call__(self, energy, u, t):
        return energy.log_density(u, t), jnp.sum(u)


def test_what_is_not_as_promised_is_found():
    energy = nd.GaussianMixture()
    with pytest.raises((TypeCheckError, BeartypeCallHintViolation)):
        check(nd.AbstractTwist, Wrong(), __call__=(energy, example(energy), T))
    with pytest.raises((TypeCheckError, BeartypeCallHintViolation)):
        as_promised(AbstractSchedule, "__call__")(energy.schedule, jax.numpy.ones(3))
