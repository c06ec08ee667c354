"""Hostile and broken files beside good ones, through a gate with reader processes: a row and a reason each, nothing lost."""

import csv
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image as Pillow
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.pixels import get_encoder
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, RLELossless
from tests.pipeline.conftest import picture
from tests.read.conftest import dataset
from tests.read.conftest import write as write_dicom

import offmap
from offmap.pipeline.gate import Gate

PLUGINS = {RLELossless: "pydicom", JPEGLSLossless: "pyjpegls", JPEG2000Lossless: "pylibjpeg"}
GOOD = ["plain.png", "with spaces.png", "quo'te\"d.png", "comma, and\nnewline.png", "ünïcødé 病.png", "*[x].png"]


def _stored(seed: int = 0) -> np.ndarray:
    return picture(seed).astype(np.uint16) * 16


def _dicom(path: Path, pixels: np.ndarray | None = None, **attributes: Any) -> Path:
    return write_dicom(dataset(_stored() if pixels is None else pixels, **attributes), path)


def _cut(path: Path, share: float) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])


def _compressed(syntax: UID) -> bytes:
    if syntax == JPEGBaseline8Bit:
        import io

        file = io.BytesIO()
        Pillow.fromarray(picture(0)).save(file, "JPEG", quality=95)
        return file.getvalue()
    options = {"rows": 72, "columns": 72, "samples_per_pixel": 1, "photometric_interpretation": "MONOCHROME2", "bits_allocated": 16}
    options |= {"bits_stored": 16, "pixel_representation": 0, "number_of_frames": 1, "planar_configuration": 0}
    return bytes(get_encoder(syntax).encode(_stored(), encoding_plugin=PLUGINS[syntax], **options))


def _nested(path: Path, depth: int) -> None:
    raw = _dicom(path).read_bytes()
    at = raw.index(struct.pack("<HH2s", 0x0028, 0x0002, b"US"))
    head = struct.pack("<HH2sHI", 0x0009, 0x1010, b"SQ", 0, 2**32 - 1) + struct.pack("<HHI", 0xFFFE, 0xE000, 2**32 - 1)
    tail = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    path.write_bytes(raw[:at] + head * depth + tail * depth + raw[at:])


def _deflate_bomb(path: Path) -> None:
    raw = _dicom(path, syntax=DeflatedExplicitVRLittleEndian).read_bytes()
    start = raw.index(b"1.2.840.10008.1.2.1.99") + 22
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    plain = struct.pack("<HH2sHI", 0x0009, 0x1010, b"OB", 0, 300_000_000)
    packed = packer.compress(plain) + b"".join(packer.compress(bytes(10_000_000)) for _ in range(30)) + packer.flush()
    path.write_bytes(raw[:start] + packed)


def _gzip_bomb(path: Path) -> None:
    head = bytearray(nib.Nifti1Image(np.zeros((10, 12, 9), np.int16), np.eye(4)).to_bytes()[:352])
    head[40:48] = np.array((3, 1000, 1000, 200), "<i2").tobytes()
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    path.write_bytes(packer.compress(bytes(head)) + b"".join(packer.compress(bytes(10_000_000)) for _ in range(40)) + packer.flush())


def _huge_png(path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(30_001)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b""))


def _nifti(path: Path, change: str) -> None:
    values = np.random.default_rng(0).random((20, 24, 1)).astype(np.float32)
    if change in ("nan", "inf"):
        values[3, 3, 0] = float(change)
    image = nib.Nifti1Image(values, np.eye(4))
    nib.save(image, path)
    if change == "spacing":
        raw = bytearray(path.read_bytes())
        raw[80:84] = np.float32(-1).tobytes()
        path.write_bytes(raw)


