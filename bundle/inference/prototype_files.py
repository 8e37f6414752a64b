"""Annotated scans as files of prototypes: what an annotated scan tells, to be kept and passed on without its image.

``<name>.safetensors`` holds the tensors, and in its header the record: organs, scans, and what they were made with.
``<name>.json`` beside it is the same record for people to read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bundle
from bundle.files import written_whole

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
    # Through JSON, so that tuples and lists are the same.
    here = json.loads(json.dumps(made_with))
    for name, value in here.items():
        if record.made_with.get(name) != value:
            raise ValueError(
                f"the prototypes {path} were made with another {name}: {record.made_with.get(name)}; here it is "
                f"{value}. Use what they were made with, or make them again from the annotated scan."
            )


def fingerprint(module: nn.Module) -> str:
    """Return a hash of a module's weights: equal weights have equal ones, on every machine."""
    content = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        if not name.endswith("num_batches_tracked"):  # it changes nothing
            content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            content.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def settings_of(thing: Any) -> Any:
    """Spell out a part of the pipeline for people and for comparison: its kind and its public settings."""
    if isinstance(thing, str | int | float | bool | type(None)):
        return thing
    if isinstance(thing, Mapping):
        return {str(key): settings_of(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [settings_of(value) for value in thing]
    settings = {key: value for key, value in vars(thing).items() if not key.startswith("_") and key != "training"}
    parts = dict(thing.named_children()) if isinstance(thing, nn.Module) else {}
    return {"kind": type(thing).__name__} | settings_of(settings | parts)


def _checked(path: str | Path) -> Path:
    if safetensors is None:
        raise ValueError("files of prototypes need the package safetensors: pip install safetensors.")
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"a file of prototypes must end in .safetensors, got {path}.")
    return Path(path)
