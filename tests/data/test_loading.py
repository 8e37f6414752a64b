"""A scan that cannot be used is named, with the reason, and the others go on."""

from __future__ import annotations

import gzip
import traceback
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from bundle.data import ScanReader
from bundle.data.loading import ScanDataset, ScanError, SupportPixel, read_scan, report_problems, usable_scans
from bundle.transforms import CheckVolumed
from monai.transforms import Compose, EnsureChannelFirstd, Lambdad, LoadImaged
from nibabel.filebasedimages import ImageFileError
from tests.data.scans import noise_volume, write_nifti

LOAD = Compose(
    [LoadImaged(keys="image", reader=ScanReader), EnsureChannelFirstd(keys="image"), CheckVolumed(keys="image")]
)


def truncated(path: Path) -> Path:
    content = write_nifti(path, noise_volume()).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def renamed_text(path: Path) -> Path:
    path.write_text("patient 7, second visit: see the other folder\n" * 20, encoding="utf-8")
    return path


def gzipped_text(path: Path) -> Path:
    path.write_bytes(gzip.compress(b"patient 7, second visit: see the other folder\n" * 20))
    return path


def with_nan(path: Path) -> Path:
    volume = noise_volume().astype(np.float32)
    volume[3, 2, 1] = np.nan
    return write_nifti(path, volume)


def test_a_good_scan_is_what_the_transform_gives(tmp_path: Path) -> None:
    volume = noise_volume()
    path = write_nifti(tmp_path / "scan.nii.gz", volume)
    np.testing.assert_array_equal(np.asarray(read_scan({"image": str(path)}, LOAD)["image"])[0], volume)


@pytest.mark.parametrize("key", ["image", "label"])
def test_a_missing_file_is_named_with_what_it_should_be(tmp_path: Path, key: str) -> None:
    scan = {name: str(write_nifti(tmp_path / f"{name}.nii.gz", noise_volume())) for name in ("image", "label")}
    scan[key] = str(tmp_path / "gone.nii.gz")
    with pytest.raises(ScanError, match=rf"^\S*gone\.nii\.gz: there is no such {key} file"):
        read_scan(scan, LOAD)


@pytest.mark.parametrize("damage", [truncated, renamed_text, gzipped_text])
def test_a_damaged_file_is_named_with_the_advice_to_copy_it_again(tmp_path: Path, damage: Any) -> None:
    path = damage(tmp_path / "scan_7.nii.gz")
    with pytest.raises(ScanError, match=r"^\S*scan_7\.nii\.gz: the file cannot be read .* copy it again"):
        read_scan({"image": str(path)}, LOAD)


@pytest.mark.parametrize("kind", [OSError, EOFError, zlib.error, ImageFileError])
@pytest.mark.parametrize("wrap", [lambda raising: raising, lambda raising: Compose([raising])])
def test_what_readers_raise_over_a_damaged_file_is_told_with_its_kind(tmp_path: Path, kind: Any, wrap: Any) -> None:
    def raising(_: Any) -> None:
        raise kind("unexpected end")

    path = write_nifti(tmp_path / "scan.nii.gz", noise_volume())
    with pytest.raises(ScanError, match=rf"scan\.nii\.gz: the file cannot be read \({kind.__name__}: unexpected end\)"):
        read_scan({"image": str(path)}, wrap(raising))


def test_the_reason_of_a_transform_is_not_buried_in_the_wrapping_of_compose(tmp_path: Path) -> None:
    path = with_nan(tmp_path / "scan_7.nii.gz")
    with pytest.raises(ScanError) as caught:
        read_scan({"image": str(path)}, LOAD)
    assert str(caught.value) == f"{path}: every voxel must be a finite number, got 1 NaN or inf. Repair the file."


def test_a_mistake_in_a_transform_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "scan.nii.gz", noise_volume())
    with pytest.raises(RuntimeError, match="applying transform") as caught:
        read_scan({"image": str(path)}, Compose([Lambdad(keys="image", func=lambda _: len(3))]))  # type: ignore[arg-type]
    assert "has no len" in "".join(traceback.format_exception(caught.value))


def test_the_scan_that_was_given_is_not_changed(tmp_path: Path) -> None:
    scan = {"image": str(write_nifti(tmp_path / "scan.nii.gz", noise_volume()))}
    read_scan(scan, Lambdad(keys="image", func=len, overwrite=True))
    assert scan == {"image": str(tmp_path / "scan.nii.gz")}


