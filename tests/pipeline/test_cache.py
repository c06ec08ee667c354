"""The feature cache gives back what was put, and never breaks a run."""

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from tests.pipeline.conftest import write

import offmap
from offmap.pipeline.cache import FeatureCache
from offmap.pipeline.gate import Gate


def test_round_trip(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "a" / "f.sqlite")
    vectors = {"features.a": np.arange(3, dtype=np.float32), "features.b": np.ones(2, dtype=np.float32)}
    vectors["mc_dropout.logits:passes=4"] = np.arange(12, dtype=np.float32).reshape(4, 3)
    assert not cache.has("x")
    cache.put([("x", {"bits": 8}, vectors)])
    header, back = cache.get("x") or ({}, {})
    assert header == {"bits": 8}
    assert list(back) == list(vectors)
    for name, value in vectors.items():
        np.testing.assert_array_equal(back[name], value)
    assert FeatureCache(tmp_path / "a" / "f.sqlite").has("x")


def test_a_damaged_file_is_an_empty_cache(tmp_path: Path) -> None:
    path = tmp_path / "f.sqlite"
    path.write_bytes(b"no database at all" * 100)
    cache = FeatureCache(path)
    cache.put([("x", {}, {})])
    assert not cache.has("x")
    assert cache.get("x") is None


def test_a_cache_over_its_limit_starts_again(tmp_path: Path) -> None:
    path = tmp_path / "f.sqlite"
    first = FeatureCache(path)
    first.put([("x", {}, {"v": np.zeros(1000, dtype=np.float32)})])
    first.close()
    assert not FeatureCache(path, limit_bytes=100).has("x")


def test_the_write_ahead_files_of_a_cache_over_its_limit_go_too(tmp_path: Path) -> None:
    path = tmp_path / "f.sqlite"
    first = FeatureCache(path)
    first.put([("x", {}, {"v": np.zeros(1000, dtype=np.float32)})])
    assert (tmp_path / "f.sqlite-wal").exists()
    second = FeatureCache(path, limit_bytes=100)
    assert not second.has("x")
    second.put([("y", {}, {})])
    assert FeatureCache(path).has("y")
    assert not FeatureCache(path).has("x")


def test_threads_share_a_cache(tmp_path: Path) -> None:
    cache, seen = FeatureCache(tmp_path / "f.sqlite"), []
    cache.put([("x", {}, {})])

    def look(name: str) -> None:
        cache.put([(name, {}, {})])
        seen.append(cache.has("x") and cache.has(name))

    threads = [threading.Thread(target=look, args=(str(i),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 8


def test_gates_that_need_other_signals_share_no_features(gate: Gate, discs: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "near.toml"
    steps = '[prepare.window]\n[prepare.crop]\n[prepare.detail]\nsize = 112\n[prepare.resize]\nsize = "encoder"\n'
    recipe.write_text(steps + "[score.knn]\nk = 3\n")
    near = offmap.fit(discs, recipe=str(recipe), jobs=0, use_cache=False)
    assert near.preparation == gate.preparation
    expected = [g.score(discs, jobs=0, use_cache=False).rows for g in (near, gate)]
    assert [g.score(discs, jobs=0).rows for g in (near, gate)] == expected


def test_a_cache_that_is_emptied_during_a_run_costs_time_only(gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(tmp_path / "in", 3)
    first = gate.score(data, jobs=0).rows
    monkeypatch.setattr(FeatureCache, "get", lambda *_: None)
    assert gate.score(data, jobs=0).rows == first
    shutil.rmtree(tmp_path / "cache")
    assert gate.score(data, jobs=0).rows == first
