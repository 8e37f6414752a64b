"""Tests of ``bundle.monai_label`` without its server; ``tests/monai_label/check.py`` goes the road with it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import nibabel
import numpy as np
import pytest
import torch
from bundle.data.loading import ScanError
from bundle.inference.matching import SliceMatching
from bundle.monai_label import (
    AnsweringInferer,
    AnswerOfLabeld,
    AnswerOfScoresd,
    CarrySupportd,
    ExplainedTransforms,
    FindSupportd,
    datastore,
    refusal,
    training_mode,
    unlabeled_scans,
)
from bundle.monai_label.datastore import submitted_annotations
from bundle.monai_label.organs import is_default_name, known_organs, merged_entries, organ_name, with_new_entries
from bundle.networks import BackgroundPrototypes, ForegroundPrototypes, PrototypeHead, TopKClassifier
from bundle.transforms import AssessScoresd
from monai.data import MetaTensor


def write(path: Path, volume: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume.astype(np.int16), np.eye(4)), path)
    return path


def finished() -> np.ndarray:
    label = np.zeros((12, 10, 9))
    label[2:9, 2:7, 1:8] = 1
    label[3:9, 2:7, [1, 7]] = 0
    return label


def drawn(z: int = 4) -> np.ndarray:
    label = np.zeros((12, 10, 9))
    label[2:9, 2:7, z] = 2
    return label


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A studies folder with the scans a, b and c, as the server's processes find it in their environment."""
    for name in ("a", "b", "c"):
        write(tmp_path / "studies" / f"{name}.nii.gz", np.ones((12, 10, 9)))
    monkeypatch.setenv("MONAI_LABEL_STUDIES", str(tmp_path / "studies"))
    monkeypatch.setattr(datastore, "app_instance", None)
    monkeypatch.setattr(refusal, "HTTPException", None)
    return tmp_path / "studies"


def submit(studies: Path, name: str, label: np.ndarray) -> Path:
    return write(studies / "labels" / "final" / f"{name}.nii.gz", label)


def ask(studies: Path, name: str, **request: Any) -> list[dict[str, Any]]:
    path = str(studies / f"{name}.nii.gz")
    return FindSupportd("image")({"image": path, "image_path": path, **request})["support_scans"]


def names(found: list[dict[str, Any]]) -> list[str]:
    return [Path(entry["image"]).name.split(".")[0] for entry in found]


def test_outside_of_the_server_nothing_is_looked_for(studies: Path) -> None:
    data = {"image": "a.nii.gz"}
    assert FindSupportd("image")(data) == data
    image = MetaTensor(torch.zeros(1, 2, 2, 2))
    assert "support" not in CarrySupportd("image")({"image": image})["image"].meta


def test_all_other_submitted_labels_are_support(studies: Path) -> None:
    for name in ("a", "b"):
        submit(studies, name, finished())
    assert names(ask(studies, "c")) == ["a", "b"]


def test_a_label_of_the_scan_itself_comes_first_and_is_marked_as_its_own(studies: Path) -> None:
    submit(studies, "a", drawn())
    submit(studies, "b", finished())
    found = ask(studies, "b")
    assert names(found) == ["b", "a"]
    assert [entry.get("own") for entry in found] == [True, None]


def test_a_drawing_that_is_nrrd_is_found_as_any_other(studies: Path) -> None:
    (studies / "labels" / "final").mkdir(parents=True)
    (studies / "labels" / "final" / "a.nrrd").touch()
    assert [Path(entry["label"]).name for entry in ask(studies, "a")] == ["a.nrrd"]


@pytest.mark.parametrize(
    ("request_says", "label_says", "taken"),
    [
        (None, None, None),  # the config decides
        (None, "drawn", "drawn"),
        ("all", "drawn", "all"),
        ({"b": "all"}, None, None),
        ({"a": "all"}, "drawn", "all"),
    ],
)
def test_request_before_label_before_config_says_which_slices_are_annotated(
    studies: Path, store: Store, request_says: Any, label_says: Any, taken: Any
) -> None:
    store.infos = {"a": {"annotated": label_says}}
    assert [entry["annotated"] for entry in ask(studies, "c", annotated=request_says)] == [taken]


