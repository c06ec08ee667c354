"""What a DICOM file says of a person stays inside the file, unless it is asked for."""

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid
from tests.pipeline.conftest import picture

import offmap
from offmap.core.errors import OODError
from offmap.pipeline.check import check
from offmap.pipeline.gate import Gate

CANARY = "KANARIENVOGEL"


def dicom(path: Path, pixels: np.ndarray, patient: int, *, modality: str = "CR", broken: bool = False) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(str(path), Dataset(), file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.PatientName, data.PatientID = f"{CANARY}^Anna", f"{CANARY}{patient}"
    data.PatientComments = data.StudyDescription = data.SeriesDescription = data.ImageComments = f"{CANARY} text"
    data.StudyInstanceUID = data.SeriesInstanceUID = generate_uid()
    data.private_block(0x0011, CANARY, create=True).add_new(1, "LO", CANARY)
    data.Modality, data.Manufacturer = modality, "Maker"
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.PixelData = pixels.tobytes()[: pixels.size // 2] if broken else pixels.tobytes()
    data.save_as(path, enforce_file_format=True)


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ward")
    for i in range(24):
        dicom(folder / f"{i:02d}.dcm", picture(i), patient=i // 2)
    dicom(folder / "half.dcm", picture(0), patient=0, broken=True)
    return folder


@pytest.fixture(scope="module")
def ward_gate(ward: Path) -> Gate:
    return offmap.fit(ward, jobs=0, keep_neighbours=True, use_cache=False)


def everything(folder: Path) -> bytes:
    return b"".join(str(p).encode() + p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file())


def test_no_output_holds_patient_data(ward: Path, ward_gate: Gate, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ward_gate.save(tmp_path / "gate")
    ward_gate.score_to(ward, tmp_path / "s.csv", maps=tmp_path / "maps", report=tmp_path / "report", jobs=1)
    ward_gate.score_to(ward, tmp_path / "s.parquet", jobs=0)
    ward_gate.explain(ward / "03.dcm").save(tmp_path / "why")
    rows = list(check(ward, ward_gate, jobs=1))
    told = "".join(capfd.readouterr()) + str(rows) + str(ward_gate.card) + repr(ward_gate)
    assert CANARY not in told
    assert CANARY.encode() not in everything(tmp_path)


def test_identifiers_come_when_asked_for(ward: Path, ward_gate: Gate, tmp_path: Path) -> None:
    ward_gate.score_to(ward, tmp_path / "s.csv", include_identifiers=True, jobs=0)
    assert (tmp_path / "s.csv").read_text().count(CANARY) >= 24
    assert ward_gate.score(ward / "00.dcm", include_identifiers=True, jobs=0).rows[0]["id.PatientID"] == f"{CANARY}0"


def test_images_of_one_patient_stay_together(ward_gate: Gate) -> None:
    assert ward_gate.card["data"]["patients_known"] == 24
    assert not any("Patients are not known" in line for line in ward_gate.card["limits"])


def test_another_modality_is_not_assessed(ward_gate: Gate, tmp_path: Path) -> None:
    dicom(tmp_path / "mr.dcm", picture(1), 1, modality="MR")
    row = ward_gate.score(tmp_path / "mr.dcm", jobs=0).rows[0]
    assert (row["status"], row["reason"], row["verdict"]) == ("not_assessed", "wrong_modality", "not_assessed")


def test_errors_are_silent_on_patients(ward: Path, tmp_path: Path) -> None:
    for i in range(3):
        dicom(tmp_path / f"{i}.dcm", picture(0), 0, broken=True)
    with pytest.raises(OODError) as caught:
        offmap.fit(tmp_path, jobs=0)
    assert CANARY not in str(caught.value)
