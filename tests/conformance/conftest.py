"""Finds every final class of the package, so that a new one is tested the moment its file exists.

Classes are built with their defaults. The few that cannot have defaults are listed in `FACTORIES`.
"""

import importlib
import inspect
import pkgutil

import jax.numpy as jnp
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion import energies, factors, schemes, twists
from numpyro_diffusion.schedules import standard as schedules


def _card():
    return nd.teachers.PriorCard(
        name="mixture",
        shape=(2,),
        units="dimensionless",
        data_range=(-10.0, 10.0),
        transform=nd.teachers.Identity(),
        schedule=nd.GaussianMixture().schedule,
        prediction=nd.teachers.Score(),
    )


def _table():
    """Of one parameter from 1/2 to 2, 0 at 1."""
    return nd.energies.NormalizerTable(
        low=(0.5,),
        high=(2.0,),
        logarithmic=(True,),
        degrees=(1,),
        clocks=jnp.array([0.0, 1.0]),
        coefficients=jnp.array([[0.0, -0.3], [0.0, 0.1]]),
        covariance=1e-6 * jnp.eye(2),
        nodes=jnp.array([[0.5], [1.0], [2.0]]),
        values=jnp.array([0.3, 0.0, -0.3]),
        standard_errors=jnp.full(3, 0.001),
        misfit=1.0,
    )


FACTORIES = {
    "AsPublished": lambda: schemes.unresampled(nd.Annealed()),
    "Composed": lambda: (nd.Gaussian() + 0.5 * nd.GaussianMixture()) / 0.8,
    "ComposedDenoiser": lambda: 1.5 * FACTORIES["ScoreFunction"]() + 0.5 * nd.Gaussian(),
    "Factored": lambda: nd.GaussianMixture() + nd.factors.LawFactor(power=0.5),
    "FactoredDenoiser": lambda: FACTORIES["ScoreFunction"]() + nd.factors.LawFactor(power=0.5),
    "PowerEnergy": lambda: nd.energies.PowerEnergy(
        (nd.Gaussian(), nd.Gaussian([0.5, -0.3], [[0.8, 0.2], [0.2, 0.6]])), [0.7, 0.6]
    ),
    "Family": lambda: nd.energies.Family(
        nd.energies.Powers(nd.GaussianMixture()), _table(), jnp.asarray(0.8)
    ),
    "Joint": lambda: nd.energies.Joint([nd.Gaussian(), nd.GaussianMixture()]),
    "Mixture": lambda: nd.energies.Mixture([nd.Gaussian(), nd.GaussianMixture()], [0.25, 0.75]),
    "MMD": lambda: nd.factors.MMD(jnp.array([[0.3, -1.0], [1.2, 0.4], [-0.6, 0.1]]), strength=2.0),
    "EnergyFunction": lambda: nd.EnergyFunction(
        lambda mixture, x, t: 1.3 * mixture.energy(x, t), (2,), params=nd.GaussianMixture()
    ),
    "ScoreFunction": lambda: nd.ScoreFunction(
        lambda mixture, x, t: mixture.score(x, t), (2,), params=nd.GaussianMixture()
    ),
    "HostTeacher": lambda: nd.teachers.HostTeacher(lambda x, time: -x, _card()),
    "Teacher": lambda: nd.teachers.Teacher(
        lambda mixture, x, t: mixture.score(x, t), _card(), params=nd.GaussianMixture()
    ),
}


def modules_of(package):
    """A module, or a package and all modules in it."""
    yield package
    for info in pkgutil.walk_packages(getattr(package, "__path__", []), package.__name__ + "."):
        yield importlib.import_module(info.name)


def final_classes(base, package):
    """Concrete classes of this package below `base`, by name."""
    for _ in modules_of(package):  # importing them is what makes them known
        pass
    found, queue = {}, [base]
    while queue:
        for cls in queue.pop().__subclasses__():
            queue.append(cls)
            if cls.__module__.startswith(nd.__name__ + ".") and not inspect.isabstract(cls):
                found[cls.__name__] = cls
    return found


DISCOVERED = {
    "energy": final_classes(energies.AbstractEnergy, energies),
    "denoiser": final_classes(energies.AbstractDenoiser, energies),
    "schedule": final_classes(schedules.AbstractSchedule, schedules),
    "twist": final_classes(twists.AbstractTwist, twists),
    "scheme": final_classes(schemes.AbstractScheme, schemes),
    "covariance": final_classes(schemes.covariance.AbstractCovariance, schemes),
    "correction": final_classes(schemes.AbstractCorrection, schemes),
    "factor": final_classes(energies.AbstractFactor, factors),
}


def pytest_generate_tests(metafunc):
    """Give a test that asks for `energy`, `schedule`, ... one of each."""
    for name, classes in DISCOVERED.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, classes.values(), ids=classes.keys(), indirect=True)


def _fixture(name):
    @pytest.fixture(name=name)
    def build(request):
        return FACTORIES.get(request.param.__name__, request.param)()

    return build


energy, denoiser, schedule, twist, scheme, covariance, correction, factor = map(
    _fixture, DISCOVERED
)
