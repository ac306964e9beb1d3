"""Simulation-based calibration of a model with thirteen latent sites, `examples/survey.py`.

On `--seeds` data sets truth and data are drawn from the model: images are particles of a long run of the
learned prior alone, all else is drawn exactly. Each data set gets a posterior from one cloud of `--particles`
particles. Ranks and coverages are as in `calibration.py`. The last rows are of the discrete sites, red
objects and failures of the photometer: their probability and their share, in data where the probability is
below one half, and in the others. With few families of particles left a cloud is narrower than its
posterior, which shows as coverage that is too low. With `--objects 1` a survey has one object: all thirteen
sites of the model stand, and a data set costs a fraction. Rows so far are kept in a file, so that a run that
was cut off goes on.
"""

import importlib.util
import json
import sys
import time
from pathlib import Path

import _table
import calibration
import jax
import numpy as np
from scipy import stats

import numpyro_diffusion as nd

place = Path(__file__).parent.parent / "examples" / "survey.py"
spec = importlib.util.spec_from_file_location("survey_example", place)
survey = importlib.util.module_from_spec(spec)
spec.loader.exec_module(survey)

SCALARS = ("mean", "spread", "share", "camera_noise", "photometer_noise", "length", "height")
DISCRETE = ("red", "failed")


def quantities(values) -> dict[str, np.ndarray]:
    """What is ranked, of draws with a leading axis."""
    values = {name: np.asarray(value, float) for name, value in values.items()}
    found = {name: values[name] for name in SCALARS}
    found |= {"first log flux": values["log_flux"][:, 0], "first colour": values["colour"][:, 0]}
    found |= {"sky, column 4": values["sky"][:, 3], "pixel (3, 3)": values["x"][:, 0, 3, 3]}
    return found | {"mean pixel": values["x"].mean((1, 2, 3))}


def one(seed: int, images, num_particles: int) -> dict:
    """Ranks of the truth, probabilities and truth of the discrete sites, and what the run says of itself."""
    keys = jax.random.split(jax.random.key(seed), 2)
    truth, data = survey.simulate(keys[0], images)
    smc = nd.SMC(
        survey.model, survey.SCHEME, num_particles=num_particles, num_chains=1, progress_bar=False
    )
    smc.run(keys[1], **data)
    draws, weights = smc.get_weighted_samples()
    draws = {name: np.asarray(value)[0] for name, value in draws.items()}
    weights = np.asarray(weights[0], float)
    true = quantities({name: np.asarray(value)[None] for name, value in truth.items()})
    own = 1 / (1 + 1 / np.sum(weights**2))  # of the truth, one more particle of an average weight
    shares = np.random.default_rng(seed).uniform(size=len(true))
    found = quantities(draws)
    ranks = {
        name: float((1 - own) * weights @ (found[name] < true[name][0]) + own * share)
        for name, share in zip(true, shares, strict=True)
    }
    probabilities = smc.discrete_probabilities()
    discrete = {
        name: [
            np.asarray(probabilities[name])[..., 1].ravel().tolist(),
            np.asarray(truth[name]).tolist(),
        ]
        for name in DISCRETE
    }
    families = int(smc.result.trace.unique_ancestors[0, -1])
    said = {"levels": int(smc.result.num_levels_run), "families": families}
    return {"ranks": ranks, "discrete": discrete, **said}


def rows_of(found: list[dict]) -> list[list]:
    """The table."""
    grid, count, rows = np.arange(1, 100) / 100, len(found), []
    null = calibration.tail(np.random.default_rng(0).uniform(size=(4000, count)), grid)
    for name in found[0]["ranks"]:
        ranks = np.array([each["ranks"][name] for each in found])
        p_band = (null <= calibration.tail(ranks, grid)).mean()
        p_values = [f"{stats.kstest(ranks, 'uniform').pvalue:.2f}", f"{p_band:.2f}"]
        covered = [calibration.binomial(ranks, 0.5), calibration.binomial(ranks, 0.9)]
        rows.append([name, *p_values, *covered])
    for name in DISCRETE:
        said, true = (
            np.array([each["discrete"][name][i] for each in found]).ravel() for i in (0, 1)
        )
        for label, part in (("unlikely", said < 0.5), ("likely", said >= 0.5)):
            if not part.any():
                continue
            error = np.sqrt(np.sum(said[part] * (1 - said[part]))) / part.sum()
            text = f"{true[part].mean():.2f}, expected {said[part].mean():.2f} +- {error:.2f}"
            rows.append([f"{name}, {label} ({part.sum()})", "", "", text, ""])
    return rows


def main() -> None:
    options = _table.parser(__doc__)
    options.add_argument("--particles", type=int, default=256)
    options.add_argument("--keep", type=Path, help="file of the rows so far, one data set a line")
    options.add_argument("--objects", type=int, default=survey.OBJECTS, help="images of a survey")
    options.set_defaults(seeds=100)
    options = options.parse_args()
    count = 2 if options.tiny else options.seeds
    survey.OBJECTS = options.objects
    num_particles = 16 if options.tiny else options.particles
    size, clouds = (64, 2) if options.tiny else (1024, 8)
    images = calibration.prior_images(survey.OBJECTS * count, size, clouds)
    kept = options.keep.read_text().splitlines() if options.keep and options.keep.exists() else []
    found, started = [json.loads(line) for line in kept][:count], time.perf_counter()
    done = len(found)
    for i in range(done, count):
        found.append(one(3000 + i, images[survey.OBJECTS * i :][: survey.OBJECTS], num_particles))
        if options.keep:
            with options.keep.open("a") as file:
                file.write(json.dumps(found[-1]) + "\n")
        seconds = (time.perf_counter() - started) / (i + 1 - done)
        print(f"{i + 1} data sets, {seconds:.1f} s each", file=sys.stderr, flush=True)
    columns = ["quantity", "p KS", "p band", "50 % (or share)", "90 %"]
    families = np.array([each["families"] for each in found])
    note = f"{count} data sets of {survey.OBJECTS} objects, {num_particles} particles; "
    note += f"{np.median(families):.0f} of them have offspring at the end "
    note += f"(median; from {families.min()} to {families.max()})."
    name = "survey" if survey.OBJECTS == 3 else f"survey-{survey.OBJECTS}-objects"
    _table.emit(name, __doc__, columns, rows_of(found), options.save, (note,))


if __name__ == "__main__":
    main()
