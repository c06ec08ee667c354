"""Inputs as users name them."""

import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from offmap.core.errors import ConfigError
from offmap.core.types import NotAssessed
from offmap.read.load import load
from offmap.read.sources import find


def _image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.arange(400, dtype=np.uint16).astype(np.uint8).reshape(20, 20)).save(path, format="PNG")
    return path


def _items(*inputs: str | Path, volumes: bool = False) -> list[str]:
    return [source.item for source in find(inputs, volumes=volumes).sources]


def _reason(source) -> str:
    (row,) = load(source)
    return row.reason if isinstance(row, NotAssessed) else "ok"


def test_folder_in_sorted_order_with_every_file(tmp_path: Path) -> None:
    for name in (
        "b/2.png",
        "b/1.png",
        "a.png",
        "c.bin",
        ".hidden.png",
        ".git/x.png",
        "notes.txt",
        "b/labels.CSV",
        "README.md",
        "x.json",
        "DICOMDIR",
    ):
        _image(tmp_path / name)
    found = find([tmp_path])
    assert [os.path.relpath(s.item, tmp_path) for s in found.sources] == ["a.png", "b/1.png", "b/2.png", "c.bin"]
    assert found.skipped == 5


def test_inputs_keep_their_order_and_their_doubles(tmp_path: Path) -> None:
    a, b = _image(tmp_path / "a.png"), _image(tmp_path / "b.png")
    assert _items(b, a, tmp_path, b) == [str(p) for p in (b, a, a, b, b)]


def test_item_is_the_path_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _image(tmp_path / "d" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert _items("d", "./d/a.png", "d/*.png") == ["d/a.png", "./d/a.png", "d/a.png"]


@pytest.mark.parametrize(
    "name",
    [
        "with space.png",
        'it\'s "quoted".png',
        "größe-图像-🩻.png",
        "a[1]*?.png",
        "n" * 250 + ".png",
        "-dash.png",
        "a::b.png",
        "new\nline.png",
    ],
)
def test_odd_names_simply_work(tmp_path: Path, name: str) -> None:
    path = _image(tmp_path / ("d" * 60) / name)
    for given in (path, path.parent):
        (source,) = find([given]).sources
        assert source.item == str(path)
        assert _reason(source) == "ok"


def test_names_that_are_no_unicode_can_be_written(tmp_path: Path) -> None:
    name = os.fsencode(str(tmp_path)) + b"/\xff.png"
    _image(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", name)
    (source,) = find([tmp_path]).sources
    assert source.item.encode("utf-8").endswith(b"\\xff.png")
    assert _reason(source) == "ok"


def test_globs(tmp_path: Path) -> None:
    for name in ("x/1.png", "x/2.png", "y/3.png", "y/notes.txt"):
        _image(tmp_path / name)
    assert _items(f"{tmp_path}/*/*.png") == [str(tmp_path / n) for n in ("x/1.png", "x/2.png", "y/3.png")]
    assert _items(f"{tmp_path}/**/*.png") == [str(tmp_path / n) for n in ("x/1.png", "x/2.png", "y/3.png")]
    assert find([f"{tmp_path}/y/*"]).skipped == 1
    assert len(_items(f"{tmp_path}/*")) == len(_items(f"{tmp_path}/**/*")) == len(_items(f"{tmp_path}/**")) == 3
    with pytest.raises(ConfigError, match="no file matches"):
        find([f"{tmp_path}/*.dcm"])


@pytest.mark.parametrize("missing", ["nowhere.png", "nowhere/", "x\0y", "n" * 5000])
def test_input_that_does_not_exist(tmp_path: Path, missing: str) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        find([str(tmp_path / missing)])


def test_manifest(tmp_path: Path) -> None:
    for name in ("sub/a b.png", "c.png", "folder/d.png"):
        _image(tmp_path / name)
    np.savez(tmp_path / "s.npz", x=np.zeros((2, 9, 9)), y=np.zeros((2, 9, 9)))
    manifest = tmp_path / "list.csv"
    rows = ["path,site,patient_id", '"sub/a b.png",north,P1', "c.png,south,P1", "missing.png,,P2", "folder,east,", "s.npz::x,west,P3"]
    manifest.write_text("\n".join(rows), encoding="utf-8-sig")
    found = find([manifest]).sources
    assert [s.item for s in found] == ["sub/a b.png", "c.png", "missing.png", "folder/d.png", "s.npz::x"]
    assert [s.meta["site"] for s in found] == ["north", "south", "", "east", "west"]
    outcomes = [next(iter(load(s))) for s in found]
    assert outcomes[2].reason == "unreadable"
    assert outcomes[0].meta == {"site": "north"}
    assert outcomes[0].group == outcomes[1].group != ""
    assert outcomes[3].group == ""


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"file,label\na.png,1\n", "no column 'path'.*file, label"),
        (b"paths,label\na.png,1\n", "did you mean 'paths'"),
        (b"", "no column 'path'"),
        ("path\ngröße.png\n".encode("latin-1"), "not UTF-8"),
        (b"path,label\n,1\n", "line 2: the path is empty"),
        (b"path\na,b.png\n", "line 2: more fields"),
    ],
)
def test_manifest_that_cannot_be_used(tmp_path: Path, raw: bytes, message: str) -> None:
    (tmp_path / "list.csv").write_bytes(raw)
    with pytest.raises(ConfigError, match=message):
        find([tmp_path / "list.csv"])


