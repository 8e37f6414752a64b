"""Which scan to annotate next: the one that best explains all the others. No training, no labels.

    images -> features of the body (N, D), a sample a scan -> how well each scan explains each other -> a ranking

A scan explains another as far as each of the other's body features has a similar one in it. The next scan to
annotate is the one that, together with those that are annotated already, explains the remaining ones best (greedy
facility location). To pick instead what is explained worst was tried and is worse than chance (docs/monai_label.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bundle.transforms.slices import to_network


@torch.no_grad()
def describe_scan(volume: Tensor, encoder: nn.Module, samples: int = 1000, slice_batch: int = 8) -> Tensor:
    """Sample unit features of a scan's body: where it is brighter than its mean.

    Args:
        volume: A standardized scan, ``(1, H, W, Z)``.
        encoder: Images ``(B, 3, H, W)`` to features ``(B, D, h, w)``, in eval mode.
        samples: Features to keep, the same ones whenever the scan is described again.
        slice_batch: Slices that are encoded at once.

    Returns:
        ``(N, D)``, ``N`` at most ``samples``.

    Raises:
        ValueError: If no voxel is above 0, which no standardized scan is.
    """
    found = []
    for start in range(0, volume.shape[-1], slice_batch):
        images = to_network(volume[..., start : start + slice_batch])
        features = encoder(images)
        body = F.interpolate(images[:, :1], size=features.shape[-2:], mode="area")[:, 0] > 0
        found.append(F.normalize(features.movedim(1, -1)[body], dim=1))
    features = torch.cat(found)
    if len(features) == 0:
        raise ValueError("nothing of the scan is brighter than 0, so it is not standardized.")
    chosen = torch.randperm(len(features), generator=torch.Generator(device="cpu").manual_seed(0), device="cpu")
    return features[chosen[:samples].to(features.device)]


def rank_scans(descriptions: Mapping[str, Tensor], annotated: Sequence[str] = ()) -> list[tuple[str, float]]:
    """Rank the scans that are not annotated, the one to annotate next first.

    Args:
        descriptions: Features ``(N, D)`` of every scan, annotated or not.
        annotated: Names of those that are.

    Returns:
        Name and score of each other scan: how similar, on average, the features of the scans that would remain are
        to the nearest one of the annotated scans and this one; a cosine.
    """
    names = list(descriptions)
    explained = {
        (one, other): (descriptions[other] @ descriptions[one].T).amax(dim=1)
        for one in names
        for other in names
        if one != other and other not in annotated
    }
    candidates = [name for name in names if name not in annotated]
    scores = {}
    for name in candidates:
        rest = [other for other in candidates if other != name]
        nearest = [torch.stack([explained[k, other] for k in (*annotated, name)]).amax(dim=0) for other in rest]
        scores[name] = float(torch.stack([n.mean() for n in nearest]).mean()) if rest else 1.0
    return sorted(scores.items(), key=lambda item: -item[1])
