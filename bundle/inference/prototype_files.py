"""Files of prototypes: the encoded support, to be stored and shared without its images.

``<name>.safetensors`` holds the tensors, and in its header the record: organs, scans, and what they were made with.
``<name>.json`` next to it is a readable copy of the record.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import bundle
import torch
from bundle.files import written_whole
from bundle.provenance import changes, tensors_hash
from torch import Tensor

# Environments of MONAI Label may lack it; only these files need it.
try:
    import safetensors
    import safetensors.torch
except ImportError:
    safetensors = None  # type: ignore[assignment]

# Raise it when the content of a file changes its meaning.
FORMAT = 2


@dataclass(frozen=True)
class PrototypeRecord:
    """The record of a file of prototypes.

    Attributes:
        organs: Names and ids.
        scans: For each annotated scan its ``name``, its ``organs`` (names), their ``shapes`` (components and ml, by
            name) and the ``profile`` of its intensities.
        made_with: Settings that must be equal wherever the prototypes are used, by name: encoder, pooling, matching,
            preprocessing.
        content: A hash of the tensors, to detect damage.
        version: Version of the bundle that made the file.
        format: Version of the file format.
    """

    organs: dict[str, int]
    scans: list[dict[str, Any]]
    made_with: dict[str, Any]
    content: str = ""
    version: str = bundle.__version__
    format: int = FORMAT


def write_prototypes(path: str | Path, scans: Sequence[Mapping[str, Tensor]], record: PrototypeRecord) -> None:
    """Write encoded scans to a file.

    Args:
        path: The file, ending in ``.safetensors``.
        scans: For each scan the tensors of ``Matching.to_tensors``.
        record: The record of the file; the hash of the content is filled in.

    Raises:
        ValueError: If the path has another suffix, or safetensors is not installed.
        WriteError: If the file cannot be written.
    """
    path = _checked(path)
    tensors = {
        f"{number}.{name}": tensor.contiguous() for number, scan in enumerate(scans) for name, tensor in scan.items()
    }
    text = json.dumps(asdict(replace(record, content=tensors_hash(dict(sorted(tensors.items()))))), indent=2)
    with written_whole(path) as unfinished:
        unfinished.write_bytes(safetensors.torch.save(tensors, metadata={"record": text}))
    with written_whole(path.with_suffix(".json")) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")


def check_files(files: str | Path | Sequence[str | Path] | None) -> None:
    """Raise if one of some files of prototypes is missing or damaged: a command checks them before any work.

    Raises:
        FileNotFoundError: With the name of the first that is missing.
        ValueError: With the name of the first that cannot be read.
    """
    for path in [files] if isinstance(files, str | Path) else files or []:
        read_prototypes(path)


def read_prototypes(
    path: str | Path, device: torch.device | str = "cpu"
) -> tuple[list[dict[str, Tensor]], PrototypeRecord]:
    """Read a file of prototypes; the JSON file next to it is not needed.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no file of prototypes, has another format, or is damaged.
    """
    path = _checked(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of prototypes {path}. Make it with `python -m bundle encoding`.")
    try:
        with safetensors.safe_open(path, framework="pt", device=str(device)) as file:
            text = (file.metadata() or {}).get("record", "{}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
        record = _record_of(json.loads(text))
        scans = _by_scan(tensors, len(record.scans))
    # Of JSON: no text of it, a number of thousands of digits, or lists in lists without end.
    except (safetensors.SafetensorError, ValueError, RecursionError, _DamagedError) as error:
        raise ValueError(
            f"{path} cannot be read as a file of prototypes ({error}). It may be truncated or damaged: copy it "
            "again, or make it again with `python -m bundle encoding`."
        ) from error
    if record.content != tensors_hash(dict(sorted(tensors.items()))):
        raise ValueError(f"{path} is damaged: its tensors do not match their hash. Copy it again.")
    return scans, record


class _DamagedError(Exception):
    """Content that a file of prototypes cannot have."""


def _record_of(record: Any) -> PrototypeRecord:
    """Check the record of a file."""
    if not isinstance(record, Mapping) or record.get("format") != FORMAT:
        made = record.get("format") if isinstance(record, Mapping) else None
        raise _DamagedError(f"the format must be {FORMAT}, got {made}")
    fields = {"organs": dict, "scans": list, "made_with": dict, "content": str, "version": str, "format": int}
    if wrong := [name for name, kind in fields.items() if not isinstance(record.get(name), kind)]:
        raise _DamagedError(f"{', '.join(wrong)} must be in its record, with a value of the right kind")
    ids = list(record["organs"].values())
    if not all(type(organ) is int and organ > 0 for organ in ids) or len(set(ids)) < len(ids):
        raise _DamagedError(f"organs must have different ids, whole numbers above 0, got {record['organs']}")
    for scan in record["scans"]:
        _check_scan(scan, record["organs"])
    return PrototypeRecord(**{name: record[name] for name in fields})


def _check_scan(scan: Any, organs: Mapping[str, int]) -> None:
    kinds = {"name": str, "organs": list, "shapes": dict, "profile": list}
    if not isinstance(scan, Mapping) or not all(isinstance(scan.get(key), kind) for key, kind in kinds.items()):
        raise _DamagedError(f"each scan must have {', '.join(kinds)}, got {str(scan)[:80]}")
    numbers = [scan["profile"], *scan["shapes"].values()]
    plain = all(isinstance(row, list) and all(_is_number(value) for value in row) for row in numbers)
    if not plain or not all(organ in organs for organ in [*scan["organs"], *scan["shapes"]] if _is_name(organ)):
        raise _DamagedError(f"organs, shapes or profile of the scan {scan['name']!r} are invalid")
    if not all(_is_name(organ) for organ in scan["organs"]) or any(len(row) not in (2, 3) for row in numbers[1:]):
        raise _DamagedError(f"organs or shapes of the scan {scan['name']!r} are invalid")


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))


def _by_scan(tensors: Mapping[str, Tensor], number: int) -> list[dict[str, Tensor]]:
    scans: list[dict[str, Tensor]] = [{} for _ in range(number)]
    for name, tensor in tensors.items():
        place, _, rest = name.partition(".")
        if not place.isdecimal() or int(place) >= number:
            raise _DamagedError(f"the tensor {name!r} belongs to none of its {number} scans")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise _DamagedError(f"the tensor {name!r} holds NaN or infinity")
        scans[int(place)][rest] = tensor
    return scans


def refuse_other_making(path: str | Path, record: PrototypeRecord, made_with: Mapping[str, Any]) -> None:
    """Raise if prototypes were made with other settings than the present ones.

    Raises:
        ValueError: If a setting differs; the message gives its name and both values.
    """
    for name, value in made_with.items():
        if changed := changes({name: record.made_with.get(name)}, {name: value}):
            raise ValueError(
                f"the prototypes {path} were made with another {name}: {changed}. Set it back, or encode the annotated "
                "scan again."
            )


def _checked(path: str | Path) -> Path:
    if safetensors is None:
        raise ValueError("files of prototypes need the package safetensors: pip install safetensors.")
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"a file of prototypes must end in .safetensors, got {path}. Rename it.")
    return Path(path)
