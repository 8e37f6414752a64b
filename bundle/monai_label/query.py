"""The scan that a request asks about: what is wrong with it is said in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import reduce
from typing import Any, cast

from bundle.data.loading import ScanError, read_scan
from bundle.keys import IMAGE
from bundle.monai_label.refusal import refuse
from monai.transforms import Transform

Data = dict[Hashable, Any]


class ExplainedTransforms(Transform):
    """Transforms one after the other, whose complaints about a request's scan reach the client (HTTP 409).

    Outside of the server they are passed on as they are.

    Args:
        transforms: From a scan's file to the network's grid.
    """

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = list(transforms)

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return ``data`` transformed.

        Raises:
            HTTPException: 409 with one sentence, if it is a request of the server and its scan cannot be used.
        """
        if "image_path" not in data or not isinstance(data.get(IMAGE), str):
            return self._transformed(data)
        try:
            return cast("Data", read_scan(cast("Mapping[str, Any]", data), self._transformed))
        except ScanError as error:
            refuse(f"The scan cannot be segmented: {error}")

    def _transformed(self, data: Any) -> Any:
        return reduce(lambda given, transform: transform(given), self.transforms, data)
