"""Who trains, who is the support, who is a query."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle.data.names import scan_name
from bundle.data.scans import Split, dataset_name, files_of, find_scans, find_support, fold_of, list_scans, open_split
from tests.golden_data import golden_json

IDS = {"CHAOST2": [1, 2, 3, 5, 8, 10, 13, 15, 19, 20, 21, 22, 31, 32, 33, 34, 36, 37, 38, 39], "SABS": list(range(30))}
GOLDEN_FOLDS = [
    (dataset, shots, fold)
    for dataset, folds in golden_json("eval_protocol.json")["folds"].items()
    for shots in (1, 2)
    for fold in range(5)
    if f"nsup{shots}_fold{fold}" in folds
]


def make_study(folder: Path, images: list[str], labels: list[str]) -> Path:
    """Listing never opens a file, so empty ones do."""
    for part, names in (("images", images), ("labels", labels)):
        (folder / part).mkdir(parents=True)
        for name in names:
            (folder / part / f"{name}.nii.gz").touch()
    return folder


def names(scans: list[dict[str, Any]], key: str = "image") -> list[str]:
    return [scan_name(scan[key]) for scan in scans]


@pytest.mark.parametrize(("dataset", "shots", "fold"), GOLDEN_FOLDS)
def test_folds_are_those_of_the_authors(dataset: str, shots: int, fold: int) -> None:
    golden = golden_json("eval_protocol.json")["folds"][dataset][f"nsup{shots}_fold{fold}"]
    queries, support = fold_of([{"image": str(number)} for number in IDS[dataset]], fold, shots=shots)
    assert [scan["image"] for scan in [*queries, *support]] == golden["val_list"]
    assert [scan["image"] for scan in support] == golden["support_candidates"]


@pytest.mark.parametrize("count", [5, 7, 20, 23])
def test_every_scan_is_a_query_of_exactly_one_fold(count: int) -> None:
    scans = [{"image": str(number)} for number in range(count)]
    queries = [scan["image"] for fold in range(5) for scan in fold_of(scans, fold)[0]]
    assert queries == [scan["image"] for scan in scans]


def test_a_fold_of_an_open_study_trains_on_none_that_it_holds_out(tmp_path: Path) -> None:
    annotated = [f"scan_{number}" for number in range(10)]
    study = open_split(make_study(tmp_path / "study", [*annotated, "extra_77"], annotated), tmp_path, fold=1)
    assert names(study.queries) == ["scan_2", "scan_3"]
    assert names(study.support) == ["scan_4"]
    assert names(study.training) == [f"scan_{number}" for number in (0, 1, 5, 6, 7, 8, 9)] + ["extra_77"]


@pytest.mark.parametrize("fold", [None, 2])
def test_training_scans_never_carry_labels(tmp_path: Path, fold: int | None) -> None:
    annotated = [f"scan_{number}" for number in range(6)]
    study = open_split(make_study(tmp_path / "study", [*annotated, "scan_8"], annotated), tmp_path, fold=fold)
    assert study.training
    assert all(set(scan) == {"image"} for scan in study.training)


def test_without_a_fold_the_unlabeled_train_and_the_first_annotated_is_the_support(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", ["p1", "p2", "p3", "p4", "p5"], ["p2", "p4", "p5"])
    study = open_split(folder, tmp_path)
    assert (names(study.training), names(study.support), names(study.queries)) == (["p1", "p3"], ["p2"], ["p4", "p5"])


def test_support_and_queries_carry_the_label_of_their_own_name(tmp_path: Path) -> None:
    study = open_split(make_study(tmp_path / "study", ["p1", "p2", "p3"], ["p2", "p3"]), tmp_path)
    assert names([*study.support, *study.queries], "label") == ["p2", "p3"]
    assert {Path(scan["label"]).parent.name for scan in [*study.support, *study.queries]} == {"labels"}


def test_without_data_a_phantom_study_is_opened(tmp_path: Path) -> None:
    phantom = {"unlabeled": 1, "labeled": 2, "size": (20, 24, 4)}
    study = open_split(None, tmp_path / "phantom", phantom=phantom)
    assert [len(part) for part in (study.training, study.support, study.queries)] == [1, 1, 1]


def test_scan_2_comes_before_scan_10(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", ["scan_10", "scan_2", "scan_1"], [])
    assert names(list_scans(folder)) == ["scan_1", "scan_2", "scan_10"]


def test_hidden_files_and_other_files_are_no_scans(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", ["scan_1", "._scan_1"], [])
    (folder / "images" / "notes.txt").touch()
    assert names(list_scans(folder)) == ["scan_1"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"dataset_dir .*nowhere does not exist"):
        open_split(tmp_path / "nowhere", tmp_path)


def test_an_empty_folder_says_where_scans_go(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no scan\. Put scans into .*images"):
        open_split(tmp_path / "study", tmp_path)


def test_a_label_without_an_image_is_named(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", ["scan_1", "scan_2"], ["scan_1", "scan_02"])
    with pytest.raises(ValueError, match=r"1 of .*labels have none: scan_02"):
        open_split(folder, tmp_path)


def test_if_all_are_annotated_a_fold_is_asked_for(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", ["scan_1", "scan_2"], ["scan_1", "scan_2"])
    with pytest.raises(ValueError, match=r"all 2 scans .* have labels.* Set fold \(0 to 4\)"):
        open_split(folder, tmp_path)


def test_several_scans_can_be_the_support(tmp_path: Path) -> None:
    annotated = [f"scan_{number}" for number in range(10)]
    folder = make_study(tmp_path / "study", [*annotated, "extra_77"], annotated)
    study = open_split(folder, tmp_path, fold=4, support_scans=3)
    assert names(study.support) == ["scan_0", "scan_1", "scan_2"]
    assert names(study.queries) == ["scan_8", "scan_9"]
    assert names(study.training) == ["scan_3", "scan_4", "scan_5", "scan_6", "scan_7", "extra_77"]
    study = open_split(folder, tmp_path, support_scans=4)
    assert (names(study.support), len(study.queries)) == ([f"scan_{number}" for number in range(4)], 6)


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "2"])
def test_a_number_of_support_scans_that_is_none_is_refused(tmp_path: Path, number: Any) -> None:
    with pytest.raises(ValueError, match="support_scans must be a whole number, at least 1"):
        open_split(tmp_path, tmp_path, support_scans=number)


def test_support_scans_that_leave_none_to_train_on_are_refused() -> None:
    with pytest.raises(ValueError, match="8 support scans and 2 queries leave none of the 10 annotated scans"):
        fold_of([{"image": str(number)} for number in range(10)], 0, shots=8)


@pytest.mark.parametrize("fold", [-1, 5, 1.0, "1", True])
def test_a_fold_that_does_not_exist_is_refused(fold: Any) -> None:
    with pytest.raises(ValueError, match="fold must be a whole number from 0 to 4"):
        fold_of([{"image": str(number)} for number in range(20)], fold)


def test_fewer_annotated_scans_than_folds_are_refused() -> None:
    with pytest.raises(ValueError, match="5 folds need at least as many annotated scans, got 4"):
        fold_of([{"image": str(number)} for number in range(4)], 0)


def test_a_support_folder_gives_each_image_with_its_label(tmp_path: Path) -> None:
    support = find_support(make_study(tmp_path / "support", ["b_2", "a_10"], ["a_10", "b_2"]))
    assert (names(support), names(support, "label")) == (["b_2", "a_10"], ["b_2", "a_10"])


@pytest.mark.parametrize(("labels", "dataset_dir"), [(["scan_1"], "elsewhere"), ([], None)])
def test_a_support_image_without_a_matching_label_is_named(
    labels: list[str], dataset_dir: str | None, tmp_path: Path
) -> None:
    folder = make_study(tmp_path / "support", ["scan_1", "scan_2"], labels)
    with pytest.raises(ValueError, match=r"every support image needs a label map .* none for .*scan_2\.nii\.gz"):
        find_support(folder, dataset_dir=dataset_dir)


@pytest.mark.parametrize("key", ["support_dir", "dataset_dir", "both"])
def test_a_partly_labeled_folder_is_support_and_scans_to_segment(key: str, tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", ["scan_1", "scan_2", "scan_3"], ["scan_2"])
    keys = {name: folder for name in ("support_dir", "dataset_dir") if key in (name, "both")}
    support = find_support(**keys)
    assert pairs(support) == [("scan_2.nii.gz", "scan_2.nii.gz")]
    assert names(find_scans(keys.get("dataset_dir"), support, support_dir=keys.get("support_dir"))) == [
        "scan_1",
        "scan_3",
    ]


def test_files_that_are_named_go_before_the_labels_of_the_folder(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", ["scan_1", "scan_2"], ["scan_2"])
    image, label = empty_files(tmp_path, "a.nii", "la.nii")
    support = find_support(support_image=image, support_label=label, dataset_dir=folder)
    assert names(support) == ["a"]
    assert names(find_scans(folder, support)) == ["scan_1", "scan_2"]
    assert find_support(prototypes="kept.safetensors", dataset_dir=folder) == []


def test_without_labels_a_ranking_has_no_support(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").touch()
    assert find_support(dataset_dir=tmp_path, needed=False) == []


def empty_files(folder: Path, *names: str) -> list[str]:
    for name in names:
        (folder / name).touch()
    return [str(folder / name) for name in names]


def test_support_files_are_paired_in_their_order(tmp_path: Path) -> None:
    a, b, label_a, label_b = empty_files(tmp_path, "a.nii", "b.nii", "la.nii", "lb.nii")
    support = find_support(support_image=[a, b], support_label=[label_a, label_b])
    assert support == [{"image": a, "label": label_a}, {"image": b, "label": label_b}]


def test_one_support_file_needs_no_list(tmp_path: Path) -> None:
    image, label = empty_files(tmp_path, "a.nii", "la.nii")
    assert find_support(support_image=image, support_label=label) == [{"image": image, "label": label}]


@pytest.mark.parametrize(("image", "label"), [("gone.nii", "la.nii"), ("la.nii", "gone.nii")])
def test_a_support_file_that_is_missing_is_named(image: str, label: str, tmp_path: Path) -> None:
    empty_files(tmp_path, "la.nii")
    kind = "image" if image == "gone.nii" else "label"
    with pytest.raises(ValueError, match=rf"gone\.nii: there is no such {kind} file\. Check the path\."):
        find_support(support_image=str(tmp_path / image), support_label=str(tmp_path / label))


def test_support_images_and_labels_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="got 2 images and 1 labels"):
        find_support(support_image=["a.nii", "b.nii"], support_label="la.nii")


@pytest.mark.parametrize("default", [None, lambda: Split([{"image": "a"}], [], [])])
def test_no_support_at_all_is_refused(default: Callable[[], Split] | None) -> None:
    with pytest.raises(ValueError, match=r"no annotated scan was given\. Set support_dir"):
        find_support(default=default)


def test_if_nothing_is_given_support_and_scans_are_those_of_the_default() -> None:
    study = Split([], [{"image": "s", "label": "ls"}], [{"image": "q", "label": "lq"}])
    assert find_support(default=lambda: study) == [{"image": "s", "label": "ls"}]
    assert find_scans(None, study.support, default=lambda: study) == [{"image": "q"}]


def test_the_support_is_not_segmented_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_study(tmp_path / "study", ["scan_1", "scan_2", "scan_10"], ["scan_2"])
    monkeypatch.chdir(tmp_path)
    support = [{"image": "study/images/../images/scan_2.nii.gz", "label": "study/labels/scan_2.nii.gz"}]
    assert names(find_scans(folder, support)) == ["scan_1", "scan_10"]


def test_a_folder_without_images_is_itself_the_folder_of_scans(tmp_path: Path) -> None:
    for name in ("b.nii", "a.nii.gz", "readme.md"):
        (tmp_path / name).touch()
    assert find_scans(tmp_path, []) == [{"image": str(tmp_path / "a.nii.gz")}, {"image": str(tmp_path / "b.nii")}]


def test_a_folder_of_nothing_but_the_support_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scan.nii").touch()
    with pytest.raises(FileNotFoundError, match="holds no scan to segment besides the support"):
        find_scans(tmp_path, [{"image": str(tmp_path / "scan.nii"), "label": "label.nii"}])


def test_scans_in_a_folder_that_does_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        find_scans(tmp_path / "nowhere", [])


def test_two_files_of_one_scan_are_not_dropped_in_silence(tmp_path: Path) -> None:
    for name in ("scan_1.nii", "scan_1.nii.gz"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="scan_1"):
        find_scans(tmp_path, [])


@pytest.mark.parametrize(
    ("file", "name"), [("a/b.c.nii.gz", "b.c"), ("x.NII.GZ", "x"), ("y.nrrd", "y"), ("z.txt", "z.txt")]
)
def test_a_scan_is_called_like_its_file_without_the_suffix(file: str, name: str) -> None:
    assert scan_name(file) == name


def test_a_support_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="support must be support_dir or support_image, got both"):
        find_support(support_dir=tmp_path, support_image="a.nii.gz", support_label="b.nii.gz")


def test_an_empty_split_looks_for_no_scan(tmp_path: Path) -> None:
    assert open_split(None, tmp_path / "phantom", empty=True) == Split([], [], [])
    assert not (tmp_path / "phantom").exists()


def test_phantoms_say_nothing_about_a_users_scans(tmp_path: Path) -> None:
    split = Split([], [{"image": "s", "label": "ls"}], [])
    with pytest.raises(ValueError, match="no annotated scan was given"):
        find_support(default=lambda: split, dataset_dir=tmp_path)


def test_with_prototypes_no_annotated_scan_is_needed() -> None:
    assert find_support(prototypes="kept.safetensors", default=lambda: pytest.fail("asked")) == []


@pytest.mark.parametrize(("folder", "name"), [(None, "phantoms"), ("some/where/scans", "scans"), ("scans/", "scans")])
def test_tables_name_the_folder_of_the_scans(folder: str | None, name: str) -> None:
    assert dataset_name(folder) == name


def test_the_files_of_scans_are_images_and_label_maps() -> None:
    assert files_of([{"image": "a", "label": "b"}, {"image": "c"}]) == ["a", "b", "c"]


# --- what others left behind -----------------------------------------------------------------------------------


def touched(folder: Path, *files: str) -> Path:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return folder


def pairs(scans: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(Path(scan["image"]).name, Path(scan.get("label", "none")).name) for scan in scans]


def test_one_file_is_a_folder_of_one_scan(tmp_path: Path) -> None:
    touched(tmp_path, "a.nii.gz", "b.nii.gz")
    assert names(find_scans(tmp_path / "a.nii.gz", [])) == ["a"]


def test_nnunets_folders_are_read_as_they_are(tmp_path: Path) -> None:
    images = [f"imagesTr/liver_{scan}_000{channel}.nii.gz" for scan in ("007", "010", "002") for channel in (1, 0)]
    folder = touched(tmp_path, *images, "labelsTr/liver_010.nii.gz", "labelsTr/liver_002.nii.gz")
    assert pairs(list_scans(folder)) == [
        ("liver_002_0000.nii.gz", "liver_002.nii.gz"),
        ("liver_007_0000.nii.gz", "none"),
        ("liver_010_0000.nii.gz", "liver_010.nii.gz"),
    ]


def test_of_several_channels_of_a_test_scan_the_first_is_segmented(tmp_path: Path) -> None:
    folder = touched(tmp_path / "imagesTs", "a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz")
    assert names(find_scans(folder, [])) == ["a_0000", "b_0000"]


def test_channels_are_known_by_the_names_of_the_labels(tmp_path: Path) -> None:
    folder = touched(tmp_path, "images/p1_0000.nii.gz", "images/p1_0001.nii.gz", "labels/p1.nii.gz")
    assert pairs(list_scans(folder)) == [("p1_0000.nii.gz", "p1.nii.gz")]


def test_four_digits_of_a_scans_own_name_are_no_channel(tmp_path: Path) -> None:
    folder = touched(tmp_path / "mine", "images/btcv_0001.nii.gz", "images/btcv_0002.nii.gz", "labels/btcv_0002.nii.gz")
    assert pairs(list_scans(folder)) == [("btcv_0001.nii.gz", "none"), ("btcv_0002.nii.gz", "btcv_0002.nii.gz")]
    plain = touched(tmp_path / "plain", "btcv_0001.nii.gz", "btcv_0002.nii.gz")
    assert names(find_scans(plain, [])) == ["btcv_0001", "btcv_0002"]


def test_slicers_segmentations_are_label_maps_and_never_scans(tmp_path: Path) -> None:
    folder = touched(tmp_path / "set", "images/c1.nii.gz", "images/c1.seg.nrrd", "labels/c1.seg.nrrd")
    assert pairs(list_scans(folder)) == [("c1.nii.gz", "c1.seg.nrrd")]
    assert names(find_scans(folder / "images", [])) == ["c1"]
