"""Picture of the rooms and layers, drawn from the import contract in `pyproject.toml`.

    python scripts/architecture_figure.py

Writes `docs/images/architecture.png`: a box a room, a row a layer, and the stations of the
four walks of the page as numbers.
"""

import re
import tomllib
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
# Rooms that a value passes through, top down.
WALKS = {
    "a particle through SMC.run": ["ppl", "schemes", "bridge", "smc"],
    "an energy from fit to log_prob": ["train", "io", "energies", "nets"],
    "a point through score_formula": ["density", "energies", "schedules"],
    "weights through Twisted": ["ppl", "schemes", "bridge", "smc", "twists"],
}


def layers() -> list[list[str]]:
    """Rooms by row, as import-linter checks them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contract = next(
        c for c in settings["tool"]["importlinter"]["contracts"] if c["type"] == "layers"
    )
    return [re.findall(r"\w+", row) for row in contract["layers"]]


def main() -> None:
    rows = layers()
    figure, axes = plt.subplots(figsize=(9, 6.2))
    places = {}
    for depth, row in enumerate(rows):
        width = 9.0 / len(row)
        for i, room in enumerate(row):
            left, low = i * width, -depth
            places[room] = left + width / 2, low
            box = plt.Rectangle(
                (left + 0.06, low - 0.34), width - 0.12, 0.68, fc="#eef2f6", ec="#8899aa"
            )
            axes.add_patch(box)
            small = room.startswith("_")
            axes.text(
                left + width / 2,
                low,
                room,
                ha="center",
                va="center",
                fontsize=8 if small else 11,
            )
    seen: dict[str, int] = {}
    for k, (name, rooms) in enumerate(WALKS.items()):
        for number, room in enumerate(rooms, 1):
            seen[room] = seen.get(room, 0) + 1
            x, y = places[room][0] + 0.5 + 0.27 * seen[room], places[room][1]
            label = name if number == 1 else None
            axes.plot(x, y, "o", ms=12, color=f"C{k}", label=label)
            axes.text(x, y, number, ha="center", va="center", fontsize=8, color="white")
    axes.annotate("imports go down only", (-0.25, -len(rows) + 0.8), (-0.25, 0.1), rotation=90, ha="center",
                  va="top", fontsize=8, arrowprops={"arrowstyle": "->", "color": "#556677"})  # fmt: skip
    axes.set_xlim(-0.5, 9.05)
    axes.set_ylim(-len(rows) + 0.5, 0.6)
    axes.axis("off")
    axes.legend(
        loc="upper center",
        markerscale=0.6,
        bbox_to_anchor=(0.5, 0.0),
        ncol=2,
        frameon=False,
        fontsize=8,
    )
    target = ROOT / "docs" / "images" / "architecture.png"
    figure.savefig(target, dpi=130, bbox_inches="tight")
    print(target.relative_to(ROOT), f"{target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
