"""Segmentation in one call from Python: the same config, and the same masks, as of the command ``inference``.

mask = bundle.segment("scan.nii.gz", "annotated.nii.gz", "its_label.nii.gz")

segmenter = bundle.Segmenter("annotated.nii.gz", "its_label.nii.gz")   # the support is encoded once
masks = [segmenter(path) for path in paths]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from bundle.command_line.command import check_merged, refuse_unknown_keys
from bundle.command_line.configs import config_paths, parsed
from bundle.command_line.values import check_literals
from bundle.data.in_memory import AsVolumed, mask_like
from bundle.data.loading import ScanDataset
from bundle.inference.volume_inferer import VolumeInferer
from bundle.keys import IMAGE, LABEL, NOTICES, ORGAN_IDS, PRED, QUALITY
from monai.bundle import ConfigParser
from monai.data import MetaTensor, decollate_batch, list_data_collate

# The name under which notices of the whole scan stand.
WHOLE_SCAN = "scan"


class Segmentation(NamedTuple):
    """What is known of a segmented volume.

    Attributes:
        mask: Organ ids, in the type of the volume.
        quality: How good each organ's mask is by the network's own estimate, 0.5 to 1; 0 if nothing was found.
        notices: Sentences that say what makes a mask doubtful, by organ; those of the whole scan under ``"scan"``.
    """

    mask: Any
    quality: dict[str, float]
    notices: dict[str, list[str]]


class Segmenter:
    """Segments volumes from annotated scans, which are read and encoded once.

    A volume is a path, a nibabel image, a ``MetaTensor`` of ``(H, W, Z)`` or ``(1, H, W, Z)``, or a SimpleITK image.

    Args:
        support_image: The annotated volume, or a list of them; ``None`` with files of the key ``prototypes``.
        support_label: Its label map, organ ids of whole numbers, 0 = none; as many as images.
        configs: Config files that go after ``inference.yaml``, by name or path, such as ``"data_sabs_ct"`` for CT.
        **keys: Keys of ``inference.yaml``, such as ``organs={"liver": 1}`` or ``device="cpu"``; ``a::b`` for a part.

    Attributes:
        organs: Names and ids of the organs.

    Raises:
        ValueError: If there are not as many labels as images, or a key or config is wrong.
        ScanError: If an annotated volume cannot be used.
    """

    def __init__(
        self,
        support_image: Any = None,
        support_label: Any = None,
        *,
        configs: str | Sequence[str] | None = None,
        **keys: Any,
    ) -> None:
        support = _pairs(support_image, support_label)
        config = _config(configs, keys, support)
        self.device = torch.device(config.get_parsed_content("device"))
        self._reader = ScanDataset([], config.get_parsed_content("preprocessing"))
        self._postprocessing = config.get_parsed_content("postprocessing")
        self._network = config.get_parsed_content("network").eval()
        self._inferer: VolumeInferer = config.get_parsed_content("inferer")
        self._inferer.pool(self._network, self.device)  # a support that cannot be used is said here
        self.organs = self._inferer.organ_names()

    def __call__(self, image: Any) -> Any:
        """Return the mask of a volume, organ ids in the volume's own type and on its grid; see ``mask_like``.

        Raises:
            ScanError: If the volume cannot be used.
        """
        return self.assess(image).mask

    def assess(self, image: Any) -> Segmentation:
        """Return the mask of a volume, and how far it is to be trusted.

        Raises:
            ScanError: If the volume cannot be used.
        """
        batch = list_data_collate([self._reader.read({IMAGE: image})])
        with torch.no_grad():
            scores = self._inferer(batch[IMAGE].to(self.device), self._network)
            item = decollate_batch({IMAGE: batch[IMAGE], PRED: scores})[0]
            mask: MetaTensor = self._postprocessing(item)[PRED]
        names = {organ: name for name, organ in self.organs.items()}
        quality = zip(mask.meta[ORGAN_IDS].flatten().tolist(), mask.meta[QUALITY].tolist(), strict=True)
        notices = {names.get(organ, WHOLE_SCAN): list(told) for organ, told in mask.meta[NOTICES].items() if told}
        return Segmentation(mask_like(mask, image), {names[int(organ)]: value for organ, value in quality}, notices)


def segment(
    image: Any,
    support_image: Any = None,
    support_label: Any = None,
    *,
    configs: str | Sequence[str] | None = None,
    **keys: Any,
) -> Any:
    """Segment one volume from annotated ones. For several volumes make a ``Segmenter``: it encodes the support once.

    Args:
        image: A path, a nibabel image, a ``MetaTensor`` of ``(H, W, Z)`` or ``(1, H, W, Z)``, or a SimpleITK image.
        support_image: The annotated volume, or a list of them.
        support_label: Its label map, or a list of as many.
        configs: As of ``Segmenter``.
        **keys: As of ``Segmenter``.

    Returns:
        Organ ids on the image's grid: a nibabel image for a path, else the image's own type.
    """
    return Segmenter(support_image, support_label, configs=configs, **keys)(image)


def _pairs(images: Any, labels: Any) -> list[dict[str, Any]]:
    """Return ``{"image", "label"}`` of each annotated volume."""
    some, others = (list(x) if isinstance(x, list | tuple) else [] if x is None else [x] for x in (images, labels))
    if len(some) != len(others):
        raise ValueError(
            f"every support image needs its label map, got {len(some)} images and {len(others)} labels. "
            "Give as many of both."
        )
    return [{IMAGE: image, LABEL: label} for image, label in zip(some, others, strict=True)]


def _config(
    configs: str | Sequence[str] | None, keys: Mapping[str, Any], support: Sequence[Mapping[str, Any]]
) -> ConfigParser:
    """Return the config of the command ``inference``, checked as a command's keys are."""
    if not support and not keys.get("prototypes"):
        raise ValueError("no annotated scan was given. Give support_image and support_label, or prototypes.")
    files = config_paths("inference", configs)
    refuse_unknown_keys(files, keys)
    check_literals(dict(keys))
    check_merged(files, keys)
    places = {"results_root": ".", "support_scans::data": "$given_support"}
    config = parsed([str(path) for path in files], {**places, **keys}, given_support=support)
    for part in ("preprocessing", "support_preprocessing"):
        _take_volumes(config.get(part))
    return config


def _take_volumes(part: Any) -> None:
    """Let a part of a config take volumes where it loads files, in place."""
    if isinstance(part, dict) and part.get("_target_") == "LoadImaged":
        part["_target_"] = f"{AsVolumed.__module__}.{AsVolumed.__name__}"
        for key in set(part) - {"_target_", "keys"}:
            del part[key]
    elif isinstance(part, dict | list):
        for inner in part.values() if isinstance(part, dict) else part:
            _take_volumes(inner)
