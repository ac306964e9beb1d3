"""Arguments that count something: every public function and class refuses what is no such number.

The cases are found, not listed: a new argument that is annotated as an integer is asked too.
"""

import dataclasses
import importlib
import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion._arguments import whole_number
from numpyro_diffusion.train import Initializer

PARTS = (
    "auditing bridge density diagnostics discrete energies factors nets normalizers plots samplers "
    "samplers.projections schedules schemes smc smc.moves teachers train twists"
).split()
# Sizes of what a network is built of, seeds, bytes, and functions that are no entry of a user's.
NOT_ASKED = {
    "Convolution", "ImageBlock", "Linear", "NoiseLevel", "ResidualBlock", "convolve",
    "TrainingDiverged", "bits_per_dim", "krylov", "summary_table", "uniform_log_snr", "BlackJAXMove",
}  # fmt: skip
NO_COUNT = {"levels", "seed", "max_bytes", "stride", "padding"}

ENERGY = nd.Gaussian()
DATA = np.random.default_rng(0).normal(size=(40, 2))


def model():
    raise AssertionError("a count was not looked at before the model")


def entries():
    """Every public function and class with the names of its integers."""
    found = {}
    for part in [nd, *(importlib.import_module(f"numpyro_diffusion.{name}") for name in PARTS)]:
        for name, entry in vars(part).items():
            home = getattr(entry, "__module__", None) or ""
            if name.startswith("_") or not callable(entry) or name in NOT_ASKED:
                continue
            if not home.startswith("numpyro_diffusion") or home.endswith("_arguments"):
                continue
            if isinstance(entry, type) and issubclass(entry, tuple):  # results
                continue
            parameters = inspect.signature(entry).parameters.values()
            kinds = {p.name: str(p.annotation).replace("<class 'int'>", "int") for p in parameters}
            if isinstance(entry, type) and issubclass(entry, eqx.Module):
                # Equinox forgets the annotations of fields with a converter.
                fields = {f.name: f.type for f in dataclasses.fields(entry)}
                kinds |= {
                    n: getattr(fields[n], "__name__", str(fields[n])) for n in kinds if n in fields
                }
            counts = [n for n, kind in kinds.items() if "int" in kind.split(" | ")]
            found[name] = entry, [n for n in counts if n not in NO_COUNT]
    return {name: case for name, case in found.items() if case[1]}


ENTRIES = entries()
CASES = [(name, count) for name, (_, counts) in ENTRIES.items() for count in counts]


def likely(name):
    """Something that an argument of this name may be."""
    bridge = lambda: nd.from_energy(ENERGY, lambda x: -jnp.sum(x**2))
    made = {
        "bridge": bridge,
        "model": lambda: model,
        "key": lambda: jax.random.key(0),
        "fn": lambda: lambda x, t: x,
        "schedule": lambda: ENERGY.schedule,
        "t_min": lambda: 0.1,
        "t_max": lambda: 0.9,
        "t": lambda: jnp.asarray(0.5),
        "u": lambda: jnp.zeros(2),
        "z": lambda: jnp.zeros(2),
        "start": lambda: jnp.zeros(2),
        "labels": lambda: np.arange(40) % 2,
        "horizons": lambda: [0.5, 0.9],
        "energies": lambda: ENERGY,
        "priors": lambda: {"a": ENERGY},
        "initializer": lambda: Initializer.from_energy(nd.nets.ResidualMLP(), ENERGY),
        "images": lambda: np.zeros((2, 3, 3)),
        "reference": lambda: DATA,
    }
    if name in made:
        return made[name]()
    if name in ("energy", "prior", "teacher", "denoiser"):
        return nd.ProperEnergy() if name == "energy" else ENERGY
    if name in ("x", "data", "draws", "members", "held_out", "source", "target", "truth", "noise"):
        return DATA
    if name in ("reward", "log_ratio", "log_density", "projection", "algorithm", "parameters"):
        return lambda x: jnp.sum(x)
    return None


@pytest.mark.parametrize("value", [2.5, True, np.nan, -1, 10**30, "8"], ids=repr)
@pytest.mark.parametrize(("name", "count"), CASES, ids=lambda each: each)
def test_what_is_no_count_is_refused_by_name(name, count, value):
    entry, counts = ENTRIES[name]
    parameters = inspect.signature(entry).parameters.values()
    needed = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    # Counts that are needed are there, and right.
    given = {n: 2 if n in counts else likely(n) for n in needed}
    with pytest.raises(
        ValueError, match=rf"`{count}`.*must be (an integer|at (least|most) \d).*"
    ) as e:
        entry(**{**given, count: value})
    assert "got" in str(e.value)


def test_there_are_many():
    assert len(CASES) > 140 and ("SMC", "num_particles") in CASES and ("fit", "steps") in CASES
    assert ("Pilot", "max_levels") in CASES and ("split_gibbs", "thinning") in CASES


@pytest.mark.parametrize("value", [True, 2.5, np.nan, "8"])
@pytest.mark.parametrize(
    "scheme", [nd.Annealed, nd.ReverseDiffusion, nd.Twisted, nd.ScoreComposition]
)
def test_levels_are_a_number_or_levels(scheme, value):
    with pytest.raises(TypeError, match=f"`levels` of `{scheme.__name__}` is a number, .* got"):
        scheme(levels=value)
    assert scheme(levels=np.int64(5)).levels == 5 and type(scheme(levels=np.int32(5)).levels) is int


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.array, jnp.asarray])
def test_integers_of_other_libraries_are_taken(kind):
    got = whole_number("num", kind(8), 2)
    assert got == 8 and type(got) is int


def test_integers_of_numpy_count_the_same(key):
    """Where they are fields, and where they are arguments."""
    bridge = nd.from_energy(ENERGY, lambda x: -jnp.sum(x**2))

    def run(kind):
        moves = nd.schemes.Moves(num=kind(1), num_other=kind(1))
        scheme = nd.Annealed(levels=kind(2), moves=moves, pilot=kind(16))
        return nd.run_smc(key, scheme(bridge, key), kind(16), num_chains=kind(2)).log_evidence

    np.testing.assert_array_equal(run(np.int64), run(int))
