"""Go the annotator's road with the scans in a DICOM archive: Orthanc with its DICOMweb plugin on 127.0.0.1.

    python dicom.py

Run it with the interpreter of ``environment.sh``; Debian's packages orthanc and orthanc-dicomweb must be installed, and
dcmqi's ``itkimage2segimage``, with which MONAI Label makes a segmentation of a submitted label, on the path.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import requests
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.monai_label.server import MODEL, Server, claim, failures, read, voxels_of  # noqa: E402

ORTHANC = "/usr/sbin/Orthanc"
PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"


def start_archive(work: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start an empty archive; return its process and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "StorageDirectory": str(work / "archive"), "IndexDirectory": str(work / "archive"), "HttpPort": port,
        "DicomServerEnabled": False, "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "Plugins": [PLUGIN],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip
    (work / "orthanc.json").write_text(json.dumps(settings))
    log = (work / "orthanc.log").open("w")
    process = subprocess.Popen([ORTHANC, str(work / "orthanc.json")], stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    for _ in range(60):
        try:
            requests.get(f"{url}/system", timeout=5).raise_for_status()
            break
        except requests.ConnectionError:
            time.sleep(1)
    return process, url


def slices_of(path: Path, name: str) -> list[Dataset]:
    """Turn a scan into the slices of a CT series: each lies where it lies in the NIfTI file."""
    scan = nibabel.load(path)
    values = np.asarray(scan.dataobj).astype(np.int16)
    affine = np.diag([-1, -1, 1, 1]) @ scan.affine  # left, posterior, superior
    columns, rows = (affine[:3, axis] for axis in (0, 1))
    mm = [float(np.linalg.norm(affine[:3, axis])) for axis in range(3)]
    study, series = generate_uid(), generate_uid()
    found = []
    for z in range(values.shape[2]):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
        one = Dataset()
        one.file_meta = meta
        one.is_little_endian, one.is_implicit_VR = True, False
        one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, generate_uid()
        meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, study
        one.PatientName = one.PatientID = one.StudyID = name
        one.Modality, one.SeriesNumber, one.InstanceNumber = "CT", 1, z + 1
        one.StudyDate, one.StudyTime, one.AccessionNumber, one.ReferringPhysicianName = "20200101", "120000", "", ""
        one.PatientBirthDate, one.PatientSex = "", ""
        one.Rows, one.Columns = values.shape[1], values.shape[0]
        one.PixelSpacing, one.SliceThickness = [mm[1], mm[0]], mm[2]
        one.ImageOrientationPatient = [*(columns / mm[0]), *(rows / mm[1])]
        one.ImagePositionPatient = [float(v) for v in affine[:3, :3] @ (0, 0, z) + affine[:3, 3]]
        one.SamplesPerPixel, one.PhotometricInterpretation, one.PixelRepresentation = 1, "MONOCHROME2", 1
        one.BitsAllocated, one.BitsStored, one.HighBit = 16, 16, 15
        one.RescaleIntercept, one.RescaleSlope = 0, 1
        one.PixelData = np.ascontiguousarray(values[..., z].T).tobytes()
        found.append(one)
    return found


def as_the_archive_gives_it(path: Path, folder: Path) -> Path:
    """Write a label map with its slices in the order in which MONAI Label converts a series: from the head down."""
    label = nibabel.load(path)
    values = np.asarray(label.dataobj)[..., ::-1]
    affine = label.affine.copy()
    affine[:3, 3] += affine[:3, 2] * (values.shape[2] - 1)
    affine[:3, 2] *= -1
    nibabel.save(nibabel.Nifti1Image(values, affine), folder / "submitted.nii.gz")
    return folder / "submitted.nii.gz"


def fill(url: str, scans: list[Path], work: Path) -> list[str]:
    """Upload scans; return the ids of their series."""
    series = []
    for path in scans:
        slices = slices_of(path, path.name.split(".")[0])
        for one in slices:
            one.save_as(work / "slice.dcm", write_like_original=False)
            requests.post(f"{url}/instances", data=(work / "slice.dcm").read_bytes(), timeout=60).raise_for_status()
        series.append(str(slices[0].SeriesInstanceUID))
    return series


def check_archive(server: Server, url: str, series: list[str], labels: list[Path]) -> None:
    first, second, third = series
    answer = server.infer(second)
    claim("no label in the archive is a sentence, HTTP 409", answer.status_code == 409, answer.text[:200])
    answer = server.submit(first, as_the_archive_gives_it(labels[0], server.work), ["liver", "pancreas", "spleen"])
    claim("a label is submitted to the archive", answer.ok, answer.text[:200])
    found = requests.get(f"{url}/dicom-web/series?Modality=SEG", timeout=30).json()
    claim("it is a DICOM segmentation there", len(found) == 1, f"{len(found)} series")
    answer = server.infer(second)
    body = answer.json() if answer.ok else {}
    claim("the next scan is segmented at once", body.get("support_used") == [first], answer.text[:900])
    claim("under its own names", "pancreas" in body.get("renamed", {}).values(), body.get("renamed"))
    mask = voxels_of(read(server.infer(second, "image"), server.work)) if answer.ok else np.zeros(1)
    claim("the mask is not empty", bool(mask.any()), f"{int((mask > 0).sum())} voxels")
    answer = server.infer(third, next_scan=True)
    names = [entry["scan"] for entry in answer.json()["next_scan"]] if answer.ok else answer.text[:200]
    claim("the scans to annotate next are ranked", sorted(names) == sorted([second, third]), names)


def main() -> None:
    from bundle.data.phantoms import write_phantoms

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data = write_phantoms(work / "phantom", unlabeled=0, labeled=3, size=(64, 64, 12))
        archive, url = start_archive(work)
        server = Server(work, f"{url}/dicom-web")
        server.env |= {"MONAI_LABEL_DICOMWEB_CACHE_PATH": str(work / "cache")}
        try:
            series = fill(url, sorted((data / "images").glob("*")), work)
            server.set_up()
            claim("the server starts", (seconds := server.start()) < 110, f"{seconds:.0f} s, model {MODEL}")
            check_archive(server, url, series, sorted((data / "labels").glob("*")))
            claim("the server stops cleanly", server.stop() == 0)
        finally:
            server.process.kill()
            archive.terminate()
            archive.wait(timeout=30)
            if failures:
                print((work / "server.log").read_text()[-8000:])
    print(f"{len(failures)} claims failed" if failures else "all claims hold", f"pydicom {pydicom.__version__}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