def test_arrays(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    np.savez(path, train_images=np.zeros((2, 9, 9)), test_images=np.zeros((2, 9, 9)))
    assert _items(f"{path}::test_images") == [f"{path}::test_images"]
    with pytest.raises(ConfigError, match=r"several arrays.*train_images, test_images"):
        find([path])
    with pytest.raises(ConfigError, match="did you mean 'train_images'"):
        find([f"{path}::train_image"])
    np.savez(tmp_path / "one.npz", x=np.zeros((2, 9, 9)))
    assert _items(tmp_path / "one.npz") == [f"{tmp_path / 'one.npz'}::x"]


def test_broken_array_file_becomes_a_row(tmp_path: Path) -> None:
    (tmp_path / "m.npz").write_bytes(b"PK\x03\x04 not really")
    for given in (tmp_path / "m.npz", f"{tmp_path / 'm.npz'}::x", tmp_path):
        (source,) = find([given]).sources
        assert _reason(source) == "truncated"


def test_links(tmp_path: Path) -> None:
    _image(tmp_path / "d" / "a.png")
    (tmp_path / "d" / "self").symlink_to("self")
    (tmp_path / "d" / "up").symlink_to(tmp_path)
    (tmp_path / "d" / "nothing").symlink_to("gone")
    (tmp_path / "d" / "copy.png").symlink_to("a.png")
    (tmp_path / "e").symlink_to(tmp_path / "d")
    found = find([tmp_path / "d"]).sources
    assert {os.path.relpath(s.item, tmp_path / "d"): _reason(s) for s in found} == {
        "a.png": "ok",
        "copy.png": "ok",
        "nothing": "unreadable",
        "self": "link_loop",
        "up/d": "link_loop",
        "up/e": "link_loop",
    }
    assert _items(tmp_path / "d" / "self") == [str(tmp_path / "d" / "self")]


def test_pipes_are_no_items_and_do_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    _image(tmp_path / "a.png")
    assert _items(tmp_path) == [str(tmp_path / "a.png")]
    (source,) = find([tmp_path / "pipe"]).sources
    assert _reason(source) == "unreadable"


def test_what_may_not_be_read_gets_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _image(tmp_path / "closed" / "a.png")
    _image(tmp_path / "open.png")
    scandir = os.scandir

    def refuse(path: str):
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "no")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    closed, opened = find([tmp_path]).sources
    assert (_reason(closed), _reason(opened)) == ("permission", "ok")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission(tmp_path: Path) -> None:
    path = _image(tmp_path / "a.png")
    path.chmod(0)
    (source,) = find([path]).sources
    assert _reason(source) == "permission"


def test_volumes_mark_their_sources(tmp_path: Path) -> None:
    _image(tmp_path / "a.png")
    assert all(s.volume for s in find([tmp_path], volumes=True).sources)
    assert not any(s.volume for s in find([tmp_path]).sources)
