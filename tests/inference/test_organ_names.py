"""Names that the files of label maps tell: one for each organ, or a sentence."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bundle.inference.matching import SliceMatching
from bundle.inference.organ_names import names_of_labels
from bundle.inference.support_library import SupportLibrary
from monai.data import MetaTensor


def test_organs_that_are_shown_have_the_names_of_their_files() -> None:
    labels = [{1: "liver", 2: "spleen", 9: "not drawn"}, {}, {2: "spleen", 4: "left kidney"}]
    assert names_of_labels(labels, [1, 2, 4, 7]) == {"liver": 1, "spleen": 2, "left kidney": 4}


@pytest.mark.parametrize("other", [{2: "liver"}, {1: "spleen"}])
def test_label_maps_that_name_organs_differently_are_refused(other: dict[int, str]) -> None:
    with pytest.raises(ValueError, match=r"one name and one id in all label maps, got liver: 1, .*\. Set organs\."):
        names_of_labels([{1: "liver"}, other], [1, 2])


def test_the_support_names_its_organs() -> None:
    label = MetaTensor(torch.tensor([0.0, 1.0, 3.0]).reshape(1, 3, 1, 1), meta={"organ_names": {3: "spleen"}})
    plain = torch.tensor([0.0, 3.0, 5.0]).reshape(1, 3, 1, 1)
    encode: Any = SimpleNamespace()
    library = SupportLibrary([{"label": label}, {"label": plain}], encode, SliceMatching(slices=2))
    assert library.organ_names() == {"organ_1": 1, "spleen": 3, "organ_5": 5}