def _cases(folder: Path) -> Iterator[tuple[str, str]]:
    """Make every broken file of the folder; yields its name and the reason that is expected."""
    for name, content, code in [
        ("empty.png", b"", "empty"),
        ("garbage.dcm", b"garbage" * 999, "unreadable"),
        ("header.dcm", b"\0" * 128 + b"DICM" + b"garbage" * 20, "truncated"),
    ]:
        (folder / name).write_bytes(content)
        yield name, code
    for syntax in (RLELossless, JPEGBaseline8Bit, JPEGLSLossless, JPEG2000Lossless):
        frame = _compressed(syntax)
        pixels = picture(0) if syntax == JPEGBaseline8Bit else _stored()
        _dicom(folder / f"cut {syntax.keyword}.dcm", pixels, syntax=syntax, data=encapsulate([frame[: len(frame) // 2]]))
        yield f"cut {syntax.keyword}.dcm", "truncated"
        _dicom(folder / f"cut file {syntax.keyword}.dcm", pixels, syntax=syntax, data=encapsulate([frame]))
        _cut(folder / f"cut file {syntax.keyword}.dcm", 0.8)
        yield f"cut file {syntax.keyword}.dcm", "truncated"
    _cut(_dicom(folder / "cut native.dcm"), 0.6)
    yield "cut native.dcm", "truncated"
    for depth in (400, 1500):
        _nested(folder / f"nested {depth}.dcm", depth)
        yield f"nested {depth}.dcm", "unreadable"
    _deflate_bomb(folder / "bomb.dcm")
    yield "bomb.dcm", "bomb"
    _gzip_bomb(folder / "bomb.nii.gz")
    yield "bomb.nii.gz", "bomb"
    _huge_png(folder / "900 megapixels.png")
    yield "900 megapixels.png", "bomb"
    _dicom(folder / "rows.dcm", Rows=65535, Columns=65535)
    yield "rows.dcm", "bomb"
    for change, code in (("nan", "non_finite"), ("inf", "non_finite"), ("spacing", "bad_geometry")):
        _nifti(folder / f"{change}.nii", change)
        yield f"{change}.nii", code
    Pillow.new("L", (72, 72), 9).save(folder / "constant.png")
    yield "constant.png", "constant"
    for n, spacing in enumerate((["0", "0"], ["-1", "1"])):
        _dicom(folder / f"spacing {n}.dcm", PixelSpacing=spacing)
        yield f"spacing {n}.dcm", "bad_geometry"
    _dicom(folder / "photometric.dcm", PhotometricInterpretation="RGB")
    yield "photometric.dcm", "bad_photometric"
    for name in ("reportsi.dcm", "rtplan.dcm"):
        found = get_testdata_file(name, download=False)
        if found is not None:
            (folder / name).write_bytes(Path(found).read_bytes())
            yield name, "no_pixels"
    (folder / "loop.png").symlink_to("loop.png")
    yield "loop.png", "link_loop"
    (folder / "circle").symlink_to(".")
    yield "circle", "link_loop"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Good and broken files in one folder, and the reason of each; good ones have none."""
    place = tmp_path_factory.mktemp("bad") / "in"
    deep = place / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    expected = dict(_cases(place))
    long = f"{'d' * 100}/{'e' * 100}/{'f' * 96}.png"
    for i, name in enumerate([*GOOD, long]):
        Pillow.fromarray(picture(500 + i)).save(place / name)
    expected |= dict.fromkeys([*GOOD, long], "")
    assert len(long) > 300 - 5
    return place, expected


def _rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("jobs", [1, 2, 8])
def test_each_has_its_row_and_reason_and_the_good_ones_are_scored(
    gate: Gate, folder: tuple[Path, dict[str, str]], tmp_path: Path, jobs: int
) -> None:
    place, expected = folder
    summary = gate.score_to(place, tmp_path / "s.csv", report=tmp_path / "page", jobs=jobs)
    rows = _rows(tmp_path / "s.csv")
    found = {row["item"].removeprefix(f"{place}/"): row["reason"] for row in rows}
    assert found == expected
    assert len(rows) == len(expected) == summary.n
    assert [row["item"] for row in rows] == [row["item"] for row in gate.score(place, jobs=jobs).rows]
    for row in rows:
        assert row["status"] == ("not_assessed" if row["reason"] else "ok")
        assert (row["verdict"] == "not_assessed") == bool(row["reason"])
        assert bool(row["score"]) == bool(row["p_value"]) == (not row["reason"])


def test_good_images_score_as_without_the_broken_ones(gate: Gate, folder: tuple[Path, dict[str, str]]) -> None:
    place, _ = folder
    among = {row["item"]: row["score"] for row in gate.score(place, jobs=2, use_cache=False).rows if row["status"] == "ok"}
    for item, score in among.items():
        (alone,) = gate.score([item], jobs=0, use_cache=False).rows
        assert alone["score"] == pytest.approx(score, abs=1e-4)


def test_a_gate_is_fitted_without_them(folder: tuple[Path, dict[str, str]], discs: Path) -> None:
    place, expected = folder
    card = offmap.fit([discs, place], jobs=2).card
    assert sum(card["data"]["dropped"].values()) == sum(bool(reason) for reason in expected.values())
    assert card["data"]["n_used"] == 60 + sum(not reason for reason in expected.values())
    assert any("could not be used" in text for text in card["warnings"])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(gate: Gate, discs: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed.png"
    closed.write_bytes((discs / "000.png").read_bytes())
    closed.chmod(0)
    assert [row["reason"] for row in gate.score([closed, discs / "001.png"], jobs=1).rows] == ["permission", None]


def test_a_series_of_slices_that_do_not_belong_together(tmp_path: Path, discs: Path) -> None:
    rng = np.random.default_rng(0)
    stacks = np.stack([np.stack([picture(i)] * 4) for i in range(12)])
    volumes = offmap.fit(stacks + rng.integers(0, 9, stacks.shape, dtype=np.uint8), axes="NDHW", volumes=True)
    for name, rows in (("good", 72), ("mixed", 60)):
        (tmp_path / "in" / name).mkdir(parents=True)
        for z in range(4):
            pixels = _stored()[: rows if z == 2 else 72]
            place = {"ImagePositionPatient": [0, 0, 3 * z], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [1, 1]}
            uid = f"1.2.{len(name)}.{rows}"
            _dicom(tmp_path / "in" / name / f"{z}.dcm", pixels, SeriesInstanceUID=uid, InstanceNumber=z + 1, **place)
    rows = volumes.score(tmp_path / "in", jobs=1).rows
    assert [(Path(row["item"]).name, row["status"], row["reason"]) for row in rows] == [
        ("good", "ok", None),
        ("mixed", "not_assessed", "mixed_series"),
    ]


def test_two_files_of_one_name_and_one_file_twice_keep_their_rows(gate: Gate, tmp_path: Path) -> None:
    for i, place in enumerate(("a", "b")):
        (tmp_path / place).mkdir()
        Pillow.fromarray(picture(i, stripes=bool(i))).save(tmp_path / place / "x.png")
    rows = gate.score([tmp_path / "a", tmp_path / "b", tmp_path / "a" / "x.png"], jobs=1).rows
    assert [row["item"] for row in rows] == [str(tmp_path / p / "x.png") for p in ("a", "b", "a")]
    assert rows[0] == rows[2]
    assert rows[1]["score"] > rows[0]["score"]
