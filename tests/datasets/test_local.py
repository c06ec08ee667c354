"""Local data, and what the demo runs on."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from offmap.core.errors import ConfigError, NotAvailableError
from offmap.datasets import local


def touch(root: Path, name: str, n: int) -> None:
    folder = root / "images" / name
    folder.mkdir(parents=True)
    for i in range(n):
        (folder / f"{i:04d}.jpg").touch()


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "find", lambda: None)


def test_the_folder_is_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFMAP_DATA", str(tmp_path))
    assert local.find() == tmp_path
    monkeypatch.setenv("OFFMAP_DATA", str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match="OFFMAP_DATA"):
        local.find()


def test_sets_are_listed(tmp_path: Path) -> None:
    touch(tmp_path, "b/two", 2)
    touch(tmp_path, "a/one", 1)
    (tmp_path / "images" / "a" / "empty").mkdir()
    (tmp_path / "images" / "a" / "one" / "README.md").touch()
    assert [(s.name, s.n) for s in local.sets(tmp_path).values()] == [("a/one", 1), ("b/two", 2)]
    assert local.sets(tmp_path / "missing") == {}


def test_local_data_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFMAP_DATA", str(tmp_path))
    touch(tmp_path, "kermany/normal", 720)
    touch(tmp_path, "kermany/pneumonia", 3)
    touch(tmp_path, "cifar10/natural", 150)
    data = local.demo_sets(offline=True)
    assert data.fit == [str(tmp_path / "images" / "kermany" / "normal" / f"{i:04d}.jpg") for i in range(600)]
    assert {name: (len(items), data.kinds[name]) for name, items in data.score.items()} == {
        "unseen": (100, "in-distribution"),
        "kermany_pneumonia": (3, "near"),
        "cifar10_natural": (100, "far"),
    }
    assert not set(data.fit) & set(data.score["unseen"])
    assert "Real images" in data.sentence


@pytest.mark.usefixtures("nowhere")
def test_medmnist_comes_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, (50, 1))
    train = rng.integers(0, 256, (50, 8, 8), dtype=np.uint8)

    def get(name: str, *, folder: Path, progress: object) -> Path:
        path = folder / f"{name}.npz"
        np.savez(path, train_images=train, train_labels=label, test_images=train, test_labels=label)
        return path

    monkeypatch.setattr(local, "get", get)
    data = local.demo_sets(folder=tmp_path)
    (fit,) = data.fit
    path, key = fit.split("::")
    with np.load(path, allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays[key], train[label.ravel() == 0])
        np.testing.assert_array_equal(arrays["pneumonia"], train[label.ravel() == 1])
        assert {items[0].split("::")[1] for items in data.score.values()} < set(arrays)
    assert data.kinds == {"unseen": "in-distribution", "pneumonia": "near", "breast": "far", "retina": "far"}
    assert not list(tmp_path.glob(".*"))


@pytest.mark.usefixtures("nowhere")
def test_phantoms_come_last(tmp_path: Path) -> None:
    def phantoms(folder: Path) -> Mapping[str, Sequence[Path]]:
        return {kind: [folder / kind / f"{i}.png" for i in range(n)] for kind, n in (("id", 70), ("near", 5), ("far", 6))}

    data = local.demo_sets(phantoms=phantoms, folder=tmp_path, offline=True)
    assert (len(data.fit), {k: len(v) for k, v in data.score.items()}) == (60, {"unseen": 10, "near": 5, "far": 6})
    assert "phantoms" in data.sentence
    with pytest.raises(NotAvailableError, match="OFFMAP_DATA"):
        local.demo_sets(folder=tmp_path, offline=True)


@pytest.mark.usefixtures("nowhere")
def test_no_network_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def get(name: str, *, folder: Path, progress: object) -> Path:
        raise NotAvailableError("no network")

    monkeypatch.setattr(local, "get", get)
    data = local.demo_sets(phantoms=lambda folder: {k: [folder / f"{k}.png"] * 7 for k in ("id", "near", "far")}, folder=tmp_path)
    assert "phantoms" in data.sentence


SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.mark.skipif(not (SHARED / "images").is_dir(), reason="no ../shared/data beside the checkout")
def test_real_data_beside_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OFFMAP_DATA", raising=False)
    assert local.find() == SHARED
    data = local.demo_sets(offline=True)
    assert len(data.fit) == 600
    assert {data.kinds[name] for name in data.score} == {"in-distribution", "near", "far"}
    assert all(Path(item).is_file() for items in data.score.values() for item in items)
