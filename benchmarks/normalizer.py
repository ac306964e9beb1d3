"""The normaliser of the shipped digits prior, by a run of the sampler and from digits.

`value` is L(t_min) in nats with its standard error over seeds for the sampler (4 clouds of 400 particles
each), over examples for the others; `spread` is the standard deviation over single examples.
"""

import _table
import jax
import numpy as np

import numpyro_diffusion as nd

METHODS = (
    nd.normalizers.pointwise_normalizer,
    nd.normalizers.thermodynamic_normalizer,
    nd.normalizers.adjacent_normalizer,
)


def main() -> None:
    options = _table.parser(__doc__).parse_args()
    energy = nd.load_pretrained("digits-8x8")
    seeds, size = (1, 32) if options.tiny else (options.seeds, 400)
    runs = [
        nd.prior_normalizer(energy, jax.random.key(seed), num_particles=size)
        for seed in range(seeds)
    ]
    values = np.array([run.value for run in runs])
    spread = values.std(ddof=1) / seeds**0.5 if seeds > 1 else runs[0].standard_error
    stored = f"{energy.log_normalizer:.2f} +- {energy.log_normalizer_error:.2f}"
    rows = [["stored with the energy", "", stored, ""]]
    rows += [["prior_normalizer", f"{seeds} seeds", f"{values.mean():.2f} +- {spread:.2f}", ""]]
    for split in ("test", "train"):
        images, _ = nd.pretrained.load_digits(split)
        images = images[:40] if options.tiny else images
        for method in METHODS:
            result = method(energy, images, jax.random.key(1))
            value = f"{result.value:.2f} +- {result.standard_error:.2f}"
            data = f"{len(images)} {split} digits"
            rows.append([method.__name__, data, value, f"{result.spread:.1f}"])
    _table.emit("normalizer", __doc__, ["method", "data", "value", "spread"], rows, options.save)


if __name__ == "__main__":
    main()
