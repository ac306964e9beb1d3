"""Is the shipped digits prior what it says it is?

One audit on two splits: the 1,297 digits that trained the prior and the 300 that nobody saw. With `--save`
it also draws the figure of `docs/audit.md`.
"""

import _table
import jax
import matplotlib
import numpy as np

import numpyro_diffusion as nd
from numpyro_diffusion import plots

matplotlib.use("agg")

FIGURE = _table.ROOT / "docs" / "images" / "audit-digits.png"


def by_level(report) -> tuple[list[str], list[list[str]]]:
    """The columns of the table with their standard errors."""
    pair = lambda value, error: "" if np.isnan(value) else f"{value:.3g} +- {error:.1g}"
    denoising, offsets, members = report.denoising, report.offsets, report.membership
    columns = {
        "residual": (denoising.residual, denoising.residual_error),
        "linear - residual": (denoising.linear - denoising.residual, denoising.saving_error),
        "residual - expected": (denoising.residual - denoising.predicted, denoising.excess_error),
        "curl": (report.curl.ratio, report.curl.ratio_error),
        "negative share": (report.spectrum.negative_share, report.spectrum.negative_share_error),
        "discrepancy, nats": (report.gradient.discrepancy, report.gradient.discrepancy_error),
        "normaliser, nats": (offsets.value, offsets.value_error),
        "spread, nats": (offsets.spread, offsets.spread_error),
        "AUC of SimA": (members.auc[0], members.auc_error[0]),
    }
    rows = [
        [f"{level:.3g}", *(pair(value[i], error[i]) for value, error in columns.values())]
        for i, level in enumerate(report.noise_levels)
    ]
    return ["noise level", *columns], rows


def main() -> None:
    options = _table.parser(__doc__).parse_args()
    energy = nd.load_pretrained("digits-8x8")
    data, held_out = (nd.pretrained.load_digits(part)[0] for part in ("train", "test"))
    sizes = {"num_examples": 200, "num_draws": 1000}
    if options.tiny:
        sizes = {"num_examples": 8, "num_draws": 40, "num_steps": 10, "num_levels": 3}
        data, held_out = data[:60], held_out[:40]
    report = nd.audit(energy, data, held_out=held_out, key=jax.random.key(0), **sizes)
    print(report, "\n")
    after_levels = str(report).split("\n\n", 2)[2]
    notes = tuple(line for line in after_levels.splitlines() if line)
    _table.emit("audit", __doc__, *by_level(report), options.save, notes)
    if options.save:
        figure = plots.plot_audit(report)
        figure.savefig(FIGURE, dpi=110)
        print(FIGURE)


if __name__ == "__main__":
    main()
