"""Draw curves.png and print the table of the five networks together, from cases.csv.

cases.csv holds the cases.csv of each run of ``python -m bundle annotation_order``, with the fold of its network before.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from bundle.evaluation.annotation_report import MEASURES, SUGGESTED, Step, needed
from matplotlib.figure import Figure

HERE = Path(__file__).parent


def read_steps() -> dict[str, list[Step]]:
    """Return the steps of each fold's network."""
    dice: dict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
    with (HERE / "cases.csv").open(newline="") as file:
        for case in csv.DictReader(file):
            dice[case["fold"], case["order"], case["annotated"]][case["scan"]] = float(case["dice"])
    found = defaultdict(list)
    for (fold, order, annotated), values in dice.items():
        found[fold].append(Step(order, tuple(annotated.split("+")), values))
    return found


def curves_of(steps: dict[str, list[Step]], measure: str, suggested: bool) -> list[list[float]]:
    """Return the curves of a measure, one for each fold and order."""
    curves: dict[tuple[str, str], list[float]] = defaultdict(list)
    for fold, some in steps.items():
        for step in some:
            if (step.order == SUGGESTED) == suggested:
                curves[fold, step.order].append(MEASURES[measure][1](step))
    return list(curves.values())


def main() -> None:
    """Draw a panel and print a table for each measure."""
    steps = read_steps()
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for panel, (measure, (title, _)) in zip(figure.subplots(1, len(MEASURES)), MEASURES.items(), strict=True):
        others = curves_of(steps, measure, suggested=False)
        guided = curves_of(steps, measure, suggested=True)
        means = [[fmean(column) for column in zip(*curves, strict=True)] for curves in (guided, others)]
        numbers = range(1, len(means[0]) + 1)
        for curve in others:
            panel.plot(numbers, curve, color="#999999", linewidth=0.6, alpha=0.5)
        panel.plot(numbers, means[1], color="#d55e00", marker="^", linestyle="--", label=f"{len(others)} random orders")
        panel.plot(numbers, means[0], color="#0072b2", marker="o", linewidth=2.2, label="suggested order")
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("annotated scans")
        panel.set_xticks(list(numbers))
        panel.grid(axis="y", alpha=0.3)
        print(f"\n{title}")
        for number, (ours, theirs) in enumerate(zip(*means, strict=True), start=1):
            at = [curve[number - 1] for curve in others]
            scans = needed(means[1], ours) or f"more than {len(means[1])}"
            print(f"| {number} | {ours:.3f} | {theirs:.3f} | {min(at):.3f} to {max(at):.3f} | {scans} |")
    panel.legend(fontsize=8, loc="lower right")
    figure.savefig(HERE / "curves.png", dpi=110)


if __name__ == "__main__":
    main()
