"""Which scan to annotate next. No training, and no labels but those of the annotated scans.

    none is annotated yet   some slices of each scan -> how well it explains all others -> the best one first
    afterwards              some slices of each scan -> confidence in the mask it would get -> the least one first

A scan explains another as far as each of the other's body features has a similar one in it. Afterwards that
tells no more than chance (docs/annotate_one.md), and what is worth most is the scan whose mask is worst: submitted, it
is right, and the others are better masks on average.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
import torch.nn.functional as F
from monai.transforms.utils import get_largest_connected_component_mask
from torch import Tensor
from tqdm import tqdm

from bundle.data.study import scan_name
from bundle.files import written_whole
from bundle.inferers import VolumeInferer
from bundle.keys import IMAGE
from bundle.matching import Features, Support
from bundle.transforms.masks import each_organ_mask, plain
from bundle.transforms.slices import support_slices

GLANCE_SLICES = 16
"""Slices of a scan that are looked at: 8 MB of features at 256 x 256."""


@dataclass(frozen=True)
class Glance:
    """Some slices of a scan, spread over it.

    Attributes:
        features: ``(S, D, h, w)``, in half precision.
        body: Where the scan is brighter than its mean, ``(S, h, w)``.
    """

    features: Tensor
    body: Tensor


def glance_at(volume: Tensor, encode: Callable[[Tensor], Features], slices: int = GLANCE_SLICES) -> Glance:
    """Encode some slices of a scan.

    Args:
        volume: A standardized scan, ``(1, H, W, Z)``.
        encode: Slices ``(1, H, W, S)`` to features ``(S, D, h, w)``.
        slices: How many; all of a scan that has fewer.

    Raises:
        ValueError: If no voxel of them is above 0, which no standardized scan is.
    """
    shown = volume[..., sorted(set(support_slices(range(volume.shape[-1]), slices)))]
    features = torch.stack(list(encode(shown)))
    body = F.interpolate(shown.movedim(-1, 0), size=features.shape[-2:], mode="area")[:, 0] > 0
    if not body.any():
        raise ValueError("nothing of the scan is brighter than 0, so it is not standardized.")
    return Glance(features.half(), body)


def rank_by_similarity(glances: Mapping[str, Glance], samples: int = 1000) -> list[tuple[str, float]]:
    """Rank scans by how well they explain all others, the best one first.

    Args:
        glances: Of every scan, by name.
        samples: Body features to compare of each scan, the same ones each time.

    Returns:
        Name and score of each scan: how similar, on average, the features of the others are to its nearest one; a
        cosine.
    """
    described = {name: _body_features(glance, samples) for name, glance in glances.items()}
    scores = {
        name: fmean(
            float((features @ own.T).amax(dim=1).mean()) for other, features in described.items() if other != name
        )
        if len(described) > 1
        else 1.0
        for name, own in described.items()
    }
    return sorted(scores.items(), key=lambda item: -item[1])


def _body_features(glance: Glance, samples: int) -> Tensor:
    features = F.normalize(glance.features.float().movedim(1, -1)[glance.body], dim=1)
    chosen = torch.randperm(len(features), generator=torch.Generator(device="cpu").manual_seed(0), device="cpu")
    return features[chosen[:samples].to(features.device)]


@torch.no_grad()
def confidence(glance: Glance, support: Support) -> float:
    """Estimate how good the masks of a scan would be, from a glance at it: 0 to 1.

    It is the mean over the organs of the probability of an organ's voxels, where those outside its largest component
    count 0: an organ in pieces is rarely right. An organ that is not found counts 0.
    """
    margins = torch.stack([margin for margin, _ in support.score(glance.features.float(), None)], dim=-1)
    masks = each_organ_mask(margins, overlap=False)
    return fmean(_in_one_piece(own.sigmoid(), mask) for own, mask in zip(margins, masks, strict=True))


def _in_one_piece(probability: Tensor, mask: Tensor) -> float:
    if not mask.any():
        return 0.0
    largest = get_largest_connected_component_mask(mask[None])[0].bool()
    return float(probability[largest].sum() / mask.sum())


def rank_by_confidence(confidences: Mapping[str, float]) -> list[tuple[str, float]]:
    """Rank scans by confidence in their masks, the least one first."""
    return sorted(confidences.items(), key=lambda item: item[1])


@dataclass(frozen=True)
class Ranking:
    """Scans in the order to annotate them.

    Attributes:
        by: ``"similarity"`` to all others, most first, or ``"confidence"`` in their masks, least first.
        scans: Name and score of each.
    """

    by: Literal["similarity", "confidence"]
    scans: list[tuple[str, float]]


class ScanRanker:
    """Ranks scans for annotation; it remembers what it saw of each, until the file or the weights change.

    Args:
        inferer: Encodes, and knows what the annotated scans tell.
        reader: A ``ScanDataset`` that reads scans without labels.
    """

    def __init__(self, inferer: VolumeInferer, reader: Any) -> None:
        self.inferer = inferer
        self.reader = reader
        self._glances: dict[tuple[str, int, Hashable], Glance] = {}

    def rank(
        self,
        network: Any,
        device: torch.device,
        scans: Sequence[str],
        support: Sequence[Mapping[str, Any]] = (),
        has_support: bool = False,
    ) -> Ranking:
        """Rank scans: by confidence in their masks as soon as one is annotated.

        Args:
            network: The trained network, in eval mode.
            device: Where to compute.
            scans: Their files; those of ``support`` are left out.
            support: Annotated scans, as ``VolumeInferer.pool`` takes them.
            has_support: Whether, without these, the inferer has some of its own.

        Raises:
            ValueError: If a scan, or an annotated one, cannot be used.
        """
        left = [path for path in scans if not any(Path(path).samefile(known[IMAGE]) for known in support)]
        glances = self._looked_at(left, network, device)
        if not (support or has_support):
            return Ranking("similarity", rank_by_similarity(glances))
        shown = self.inferer.pool(network, device, support)
        values = {name: confidence(glance, shown) for name, glance in tqdm(glances.items(), desc="ranking")}
        return Ranking("confidence", rank_by_confidence(values))

    def _looked_at(self, scans: Sequence[str], network: Any, device: torch.device) -> dict[str, Glance]:
        """Look at some slices of each scan."""
        version = self.inferer.version_of(network)
        keys = {path: (path, os.stat(path).st_mtime_ns, version) for path in scans}
        self._glances = {key: glance for key, glance in self._glances.items() if key in keys.values()}
        for path in tqdm([path for path, key in keys.items() if key not in self._glances], desc="looking at scans"):
            volume = plain(self.reader.read({IMAGE: path})[IMAGE]).to(device)
            self._glances[keys[path]] = glance_at(volume, lambda slices: self.inferer.encode(slices, network))
        return {scan_name(path): self._glances[key] for path, key in keys.items()}


def report_ranking(ranking: Ranking, path: str | Path) -> None:
    """Print the scans in the order to annotate them, and write them to a CSV file."""
    told = {
        "similarity": "None is annotated yet. First comes the scan that is most similar to all others:",
        "confidence": "First comes the scan whose mask is least sure:",
    }
    lines = [f"{score:.4f},{name}" for name, score in ranking.scans]
    with written_whole(Path(path)) as unfinished:
        unfinished.write_text("\n".join([f"{ranking.by},scan", *lines]) + "\n")
    print("\n".join([told[ranking.by], *(f"  {name}  {score:.3f}" for name, score in ranking.scans)]))
    print(f"all of them: {path}", flush=True)
