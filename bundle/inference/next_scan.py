"""Which scan to annotate next. It needs no training, and no labels besides those of the annotated scans.

    none is annotated yet   some slices of each scan -> similarity to all other scans -> the most similar first
    afterwards              some slices of each scan -> estimated quality of its mask -> the worst first

A scan is similar to another if each of the other's body features has a similar one in it. Once a scan is annotated,
this ranks no better than chance (docs/annotate_one.md). Then the scan with the worst mask comes first: correcting it
gains most, and the remaining masks are the better ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
import torch.nn.functional as F
from bundle.data import report_problems
from bundle.data.loading import ScanError
from bundle.data.names import scan_name
from bundle.files import write_csv
from bundle.inference.matching import Features, Support
from bundle.inference.organ_shapes import typical_components
from bundle.inference.slice_encoder import version_of
from bundle.inference.volume_inferer import VolumeInferer
from bundle.keys import IMAGE
from bundle.transforms.components import largest_components
from bundle.transforms.masks import each_organ_mask, plain
from bundle.transforms.slices import support_slices
from torch import Tensor
from tqdm import tqdm

# Slices of a scan that are encoded for ranking: 8 MB of features at 256 x 256.
GLANCE_SLICES = 16


@dataclass(frozen=True)
class Glance:
    """Some slices of a scan, evenly spread.

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
        encode: Maps slices ``(1, H, W, S)`` to features ``(S, D, h, w)``.
        slices: Number of slices; a scan with fewer uses all.

    If no voxel of these slices is above 0, everything counts as body.
    """
    shown = volume[..., sorted(set(support_slices(range(volume.shape[-1]), slices)))]
    features = torch.stack(list(encode(shown)))
    body = F.interpolate(shown.movedim(-1, 0), size=features.shape[-2:], mode="area")[:, 0] > 0
    return Glance(features.half(), body if body.any() else torch.ones_like(body))


def rank_by_similarity(glances: Mapping[str, Glance], samples: int = 1000) -> list[tuple[str, float]]:
    """Rank scans by their similarity to all others, the most similar first.

    Args:
        glances: The encoded slices of every scan, by name.
        samples: Body features of each scan to compare, the same ones each time.

    Returns:
        Name and score of each scan: the mean cosine similarity of the others' features to its nearest feature.
    """
    described = {name: _body_features(glance, samples) for name, glance in glances.items()}
    scores = {}
    for name, own in described.items():
        others = [features for other, features in described.items() if other != name]
        explained = [float((features @ own.T).amax(dim=1).mean()) for features in others]
        scores[name] = fmean(explained) if explained else 1.0
    return sorted(scores.items(), key=lambda item: -item[1])


def _body_features(glance: Glance, samples: int) -> Tensor:
    features = F.normalize(glance.features.float().movedim(1, -1)[glance.body], dim=1)
    chosen = torch.randperm(len(features), generator=torch.Generator(device="cpu").manual_seed(0), device="cpu")
    return features[chosen[:samples].to(features.device)]


@torch.no_grad()
def expected_quality(glance: Glance, support: Support, num_components: int | None = None) -> float:
    """Estimate the quality of a scan's masks from some of its slices, in [0, 1].

    It is the mean over organs of the mean probability of the organ's voxels. Voxels outside the largest components
    count 0, since a fragmented organ is rarely right. An organ that is not found counts 0.

    Args:
        glance: Some of the scan's slices.
        support: The annotated scans.
        num_components: Components of an organ; ``None`` means as many as in the annotated scans.
    """
    margins = torch.stack([margin for margin, _ in support.score(glance.features.float(), None)], dim=-1)
    masks = each_organ_mask(margins, overlap=False)
    numbers = [num_components or typical_components(support.shapes.get(organ, ())) for organ in support.organs]
    return fmean(
        _in_its_components(own.sigmoid(), mask, number)
        for own, mask, number in zip(margins, masks, numbers, strict=True)
    )


def _in_its_components(probability: Tensor, mask: Tensor, num_components: int) -> float:
    if not mask.any():
        return 0.0
    return float(probability[largest_components(mask, num_components)].sum() / mask.sum())


def rank_by_quality(qualities: Mapping[str, float]) -> list[tuple[str, float]]:
    """Rank scans by the estimated quality of their masks, the worst first."""
    return sorted(qualities.items(), key=lambda item: item[1])


@dataclass(frozen=True)
class Ranking:
    """Scans in the order to annotate them.

    Attributes:
        by: ``"similarity"`` to all others, highest first, or ``"quality"`` of their masks, worst first.
        scans: Name and score of each.
        problems: Why some scans could not be read, a line each.
    """

    by: Literal["similarity", "quality"]
    scans: list[tuple[str, float]]
    problems: list[str] = field(default_factory=list)


class ScanRanker:
    """Ranks scans for annotation; encoded slices are kept until the file or the weights change.

    Args:
        inferer: Encodes slices, and holds the encoded support.
        reader: A ``ScanDataset`` that reads scans without labels.
        num_components: Components of an organ; ``None`` means as many as in the annotated scans.
    """

    def __init__(self, inferer: VolumeInferer, reader: Any, num_components: int | None = None) -> None:
        self.inferer = inferer
        self.reader = reader
        self.num_components = num_components
        self._glances: dict[tuple[str, int, Hashable], Glance] = {}

    def rank(
        self,
        network: Any,
        device: torch.device,
        scans: Sequence[str],
        support: Sequence[Mapping[str, Any]] = (),
        has_support: bool = False,
    ) -> Ranking:
        """Rank scans: by the quality of their masks if any scan is annotated, else by similarity.

        Args:
            network: The trained network, in eval mode.
            device: Where to compute.
            scans: Their files; those of ``support`` are left out.
            support: Annotated scans, in the form of ``VolumeInferer.pool``.
            has_support: Whether the inferer has annotated scans of its own, used if ``support`` is empty.

        Raises:
            ValueError: If an annotated scan cannot be used.
        """
        known = [Path(entry[IMAGE]).resolve() for entry in support]
        left = [path for path in scans if Path(path).resolve() not in known]
        shown = self.inferer.pool(network, device, support) if support or has_support else None
        glances, problems = self._looked_at(left, network, device)
        if shown is None:
            return Ranking("similarity", _named(rank_by_similarity(glances)), problems)
        bar = tqdm(glances.items(), desc="ranking", unit="scan")
        values = {path: expected_quality(glance, shown, self.num_components) for path, glance in bar}
        return Ranking("quality", _named(rank_by_quality(values)), problems)

    def _looked_at(
        self, scans: Sequence[str], network: Any, device: torch.device
    ) -> tuple[dict[str, Glance], list[str]]:
        """Encode some slices of each scan; return them, and the problems of scans that could not be read."""
        version = version_of(network)
        seen, problems = {}, []
        for path in tqdm(scans, desc="encoding scans", unit="scan"):
            key = (path, os.stat(path).st_mtime_ns if Path(path).exists() else 0, version)
            try:
                seen[path] = (key, self._glances.get(key) or self._look(path, network, device))
            except ScanError as error:
                problems.append(str(error))
        self._glances = dict(seen.values())
        return {path: glance for path, (_, glance) in seen.items()}, problems

    def _look(self, path: str, network: Any, device: torch.device) -> Glance:
        volume = plain(self.reader.read({IMAGE: path})[IMAGE]).to(device)
        return glance_at(volume, lambda slices: self.inferer.encode(slices, network))


def _named(ranking: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    return [(scan_name(path), score) for path, score in ranking]


def rank_folder(
    ranker: ScanRanker,
    network: Any,
    device: torch.device,
    scans: Sequence[Mapping[str, Any]],
    path: str | Path,
    annotated: Sequence[Mapping[str, Any]] = (),
    prototypes: Any = None,
) -> None:
    """Rank the scans of a folder, print the order and write it to ``path``.

    Args:
        ranker: Ranks the scans.
        network: The trained network, in eval mode.
        device: Where to compute.
        scans: The scans that are not annotated yet, as ``find_scans`` returns them.
        path: The CSV file.
        annotated: The annotated scans of the config.
        prototypes: Files of prototypes, in place of annotated scans.

    Raises:
        ValueError: If an annotated scan cannot be used; at the end, if a scan could not be read.
    """
    files = [str(scan[IMAGE]) for scan in scans]
    report_ranking(ranker.rank(network, device, files, has_support=bool(annotated or prototypes)), path)


def report_ranking(ranking: Ranking, path: str | Path) -> None:
    """Print the scans in the order to annotate them, and write them to a CSV file.

    Raises:
        ValueError: At the end, if some scans could not be read; the message says why.
    """
    heads = {
        "similarity": "No annotated scan is given. First comes the scan that is most similar to all others:",
        "quality": "First comes the scan whose mask is least confident:",
    }
    write_csv(Path(path), [["scan", ranking.by], *([name, f"{score:.4f}"] for name, score in ranking.scans)])
    print("\n".join([heads[ranking.by], *(f"  {name}  {score:.3f}" for name, score in ranking.scans)]))
    print(f"ranking: {path}", flush=True)
    report_problems(ranking.problems)
