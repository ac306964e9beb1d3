"""Write `saved_by_place.zip`: files that name classes by where they stood, and the numbers they must give.

Only a version of this package that stored format 2 can write them: this is not to be run again.
"""

import json
import sys
import tempfile
import types
import zipfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import numpyro_diffusion as nd
from numpyro_diffusion import nets, teachers, train
from numpyro_diffusion.schedules import standard as schedules
from numpyro_diffusion.teachers.mixer import MixerNet
from numpyro_diffusion.teachers.unet import UNet, UNetForm

jax.config.update("jax_enable_x64", True)
KEY = jax.random.key(0)
DATA = Path(__file__).parent


class Ramp(eqx.Module):
    """A power of a law that changes with the time, a reward, a set: a class of a user."""

    slope: float

    def __call__(self, t):
        return 1 + self.slope * jnp.sum(t)


# As if the user had written it in a package of theirs.
Ramp.__module__ = "mine.old_place"
sys.modules["mine.old_place"] = types.ModuleType("mine.old_place")


def net(shape=(2,), **options):
    return random(nets.ResidualMLP(KEY, shape, width=2, depth=1, num_frequencies=1, **options))


def sixteenths(rng, shape):
    """Random numbers that leave a small archive."""
    return np.round(8 * rng.normal(size=shape)) / 16


def random(tree):
    """The same tree with weights that are not zero."""
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(sixteenths(rng, leaf.shape))
    return structure.unflatten([draw(leaf) for leaf in leaves])


def card(**changes):
    settings = {
        "name": "old", "shape": (2,), "units": "metres", "data_range": (-9.0, np.inf),
        "transform": teachers.Affine(1.0, 2.0), "schedule": schedules.Cosine(),
        "prediction": teachers.Noise(),
    }  # fmt: skip
    return teachers.PriorCard(**(settings | changes))


def image_energy():
    unet = nets.UNet(KEY, (2, 2), channels=(1, 2), condition=nets.Vectors(KEY, 3))
    square = nd.SquaredEnergy(
        random(unet), np.zeros((2, 2)), np.ones(4), schedules.VarianceExploding(0.01, 10.0)
    )
    return nd.NetworkDenoiser(square).given(jnp.asarray([1.0, -2.0, 0.5]))


def diffusers_teacher():
    form = UNetForm((2,), (False,), (False,), 1, False, False, None, 1, None, 1e-5, False, 1.0, 1, 0.0,
                    True, False)  # fmt: skip
    shapes = {"conv_in": (2, 1, 3, 3), "time_embedding.linear_1": (2, 2), "time_embedding.linear_2": (2, 2),
              "conv_norm_out": (2,), "conv_out": (1, 2, 3, 3)}  # fmt: skip
    for block, width in (("down_blocks.0.resnets.0", 2), ("up_blocks.0.resnets.0", 4),
                         ("up_blocks.0.resnets.1", 4)):  # fmt: skip
        shapes |= {f"{block}.norm1": (width,), f"{block}.conv1": (2, width, 3, 3), f"{block}.norm2": (2,),
                   f"{block}.time_emb_proj": (2, 2), f"{block}.conv2": (2, 2, 3, 3)}  # fmt: skip
        if width == 4:
            shapes[f"{block}.conv_shortcut"] = (2, 4, 1, 1)
    weights = {}
    for name, shape in shapes.items():
        weights |= {f"{name}.weight": jnp.zeros(shape), f"{name}.bias": jnp.zeros(shape[:1])}
    table = schedules.RectifiedFlow()
    return teachers.Teacher(
        UNet(random(weights), form), card(shape=(1, 2, 2), schedule=table, time_scale=1000.0)
    )


def student():
    layers = lambda size: [(3, size), (3,), (size, 3), (size,)]
    norms = lambda rows, columns: [(rows, columns), (rows, columns)]
    shapes = [(2, 2, 2, 2), (2, 1, 1), (1, 2, 2, 2), (1, 1, 1)]
    shapes += layers(4) + layers(2) + norms(2, 4) + norms(4, 2) + norms(2, 4)
    rng = np.random.default_rng(1)
    mixer = MixerNet.from_leaves([sixteenths(rng, shape) for shape in shapes] + [np.array(10.0)])
    known = card(
        shape=(4, 4), transform=teachers.LogScale(), schedule=schedules.VarianceExploding(0.01, 9.0)
    )
    teacher = teachers.Teacher(mixer, known)
    return teachers.student_of(teacher, rng.normal(size=(5, 4, 4)), noise_min=0.1, noise_max=5.0)


def priors():
    box = nd.Box(jnp.array([-1.0, 0.0]), jnp.array([1.0, 2.0]))
    gaussian, mixture = nd.Gaussian(), nd.GaussianMixture()
    network = nd.ProperEnergy(net(), log_normalizer=-1.5, log_normalizer_error=0.25)
    labelled = nd.ScalarEnergy(net(condition=nets.Labels(KEY, 2)), schedule=schedules.Cosine())
    return {
        "network": network,
        "labels": labelled.given(jnp.asarray(1)),
        "image": image_energy(),
        "forms": nd.Joint([nd.InnerProductEnergy(net()), nd.AutoencoderEnergy(net())]),
        "mixture": nd.Mixture([gaussian, mixture, box], [1 / 6, 1 / 2, 1 / 3]),
        "algebra": (gaussian + 0.5 * mixture) / 0.8,
        "denoisers": 1.5 * nd.NetworkDenoiser(nd.ProperEnergy(net())) + 0.5 * gaussian,
        "factors": mixture + nd.LawFactor(gaussian, power=0.5) + nd.Ratio(nets.ScalarHead(net())),
        "population": nd.Joint(gaussian, 2)
        + nd.MMD(jnp.array([[0.3, -1.0], [1.2, 0.4]]), nd.population.Polyharmonic()),
        "smoothed": nd.SmoothedDensity(num_draws=3),
        "standardized": nd.energies.Standardized(
            network, jnp.array([100.0, -3.0]), jnp.array([20.0, 0.1])
        ),
        "diffusers": diffusers_teacher(),
        "student": student(),
        "classifier": mixture
        + nd.Ratio(nets.ScalarHead(net()), train.ratio.RatioClassifier(net())),
        "users": (Ramp(0.5) * gaussian) / Ramp(0.2)
        + nd.Tilt(Ramp(-0.3), value=nd.LearnedValue(nets.ScalarHead(net()), 2.0))
        + nd.Restrict(Ramp(0.1)),
    }


def numbers(prior):
    """What a prior says of one point at two times."""
    energy = prior.energy if isinstance(prior, nd.energies.Standardized) else prior
    x = jnp.asarray(np.random.default_rng(2).normal(size=energy.shape))
    found = {"x": x.tolist()}
    for name, share in (("low", 0.0), ("high", 0.5)):
        t = jnp.asarray(energy.t_min + share * (energy.t_max - energy.t_min))
        found[name] = {"t": float(t), "denoise": energy.denoise(x, t).tolist()}
        if isinstance(energy, nd.AbstractEnergy):
            found[name]["log_density"] = float(energy.log_density(x, t))
    if energy is not prior:
        found["restored"] = prior.restore(x).tolist()
    return found


def main():
    told = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        zipfile.ZipFile(
            DATA / "saved_by_place.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9
        ) as archive,
    ):
        for name, prior in priors().items():
            file = Path(folder, f"{name}.safetensors")
            nd.save(file, prior, {"made": name})
            archive.write(file, file.name)
            told[name] = numbers(prior)
    (DATA / "saved_by_place.json").write_text(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