def test_a_data_set_reads_the_scan_that_is_asked_for(tmp_path: Path) -> None:
    scans = [{"image": str(write_nifti(tmp_path / f"{n}.nii.gz", noise_volume(n)))} for n in range(3)]
    dataset = ScanDataset(scans, LOAD)
    assert len(dataset) == 3
    np.testing.assert_array_equal(np.asarray(dataset[2]["image"])[0], noise_volume(2))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_scan_is_reported_by_name_and_the_others_are_kept(tmp_path: Path, num_workers: int) -> None:
    good = [{"image": str(write_nifti(tmp_path / f"good_{n}.nii.gz", noise_volume(n)))} for n in range(2)]
    bad = {"image": str(truncated(tmp_path / "bad.nii.gz"))}
    usable, problems = usable_scans([good[0], bad, good[1]], LOAD, num_workers=num_workers)
    assert usable == good
    assert len(problems) == 1
    assert problems[0].startswith(f"{tmp_path / 'bad.nii.gz'}: the file cannot be read")


def test_scans_without_fault_give_no_problem(tmp_path: Path) -> None:
    scans = [{"image": str(write_nifti(tmp_path / "good.nii.gz", noise_volume()))}]
    assert usable_scans(scans, LOAD, num_workers=0) == (scans, [])


def test_a_data_set_that_checks_its_scans_leaves_out_the_broken_ones_and_says_so(tmp_path: Path) -> None:
    good = [{"image": str(write_nifti(tmp_path / f"good_{n}.nii.gz", noise_volume(n)))} for n in range(2)]
    bad = {"image": str(truncated(tmp_path / "bad.nii.gz"))}
    dataset = ScanDataset(lambda: [good[0], bad, good[1]], LOAD, check=LOAD)
    assert len(dataset) == 2
    np.testing.assert_array_equal(np.asarray(dataset[1]["image"])[0], noise_volume(1))
    assert [problem.split(": ")[0] for problem in dataset.problems] == [str(tmp_path / "bad.nii.gz")]


def test_a_broken_label_map_is_named_itself(tmp_path: Path) -> None:
    scan = {"image": str(write_nifti(tmp_path / "image.nii.gz", noise_volume()))}
    scan["label"] = str(truncated(tmp_path / "label.nii.gz"))
    with pytest.raises(ScanError, match=r"^\S*label\.nii\.gz: the file cannot be read"):
        read_scan(scan, LoadImaged(["image", "label"], reader=ScanReader))


def test_a_folder_with_the_name_of_a_scan_is_named(tmp_path: Path) -> None:
    (tmp_path / "scan.nii").mkdir()
    with pytest.raises(ScanError, match=r"scan\.nii: this is a folder, not a file\. Rename it"):
        read_scan({"image": str(tmp_path / "scan.nii")}, LOAD)


def test_problems_are_all_listed_at_the_end() -> None:
    with pytest.raises(
        ScanError, match=r"2 scans could not be used; all others are finished:\n  a: broken\n  b: empty"
    ):
        report_problems(["a: broken", "b: empty"])


def test_a_single_problem_is_one_scan() -> None:
    with pytest.raises(ScanError, match=r"^1 scan could not be used"):
        report_problems(["a: broken"])


def test_no_problem_raises_nothing() -> None:
    report_problems([])


# --- the pixels of the annotated scans ------------------------------------------------------------------------------


def annotated(folder: Path, pixel: float) -> dict[str, str]:
    path = folder / f"pixel_{pixel}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(noise_volume(), np.diag([pixel, pixel, 5.0, 1.0])), path)
    return {"image": str(path), "label": str(path)}


def test_the_pixel_of_several_annotated_scans_is_their_median(tmp_path: Path) -> None:
    scans = [annotated(tmp_path, pixel) for pixel in (0.75, 3.0, 1.25)]
    assert SupportPixel(ScanDataset(scans, LOAD))({}) == pytest.approx(1.25)


def test_a_scan_with_annotated_scans_of_its_own_has_their_pixel(tmp_path: Path) -> None:
    of_config, own = annotated(tmp_path, 0.75), annotated(tmp_path, 3.0)
    assert SupportPixel(ScanDataset([of_config], LOAD))({"support_scans": [own]}) == pytest.approx(3.0)


def test_there_is_no_pixel_without_an_image_that_can_be_read(tmp_path: Path) -> None:
    missing = {"image": str(tmp_path / "gone.nii.gz"), "label": str(tmp_path / "gone.nii.gz")}
    assert SupportPixel(ScanDataset([], LOAD))({}) is None
    assert SupportPixel(ScanDataset([missing], LOAD))({}) is None


def test_where_no_scan_is_annotated_there_is_no_pixel_size_to_take() -> None:
    """A ranking of scans that begins with none."""

    def nothing() -> list[dict[str, str]]:
        raise ValueError("no annotated scan was given")

    assert SupportPixel(ScanDataset(nothing, LOAD))({}) is None
