"""The feature cache gives back what was put, and never breaks a run."""

from pathlib import Path

import numpy as np

from offmap.pipeline.cache import FeatureCache


def test_round_trip(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "a" / "f.sqlite")
    vectors = {"features.a": np.arange(3, dtype=np.float32), "features.b": np.ones(2, dtype=np.float32)}
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
