"""The signal store: any rows, any number of times, maps on disk."""

import numpy as np
import pytest
import torch

from offmap.core.errors import ConfigError
from offmap.pipeline.store import SignalStore

CPU = torch.device("cpu")


def batch(start: int, n: int) -> dict[str, torch.Tensor]:
    rows = torch.arange(start, start + n, dtype=torch.float32)
    return {
        "features.a": rows[:, None] * torch.ones(1, 3),
        "features.b": -rows[:, None] * torch.ones(1, 2),
        "features.last": -rows[:, None] * torch.ones(1, 2),
        "feature_map.a": rows[:, None, None, None] * torch.ones(1, 3, 4, 4),
        "head.weight": torch.eye(2),
    }


def test_rows_come_back_in_the_order_asked_for() -> None:
    with SignalStore() as store:
        store.append(batch(0, 4))
        store.append(batch(4, 3))
        rows = store.batches(np.array([6, 0, 5]), {"features.*", "feature_map.*", "head.weight"}, device=CPU)
        for _ in range(2):
            (found,) = list(rows)
            assert found["features.a"][:, 0].tolist() == [6, 0, 5]
            assert found["feature_map.a"][:, 0, 0, 0].tolist() == [6, 0, 5]
            assert "features.last" not in found
            torch.testing.assert_close(found["head.weight"], torch.eye(2))


def test_maps_are_kept_for_the_first_rows_only() -> None:
    with SignalStore(map_rows=5) as store:
        store.append(batch(0, 4))
        store.append(batch(4, 4))
        assert store.has_map(np.array([3, 4, 5])).tolist() == [3, 4]
        (found,) = list(store.batches(np.array([4]), {"feature_map.a"}, device=CPU))
        assert found["feature_map.a"][0, 0, 0, 0] == 4


def test_maps_beyond_the_bound_are_refused_with_the_way_out() -> None:
    with SignalStore(map_bytes=100) as store, pytest.raises(ConfigError, match="--limit"):
        store.append(batch(0, 4))


def test_a_signal_that_was_not_kept_is_named() -> None:
    with SignalStore() as store:
        store.append(batch(0, 2))
        with pytest.raises(ConfigError, match="logits were not kept"):
            store.batches(np.array([0]), {"logits"}, device=CPU)


def test_logits_of_several_passes_are_kept_for_all_rows_and_are_no_maps() -> None:
    name = "mc_dropout.logits:passes=6"
    with SignalStore(map_rows=2, map_bytes=1_000) as store:
        for start in (0, 40):
            store.append(
                {name: torch.arange(start, start + 40.0)[:, None, None] * torch.ones(1, 6, 3), "feature_map.a": torch.ones(40, 2, 5)}
            )
        (found,) = list(store.batches(np.array([77, 3]), {name}, device=CPU))
        assert found[name].shape == (2, 6, 3)
        assert found[name][:, 5, 2].tolist() == [77, 3]
        assert store.has_map(np.arange(80)).tolist() == [0, 1]
        assert "feature_map.last" in next(iter(store.batches(np.array([0]), {"feature_map.last"}, device=CPU)))
        with pytest.raises(ConfigError, match=r"mc_dropout\.logits:passes=7 were not kept"):
            store.batches(np.array([0]), {"mc_dropout.logits:passes=7"}, device=CPU)
