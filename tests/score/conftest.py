"""Features of three classes with a head, made by code."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

Batches = Callable[..., list[dict[str, Tensor]]]


def mixture(count: int = 150, width: int = 12, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Three classes with labels -4, 7 and 100, correlated features, logits of a head that fits them."""
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.Generator().manual_seed(99)
    means = 3.0 * torch.randn(3, width, generator=fixed, dtype=torch.float64)
    mix = torch.randn(width, width, generator=fixed, dtype=torch.float64) / width**0.5
    bias = torch.randn(3, generator=fixed, dtype=torch.float64)
    which = torch.randint(3, (count,), generator=generator)
    rows = means[which] + torch.randn(count, width, generator=generator, dtype=torch.float64) @ mix + 1.0
    signals = {"features.last": rows, "features.penultimate": rows, "logits": rows @ means.T / width + bias}
    signals |= {"head.weight": means / width, "head.bias": bias}
    return {**{k: v.to(dtype) for k, v in signals.items()}, "label": torch.tensor([-4, 7, 100])[which]}


def cut(signals: dict[str, Tensor], size: int = 40) -> list[dict[str, Tensor]]:
    """The same in batches."""
    count = len(signals["label"])
    return [{k: v if k.startswith("head.") else v[i : i + size] for k, v in signals.items()} for i in range(0, count, size)]


@pytest.fixture
def fit_signals() -> dict[str, Tensor]:
    return mixture(seed=1)


@pytest.fixture
def batches(fit_signals: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    return cut(fit_signals)


@pytest.fixture
def unlabelled(batches: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [{k: v for k, v in b.items() if k != "label"} for b in batches]


@pytest.fixture
def unseen() -> dict[str, Tensor]:
    return mixture(60, seed=2)


def rectified(signals: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same through a rectifier, with the logits that the head then gives."""
    rows = signals["features.penultimate"].clamp_min(0)
    return {**signals, "features.penultimate": rows, "logits": rows @ signals["head.weight"].T + signals["head.bias"]}


@pytest.fixture
def rectified_signals(fit_signals: dict[str, Tensor]) -> dict[str, Tensor]:
    return rectified(fit_signals)


@pytest.fixture
def rectified_batches(rectified_signals: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    return cut(rectified_signals)


@pytest.fixture
def rectified_unseen(unseen: dict[str, Tensor]) -> dict[str, Tensor]:
    return rectified(unseen)


def moved(count: int, *, seed: int, width: int = 40, shift: float = 2.0) -> dict[str, Tensor]:
    """Features, and proxy features in which dimensions 5, 11, 12, ... 18 are shifted; three classes with labels."""
    generator = torch.Generator().manual_seed(seed)
    rows = 4.0 + torch.randn(count, width, generator=generator, dtype=torch.float64)
    labels = torch.tensor([3, -1, 50])[torch.arange(count) % 3]
    rows[:, 11:14] += 3.0 * torch.eye(3, dtype=torch.float64)[torch.arange(count) % 3]
    proxies = rows + 0.1 * torch.randn(count, width, generator=generator, dtype=torch.float64)
    proxies[:, MOVED] += shift
    return {"features.last": rows, "proxy_features.last": proxies, "label": labels}


MOVED = [5, *range(11, 19)]