@pytest.mark.parametrize("said", ["some", {"a": "some"}])
def test_a_wrong_word_about_annotated_slices_is_refused(studies: Path, said: Any) -> None:
    submit(studies, "a", finished())
    with pytest.raises(ValueError, match=r"params: annotated must be auto, drawn .* got 'some'"):
        ask(studies, "c", annotated=said)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/etc/hostname", r"params\.label /etc/hostname, which does not lie in the studies folder"),
        ("{studies}/none.nii.gz", r"params\.label .*none\.nii\.gz, which does not exist"),
    ],
)
def test_a_label_that_the_request_names_lies_in_the_studies(studies: Path, path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(studies, "a", label=path.replace("{studies}", str(studies)))


def test_a_drawing_that_came_with_the_request_goes_before_a_submitted_one(studies: Path, tmp_path: Path) -> None:
    submit(studies, "a", drawn())
    sent = write(tmp_path / "sent.nii.gz", drawn(z=6))
    assert [entry["label"] for entry in ask(studies, "a", label=str(sent))] == [str(sent)]


def test_what_the_request_names_goes_before_all(studies: Path) -> None:
    label = submit(studies, "a", finished())
    submit(studies, "b", finished())
    entry = {"image": str(studies / "a.nii.gz"), "label": str(label)}
    assert names(ask(studies, "c", support=[entry])) == names(ask(studies, "c", support=entry)) == ["a"]


def test_without_any_label_the_answer_says_what_to_do(studies: Path) -> None:
    with pytest.raises(ValueError, match="No scan is annotated yet: label the organs in one scan"):
        ask(studies, "a")


def test_a_support_of_the_config_serves_where_nothing_is_submitted(studies: Path) -> None:
    path = str(studies / "a.nii.gz")
    assert FindSupportd("image", defaults=["given"])({"image": path, "image_path": path})["support_scans"] == []


@pytest.mark.parametrize(
    ("support", "message"),
    [
        ("a", "must be a list of {image, label}"),
        ([{"image": "a.nii.gz"}], "must be a list of {image, label}"),
        ([{"image": "/etc/hostname", "label": "/etc/hostname"}], "does not lie in the studies folder"),
        ([{"image": "{studies}/../x.nii.gz", "label": "{studies}/a.nii.gz"}], "does not lie in the studies folder"),
        ([{"image": "{studies}/none.nii.gz", "label": "{studies}/a.nii.gz"}], "none.nii.gz, which does not exist"),
    ],
)
def test_a_wrong_support_of_the_request_is_refused(studies: Path, support: Any, message: str) -> None:
    support = json.loads(json.dumps(support).replace("{studies}", str(studies)))
    with pytest.raises(ValueError, match=message):
        ask(studies, "a", support=support)


def test_a_further_root_may_be_allowed(studies: Path, tmp_path: Path) -> None:
    image = write(tmp_path / "shared" / "x.nii.gz", np.ones((12, 10, 9)))
    path = str(studies / "a.nii.gz")
    data = {"image": path, "image_path": path, "support": [{"image": str(image), "label": str(image)}]}
    assert len(FindSupportd("image", roots=[str(tmp_path / "shared")])(data)["support_scans"]) == 1


def test_in_the_server_a_refusal_is_http_409(studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class ServerError(Exception):
        def __init__(self, status_code: int, detail: str) -> None:
            super().__init__(f"{status_code} {detail}")

    monkeypatch.setattr(refusal, "HTTPException", ServerError)
    with pytest.raises(ServerError, match="409 No scan is annotated yet"):
        ask(studies, "a")


class Store:
    """The calls of a datastore that are used."""

    def __init__(self, studies: Path, infos: dict[str, Any]) -> None:
        self.studies, self.infos = studies, infos
        self.images: dict[str, dict[str, Any]] = {name: {} for name in ("a", "b", "c")}

    def datalist(self) -> list[dict[str, str]]:
        return []

    def list_images(self) -> list[str]:
        return list(self.images)

    def get_image_info(self, image: str) -> dict[str, Any]:
        return dict(self.images.get(image, {}))

    def update_image_info(self, image: str, info: dict[str, Any]) -> None:
        self.images[image].update(info)

    def get_labeled_images(self, tag: str) -> list[str]:
        return list(self.infos)

    def get_label_info(self, image: str, tag: str) -> Any:
        return self.infos[image]

    def get_label_uri(self, image: str, tag: str) -> str:
        return str(self.studies / "labels" / "final" / f"{image}.nii.gz")

    def get_image_uri(self, image: str) -> str:
        return str(self.studies / f"{image}.nii.gz")


@pytest.fixture
def store(studies: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A datastore in which Slicer named the segments of b, and of a nothing is known."""
    for name in ("a", "b"):
        submit(studies, name, finished())
    info = {"label_info": [{"name": "Tumor", "idx": 1}, {"name": "Spleen", "idx": 2}]}
    made = Store(studies, {"b": info, "a": {}, "gone": {}})
    app = type("App", (), {"datastore": lambda self: made})()
    monkeypatch.setattr(datastore, "app_instance", lambda: app)
    return made


def test_names_of_segments_go_before_the_values_of_the_file(studies: Path, store: Store) -> None:
    found = {names([entry])[0]: entry for entry in ask(studies, "c")}
    assert found["a"]["ids"] is None
    assert found["b"]["ids"] == {"1": known_organs()["structure_1"], "2": known_organs()["spleen"]}
    assert found["b"]["organs"] == {"tumor": known_organs()["structure_1"], "spleen": known_organs()["spleen"]}


def test_a_label_whose_file_is_gone_is_no_annotation(store: Store) -> None:
    assert [Path(a.image).name for a in submitted_annotations()] == ["a.nii.gz", "b.nii.gz"]
    assert [a.scan for a in submitted_annotations()] == ["a", "b"]


def rebuilt(read: Any, *, empty: Any) -> Any:
    """Let a datastore's list fail at the first call and be empty at the second: another thread fills it again."""
    calls = []

    def listed(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:
            raise KeyError("final")
        return empty if len(calls) == 2 else read(*args)

    return listed


def test_labels_are_found_while_the_datastore_is_rebuilt(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "get_labeled_images", rebuilt(store.get_labeled_images, empty=[]))
    assert [a.scan for a in submitted_annotations()] == ["a", "b"]


def test_entries_are_kept_while_the_datastore_is_rebuilt(
    studies: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.images["c"] = {"organ_entries": {"pancreas": 5}}
    store.infos = {"a": named("aorta")}
    monkeypatch.setattr(store, "list_images", rebuilt(store.list_images, empty=[]))
    monkeypatch.setattr(store, "update_image_info", rebuilt(store.update_image_info, empty=None))
    assert ids_of(studies) == {"a": {"1": 6}}
    assert store.images["a"] == {"organ_entries": {"aorta": 6}}


def test_the_scans_are_ranked_while_the_datastore_is_rebuilt(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "list_images", rebuilt(store.list_images, empty=[]))
    assert [Path(scan).name for scan in datastore.all_scans()] == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]


def named(*organs: str) -> dict[str, Any]:
    """What Slicer submits with a label of these segments."""
    return {"label_info": [{"name": name, "idx": idx} for idx, name in enumerate(organs, start=1)]}


def ids_of(studies: Path, query: str = "c") -> dict[str, dict[str, int]]:
    """The ids of the values in each annotated scan."""
    return {names([entry])[0]: entry["ids"] for entry in ask(studies, query)}


def test_scans_are_kept_encoded_beside_the_datastores_labels_only(studies: Path) -> None:
    label = submit(studies, "a", finished())
    assert ask(studies, "c")[0]["stored_in"] == str(studies / ".encoded")
    entry = {"image": str(studies / "a.nii.gz"), "label": str(studies / "b.nii.gz")}
    assert ask(studies, "c", support=entry)[0]["stored_in"] is None
    assert label.is_file()


def test_segments_of_a_dicom_segmentation_keep_their_names(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    segmentation = pydicom.Dataset()
    segmentation.SegmentSequence = [pydicom.Dataset(), pydicom.Dataset()]
    for number, name in enumerate(("Liver", "cyst"), start=1):
        segment = segmentation.SegmentSequence[number - 1]
        segment.SegmentNumber, segment.SegmentLabel = number, name
    segmentation.SOPClassUID, segmentation.SOPInstanceUID = pydicom.uid.SegmentationStorage, pydicom.uid.generate_uid()
    segmentation.file_meta = pydicom.dataset.FileMetaDataset()
    segmentation.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    pydicom.dcmwrite(tmp_path / "one.dcm", segmentation, enforce_file_format=True)
    assert datastore._names_of_segmentation(tmp_path) == {1: "Liver", 2: "cyst"}
    assert datastore._names_of_segmentation(tmp_path / "nothing") == {}


def test_an_organ_keeps_its_entry_when_others_come_before_it_in_the_alphabet(studies: Path, store: Store) -> None:
    store.infos = {"a": named("pancreas")}
    assert ids_of(studies) == {"a": {"1": 5}}
    store.infos = {"a": named("pancreas"), "b": named("aorta", "pancreas")}
    assert ids_of(studies) == {"a": {"1": 5}, "b": {"1": 6, "2": 5}}


def test_an_entry_is_remembered_in_the_datastore_when_its_label_is_gone(studies: Path, store: Store) -> None:
    store.infos = {"a": named("pancreas")}
    ids_of(studies)
    store.infos = {"b": named("aorta")}
    assert ids_of(studies) == {"b": {"1": 6}}
    assert store.images == {"a": {"organ_entries": {"pancreas": 5}}, "b": {"organ_entries": {"aorta": 6}}, "c": {}}


def test_a_mask_that_comes_back_under_the_entrys_name_is_the_same_organ(studies: Path, store: Store) -> None:
    store.infos = {"a": named("pancreas"), "b": named("structure_1")}
    ask(studies, "c")
    assert ids_of(studies) == {"a": {"1": 6}, "b": {"1": 5}}  # the name was taken before anything was remembered
    store.images = {"a": {"organ_entries": {"pancreas": 5}}, "b": {}, "c": {}}
    assert ids_of(studies) == {"a": {"1": 5}, "b": {"1": 5}}


def test_earlier_labels_take_entries_first(studies: Path, store: Store) -> None:
    store.infos = {"a": named("aorta") | {"ts": 20}, "b": named("pancreas") | {"ts": 10}}
    assert ids_of(studies) == {"a": {"1": 6}, "b": {"1": 5}}


def test_organs_beyond_the_spare_entries_are_listed(studies: Path, store: Store) -> None:
    organs = [f"organ {number}" for number in range(1, 15)]
    store.infos = {"a": named(*organs)}
    found = ask(studies, "c")[0]
    assert found["ids"] == {str(value): value + 4 for value in range(1, 13)}
    assert found["left_out"] == ["organ 13", "organ 14"]


@pytest.mark.parametrize("name", ["right_kidney", "Right Kidney", "right-kidney", " right kidney "])
def test_names_are_compared_without_case_and_signs(name: str) -> None:
    assert organ_name(name) == "right_kidney"


@pytest.mark.parametrize(
    ("name", "expected"), [("Segment_1", True), ("segment 12", True), ("Segment", True), ("segmental artery", False)]
)
def test_names_that_slicer_gives_are_known(name: str, expected: bool) -> None:
    assert is_default_name(name) is expected


def test_a_segment_without_a_name_of_its_own_is_said(studies: Path, store: Store) -> None:
    store.infos = {"a": named("Segment_1", "liver")}
    found = ask(studies, "c")[0]
    assert found["unnamed"] == ["Segment_1"]
    assert found["ids"] == {"1": 5, "2": 1}


def test_of_two_organs_that_remember_one_entry_the_first_keeps_it() -> None:
    given = merged_entries([{"pancreas": 5}, {"aorta": 5, "cyst": 6}])
    assert given == {"pancreas": 5, "cyst": 6}
    assert with_new_entries(given, ["aorta", "background", "", "liver"]) == {**given, "aorta": 7}


def test_all_scans_of_the_studies_train(studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [Path(scan["image"]).name for scan in unlabeled_scans(str(studies))] == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    monkeypatch.delenv("MONAI_LABEL_STUDIES")
    assert unlabeled_scans(None) == []
    assert submitted_annotations() == []


def test_the_support_travels_in_the_images_meta() -> None:
    data = {"image": MetaTensor(torch.zeros(1, 2, 2, 2)), "support_scans": [{"image": "a"}]}
    assert CarrySupportd("image")(data)["image"].meta["support"] == [{"image": "a"}]


REPORT = {
    "annotated": {"a b": "drawn: 3 of 9 slices"},
    "not_used": {},
    "left_out": {"a b": ["value 9"]},
    "renamed": {"5": "tumor", "4": "spleen"},
    "notices": [],
}


def test_the_answer_tells_scans_quality_and_voxels() -> None:
    scores = torch.full((2, 1, 1, 3), -1.0)
    scores[0, 0, 0, :2] = 2.0
    meta = {"organ_ids": torch.tensor([[4, 1]]), "explained": torch.tensor([[12.0]]), "support_report": REPORT}
    data = {"pred": MetaTensor(scores, meta=meta), "image_path": "q"}
    answer = AnswerOfScoresd("pred")(AssessScoresd("pred")(data))
    assert answer["result"]["support_used"] == ["a b"]
    assert answer["result"]["annotated"] == {"a b": "drawn: 3 of 9 slices"}
    assert answer["result"]["left_out"] == {"a b": ["value 9"]}
    assert answer["result"]["renamed"] == {"structure_1": "tumor"}
    assert "not_used" not in answer["result"]
    assert answer["result"]["quality"] == {"spleen": pytest.approx(0.8808, abs=1e-4), "liver": None}
    assert list(answer["result"]["notices"]) == ["liver"]
    answer["pred"] = torch.tensor([4, 4, 0])
    assert AnswerOfLabeld("pred")(answer)["result"]["voxels"] == {"spleen": 2, "liver": 0}


class Broken:
    """A query's preprocessing that fails, and support that cannot be read."""

    def read(self, files: Any) -> Any:
        raise ScanError("the label map is empty")


def asked_of_broken(**entry: Any) -> MetaTensor:
    return MetaTensor(torch.zeros(1, 1, 16, 16, 2), meta={"support": [{"image": __file__, "label": __file__} | entry]})


def test_what_is_wrong_with_a_submitted_label_reaches_the_client() -> None:
    with pytest.raises(ValueError, match=r"No annotated scan can be used: test_monai_label\.py: the label map is e"):
        AnsweringInferer(Broken())(asked_of_broken(), torch.nn.Identity())


def test_what_is_wrong_with_a_label_of_the_request_stops_it() -> None:
    with pytest.raises(ValueError, match="An annotated scan cannot be used: the label map is empty"):
        AnsweringInferer(Broken())(asked_of_broken(asked=True), torch.nn.Identity())


def failing(error: Exception) -> Any:
    def transform(data: Any) -> Any:
        raise error

    return transform


def test_what_is_wrong_with_the_scan_that_is_asked_for_reaches_the_client(studies: Path) -> None:
    path = str(studies / "a.nii.gz")
    broken = ExplainedTransforms([failing(EOFError("compressed file ended"))])
    with pytest.raises(ValueError, match=r"The scan cannot be segmented: .*a\.nii\.gz: the file cannot be read"):
        broken({"image": path, "image_path": path})
    with pytest.raises(EOFError):
        broken({"image": path})
    with pytest.raises(KeyError):  # a mistake of ours is none of the scan's
        ExplainedTransforms([failing(KeyError("x"))])({"image": path, "image_path": path})


def test_transforms_of_a_query_run_in_order() -> None:
    steps = [lambda data: data | {"image": data["image"] + 1}, lambda data: data | {"image": data["image"] * 10}]
    assert ExplainedTransforms(steps)({"image": 1}) == {"image": 20}


class Scans:
    """Reads scans of 16 x 16 x 6 with a bright block; each scan's block is less bright than the one's before it."""

    BRIGHT: ClassVar = {"a": 3.0, "b": 2.0, "c": 1.2}

    def __init__(self) -> None:
        self.read_names: list[str] = []

    def __len__(self) -> int:
        return 0

    def read(self, files: dict[str, str]) -> dict[str, torch.Tensor]:
        name = Path(files["image"]).name[0]
        self.read_names.append(name)
        volume = torch.full((1, 16, 16, 6), 0.5)
        volume[:, 4:10, 4:10] = self.BRIGHT[name]
        if "label" not in files:
            return {"image": volume}
        if not np.asarray(nibabel.load(files["label"]).dataobj).any():
            raise ValueError("the label map is empty")
        return {"image": volume, "label": (volume == self.BRIGHT[name]).float()}


class Squares(torch.nn.Module):
    """Encodes brightness as a direction."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([images[:, :1], images[:, :1] ** 2], dim=1)


@pytest.fixture
def ranking_inferer() -> AnsweringInferer:
    head = PrototypeHead(
        ForegroundPrototypes(1, 1, 0.5, 1), BackgroundPrototypes(2, 2, 0.5), TopKClassifier(1, scale=10.0)
    )
    return AnsweringInferer(Scans(), matching=SliceMatching(), head=head, reader=Scans())


def next_scan(studies: Path, inferer: AnsweringInferer, defaults: Sequence[Any] = ()) -> dict[str, Any]:
    """Ask as MONAI Label does; return the answer's JSON."""
    path = str(studies / "b.nii.gz")
    asked = FindSupportd("image", defaults)({"image": path, "image_path": path, "next_scan": True})
    carried = CarrySupportd("image")(asked | {"image": MetaTensor(torch.zeros(1, 16, 16, 2))})
    network = torch.nn.Module()
    network.encoder = Squares()
    scores = inferer(carried["image"][None], network)
    assert bool((scores < 0).all())  # an empty mask
    result: dict[str, Any] = AnswerOfScoresd("pred")(carried | {"pred": scores[0]})["result"]
    return result


def test_before_anything_is_annotated_the_next_scan_is_the_one_most_similar_to_all_others(
    studies: Path, ranking_inferer: AnsweringInferer
) -> None:
    answers = [next_scan(studies, ranking_inferer) for _ in range(2)]
    assert answers[0] == answers[1]
    assert answers[0]["ranked_by"] == "similarity"
    assert [entry["scan"] for entry in answers[0]["next_scan"]] == ["b", "a", "c"]  # b lies between the others
    assert ranking_inferer.ranker.reader.read_names == ["a", "b", "c"]  # each scan once


def test_then_the_next_scan_is_the_one_whose_mask_is_least_sure(
    studies: Path, ranking_inferer: AnsweringInferer
) -> None:
    submit(studies, "a", finished())
    answer = next_scan(studies, ranking_inferer)
    assert answer["ranked_by"] == "quality"
    assert [entry["scan"] for entry in answer["next_scan"]] == ["c", "b"]  # c is nearer to a's background
    low, high = (entry["score"] for entry in answer["next_scan"])
    assert 0 <= low < high < 1


def test_a_label_that_is_gone_and_a_scan_that_changed_are_noticed(
    studies: Path, ranking_inferer: AnsweringInferer
) -> None:
    label = submit(studies, "a", finished())
    next_scan(studies, ranking_inferer)
    label.unlink()
    os.utime(studies / "b.nii.gz", ns=(0, 0))
    assert len(next_scan(studies, ranking_inferer)["next_scan"]) == 3
    assert ranking_inferer.ranker.reader.read_names == ["b", "c", "a", "b"]
    assert len(ranking_inferer.ranker._glances) == 3


def test_when_every_scan_is_annotated_the_ranking_is_empty(studies: Path, ranking_inferer: AnsweringInferer) -> None:
    for name in ("a", "b", "c"):
        submit(studies, name, finished())
    assert next_scan(studies, ranking_inferer)["next_scan"] == []


def test_with_a_support_of_the_config_the_next_scan_is_ranked_by_quality(
    studies: Path, ranking_inferer: AnsweringInferer
) -> None:
    class OneScan(Scans):
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return self.read({"image": "a", "label": str(submit(studies.parent / "other", "a", finished()))})

    ranking_inferer.library.support = OneScan()
    answer = next_scan(studies, ranking_inferer, defaults=["given"])
    assert answer["ranked_by"] == "quality"
    assert [entry["scan"] for entry in answer["next_scan"]] == ["c", "b", "a"]


def test_a_bad_label_is_skipped_and_named_when_the_next_scan_is_asked_for(
    studies: Path, ranking_inferer: AnsweringInferer
) -> None:
    submit(studies, "a", finished())
    submit(studies, "b", np.zeros((12, 10, 9)))
    answer = next_scan(studies, ranking_inferer)
    assert [entry["scan"] for entry in answer["next_scan"]] == ["c", "b"]
    assert answer["not_used"] == {"b": "the label map is empty"}


def segmented(studies: Path, inferer: AnsweringInferer, query: str = "c", **request: Any) -> MetaTensor:
    """Scores of a request."""
    path = str(studies / f"{query}.nii.gz")
    found = FindSupportd("image")({"image": path, "image_path": path, **request})
    volume = MetaTensor(Scans().read({"image": path})["image"])
    network = torch.nn.Module()
    network.encoder = Squares()
    return inferer(CarrySupportd("image")(found | {"image": volume})["image"][None], network)


def test_a_bad_label_is_skipped_and_named(studies: Path, ranking_inferer: AnsweringInferer) -> None:
    submit(studies, "a", finished())
    submit(studies, "b", np.zeros((12, 10, 9)))
    report = segmented(studies, ranking_inferer).meta["support_report"]
    assert list(report["annotated"]) == ["a"]
    assert report["not_used"] == {"b": "the label map is empty"}


def test_the_only_finished_scan_is_told_to_ask_for_another(studies: Path, ranking_inferer: AnsweringInferer) -> None:
    submit(studies, "b", finished())
    with pytest.raises(ValueError, match=r"^This is the only annotated scan, and it is finished"):
        segmented(studies, ranking_inferer, "b", annotated="all")


def test_a_finished_label_of_the_scan_itself_is_never_its_support(
    studies: Path, ranking_inferer: AnsweringInferer
) -> None:
    for name in ("a", "b"):
        submit(studies, name, finished())
    report = segmented(studies, ranking_inferer, "b", annotated="all").meta["support_report"]
    assert report["annotated"] == {"a": "all: 6 of 6 slices"}
    assert report["not_used"] == {"b": "its own label is finished, and the mask would only repeat it"}


def test_values_without_a_name_are_listed(studies: Path, store: Store, ranking_inferer: AnsweringInferer) -> None:
    store.infos = {"a": named("liver"), "b": {"label_info": [{"name": "liver", "idx": 7}]}}
    report = segmented(studies, ranking_inferer).meta["support_report"]
    assert list(report["annotated"]) == ["a"]
    assert report["not_used"] == {
        "b": "its label map shows no organ that has a name here. Name its segments, or annotate one."
    }


def test_the_state_of_an_inferer_is_not_what_a_server_logs(studies: Path, ranking_inferer: AnsweringInferer) -> None:
    """MONAI Label logs ``__dict__`` of the inferer with each request."""
    submit(studies, "a", finished())
    segmented(studies, ranking_inferer)
    next_scan(studies, ranking_inferer)
    logged = str({key: value for key, value in vars(ranking_inferer).items() if key != "head"})
    assert "tensor" not in logged
    assert len(logged) < 2000


def test_names_of_a_submitted_label_count_when_the_next_scan_is_asked_for(studies: Path, store: Store) -> None:
    store.infos = {"a": named("spleen", "tumor")}
    path = str(studies / "b.nii.gz")
    asked = FindSupportd("image")({"image": path, "image_path": path, "next_scan": True})
    assert [entry["ids"] for entry in asked["support_scans"]] == [{"1": 4, "2": 5}]
    assert not asked["support_scans"][0].get("own")


def test_after_training_every_scan_is_looked_at_anew(studies: Path, ranking_inferer: AnsweringInferer) -> None:
    network = torch.nn.Module()
    network.encoder = torch.nn.Conv2d(3, 2, 1)
    scans = [str(studies / f"{name}.nii.gz") for name in "ab"]
    rank = ranking_inferer.ranker.rank
    rank(network, torch.device("cpu"), scans)
    with torch.no_grad():
        network.encoder.weight.add_(1)
    rank(network, torch.device("cpu"), scans)
    assert ranking_inferer.ranker.reader.read_names == ["a", "b", "a", "b"]


def test_an_annotated_scan_is_left_out_under_whatever_name_it_is_asked_for(
    studies: Path, ranking_inferer: AnsweringInferer, tmp_path: Path
) -> None:
    label = submit(studies, "a", finished())
    (tmp_path / "link").symlink_to(studies)
    network = torch.nn.Module()
    network.encoder = Squares()
    support = [{"image": str(tmp_path / "link" / "a.nii.gz"), "label": str(label)}]
    scans = [str(studies / f"{name}.nii.gz") for name in "ab"]
    ranking = ranking_inferer.ranker.rank(network, torch.device("cpu"), scans, support)
    assert [name for name, _ in ranking.scans] == ["b"]


def test_a_scan_that_cannot_be_read_does_not_stop_the_ranking(
    studies: Path, ranking_inferer: AnsweringInferer, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Scans.read

    def read_all_but_b(scans: Scans, files: dict[str, str]) -> dict[str, torch.Tensor]:
        if Path(files["image"]).name == "b.nii.gz":
            raise ScanError("b.nii.gz: the file cannot be read")
        return read(scans, files)

    monkeypatch.setattr(Scans, "read", read_all_but_b)
    answer = next_scan(studies, ranking_inferer)
    assert sorted(entry["scan"] for entry in answer["next_scan"]) == ["a", "c"]
    assert answer["not_ranked"] == ["b.nii.gz: the file cannot be read"]


def test_an_annotated_scan_that_is_gone_is_said(studies: Path, ranking_inferer: AnsweringInferer) -> None:
    entry = {"image": str(studies / "gone.nii.gz"), "label": str(studies / "gone.nii.gz")}
    meta = {"next_scan": {"scans": [], "has_support": False}, "support": [entry]}
    network = torch.nn.Module()
    network.encoder = Squares()
    scores = ranking_inferer(MetaTensor(torch.zeros(1, 1, 16, 16, 2), meta=meta), network)
    assert "gone.nii.gz" in scores.meta["support_report"]["not_used"]["gone"]


def test_the_ranker_gets_the_parts_of_an_organ() -> None:
    assert AnsweringInferer([], reader=Scans(), num_components=2).ranker.num_components == 2


@pytest.mark.parametrize("dataset_dir", [None, "scans"])
def test_the_servers_training_has_settings_of_its_own(
    dataset_dir: str | None, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, server = {"learning_rate": 1}, {"learning_rate": 2}
    expected = {"learning_rate": 2, "studies": str(studies)} if dataset_dir is None else alone | {"studies": None}
    assert training_mode(dataset_dir, alone, server) == expected
    monkeypatch.delenv("MONAI_LABEL_STUDIES")
    assert training_mode(dataset_dir, alone, server) == alone | {"studies": None}
