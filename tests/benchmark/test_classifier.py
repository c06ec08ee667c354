"""Trained heads against scikit-learn, and what they refuse."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from offmap.benchmark.classifier import codes, train_head
from offmap.core.errors import ConfigError


def blobs(classes: int, seed: int = 0) -> tuple[torch.Tensor, list[str]]:
    rng = np.random.default_rng(seed)
    which = np.arange(90) % classes
    return torch.from_numpy(rng.normal(size=(90, 6)) * 3 + 4 * np.eye(6)[which] + 2).float(), [f"class {k}" for k in which]


@pytest.mark.parametrize("classes", [2, 3])
def test_probabilities_are_those_of_scikit_learn(classes: int) -> None:
    features, labels = blobs(classes)
    unseen, truth = blobs(classes, seed=1)
    head = train_head(features, labels, unseen, truth)
    x = features.double().numpy()
    mean, spread = x.mean(axis=0), x.std(axis=0)
    peer = LogisticRegression(class_weight="balanced", max_iter=2000, tol=1e-6).fit((x - mean) / spread, labels)
    expected = peer.predict_proba((unseen.double().numpy() - mean) / spread)
    assert np.allclose(head.logits(unseen).softmax(dim=1).numpy(), expected, atol=1e-3)
    assert head.classes == tuple(sorted(set(labels)))
    hits = [np.mean(peer.predict((unseen.double().numpy() - mean) / spread)[np.array(truth) == c] == c) for c in head.classes]
    assert head.accuracy == pytest.approx(np.mean(hits))


def test_a_constant_feature_does_no_harm() -> None:
    features, labels = blobs(2)
    features[:, 0] = 5.0
    assert bool(torch.isfinite(train_head(features, labels, features, labels).weight).all())


def test_missing_labels_and_a_single_class_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 of 3 images have no label"):
        codes(["a", "", ""])
    with pytest.raises(ConfigError, match="all 2 images have the label 'a'"):
        codes(["a", "a"])
