"""Convert downloaded data to the layout and the grid that the configs read.

    python -m bundle prepare chaos --source <folder> --target <folder>   CHAOS: abdominal MR (T2-SPIR) or CT
    python -m bundle prepare btcv  --source <folder> --target <folder>   BTCV / SABS: abdominal CT
    python -m bundle prepare mscmr --source <folder> --target <folder>   MS-CMRSeg 2019: cardiac MR (bSSFP)
    python -m bundle prepare nifti --source <folder> --target <folder>   any images, with or without labels

<target> gets images/, labels/ and dataset.json. The source is never changed. Rerun the command to resume where it
stopped. Scans that cannot be used are listed at the end; all others are done, and the exit code is 1.
python -m bundle prepare <command> --help lists a command's options.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bundle.command_line.values import check_values
from bundle.data.loading import report_problems
from bundle.prepare.dataset import Dataset, prepare
from bundle.prepare.recipes import Recipe, cardiac_recipe, ct_recipe, mr_recipe, nifti_recipe
from bundle.prepare.sources import Source, open_btcv, open_chaos, open_mscmr, open_nifti


def chaos(
    *, source: Any = None, target: Any = None, part: Any = "mr", arithmetic: Any = "clean", unlabeled: Any = "refuse"
) -> None:
    """CHAOS training set: DICOM slices and PNG labels -> 256 x 256 volumes.

        python -m bundle prepare chaos --source CHAOS_Train_Sets --target data/chaos_mr
        python -m bundle prepare chaos --source CHAOS_Train_Sets --target data/chaos_ct --part ct

    --source      the unzipped folder: MR or CT, or any folder above (needed)
    --target      folder to write to (needed)
    --part        mr: T2-SPIR, liver 1, right kidney 2, left kidney 3, spleen 4; ct: liver 1 (default: mr)
    --arithmetic  clean: floating point, exactly 256 x 256; reference: the authors' numbers (default: clean)
    --unlabeled   what to do with a scan without a label: refuse, keep (its image alone), skip (default: refuse)

    MR: top 0.5 % clipped, 1.25 x 1.25 x 7.7 mm, cropped or padded around the center. Then: --data data_chaos_t2.
    CT: clipped to -125..275 HU; of 512 pixels a side 448 are kept (of other sizes the same share) and resampled to 256.
    """
    _refuse_other(part=(part, ("mr", "ct")), arithmetic=(arithmetic, ARITHMETICS))
    recipe = mr_recipe(arithmetic) if part == "mr" else ct_recipe(arithmetic, "ALS")
    _run(open_chaos(_folder("source", source), part), recipe, target, unlabeled)


def btcv(*, source: Any = None, target: Any = None, arithmetic: Any = "clean", unlabeled: Any = "refuse") -> None:
    """BTCV (SABS), Synapse's RawData: abdominal CT with 13 organs -> 256 x 256 volumes.

        python -m bundle prepare btcv --source RawData --target data/btcv

    --source      RawData or its Training, or any folder above (needed)
    --target      folder to write to (needed)
    --arithmetic  clean: HU, exactly 256 x 256; reference: the authors' numbers, 257 x 257 (default: clean)
    --unlabeled   what to do with a scan without a label: refuse, keep (its image alone), skip (default: refuse)

    Clipped to -125..275 HU; of 512 pixels a side 448 are kept (of other sizes the same share) and resampled to 256;
    slices stay. Then: --data data_sabs_ct.
    """
    _refuse_other(arithmetic=(arithmetic, ARITHMETICS))
    _run(open_btcv(_folder("source", source)), ct_recipe(arithmetic, None), target, unlabeled)


def mscmr(*, source: Any = None, target: Any = None, unlabeled: Any = "refuse") -> None:
    """MS-CMRSeg 2019, bSSFP (C0): cardiac MR -> 256 x 256 volumes, planes and slices as acquired.

        python -m bundle prepare mscmr --source mscmrseg19 --target data/mscmr --unlabeled skip

    --source      holds patient1_C0.nii.gz, patient1_C0_manual.nii.gz and the like, at any depth (needed)
    --target      folder to write to (needed)
    --unlabeled   what to do with a scan without a label: refuse, keep (its image alone), skip (default: refuse)

    Organ ids stay 200, 500 and 600. Then: --data data_mscmr.
    """
    _run(open_mscmr(_folder("source", source)), cardiac_recipe(), target, unlabeled)


def nifti(
    *,
    source: Any = None,
    target: Any = None,
    labels: Any = None,
    organs: Any = None,
    modality: Any = "mr",
    spacing: Any = None,
    size: Any = None,
    orientation: Any = "PLS",
    unlabeled: Any = "refuse",
    channel: Any = 0,
    series: Any = None,
) -> None:
    """Any folder of volumes: checked, then kept as they are or resampled.

        python -m bundle prepare nifti --source scans --labels masks --target data/mine --organs "{liver: 1, spleen: 2}"
        python -m bundle prepare nifti --source mine --target data/mine --spacing 1.5,1.5,5 --size 256,256

    --source       folder of images, one with images/ and labels/, a folder for each scan, or DICOM series (needed)
    --target       folder to write to (needed)
    --labels       folder of labels, named or numbered like their images (default: labels/ in the source)
    --organs       names and ids in the labels, in quotes (default: what the labels hold, as organ_1, organ_2 ...)
    --modality     mr or ct, for the record (default: mr)
    --spacing      mm of row, column, slice, -1 keeps; or fit: the longer side fills the slice (default: unchanged)
    --size         rows, columns to crop or pad to; alone it means --spacing fit (default: unchanged, or 256,256)
    --orientation  axes of rows, columns, slices when resampling; none: as stored (default: PLS)
    --unlabeled    what to do with a scan without a label: refuse, keep (its image alone), skip (default: refuse)
    --channel      of scans with a file for each channel (<scan>_0000, <scan>_0001), the one to take (default: 0)
    --series       number, description or SeriesInstanceUID of one of several DICOM series (default: none)

    Then: --data data_nifti, or data_sabs_ct for CT.
    """
    _refuse_other(modality=(modality, ("mr", "ct")))
    recipe = nifti_recipe(spacing, _size(size), None if str(orientation).lower() == "none" else str(orientation))
    label_folder = None if labels is None else _folder("labels", labels)
    check_values(channel=channel, series=series)
    found = open_nifti(_folder("source", source), label_folder, _organs(organs), modality, channel, series)
    _run(found, recipe, target, unlabeled)


ARITHMETICS = ("clean", "reference")
UNLABELED = ("refuse", "keep", "skip")


def _run(source: Source, recipe: Recipe, target: Any, unlabeled: Any) -> None:
    _refuse_other(unlabeled=(unlabeled, UNLABELED))
    folder = _path("target", target)
    labeled = [scan for scan in source.scans if scan.label]
    if unlabeled != "keep" and not labeled:
        raise ValueError(
            f"at least one scan must have a label, got none in {source.folder}. Give the "
            "folder that holds the labels, too, or prepare the images alone with --unlabeled keep."
        )
    if unlabeled == "skip":
        source = dataclasses.replace(source, scans=labeled)
    problems = prepare(source, recipe, folder, need_labels=unlabeled == "refuse")
    print("\n".join(Dataset(source, recipe, folder).summary()))
    print(f"use it with --data {source.config} --dataset_dir {folder} {recipe.overrides}".rstrip())
    report_problems(problems)


def _refuse_other(**options: tuple[Any, Sequence[str]]) -> None:
    for name, (value, known) in options.items():
        if value not in known:
            raise ValueError(f"--{name} must be one of {', '.join(known)}, got {value!r}. Write --{name} {known[0]}.")


def _path(name: str, value: Any) -> Path:
    if not isinstance(value, str):
        came = "nothing" if value is None else f"{value!r} (write a number or a list as ./name)"
        raise ValueError(f"--{name} must be a folder, got {came}. Write --{name} <folder>.")
    return Path(value).expanduser()


def _folder(name: str, value: Any) -> Path:
    folder = _path(name, value)
    if not folder.is_dir():
        raise ValueError(
            f"--{name} must be an existing folder, got {folder}. Give the folder that was downloaded and unzipped."
        )
    return folder.resolve()


def _size(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else value


def _organs(value: Any) -> dict[str, int] | None:
    if value is None:
        return None
    ids = list(value.values()) if isinstance(value, dict) else []
    if not ids or len(set(ids)) < len(ids) or not all(type(organ) is int and organ > 0 for organ in ids):
        raise ValueError(
            f'--organs must be names and different ids above 0, got {value!r}. Write, for example, "{{liver: 1}}".'
        )
    return {str(name): organ for name, organ in value.items()}
