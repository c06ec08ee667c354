"""Patient data put into a file must not come out of it."""

import json
import logging
import warnings
from pathlib import Path

import numpy as np
import pytest

from offmap.core.types import NotAssessed, Source
from offmap.read.load import load
from offmap.read.messages import pack

CANARY = "CANARY"
PLACES = {
    "PatientName": "CANARY^NAME",
    "PatientID": "CANARYID",
    "IssuerOfPatientID": "CANARYISSUER",
    "PatientBirthDate": "CANARY",
    "OtherPatientIDs": "CANARY",
    "AccessionNumber": "CANARYACC",
    "InstitutionName": "CANARY CLINIC",
    "ReferringPhysicianName": "CANARY^DOC",
    "StudyDescription": "CANARY STUDY",
    "SeriesDescription": "CANARY SERIES",
    "ProtocolName": "CANARY PROTOCOL",
    "PatientComments": "CANARY COMMENT",
    "ImageComments": "CANARY COMMENT",
    "StationName": "CANARY",
    "DeviceSerialNumber": "CANARY",
    "BodyPartExamined": "Canary^Jane",
    "ViewPosition": "canary",
    "StudyID": "CANARY",
}


def _say_everything(source: Source, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> str:
    """All that can be seen of reading a file: the outcome, logs of every level, warnings, standard output and error."""
    caplog.clear()
    capfd.readouterr()
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outcomes = list(load(source))
    seen = [repr(outcomes), caplog.text, *(str(w.message) for w in caught), *capfd.readouterr()]
    for outcome in outcomes:
        header, _ = pack(outcome)
        seen.append(json.dumps(header))
    return "\n".join(seen)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("damage", ["none", "cut", "date", "rows", "syntax", "photometric"])
def test_canary_stays_inside(dicom, rng, caplog, capfd, damage: str) -> None:
    extra = {"photometric": {"PhotometricInterpretation": CANARY}, "rows": {"NumberOfFrames": "7"}}.get(damage, {})
    path: Path = dicom(rng.integers(0, 99, (20, 30)).astype(np.uint16), **PLACES, **extra)
    import pydicom

    ds = pydicom.dcmread(path)
    block = ds.private_block(0x000B, "CANARY CREATOR", create=True)
    block.add_new(1, "LO", "CANARY PRIVATE")
    ds.save_as(path, enforce_file_format=False)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    elif damage == "syntax":
        path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"CANARY.10008.1.2.11\0", 1))
    elif damage == "date":
        path.write_bytes(path.read_bytes().replace(b"CANARYACC", b"CANARY\xff\xfe\x00"))
    seen = _say_everything(Source(path, "x"), caplog, capfd)
    assert CANARY.lower() not in seen.lower()
    assert "jane" not in seen.lower()


def test_errors_keep_the_canary_out_of_their_chain(dicom, rng, caplog, capfd) -> None:
    path: Path = dicom(rng.integers(0, 99, (20, 30)).astype(np.uint16))
    whole = path.read_bytes()
    at = whole.index(b"\x28\x00\x30\x00") if b"\x28\x00\x30\x00" in whole else whole.index(b"\x28\x00\x00\x01")
    spacing = b"\x28\x00\x30\x00DS\x0c\x00CANARY\\CANAR"
    path.write_bytes(whole[:at] + spacing + whole[at:])
    seen = _say_everything(Source(path, "x"), caplog, capfd)
    assert "CANAR" not in seen
    (row,) = load(Source(path, "x"))
    assert isinstance(row, NotAssessed)
    assert row.reason == "unreadable"
