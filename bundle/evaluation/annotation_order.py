"""``python -m bundle annotation_order``: is it worth annotating scans in the order that the bundle suggests?

The label maps of annotated scans simulate an annotator: scans are annotated one by one, in the suggested order and in
random ones, and after each annotation all other scans are segmented again and compared. A scan is annotated by the
correction of its mask; the first one has none and is drawn.

<output_dir>/cases.csv    Dice of every scan that is not annotated yet, after each annotation, in each order
<output_dir>/work.csv     voxels and slices of every annotated scan that were corrected, and to draw it from scratch
<output_dir>/table.md     means, how many scans random orders need for the same Dice, and the work so far
<output_dir>/curves.png   the means, against the number of annotated scans
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bundle.command_line.checks import check_positive_integers, check_seed, refuse_file, refuse_missing_device
from bundle.command_line.command import check_merged, refuse_unknown_keys
from bundle.command_line.configs import config_paths, parsed
from bundle.command_line.words import typed_command
from bundle.data import list_scans
from bundle.data.names import name_of_scan
from bundle.evaluation.annotation_report import SUGGESTED, Step, figure, rows, table
from bundle.evaluation.annotation_work import Annotation, Work, changes, drawing, work_rows, work_table
from bundle.files import write_csv, written_whole
from bundle.inference.matching import Features, Support
from bundle.inference.next_scan import Glance, expected_quality, glance_at, rank_by_quality, rank_by_similarity
from bundle.inference.volume_inferer import VolumeInferer, about_support
from bundle.keys import IMAGE, LABEL
from bundle.transforms.masks import plain, scores_to_label
from bundle.transforms.slices import organs_of
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.metrics import compute_dice
from torch import Tensor
from tqdm import tqdm


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
        self._work: dict[tuple[frozenset[str], str], Work] = {}

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
            masks = {name: self._mask(scan, support) for name, scan in self.scans.items() if name not in known}
            self._known[known] = {name: self._dice(mask, self.scans[name]) for name, mask in masks.items()}
            self._work |= {(known, name): changes(mask, self._truth(name)) for name, mask in masks.items()}
        return self._known[known]

    def annotation(self, order: str, before: Sequence[str], name: str) -> Annotation:
        """Return the work on a scan once others are annotated, whose order is called ``order``."""
        drawn = drawing(self._truth(name))
        if not before:
            return Annotation(order, name, drawn, drawn)
        self.dice(before)
        return Annotation(order, name, self._work[frozenset(before), name], drawn)

    def _truth(self, name: str) -> Tensor:
        label = self.scans[name].label
        return label * torch.isin(label, torch.tensor(self._organs(label), device=label.device))

    def compared(self, scan: _Scan, support: Support) -> float:
        """Segment a scan; return its Dice, the mean over the organs that the truth shows."""
        return self._dice(self._mask(scan, support), scan)

    def _mask(self, scan: _Scan, support: Support) -> Tensor:
        scores, _ = self.inferer.score(scan.image, scan.features, support)
        data = self.refine({IMAGE: scan.image, "pred": MetaTensor(scores, meta=about_support(support, 1))})
        return scores_to_label(plain(data["pred"]), support.organs)

    def _dice(self, label: Tensor, scan: _Scan) -> float:
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
        output_dir: Where cases.csv, work.csv, table.md and curves.png go.
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
    steps = simulate(annotator, annotated, orders, seed)
    _write(folder, steps, [annotator.annotation(s.order, s.annotated[:-1], s.annotated[-1]) for s in steps])


def _write(folder: Path, steps: Sequence[Step], work: Sequence[Annotation]) -> None:
    write_csv(folder / "cases.csv", rows(steps))
    write_csv(folder / "work.csv", work_rows(work))
    text = table(steps, {"command": typed_command()}) + work_table(work, SUGGESTED)
    with written_whole(folder / "table.md") as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    with written_whole(folder / "curves.png") as unfinished:
        figure(steps).savefig(unfinished, dpi=120)
    print(f"{text}\ncases.csv, work.csv, table.md and curves.png in {folder}", flush=True)


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
