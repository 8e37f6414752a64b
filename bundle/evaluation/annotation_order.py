"""``python -m bundle annotation_order``: is it worth annotating scans in the order that the bundle suggests?

The label maps of annotated scans simulate an annotator: scans are annotated one by one, in the suggested order and in
random ones, and after each annotation all other scans are segmented again and compared.

<output_dir>/cases.csv    Dice of every scan that is not annotated yet, after each annotation, in each order
<output_dir>/table.md     means, and how many scans random orders need for the same Dice
<output_dir>/curves.png   the means, against the number of annotated scans
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from bundle.command_line.checks import check_positive_integers, check_seed, refuse_file, refuse_missing_device
from bundle.command_line.command import check_merged, refuse_unknown_keys
from bundle.command_line.configs import config_paths, parsed
from bundle.command_line.words import typed_command
from bundle.data import list_scans
from bundle.data.names import name_of_scan
from bundle.files import write_csv, written_whole
from bundle.inference.matching import Features, Support
from bundle.inference.next_scan import Glance, expected_quality, glance_at, rank_by_quality, rank_by_similarity
from bundle.inference.volume_inferer import VolumeInferer, about_support
from bundle.keys import IMAGE, LABEL
from bundle.provenance import versions
from bundle.transforms.masks import plain, scores_to_label
from bundle.transforms.slices import organs_of
from matplotlib.figure import Figure
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.metrics import compute_dice
from torch import Tensor
from tqdm import tqdm

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


@dataclass(frozen=True)
class _Scan:
    files: Mapping[str, str]
    image: Tensor
    label: Tensor
    features: Features
    glance: Glance


class Annotator:
    """Scans with their truth, to be annotated one by one.

    Their features are kept in memory: 1 MB for a slice of 256 x 256 pixels.

    Args:
        parser: ``configs/inference.yaml`` with its overrides.
        scans: Files of ``image`` and ``label``.

    Raises:
        ValueError: If a scan cannot be read, or its label map shows none of the organs.
    """

    def __init__(self, parser: ConfigParser, scans: Sequence[Mapping[str, str]]) -> None:
        device = parser.get_parsed_content("device")
        refuse_missing_device(device)
        self.device = torch.device(device)
        self.network = parser.get_parsed_content("network").eval()
        self.inferer: VolumeInferer = parser.get_parsed_content("inferer")
        self.refine = parser.get_parsed_content("refinement")
        self.num_components: int | None = parser.get_parsed_content("num_components")
        read = parser.get_parsed_content("inferer#support").read
        bar = tqdm(scans, desc="encoding", unit="scan")
        self.scans = {name_of_scan(scan): self._encoded(scan, read(dict(scan))) for scan in bar}
        self._known: dict[frozenset[str], dict[str, float]] = {}

    def _encoded(self, files: Mapping[str, str], volumes: Mapping[str, Any]) -> _Scan:
        image, label = (plain(volumes[key]).to(self.device) for key in (IMAGE, LABEL))
        if not self._organs(label):
            raise ValueError(
                f"{files[LABEL]} shows none of the organs on the network's grid. Remove the scan from the folder."
            )
        glance = glance_at(image, self._encode)
        return _Scan(files, image, label, self._encode(image), glance)

    def _organs(self, label: Tensor) -> list[int]:
        """Return the organs of a label map that the config asks for."""
        asked = self.inferer.organs
        return [organ for organ in organs_of(label) if asked is None or organ in asked.values()]

    def _encode(self, volume: Tensor) -> Features:
        return self.inferer.encode(volume, self.network)

    def _support(self, annotated: Iterable[str]) -> Support:
        return self.inferer.pool(self.network, self.device, [self.scans[name].files for name in annotated])

    def suggested(self, annotated: Sequence[str]) -> str:
        """Return the scan to annotate next."""
        left = {name: scan.glance for name, scan in self.scans.items() if name not in annotated}
        if not annotated:
            return rank_by_similarity(left)[0][0]
        support = self._support(annotated)
        values = {name: expected_quality(glance, support, self.num_components) for name, glance in left.items()}
        return rank_by_quality(values)[0][0]

    def dice(self, annotated: Sequence[str]) -> dict[str, float]:
        """Segment all other scans; return their Dice, means over the organs that the truth shows."""
        known = frozenset(annotated)
        if known not in self._known:
            support = self._support(sorted(known))
            self._known[known] = {
                name: self.compared(scan, support) for name, scan in self.scans.items() if name not in known
            }
        return self._known[known]

    def compared(self, scan: _Scan, support: Support) -> float:
        """Segment a scan; return its Dice, the mean over the organs that the truth shows."""
        scores, _ = self.inferer.score(scan.image, scan.features, support)
        data = self.refine({IMAGE: scan.image, "pred": MetaTensor(scores, meta=about_support(support, 1))})
        label = scores_to_label(plain(data["pred"]), support.organs)
        organs = self._organs(scan.label)
        found, truth = (torch.stack([volume[0] == organ for organ in organs]) for volume in (label, scan.label))
        return float(compute_dice(found[None], truth[None]).mean())


def suggested_order(annotator: Annotator, length: int) -> list[str]:
    """Annotate as the bundle suggests."""
    order: list[str] = []
    for _ in range(length):
        order.append(annotator.suggested(order))
    return order


def annotation_order(
    dataset_dir: str,
    output_dir: str = "annotation_order",
    annotated: int = 6,
    orders: int = 10,
    seed: int = 0,
    configs: str | Sequence[str] = (),
    **keys: Any,
) -> None:
    """Compare the suggested order of annotation with random ones.

    Args:
        dataset_dir: Folder with images/ and labels/, every organ annotated.
        output_dir: Where cases.csv, table.md and curves.png go.
        annotated: How many scans are annotated, one by one.
        orders: Number of random orders.
        seed: Random seed of the random orders.
        configs: Overrides after configs/inference.yaml, by name or path, such as data_chaos_t2.
        **keys: Any key of the config, such as --checkpoint model.pt.

    Raises:
        ValueError: If a number, a config or a key is wrong, or there are too few annotated scans.
        FileNotFoundError: If there is no scan.
    """
    check_positive_integers(annotated=annotated, orders=orders)
    check_seed(seed)
    files = config_paths("inference", configs)
    refuse_unknown_keys(files, keys)
    check_merged(files, keys)
    scans = [scan for scan in list_scans(str(dataset_dir)) if LABEL in scan]
    if annotated >= len(scans):
        raise ValueError(
            f"annotated must be below the number of scans with a label map, {len(scans)} in {dataset_dir}, got "
            f"{annotated}. Choose a smaller number, so that some scans are left to segment."
        )
    folder = Path(str(output_dir))
    refuse_file(folder)
    annotator = Annotator(parsed([str(path) for path in files], keys), scans)
    _write(folder, simulate(annotator, annotated, orders, seed))


def _write(folder: Path, steps: Sequence[Step]) -> None:
    write_csv(folder / "cases.csv", _rows(steps))
    text = _table(steps, {"command": typed_command()})
    with written_whole(folder / "table.md") as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    with written_whole(folder / "curves.png") as unfinished:
        _figure(steps).savefig(unfinished, dpi=120)
    print(f"{text}\ncases.csv, table.md and curves.png in {folder}", flush=True)


def simulate(annotator: Annotator, annotated: int, orders: int, seed: int) -> list[Step]:
    """Annotate in the suggested order and in random ones, and compare after each annotation."""
    draw = random.Random(seed)
    shuffled = {f"random {n + 1}": draw.sample(sorted(annotator.scans), annotated) for n in range(orders)}
    found = []
    with tqdm(total=(orders + 1) * annotated, desc="annotating", unit="step") as bar:
        for name, order in ({SUGGESTED: suggested_order(annotator, annotated)} | shuffled).items():
            for length in range(1, annotated + 1):
                known = tuple(order[:length])
                found.append(Step(name, known, annotator.dice(known)))
                bar.update()
    return found


def needed(curve: Sequence[float], dice: float) -> int | None:
    """Return how many annotated scans a curve needs to reach a Dice; ``None`` if it never does."""
    return next((number for number, value in enumerate(curve, start=1) if value >= dice), None)


def _curves(steps: Sequence[Step], measure: Callable[[Step], float]) -> tuple[list[float], list[list[float]]]:
    """Return a measure after 1, 2, ... annotated scans: in the suggested order, and in each random one."""
    curves: dict[str, list[float]] = {}
    for step in steps:
        curves.setdefault(step.order, []).append(measure(step))
    return curves.pop(SUGGESTED), list(curves.values())


def _rows(steps: Sequence[Step]) -> list[list[str]]:
    rows = [["order", "annotated_scans", "annotated", "scan", "dice"]]
    for step in steps:
        start = [step.order, str(len(step.annotated)), "+".join(step.annotated)]
        rows += [[*start, name, f"{value:.4f}"] for name, value in step.dice.items()]
    return rows


def _table(steps: Sequence[Step], about: Mapping[str, str]) -> str:
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


def _figure(steps: Sequence[Step]) -> Figure:
    figure = Figure(figsize=(4.4 * len(MEASURES), 3.8), layout="constrained")
    for panel, (title, measure) in zip(figure.subplots(1, len(MEASURES)), MEASURES.values(), strict=True):
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
    return figure
