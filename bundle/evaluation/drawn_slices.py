"""``python -m bundle drawn_slices``: how many slices of a scan must be drawn on, and which ones?

In each fold of the paper only a few slices of the annotated scan are drawn on, and the fold's queries are segmented
from these alone.

<output_dir>/cases.csv    Dice of every query, for each drawing
<output_dir>/table.md     means over the queries, by fold and together
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from bundle.command_line.checks import check_positive_integers
from bundle.command_line.command import check_merged, refuse_unknown_keys
from bundle.command_line.configs import config_paths, parsed
from bundle.command_line.words import typed_command
from bundle.data import list_scans
from bundle.data.names import name_of_scan
from bundle.data.scans import fold_of
from bundle.evaluation.annotation_order import Annotator
from bundle.files import write_csv, written_whole
from bundle.inference.matching import SliceMatching, Support
from bundle.inference.next_slice import slice_order
from bundle.inference.organ_shapes import shapes_of
from bundle.keys import LABEL
from bundle.provenance import versions
from bundle.transforms.slices import support_slices
from tqdm import tqdm

NUM_FOLDS = 5


@dataclass(frozen=True)
class Drawing:
    """Slices of a scan that are drawn on.

    Attributes:
        name: Its name in the table.
        slices: The slices, in increasing order.
        finished: Whether the slices that are not drawn on count as annotated, too: they show no organ.
    """

    name: str
    slices: tuple[int, ...]
    finished: bool = False


@dataclass(frozen=True)
class Case:
    """A query that was segmented from a drawing.

    Attributes:
        fold: Fold, from 0.
        drawing: The support.
        scan: Name of the query.
        dice: Mean Dice over the organs that the query's label map shows.
    """

    fold: int
    drawing: Drawing
    scan: str
    dice: float


def drawings(shown: Sequence[int], order: Sequence[int], numbers: Sequence[int]) -> Iterator[Drawing]:
    """Make the drawings to compare.

    Args:
        shown: The slices of the scan that show an organ.
        order: All slices in the order that the bundle suggests; those without an organ need no drawing.
        numbers: Numbers of slices to draw on.
    """
    suggested = [z for z in order if z in set(shown)]
    for number in numbers:
        yield Drawing(f"{number}, evenly spread", tuple(sorted(set(support_slices(shown, number)))))
        yield Drawing(f"{number}, suggested", tuple(sorted(suggested[:number])))
    for step in (8, 4, 2):
        yield Drawing(f"every {step}th" if step > 2 else "every 2nd", tuple(shown[step // 2 :: step]))
    yield Drawing("every 4th, all others as background", tuple(shown[2::4]), finished=True)
    yield Drawing("all that show an organ", tuple(shown))
    yield Drawing("all slices: finished", tuple(shown), finished=True)


class Draftsman(Annotator):
    """An annotator who draws on some slices of a scan."""

    def drawn_support(self, name: str, drawing: Drawing) -> Support:
        """Encode a drawing as the bundle encodes a label map with these slices."""
        scan, inferer = self.scans[name], self.inferer
        head = self.network if inferer.head is None else inferer.head
        label = torch.zeros_like(scan.label)
        label[..., list(drawing.slices)] = scan.label[..., list(drawing.slices)]
        annotated = range(label.shape[-1]) if drawing.finished else drawing.slices
        encoded = inferer.matching.encode(label, lambda zs: [scan.features[z] for z in zs], head, annotated)
        support = inferer.matching.pool({organ: [encoded] for organ in encoded}, head)
        shapes = shapes_of(label, partial=not drawing.finished)
        support.shapes = {organ: [shapes[organ]] for organ in support.organs}
        return support

    def drawings_of(self, name: str, numbers: Sequence[int]) -> list[Drawing]:
        """Return the drawings of a scan to compare.

        Raises:
            ValueError: If the config's matching does not describe slices.
        """
        scan, matching = self.scans[name], self.inferer.matching
        if not isinstance(matching, SliceMatching):
            raise ValueError(
                f"matching must be SliceMatching, which suggests slices, got {type(matching).__name__}. "
                "Add --configs preset_annotate_one."
            )
        depth = scan.label.shape[-1]
        order = slice_order(matching.describe(scan.features, range(depth), depth))
        shown = torch.nonzero((scan.label[0] > 0).any(dim=0).any(dim=0)).flatten().tolist()
        return list(drawings(shown, order, numbers))

    def cases(self, fold: int, support: str, queries: Sequence[str], numbers: Sequence[int]) -> Iterator[Case]:
        """Segment a fold's queries from each drawing of its annotated scan."""
        for drawing in self.drawings_of(support, numbers):
            drawn = self.drawn_support(support, drawing)
            for query in queries:
                yield Case(fold, drawing, query, self.compared(self.scans[query], drawn))


