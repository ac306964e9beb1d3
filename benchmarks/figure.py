"""The picture of `docs/choosing-a-sampler.md`, from the saved table of `mixture25.py`."""

from pathlib import Path

import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
STYLES = {
    "ReverseDiffusion": ("o", "tab:blue"),
    "Annealed": ("s", "tab:orange"),
    "Twisted": ("^", "tab:green"),
    "LikelihoodTempered": ("o", "tab:red"),
    "BlackJAX tempering": ("x", "black"),
}


def main() -> None:
    lines = (ROOT / "benchmarks" / "results" / "mixture25.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "+-" in line]
    cells = list(dict.fromkeys(row[0] for row in rows))
    figure, axes = plt.subplots(2, 3, figsize=(9, 5), sharex=True, layout="constrained")
    for axis, cell in zip(axes.ravel(), cells, strict=False):
        for _, method, distance, _, _, _, evaluations in (row for row in rows if row[0] == cell):
            mean, error = (float(part) for part in distance.split(" +- "))
            if method == "floor":
                axis.axhline(mean, color="grey", linestyle=":", label="two sets of exact draws")
                continue
            marker, colour = STYLES[method.split(" (")[0]]
            axis.errorbar(
                int(evaluations), mean, error, fmt=marker, color=colour, capsize=2, label=method
            )
        axis.set_xscale("log")
        axis.set_ylim(bottom=0)
        dimension, data = cell.strip("()").split(",")
        axis.set_title(
            f"{dimension} dimensions, {data} {'datum' if data == '1' else 'data'}", fontsize=9
        )
    for axis in axes[-1]:
        axis.set_xlabel("gradient evaluations a draw")
    for axis in axes[:, 0]:
        axis.set_ylabel("sliced Wasserstein-1")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    path = ROOT / "docs" / "images" / "choosing-a-sampler.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    print(path)


if __name__ == "__main__":
    main()
