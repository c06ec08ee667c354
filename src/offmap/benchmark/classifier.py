"""Heads trained on a suite's labels, so that logit methods have a classifier on the same features as all others."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from offmap.core.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Head:
    """A linear classifier on pooled features.

    Args:
        weight, bias: ``(K, D)`` and ``(K,)``, float32.
        classes: name of each row.
        accuracy: balanced accuracy on images that took no part in the training, in [0, 1].
    """

    weight: Float[Tensor, "k d"]
    bias: Float[Tensor, " k"]
    classes: tuple[str, ...]
    accuracy: float

    def logits(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """``W h + b``."""
        return features.to(self.weight) @ self.weight.T + self.bias


def codes(labels: Sequence[str]) -> tuple[Int[np.ndarray, " n"], tuple[str, ...]]:
    """Labels as numbers 0 ... K-1 and the classes in the order of their numbers.

    Raises:
        ConfigError: an image has no label, or there is one class only.
    """
    lacking = sum(not label for label in labels)
    if lacking:
        raise ConfigError(f"{lacking} of {len(labels)} images have no label, so that no classifier can be trained on the set")
    classes = sorted(set(labels), key=int) if all(label.isdecimal() for label in labels) else sorted(set(labels))
    if len(classes) < 2:
        raise ConfigError(f"all {len(labels)} images have the label {classes[0]!r}: a classifier needs two classes or more")
    return np.array([classes.index(label) for label in labels], dtype=np.int64), tuple(classes)


def train_head(
    features: Float[Tensor, "n d"],
    labels: Sequence[str],
    test_features: Float[Tensor, "m d"],
    test_labels: Sequence[str],
    *,
    strength: float = 1.0,
) -> Head:
    """Multinomial logistic regression with equal weight for each class, on standardised features; its minimum is unique, so no seed.

    Args:
        features, labels: of the fit part.
        test_features, test_labels: of the test part, for the accuracy only.
        strength: scikit-learn's ``C``, the inverse of the penalty.

    Raises:
        ConfigError: as ``codes``.
    """
    from sklearn.linear_model import LogisticRegression

    numbers, classes = codes(labels)
    rows = features.double().numpy()
    mean, spread = rows.mean(axis=0), np.maximum(rows.std(axis=0), 1e-2 * rows.std() + 1e-12)
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=2000, tol=1e-6).fit((rows - mean) / spread, numbers)
    weight, bias = model.coef_, model.intercept_
    if len(classes) == 2:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / spread
    bias = bias - weight @ mean
    head = Head(torch.from_numpy(weight).float(), torch.from_numpy(bias).float(), classes, float("nan"))
    return Head(head.weight, head.bias, classes, _balanced(head, test_features, test_labels))


def _balanced(head: Head, features: Float[Tensor, "m d"], labels: Sequence[str]) -> float:
    predicted = head.logits(features).argmax(dim=1).numpy()
    truth = np.array([head.classes.index(label) if label in head.classes else -1 for label in labels])
    shares = [float((predicted[truth == k] == k).mean()) for k in range(len(head.classes)) if (truth == k).any()]
    return float(np.mean(shares)) if shares else float("nan")
