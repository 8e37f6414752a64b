"""Phantom scans: synthetic abdomens with known organs, for demonstration and for tests.

Each patient has a body with fat, spine, bowel, a liver, two kidneys and a spleen whose position, size, brightness and
texture vary; the scan adds noise and, for MR, a bias field. Nothing of it is medical data.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
from bundle.files import alone_in, read_json, remove_abandoned, unfinished_prefix
from bundle.provenance import changes, code_hash
from scipy.ndimage import gaussian_filter

Modality = Literal["ct", "mr"]

# Organs of the phantom and their ids.
ORGANS = {"liver": 1, "kidneys": 2, "spleen": 3}

# Center (left, front, up) and half axes, in units of the body's half axes; brightness of CT (HU) and MR.
_ANATOMY = (
    ("liver", (-0.42, 0.12, 0.25), (0.42, 0.46, 0.50), 105.0, 310.0),
    ("kidneys", (-0.40, -0.46, -0.25), (0.16, 0.17, 0.36), 150.0, 520.0),
    ("kidneys", (0.40, -0.46, -0.18), (0.16, 0.17, 0.36), 150.0, 520.0),
    ("spleen", (0.62, -0.10, 0.32), (0.19, 0.27, 0.36), 120.0, 430.0),
)


@dataclass(frozen=True)
class PhantomSettings:
    """Settings of the phantom scans.

    Attributes:
        unlabeled: Scans without a label map, to train on.
        labeled: Scans with a label map: the first is the support.
        size: Rows and columns of a slice, and number of slices.
        modality: ``"mr"`` (arbitrary units, bias field) or ``"ct"`` (HU).
        noise: Standard deviation of the noise, in the scan's units.
        seed: Random seed.
    """

    unlabeled: int = 10
    labeled: int = 4
    size: tuple[int, int, int] = (128, 128, 16)
    modality: Modality = "mr"
    noise: float = 45.0
    seed: int = 0


def write_phantoms(folder: str | Path, **settings: Any) -> Path:
    """Make phantom scans, unless the same ones already exist.

    Args:
        folder: Where ``images/``, ``labels/`` and ``dataset.json`` go.
        **settings: Fields of ``PhantomSettings``.

    Returns:
        The folder.

    Raises:
        ValueError: If the folder holds something else, another command is writing to it, or a setting is unknown or
            out of range.
    """
    folder = Path(folder)
    wanted = _settings(settings)
    record = {"phantom": asdict(wanted), "organs": ORGANS, "code": code_hash(_write_scan)}
    if changes(_record(folder), record):
        with alone_in(folder, folder.with_name(f".{folder.name}.lock")):
            _write_phantoms(folder, wanted, record)
    return folder


def _write_phantoms(folder: Path, wanted: PhantomSettings, record: Mapping[str, Any]) -> None:
    """Write the scans to a temporary folder, then rename it."""
    if folder.exists() and "phantom" not in _record(folder) and any(folder.iterdir()):
        raise ValueError(f"{folder} holds something other than phantom scans. Remove it, or choose another folder.")
    remove_abandoned(folder.parent)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=unfinished_prefix()) as place:
        unfinished = Path(place) / folder.name
        unfinished.mkdir()
        for number in range(wanted.unlabeled + wanted.labeled):
            _write_scan(unfinished, number, wanted)
        (unfinished / "dataset.json").write_text(json.dumps(record), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(unfinished, folder)


def _record(folder: Path) -> dict[str, Any]:
    """Return the record of a folder of phantom scans; an empty one for any other folder."""
    path = folder / "dataset.json"
    if not path.is_file():
        return {}
    return read_json(path, "Remove the folder, or choose another one.")


def _settings(settings: dict[str, Any]) -> PhantomSettings:
    known = set(PhantomSettings.__dataclass_fields__)
    if unknown := sorted(set(settings) - known):
        raise ValueError(f"phantom settings must be among {sorted(known)}, got {unknown}. Correct the names.")
    if "size" in settings:
        settings = settings | {"size": tuple(settings["size"])}
    wanted = PhantomSettings(**settings)
    if wanted.unlabeled < 0 or wanted.labeled < 0 or wanted.modality not in ("ct", "mr"):
        raise ValueError(
            f"phantom scans need counts from 0 and modality 'ct' or 'mr', got {wanted}. Correct the setting."
        )
    return wanted


def _write_scan(folder: Path, number: int, settings: PhantomSettings) -> None:
    image, label = phantom_scan(np.random.default_rng([settings.seed, number]), settings)
    # Left, back and foot first, as in many scanners' files; the patient lies a little off center.
    affine = np.diag([1.5, 1.5, 6.0, 1.0]) @ np.diag([-1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = [96 - number, -90 + 2 * number, -40]
    for name, volume in (("images", image), ("labels", label)):
        if name == "labels" and number < settings.unlabeled:
            continue
        (folder / name).mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(volume, affine), folder / name / f"phantom_{number:02d}.nii.gz")


def phantom_scan(random: np.random.Generator, settings: PhantomSettings) -> tuple[np.ndarray, np.ndarray]:
    """Make one patient.

    Args:
        random: Random generator.
        settings: Settings of the scans; counts and seed are not used.

    Returns:
        Image, int16, and organ ids, uint8; both ``(columns, rows, slices)`` of ``settings.size``, the first
        axis towards the patient's left, the second to the front, the third up.
    """
    rows, columns, slices = settings.size
    place = np.stack(
        np.meshgrid(*(np.linspace(-1, 1, n) for n in (columns, rows, slices)), indexing="ij")
    )  # left, front, up
    # The body's half axes, in units of half the field of view; the third is longer than the scan.
    body_axes = np.array([0.86, 0.64, 1.15]) * random.uniform(0.9, 1.08, 3)
    inside = (place - random.uniform(-0.04, 0.04, 3)[:, None, None, None]) / body_axes[:, None, None, None]
    is_ct = settings.modality == "ct"

    image = _body(random, inside, is_ct)
    label = _add_organs(random, image, inside, is_ct)
    if not is_ct:
        image *= np.exp(0.28 * _smooth_noise(random, image.shape, 30.0)) * random.uniform(0.75, 1.3)
    image = gaussian_filter(image, (0.7, 0.7, 0)) + random.normal(0, settings.noise, image.shape)
    return np.rint(image if is_ct else np.abs(image)).astype(np.int16), label


def _body(random: np.random.Generator, inside: np.ndarray, is_ct: bool) -> np.ndarray:
    """Paint fat, muscle, spine and bowel, given each voxel's position in units of the body's half axes."""
    image = np.full(inside.shape[1:], -1000.0 if is_ct else 8.0)
    radius = np.hypot(inside[0], inside[1])
    _paint(image, radius < 1, -95.0 if is_ct else 90.0, random, 6.0)
    _paint(image, radius < 0.9, 45.0 if is_ct else 200.0, random, 5.0)
    _paint(image, _ellipsoid(inside, (0, -0.62, 0), (0.13, 0.16, 9)), 270.0 if is_ct else 120.0, random, 4.0)
    for _ in range(int(random.integers(9, 14))):
        center = (random.uniform(-0.6, 0.6), random.uniform(-0.3, 0.7), random.uniform(-1, 1))
        brightness = random.uniform(-20, 190) if is_ct else random.uniform(60, 620)
        _paint(image, _ellipsoid(inside, center, random.uniform(0.06, 0.2, 3)), brightness, random, 3.0)
    return image


def _add_organs(random: np.random.Generator, image: np.ndarray, inside: np.ndarray, is_ct: bool) -> np.ndarray:
    """Paint the organs into the image, in place, and return their ids."""
    label = np.zeros(image.shape, dtype=np.uint8)
    is_near = np.hypot(inside[0], inside[1]) < 0.93
    for organ, center, axes, hounsfield, signal in _ANATOMY:
        shifted = np.array(center) + random.uniform(-0.09, 0.09, 3)
        wobble = 0.18 * _smooth_noise(random, image.shape, 7.0)
        mask = _ellipsoid(inside, shifted, np.array(axes) * random.uniform(0.82, 1.18, 3), wobble) & is_near
        mask &= label == 0
        brightness = (hounsfield if is_ct else signal) * random.uniform(0.86, 1.14)
        _paint(image, mask, brightness, random, 1.5 if organ == "kidneys" else 3.0)
        label[mask] = ORGANS[organ]
    return label


def _ellipsoid(place: np.ndarray, center: Any, axes: Any, wobble: np.ndarray | float = 0.0) -> np.ndarray:
    offset = (place - np.reshape(center, (3, 1, 1, 1))) / np.reshape(axes, (3, 1, 1, 1))
    return (offset**2).sum(axis=0) < (1 + wobble) ** 2


def _smooth_noise(random: np.random.Generator, shape: tuple[int, ...], width: float) -> np.ndarray:
    """Return noise of mean 0 and standard deviation 1 that varies over ``width`` pixels."""
    noise = gaussian_filter(random.normal(size=shape), (width, width, width / 4))
    return (noise - noise.mean()) / noise.std()


def _paint(image: np.ndarray, mask: np.ndarray, brightness: float, random: np.random.Generator, grain: float) -> None:
    """Fill a mask with a brightness and a random texture."""
    texture = 0.09 * max(abs(brightness), 60.0) * _smooth_noise(random, image.shape, grain)
    image[mask] = (brightness + texture)[mask]
