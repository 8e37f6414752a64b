"""Tables and curves of ``python -m bundle annotation_order``: Dice against the number of annotated scans."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from bundle.provenance import versions
from matplotlib.figure import Figure

# The order that the bundle suggests.
SUGGESTED = "suggested"


@dataclass(frozen=True)
class Step:
    """The result after an annotation.

    Attributes:
        order: ``"suggested"``, or ``"random 1"`` and so on.
        annotated: Names of the annotated scans, in order.
        dice: Dice of each other scan, the mean over the organs that its label map shows.
    """

    order: str
    annotated: tuple[str, ...]
    dice: Mapping[str, float]

    @property
    def rest(self) -> float:
        """Mean Dice of the scans that are not annotated."""
        return fmean(self.dice.values())

    @property
    def folder(self) -> float:
        """Mean Dice of all scans; annotated ones count as 1."""
        return fmean([*self.dice.values(), *(1.0 for _ in self.annotated)])

    @property
    def worst(self) -> float:
        """Lowest Dice of a scan."""
        return min(self.dice.values())


MEASURES: dict[str, tuple[str, Callable[[Step], float]]] = {
    "rest": ("mean Dice of the scans that are not annotated", lambda step: step.rest),
    "folder": ("mean Dice of all scans, annotated ones counted as 1", lambda step: step.folder),
    "worst": ("Dice of the worst scan", lambda step: step.worst),
}


def needed(curve: Sequence[float], dice: float) -> int | None:
    """Return how many annotated scans a curve needs to reach a Dice; ``None`` if it never does."""
    return next((number for number, value in enumerate(curve, start=1) if value >= dice), None)


def _curves(steps: Sequence[Step], measure: Callable[[Step], float]) -> tuple[list[float], list[list[float]]]:
    """Return a measure after 1, 2, ... annotated scans: in the suggested order, and in each random one."""
    curves: dict[str, list[float]] = {}
    for step in steps:
        curves.setdefault(step.order, []).append(measure(step))
    return curves.pop(SUGGESTED), list(curves.values())


def rows(steps: Sequence[Step]) -> list[list[str]]:
    """Return the rows of cases.csv, a scan after an annotation each."""
    found = [["order", "annotated_scans", "annotated", "scan", "dice"]]
    for step in steps:
        start = [step.order, str(len(step.annotated)), "+".join(step.annotated)]
        found += [[*start, name, f"{value:.4f}"] for name, value in step.dice.items()]
    return found


def table(steps: Sequence[Step], about: Mapping[str, str]) -> str:
    """Return a table for each measure, with how many scans random orders need to reach the suggested order's Dice."""
    order = next(step.annotated for step in reversed(steps) if step.order == SUGGESTED)
    lines = ["# Order of annotation", "", *(f"- {name}: {value}" for name, value in {**about, **versions()}.items())]
    lines += [f"- suggested order: {', '.join(order)}"]
    for title, measure in MEASURES.values():
        suggested, others = _curves(steps, measure)
        columns = list(zip(*others, strict=True))
        means = [fmean(column) for column in columns]
        lines += ["", f"## {title[0].upper()}{title[1:]}", ""]
        lines += ["| annotated scans | suggested | random, mean | lowest | highest | scans that random orders need |"]
        lines += ["| --- | --- | --- | --- | --- | --- |"]
        for number, (value, mean, column) in enumerate(zip(suggested, means, columns, strict=True), start=1):
            scans = needed(means, value) or f"more than {len(means)}"
            lines += [f"| {number} | {value:.3f} | {mean:.3f} | {min(column):.3f} | {max(column):.3f} | {scans} |"]
    return "\n".join(lines) + "\n"


def figure(steps: Sequence[Step]) -> Figure:
    """Draw each measure against the number of annotated scans."""
    whole = Figure(figsize=(4.4 * len(MEASURES), 3.8), layout="constrained")
    for panel, (title, measure) in zip(whole.subplots(1, len(MEASURES)), MEASURES.values(), strict=True):
        suggested, others = _curves(steps, measure)
        numbers = range(1, len(suggested) + 1)
        for curve in others:
            panel.plot(numbers, curve, color="#999999", linewidth=0.7, alpha=0.6)
        means = [fmean(column) for column in zip(*others, strict=True)]
        panel.plot(numbers, means, color="#d55e00", marker="^", linestyle="--", label="random orders, mean")
        panel.plot(numbers, suggested, color="#0072b2", marker="o", label="suggested order")
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("annotated scans")
        panel.set_xticks(list(numbers))
        panel.grid(axis="y", alpha=0.2)
        panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, loc="lower right")
    return whole