def drawn_slices(
    dataset_dir: str,
    output_dir: str = "drawn_slices",
    numbers: int | Sequence[int] = (1, 2, 3, 5),
    folds: int | Sequence[int] = (0, 1, 2, 3, 4),
    scans: int = 20,
    configs: str | Sequence[str] = (),
    **keys: Any,
) -> None:
    """Compare drawings on few and on many slices of a scan.

    Args:
        dataset_dir: Folder with images/ and labels/, every organ annotated.
        output_dir: Where cases.csv and table.md go.
        numbers: Numbers of slices to draw on, such as [1,2,3].
        folds: Folds to run, of 0 to 4.
        scans: Use only this many scans, the first ones.
        configs: Overrides after configs/inference.yaml, by name or path, such as data_chaos_t2.
        **keys: Any key of the config, such as --checkpoint model.pt.

    Raises:
        ValueError: If a number, a config or a key is wrong, or there are too few annotated scans.
        FileNotFoundError: If there is no scan.
    """
    numbers, folds = ((value,) if isinstance(value, int) else tuple(value) for value in (numbers, folds))
    check_positive_integers(scans=scans, **{f"numbers[{place}]": number for place, number in enumerate(numbers)})
    files = config_paths("inference", configs)
    refuse_unknown_keys(files, keys)
    check_merged(files, keys)
    annotated = [scan for scan in list_scans(str(dataset_dir)) if LABEL in scan][:scans]
    parts = {fold: fold_of(annotated, fold, NUM_FOLDS) for fold in folds}
    needed = [scan for scan in annotated if any(scan in [*queries, *support] for queries, support in parts.values())]
    draftsman = Draftsman(parsed([str(path) for path in files], keys), needed)
    found: list[Case] = []
    for fold, (queries, support) in tqdm(parts.items(), desc="drawing", unit="fold"):
        names = [name_of_scan(scan) for scan in queries]
        found += draftsman.cases(fold, name_of_scan(support[0]), names, numbers)
    _write(Path(output_dir), found)


def _write(folder: Path, cases: Sequence[Case]) -> None:
    rows = [[str(c.fold), c.drawing.name, str(len(c.drawing.slices)), c.scan, f"{c.dice:.4f}"] for c in cases]
    write_csv(folder / "cases.csv", [["fold", "drawing", "slices", "scan", "dice"], *rows])
    text = table(cases, {"command": typed_command(), **versions()})
    with written_whole(folder / "table.md") as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    print(f"{text}\ncases.csv and table.md in {folder}", flush=True)


def table(cases: Sequence[Case], about: Mapping[str, str]) -> str:
    """Return a Markdown table with a row for each drawing: slices drawn, mean Dice, Dice of each fold."""
    folds = sorted({case.fold for case in cases})
    lines = ["# Drawn slices", "", *(f"- {name}: {value}" for name, value in about.items()), ""]
    lines += [f"| drawn | slices | Dice | {' | '.join(f'fold {fold}' for fold in folds)} |"]
    lines += ["|" + " --- |" * (3 + len(folds))]
    for name in dict.fromkeys(case.drawing.name for case in cases):
        own = [case for case in cases if case.drawing.name == name]
        means = [fmean(case.dice for case in own if case.fold == fold) for fold in folds]
        slices = fmean(len(case.drawing.slices) for case in own)
        lines += [f"| {name} | {slices:.1f} | {fmean(means):.3f} | {' | '.join(f'{mean:.3f}' for mean in means)} |"]
    return "\n".join(lines) + "\n"
