"""Draw curves.png from parts.csv: Dice against the number of annotated scans, and of annotated slices."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

HERE = Path(__file__).parent
ORGANS = ("liver", "right_kidney", "left_kidney", "spleen")
SCANS = {"1": "annotate_one", "2": "scans_2", "4": "scans_4", "8": "scans_8"}
SLICES = {"1": "slices_1", "3": "slices_3", "6": "slices_6", "all": "annotate_one"}


def dice_of(row: str) -> dict[str, float]:
    """Return each organ's Dice x 100: the mean of the means of the folds."""
    scans = defaultdict(list)
    with (HERE / "parts.csv").open(newline="") as file:
        for case in csv.DictReader(file):
            if case["row"] == row and case["protocol"] == "volume":
                scans[case["organ"], case["fold"]].append(float(case["dice"]))
    return {organ: 100 * fmean(fmean(d) for (name, _), d in scans.items() if name == organ) for organ in ORGANS}


def main() -> None:
    """Draw both curves beside each other."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    titles = ("annotated scans", "annotated slices of each organ, one scan")
    for axis, rows, title in zip(axes, (SCANS, SLICES), titles, strict=True):
        found = [dice_of(row) for row in rows.values()]
        for organ in ORGANS:
            axis.plot(list(rows), [dice[organ] for dice in found], marker="o", label=organ.replace("_", " "))
        means = [fmean(dice.values()) for dice in found]
        axis.plot(list(rows), means, marker="o", color="black", linewidth=2.5, label="mean")
        for place, mean in enumerate(means):
            axis.annotate(f"{mean:.1f}", (place, mean), (0, -14), textcoords="offset points", ha="center")
        axis.set_xlabel(title)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("Dice x 100, whole volumes")
    axes[0].legend(fontsize=8)
    figure.savefig(HERE / "curves.png", dpi=110)


if __name__ == "__main__":
    main()
