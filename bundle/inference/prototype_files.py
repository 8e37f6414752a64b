"""Annotated scans as files of prototypes: what an annotated scan tells, to be kept and passed on without its image.

``<name>.safetensors`` holds the tensors, and in its header the record: organs, scans, and what they were made with.
``<name>.json`` beside it is the same record for people to read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import bundle
from bundle.files import written_whole
from bundle.provenance import changes

# Environments of MONAI Label may not have it, and need it for these files only.
try:
    import safetensors
    import safetensors.torch
except ImportError:
    safetensors = None  # type: ignore[assignment]

FORMAT = 1
"""Raise it when the content of a file changes its meaning."""


@dataclass(frozen=True)
class PrototypeRecord:
    """What a file of prototypes tells of itself.

    Attributes:
        organs: Names and ids.
        scans: Of each annotated scan its name and, for people, how many slices and numbers it left.
        made_with: What must be equal where the prototypes are used, by name: encoder, pooling, matching, preprocessing.
        version: Of the bundle that made it.
        format: Of the file.
    """

    organs: dict[str, int]
    scans: list[dict[str, Any]]
    made_with: dict[str, Any]
    version: str = bundle.__version__
    format: int = FORMAT


def write_prototypes(path: str | Path, scans: Sequence[Mapping[str, Tensor]], record: PrototypeRecord) -> None:
    """Write what is kept of annotated scans.

    Args:
        path: The file, ending in ``.safetensors``.
        scans: For each scan the tensors of ``Matching.to_tensors``.
        record: What the file tells of itself.

    Raises:
        ValueError: If the path has another ending.
    """
    path = _checked(path)
    tensors = {
        f"{number}.{name}": tensor.contiguous() for number, scan in enumerate(scans) for name, tensor in scan.items()
    }
    text = json.dumps(asdict(record), indent=2)
    with written_whole(path) as unfinished:
        unfinished.write_bytes(safetensors.torch.save(tensors, metadata={"record": text}))
    with written_whole(path.with_suffix(".json")) as unfinished:
        unfinished.write_text(text + "\n")


def read_prototypes(
    path: str | Path, device: torch.device | str = "cpu"
) -> tuple[list[dict[str, Tensor]], PrototypeRecord]:
    """Read what ``write_prototypes`` wrote; the JSON beside is not needed.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no file of prototypes, or one of another format.
    """
    path = _checked(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of prototypes {path}. Make it with `python -m bundle encoding`.")
    try:
        with safetensors.safe_open(path, framework="pt", device=str(device)) as file:
            record = json.loads((file.metadata() or {}).get("record", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}). It may be truncated; copy it again.") from error
    if record.get("format") != FORMAT:
        raise ValueError(
            f"{path} must be a file of prototypes of format {FORMAT}, got {record.get('format')}. Make it again."
        )
    scans: list[dict[str, Tensor]] = [{} for _ in record["scans"]]
    for name, tensor in tensors.items():
        number, _, rest = name.partition(".")
        scans[int(number)][rest] = tensor
    return scans, PrototypeRecord(**record)


def refuse_other_making(path: str | Path, record: PrototypeRecord, made_with: Mapping[str, Any]) -> None:
    """Raise if prototypes were made with something else than what they are to be used with.

    Raises:
        ValueError: With the name of what differs, and both values.
    """
    for name, value in made_with.items():
        if changed := changes({name: record.made_with.get(name)}, {name: value}):
            raise ValueError(
                f"the prototypes {path} were made with another {name}: {changed}. Use what they were made with, or "
                "encode the annotated scan again."
            )


def _checked(path: str | Path) -> Path:
    if safetensors is None:
        raise ValueError("files of prototypes need the package safetensors: pip install safetensors.")
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"a file of prototypes must end in .safetensors, got {path}.")
    return Path(path)
