"""The percentile and the factor of AdaSCALE written out image by image, for both of its forms."""

import numpy as np
import torch
from torch import Tensor

Signals = dict[str, Tensor]
NAME = "adascale.features:epsilon=0.5,share=0.05"


def with_moved(signals: Signals, *, size: float = 0.3, seed: int = 4) -> Signals:
    """Penultimate features and what a small change of the input makes of them; some below zero."""
    rows = signals["features.penultimate"]
    noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return {**signals, NAME: (rows + size * noise).to(rows.dtype)}


def statistic(h: np.ndarray, moved: np.ndarray, *, top: float, shift_top: float, weight: float) -> float:
    """``Q'`` of one image."""
    order = sorted(range(len(h)), key=lambda d: -h[d])
    kept = order[: max(1, round(top * len(h)))]
    farther = order[: max(1, round(shift_top * len(h)))]
    return sum(max(moved[d], 0) for d in kept) + weight * sum(abs(h[d] - moved[d]) for d in farther)


def factors(fit: Signals, signals: Signals, *, low: float, high: float, top: float, shift_top: float, weight: float) -> np.ndarray:
    """``exp(s1 / s2)`` of each image."""
    known = [
        statistic(h, m, top=top, shift_top=shift_top, weight=weight)
        for h, m in zip(fit["features.penultimate"].numpy(), fit[NAME].numpy(), strict=True)
    ]
    out = []
    for h, m in zip(signals["features.penultimate"].numpy(), signals[NAME].numpy(), strict=True):
        own = statistic(h, m, top=top, shift_top=shift_top, weight=weight)
        share = sum(q <= own for q in known) / len(known)
        percentile = low + (1 - share) * (high - low)
        count = max(1, len(h) - round(percentile / 100 * len(h)))
        out.append(np.exp(h.sum() / max(np.sort(h)[::-1][:count].sum(), 1e-30)))
    return np.array(out)
