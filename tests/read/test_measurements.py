"""Arrays of measurements: what is read, and why other files are not."""

from pathlib import Path

import numpy as np
import pytest

from offmap.core.errors import ReadError
from offmap.core.types import Source
from offmap.read.limits import Limits
from offmap.read.measurements import open_array


def source(path: Path, key: str = "") -> Source:
    return Source(path, path.name, key=key)


def test_numbers_come_as_they_are_stored_and_npy_is_not_read_at_once(tmp_path: Path) -> None:
    values = np.arange(24.0).reshape(2, 3, 4)
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "c.npy", values + 1j)
    np.savez(tmp_path / "b.npz", values)
    np.savez_compressed(tmp_path / "two.npz", y=values, z=-values)
    found = open_array(source(tmp_path / "a.npy"))
    assert isinstance(found, np.memmap)
    assert np.array_equal(found, values)
    assert open_array(source(tmp_path / "c.npy")).dtype.kind == "c"
    assert np.array_equal(open_array(source(tmp_path / "b.npz")), values)
    assert np.array_equal(open_array(source(tmp_path / "two.npz", "z")), -values)


def test_every_other_file_has_a_reason(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((20, 20)))
    whole = (tmp_path / "a.npy").read_bytes()
    np.savez(tmp_path / "two.npz", y=np.zeros(3), z=np.zeros(3))
    np.save(tmp_path / "words.npy", np.array(["one", "two"]))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "objects.npz", np.array([{}], dtype=object))
    np.savez_compressed(tmp_path / "bomb.npz", np.zeros(10**7))
    files = {
        "empty.npy": b"",
        "cut.npy": whole[:300],
        "head.npy": whole[:20],
        "text.npy": b"no array at all",
        "zip.npz": b"PK\x03\x04 broken",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "loop.npy").symlink_to(tmp_path / "loop.npy")
    reasons = {
        "bomb.npz": "bomb",
        "cut.npy": "truncated",
        "empty.npy": "empty",
        "folder.npy": "unreadable",
        "head.npy": "truncated",
        "loop.npy": "link_loop",
        "nowhere.npy": "unreadable",
        "objects.npy": "unsupported",
        "objects.npz": "unsupported",
        "text.npy": "unreadable",
        "two.npz": "unsupported",
        "words.npy": "unsupported",
        "zip.npz": "unreadable",
    }
    for name, reason in reasons.items():
        with pytest.raises(ReadError) as found:
            open_array(source(tmp_path / name), limits=Limits(max_expansion=1.0, max_pixels=10**6))
        assert found.value.reason == reason, f"{name}: {found.value}"
    with pytest.raises(ReadError, match="the limit is 100"):
        open_array(source(tmp_path / "a.npy"), limits=Limits(max_file_bytes=100))
