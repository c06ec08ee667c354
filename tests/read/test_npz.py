"""Arrays in ``.npz`` files."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from offmap.core.types import Source
from offmap.read.limits import Limits
from offmap.read.load import load


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", ">i2"])
def test_grey_images_in_order(tmp_path: Path, rng, save, dtype: str) -> None:
    array = rng.integers(0, 200, (5, 20, 30)).astype(dtype)
    save(tmp_path / "a.npz", train_images=array, train_labels=np.arange(5)[:, None])
    found = list(load(Source(tmp_path / "a.npz", "a.npz::train_images", key="train_images")))
    assert [image.item for image in found] == [f"a.npz::train_images[{i}]" for i in range(5)]
    assert all(image.pixels.dtype.isnative for image in found)
    np.testing.assert_array_equal(np.concatenate([image.pixels for image in found]), array)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_last(tmp_path: Path, rng, read, channels: int) -> None:
    array = rng.integers(0, 255, (4, 20, 30, channels), dtype=np.uint8)
    array[..., 3:] = 255
    np.savez(tmp_path / "a.npz", x=array)
    found = np.stack([image.pixels for image in read(tmp_path / "a.npz")])
    np.testing.assert_array_equal(found, array[..., : min(channels, 3)].transpose(0, 3, 1, 2))


def test_fortran_order(tmp_path: Path, rng, read) -> None:
    array = np.asfortranarray(rng.integers(0, 255, (4, 20, 30), dtype=np.uint8))
    np.savez(tmp_path / "a.npz", x=array)
    np.testing.assert_array_equal(np.concatenate([image.pixels for image in read(tmp_path / "a.npz")]), array)


def test_volumes_and_their_slices(tmp_path: Path, rng, read) -> None:
    array = rng.integers(0, 255, (2, 5, 20, 30), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=array)
    volumes = read(tmp_path / "a.npz", volume=True)
    assert [image.item for image in volumes] == ["x[0]", "x[1]"]
    np.testing.assert_array_equal(np.concatenate([image.pixels for image in volumes]), array)
    slices = read(tmp_path / "a.npz")
    assert slices[6].item == "x[1]#1"
    np.testing.assert_array_equal(slices[6].pixels[0], array[1, 1])
    assert len({image.digest for image in [*volumes, *slices]}) == 12


def test_bad_image_does_not_stop_the_next(tmp_path: Path, rng, read) -> None:
    array = rng.random((3, 20, 30)).astype(np.float32)
    array[0, 3, 3], array[1] = np.nan, 7.0
    np.savez(tmp_path / "a.npz", x=array)
    first, second, third = read(tmp_path / "a.npz")
    assert (first.reason, second.reason) == ("non_finite", "constant")
    np.testing.assert_array_equal(third.pixels[0], array[2])


@pytest.mark.parametrize(
    ("array", "code"),
    [
        (np.zeros((3, 20, 30, 2)), "small"),
        (np.zeros((3, 4, 4)), "small"),
        (np.zeros((0, 20, 30)), "no_pixels"),
        (np.zeros(20), "unsupported"),
        (np.zeros((20, 30), complex), "unsupported"),
        (np.array([{"a": 1}], dtype=object), "unsupported"),
    ],
)
def test_arrays_that_are_no_images(tmp_path: Path, reason, array: np.ndarray, code: str) -> None:
    np.savez(tmp_path / "a.npz", x=array)
    assert reason(tmp_path / "a.npz") == code


def test_objects_are_never_unpickled(tmp_path: Path, reason) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "trapped"),))

    np.savez(tmp_path / "a.npz", x=np.array([Trap()], dtype=object))
    assert reason(tmp_path / "a.npz") == "unsupported"
    assert not (tmp_path / "trapped").exists()


def test_several_arrays_without_a_key(tmp_path: Path, read) -> None:
    np.savez(tmp_path / "a.npz", one=np.zeros((2, 9, 9)), two=np.zeros((2, 9, 9)))
    (row,) = read(tmp_path / "a.npz")
    assert row.reason == "unsupported"
    assert "one, two" in row.detail


def _with_header(path: Path, shape: tuple[int, ...], data: bytes) -> None:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", head.getvalue() + data)


def test_bomb_by_expansion(tmp_path: Path, reason) -> None:
    _with_header(tmp_path / "a.npz", (200, 1000, 1000), bytes(1000))
    assert reason(tmp_path / "a.npz") == "bomb"


def test_bomb_by_size_of_one_image(tmp_path: Path, reason) -> None:
    _with_header(tmp_path / "a.npz", (2, 100_000, 100_000), b"")
    assert reason(tmp_path / "a.npz", limits=Limits(max_expansion=1e12)) == "bomb"


def test_array_shorter_than_its_header(tmp_path: Path, rng, read) -> None:
    data = rng.integers(0, 255, 600, dtype=np.uint8).tobytes()
    _with_header(tmp_path / "a.npz", (3, 20, 20), data)
    assert [getattr(row, "reason", "ok") for row in read(tmp_path / "a.npz")] == ["ok", "truncated", "truncated"]


def test_cut_archive(tmp_path: Path, rng, reason) -> None:
    np.savez(tmp_path / "a.npz", x=rng.random((3, 20, 30)))
    data = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(data[:-40])
    assert reason(tmp_path / "a.npz") == "truncated"


def test_known_images_are_skipped_without_reading_wrong_ones(tmp_path: Path, rng, read) -> None:
    array = rng.integers(0, 255, (6, 20, 30), dtype=np.uint8)
    np.savez_compressed(tmp_path / "a.npz", x=array)
    whole = read(tmp_path / "a.npz")
    known = {whole[i].digest for i in (0, 1, 3)}
    again = read(tmp_path / "a.npz", known=known.__contains__)
    assert [hasattr(row, "pixels") for row in again] == [False, False, True, False, True, True]
    np.testing.assert_array_equal(again[4].pixels, whole[4].pixels)
