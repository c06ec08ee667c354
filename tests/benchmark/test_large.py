"""Maps and images on disk: which are kept, and what happens where they are too many."""

from pathlib import Path

import numpy as np
import pytest
import torch

from offmap.benchmark.large import LargeSignals
from offmap.core.errors import ConfigError

CPU = torch.device("cpu")


def batch(first: int) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    deep = torch.arange(first, first + 2).float().reshape(2, 1, 1, 1).expand(2, 4, 3, 3)
    return np.arange(first, first + 2), {
        "image": deep[:, :1],
        "feature_map.deep": deep,
        "feature_map.last": deep,
        "logits": deep[:, :, 0, 0],
    }


@pytest.mark.parametrize("need", ["feature_map.last", "feature_map.deep", "feature_map.*"])
def test_a_map_is_found_by_its_name_by_a_pattern_or_as_the_deepest(need: str, tmp_path: Path) -> None:
    with LargeSignals(frozenset({need}), tmp_path) as kept:
        for first in (2, 0):
            at, signals = batch(first)
            kept.add(at, [], signals)
        (found,) = kept.batches(np.array([0, 3]), frozenset({need}), CPU)
    assert list(found) == [need.replace("*", "deep")]
    assert [float(row.mean()) for row in found[next(iter(found))]] == [0.0, 3.0]


def test_what_takes_too_much_is_given_up_and_the_rest_stays(tmp_path: Path) -> None:
    with LargeSignals(frozenset({"image", "feature_map.*"}), tmp_path, most=300) as kept:
        for first in (0, 2, 4):
            at, signals = batch(first)
            kept.add(at, [], signals)
        (found,) = kept.batches(np.array([5]), frozenset({"image"}), CPU)
        with pytest.raises(ConfigError, match=r"feature_map.deep .* lower max_id"):
            kept.batches(np.array([5]), frozenset({"feature_map.*"}), CPU)
    assert float(found["image"].mean()) == 5.0
