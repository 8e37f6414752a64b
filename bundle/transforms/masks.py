"""Conversions between organ scores, label maps and masks."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from bundle.keys import ORGAN_IDS
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_tensor
from torch import Tensor

Data = dict[Hashable, Any]


def plain(tensor: Any) -> Tensor:
    """Return a tensor without its meta: networks and arithmetic are faster without it."""
    return convert_to_tensor(tensor, track_meta=False)


class ScoresToLabeld(MapTransform):
    """Turn organ scores ``(O, H, W, Z)`` into one label map ``(1, H, W, Z)``: the best organ if its score is above 0.

    Args:
        keys: Scores of ``VolumeInferer``; their meta holds the ids of the organs.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return ``data`` with its scores replaced by label maps, uint8 or int16."""
        result = dict(data)
        for key in self.key_iterator(data):
            result[key] = scores_to_label(data[key], organ_ids_of(data[key]))
        return result


def organ_ids_of(scores: MetaTensor) -> list[int]:
    """Return the ids of the organs, in the order of the channels of a ``VolumeInferer``'s scores."""
    return [int(organ) for organ in torch.as_tensor(scores.meta[ORGAN_IDS]).flatten()]


def scores_to_label(scores: Tensor, ids: Sequence[int]) -> Tensor:
    """Return the label map ``(1, H, W, Z)`` of scores ``(O, H, W, Z)``; it carries their meta."""
    meta = scores.meta if isinstance(scores, MetaTensor) else None
    scores = plain(scores)
    values = torch.tensor([0, *ids], device=scores.device)
    values = values.to(torch.int16 if max(ids, default=0) > 255 else torch.uint8)
    label = torch.empty_like(scores[:1], dtype=values.dtype)
    for z in range(scores.shape[-1]):  # 64-bit indices of the whole volume would take more memory than its scores
        best, channel = scores[..., z].max(dim=0, keepdim=True)
        label[..., z] = values[torch.where(best > 0, channel + 1, 0)]
    return label if meta is None else MetaTensor(label, meta=meta)


class ScoresToMasksd(MapTransform):
    """Turn organ scores ``(O, H, W, Z)`` into one mask for each organ, ``(O, H, W, Z)`` float32 in {0, 1}.

    Args:
        keys: Scores.
        overlap: If true, each mask is where the organ's own score is above 0, as if it had been segmented alone (the
            paper's protocol). If false, each voxel belongs to its best organ only, as in a label map.
    """

    def __init__(self, keys: KeysCollection, overlap: bool = False) -> None:
        super().__init__(keys)
        self.overlap = overlap

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return ``data`` with masks in place of scores."""
        result = dict(data)
        for key in self.key_iterator(data):
            result[key] = organ_masks(plain(data[key]), self.overlap).float()
        return result


def organ_masks(scores: Tensor, overlap: bool) -> Tensor:
    """Return the mask of each organ, ``(O, H, W, Z)``: its score is above 0 and, unless ``overlap``, the best."""
    return torch.stack(list(each_organ_mask(scores, overlap)))


def each_organ_mask(scores: Tensor, overlap: bool) -> Iterator[Tensor]:
    """Yield the masks ``(H, W, Z)`` of ``organ_masks`` one by one: together they take a quarter of the scores' memory.

    The caller may change an organ's scores once its mask has been yielded.
    """
    if overlap:
        yield from (own > 0 for own in scores)
        return
    label = scores_to_label(plain(scores), range(1, len(scores) + 1))[0]
    yield from (label == place for place in range(1, len(scores) + 1))


class LabelToMasksd(MapTransform):
    """Turn label maps ``(1, H, W, Z)`` into one mask for each organ, ``(O, H, W, Z)`` float32 in {0, 1}.

    Args:
        keys: Label maps.
        organs: Names and ids of the organs, in the order of the channels.
    """

    def __init__(self, keys: KeysCollection, organs: Mapping[str, int]) -> None:
        super().__init__(keys)
        self.organs = organs

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return ``data`` with masks in place of label maps."""
        result = dict(data)
        for key in self.key_iterator(data):
            label = plain(data[key])
            result[key] = torch.cat([label == organ for organ in self.organs.values()]).float()
        return result
