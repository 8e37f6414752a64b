"""``python -m bundle <verb>``, or ``alpnet <verb>``: the command line of the bundle, from any folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bundle.command_line import front
from bundle.command_line.front import Commands, Verbs
from bundle.command_line.workflows import Workflow

MANUAL = """
Few-shot segmentation: train on unlabeled scans, then segment from one annotated scan.

    python -m bundle <verb> --key value ...

{verbs}

python -m bundle <verb> --help lists the options. Results are written to the working folder, or to --output_dir.
"""

VERBS: Verbs = {
    "training": Workflow("train on superpixels of unlabeled scans", "train", "training"),
    "inference": Workflow("segment scans from annotated ones", "inference", "run"),
    "encoding": Workflow("write the encoded support to a file of prototypes", "inference", "encoding"),
    "ranking": Workflow("rank scans: which one to annotate first, or next", "inference", "ranking"),
    "evaluating": Workflow("compare trained weights with annotated scans", "train", "evaluating", last="evaluate"),
    "cross_validation": Commands(
        "train and evaluate every fold, in one table",
        "bundle.evaluation.cross_validation.commands",
        {"run": "CrossValidation.run", "compare": "CrossValidation.compare"},
    ),
    "annotation_order": Commands(
        "compare the suggested order of annotation with random ones",
        "bundle.evaluation.annotation_order",
        {"": "annotation_order"},
    ),
    "drawn_slices": Commands(
        "compare labels on few slices with labels on many", "bundle.evaluation.drawn_slices", {"": "drawn_slices"}
    ),
    "prepare": Commands(
        "convert downloads to the layout that the configs read",
        "bundle.prepare.commands",
        {"chaos": "chaos", "btcv": "btcv", "mscmr": "mscmr", "nifti": "nifti"},
    ),
    "export": Commands(
        "write the network to ONNX or TorchScript",
        "bundle.inference.export_command",
        {"encoder": "encoder", "segmenter": "segmenter"},
    ),
    "benchmark": Commands(
        "measure speed and memory on this machine",
        "bundle.benchmark.commands",
        {name: f"Benchmark.{name}" for name in ("inference", "memory", "training", "superpixels", "startup", "all")},
    ),
}


def main(words: Sequence[str] | None = None) -> None:
    """Run a command; ``None`` takes the words of this process."""
    front.main(sys.argv[1:] if words is None else words, VERBS, MANUAL)


if __name__ == "__main__":
    main()
