"""Logits of several passes, and the probabilities that they mean, written out."""

import math

import numpy as np
import torch
from torch import Tensor


def several(count: int = 12, passes: int = 6, classes: int = 4, *, spread: float = 1.0, seed: int = 0) -> Tensor:
    """``(N, S, K)``: an answer for each image that passes disagree about."""
    rng = torch.Generator().manual_seed(seed)
    answer = 3 * torch.randn(count, 1, classes, generator=rng, dtype=torch.float64)
    return answer + spread * torch.randn(count, passes, classes, generator=rng, dtype=torch.float64)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax of one pass."""
    e = np.exp(logits - logits.max())
    return np.asarray(e / e.sum())


def entropy(p: np.ndarray) -> float:
    """In nats, term by term."""
    return -sum(float(x) * math.log(x) for x in p if x > 0)


def entropies(logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Entropy of the mean and mean entropy of each image."""
    of_mean, mean_of = [], []
    for image in logits.numpy():
        p = [probabilities(z) for z in image]
        of_mean.append(entropy(np.mean(p, axis=0)))
        mean_of.append(np.mean([entropy(q) for q in p]))
    return np.array(of_mean), np.array(mean_of)
