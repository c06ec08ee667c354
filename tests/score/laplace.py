"""The Laplace approximation of a head written out with whole matrices in NumPy."""

import numpy as np
from scipy.linalg import sqrtm
from scipy.special import softmax
from torch import Tensor

Signals = dict[str, Tensor]


def extended(signals: Signals) -> np.ndarray:
    rows = signals["features.penultimate"].double().numpy()
    return np.concatenate([rows, np.ones((len(rows), 1))], axis=1)


def whole_head(signals: Signals) -> np.ndarray:
    """``(K, D + 1)``."""
    return np.concatenate([signals["head.weight"].numpy(), signals["head.bias"].numpy()[:, None]], axis=1).astype(np.float64)


def curvature(signals: Signals) -> np.ndarray:
    """The Kronecker product of order ``K (D + 1)``, image by image."""
    head, rows = whole_head(signals), extended(signals)
    classes, inputs = np.zeros((len(head), len(head))), np.zeros((rows.shape[1], rows.shape[1]))
    for h in rows:
        p = softmax(head @ h)
        classes += (np.diag(p) - np.outer(p, p)) / len(rows)
        inputs += np.outer(h, h)
    return np.asarray(np.kron(classes, inputs))


def probabilities(fit: Signals, new: Signals, precision: float, noise: np.ndarray, *, whole: np.ndarray | None = None) -> np.ndarray:
    """``(N, S, K)``: softmax of ``head h + (J (H + l I)^-1 J^T)^(1/2) noise``, H the Kronecker product unless given."""
    head = whole_head(fit)
    whole = curvature(fit) if whole is None else whole
    posterior = np.linalg.inv(whole + precision * np.eye(len(whole)))
    out = []
    for h in extended(new):
        jacobian = np.kron(np.eye(len(head)), h[None])
        root = np.real(sqrtm(jacobian @ posterior @ jacobian.T))
        out.append(softmax(head @ h + noise @ root, axis=1))
    return np.array(out)


def entropy(p: np.ndarray) -> np.ndarray:
    """In nats, over the last axis."""
    return np.asarray(-(p * np.log(np.maximum(p, 1e-300))).sum(axis=-1))
