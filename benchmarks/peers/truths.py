"""Every compared method once more, by numpy and scipy in float64, straight from its formula; higher = more out-of-distribution."""

import numpy as np
from case import Case
from scipy.linalg import cho_factor, cho_solve
from scipy.special import log_softmax, logsumexp, softmax
from sklearn.covariance import ledoit_wolf
from torch import Tensor

Array = np.ndarray


def double(tensor: Tensor) -> Array:
    """As float64."""
    return tensor.detach().double().numpy()


def asked_logits(case: Case) -> Array:
    """``W h + b``."""
    return double(case.asked.features) @ double(case.head.weight).T + double(case.head.bias)


def fit_logits(case: Case) -> Array:
    """``W h + b`` of the images to fit on."""
    return double(case.fit.features) @ double(case.head.weight).T + double(case.head.bias)


def msp(case: Case) -> Array:
    """One minus the largest probability, from the logits of all others."""
    z = np.sort(double(case.asked.logits), axis=1)
    return np.exp(logsumexp(z[:, :-1], axis=1) - logsumexp(z, axis=1))


def max_logit(case: Case) -> Array:
    """Minus the largest logit."""
    return -double(case.asked.logits).max(axis=1)


def energy(case: Case) -> Array:
    """Minus the logsumexp."""
    return -logsumexp(double(case.asked.logits), axis=1)


def entropy(case: Case) -> Array:
    """In nats."""
    log_p = log_softmax(double(case.asked.logits), axis=1)
    return -(np.exp(log_p) * log_p).sum(axis=1)


def gen(case: Case) -> Array:
    """``sum p^0.1 (1 - p)^0.1``."""
    p = softmax(double(case.asked.logits), axis=1)
    top = p.argmax(axis=1)[:, None]
    rest = 1 - p
    np.put_along_axis(rest, top, msp(case)[:, None], axis=1)
    return ((p * rest) ** 0.1).sum(axis=1)


def kl_matching(case: Case) -> Array:
    """Least divergence from a predicted class's mean softmax."""
    z, asked = double(case.fit.logits), double(case.asked.logits)
    p, log_p = softmax(z, axis=1), log_softmax(asked, axis=1)
    kinds = [p[z.argmax(axis=1) == c].mean(axis=0) for c in np.unique(z.argmax(axis=1))]
    return np.min([(np.exp(log_p) * (log_p - np.log(q))).sum(axis=1) for q in kinds], axis=0)


def temperature_scaling(case: Case) -> Array:
    """MSP at the temperature of least cross-entropy, by a fine search."""
    z, labels = double(case.fit.logits), case.fit.labels.numpy()
    grid = np.exp(np.linspace(np.log(0.25), np.log(4), 200))
    for _ in range(3):
        costs = [-log_softmax(z / t, axis=1)[np.arange(len(z)), labels].mean() for t in grid]
        best = int(np.argmin(costs))
        grid = np.linspace(grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)], 41)
    scaled = np.sort(double(case.asked.logits) / grid[20], axis=1)
    return np.exp(logsumexp(scaled[:, :-1], axis=1) - logsumexp(scaled, axis=1))


def _quadratic(covariance: Array, rows: Array) -> Array:
    return (rows * cho_solve(cho_factor(covariance, lower=True), rows.T).T).sum(axis=1)


def _classes(case: Case) -> tuple[Array, Array, Array]:
    """Features to score, class means, residuals."""
    rows, labels = double(case.fit.features), case.fit.labels.numpy()
    means = np.stack([rows[labels == c].mean(axis=0) for c in np.unique(labels)])
    return double(case.asked.features), means, rows - means[labels]


def mahalanobis(case: Case) -> Array:
    """To the nearest class, covariance tied and shrunk as scikit-learn does."""
    asked, means, residuals = _classes(case)
    covariance = ledoit_wolf(residuals, assume_centered=True)[0]
    return np.min([_quadratic(covariance, asked - mean) for mean in means], axis=0)


def mahalanobis_of_peer(case: Case) -> Array:
    """The same with the covariance that pytorch-ood means: a scatter, not divided, with a ridge of 1e-6, and a half."""
    asked, means, residuals = _classes(case)
    scatter = residuals.T @ residuals + 1e-6 * np.eye(asked.shape[1])
    return 0.5 * np.min([_quadratic(scatter, asked - mean) for mean in means], axis=0)


def relative_mahalanobis(case: Case) -> Array:
    """Minus the distance to all images."""
    rows, asked = double(case.fit.features), double(case.asked.features)
    covariance = ledoit_wolf(rows - rows.mean(axis=0), assume_centered=True)[0]
    return mahalanobis(case) - _quadratic(covariance, asked - rows.mean(axis=0))


def relative_mahalanobis_of_peer(case: Case) -> Array:
    """With scatters in place of covariances."""
    rows, asked = double(case.fit.features), double(case.asked.features)
    centred = rows - rows.mean(axis=0)
    total = centred.T @ centred + 1e-6 * np.eye(rows.shape[1])
    return 2 * mahalanobis_of_peer(case) - _quadratic(total, asked - rows.mean(axis=0))


def one_gaussian(case: Case) -> Array:
    """Mahalanobis distance without labels."""
    rows, asked = double(case.fit.features), double(case.asked.features)
    covariance = ledoit_wolf(rows - rows.mean(axis=0), assume_centered=True)[0]
    return _quadratic(covariance, asked - rows.mean(axis=0))


def vim(case: Case, components: int = 512) -> Array:
    """Residual in units of logits, less the logsumexp."""
    rows, asked, weight = double(case.fit.features), double(case.asked.features), double(case.head.weight)
    origin = -np.linalg.pinv(weight) @ double(case.head.bias)
    vectors = np.linalg.eigh((rows - origin).T @ (rows - origin))[1][:, :-components]
    alpha = fit_logits(case).max(axis=1).mean() / np.linalg.norm((rows - origin) @ vectors, axis=1).mean()
    return alpha * np.linalg.norm((asked - origin) @ vectors, axis=1) - logsumexp(asked_logits(case), axis=1)


def residual(case: Case, components: int = 512) -> Array:
    """Length outside the principal components."""
    rows, asked = double(case.fit.features), double(case.asked.features)
    centred = rows - rows.mean(axis=0)
    vectors = np.linalg.eigh(centred.T @ centred)[1][:, :-components]
    return np.linalg.norm((asked - rows.mean(axis=0)) @ vectors, axis=1)


def _unit(rows: Array) -> Array:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def knn(case: Case, k: int = 50) -> Array:
    """Distance of unit features to the k-th neighbour, by cosines in float64."""
    bank, asked = _unit(double(case.fit.features)), _unit(double(case.asked.features))
    cosines = np.concatenate([np.partition(part @ bank.T, len(bank) - k, axis=1)[:, len(bank) - k] for part in np.array_split(asked, 16)])
    return np.sqrt(np.maximum(0, 2 - 2 * cosines))


def nnguide(case: Case, k: int = 10) -> Array:
    """Confidence times that of the neighbours."""
    bank, asked = _unit(double(case.fit.features)), _unit(double(case.asked.features))
    bank = bank * logsumexp(fit_logits(case), axis=1)[:, None]
    nearest = [np.sort(part @ bank.T, axis=1)[:, -k:].mean(axis=1) for part in np.array_split(asked, 16)]
    return -np.concatenate(nearest) * logsumexp(asked_logits(case), axis=1)


def she(case: Case) -> Array:
    """Minus the product with the mean of the predicted class's right images."""
    rows, labels, right = double(case.fit.features), case.fit.labels.numpy(), fit_logits(case).argmax(axis=1)
    patterns = np.stack([rows[(labels == c) & (right == c)].mean(axis=0) for c in np.unique(labels)])
    return -(double(case.asked.features) * patterns[asked_logits(case).argmax(axis=1)]).sum(axis=1)


def fdbd(case: Case) -> Array:
    """Mean distance to the boundaries."""
    weight, z, asked = double(case.head.weight), asked_logits(case), double(case.asked.features)
    gaps = np.linalg.norm(weight[:, None] - weight, axis=2)
    gaps[np.diag_indices(len(gaps))] = np.inf
    which = z.argmax(axis=1)
    length = np.linalg.norm(asked - double(case.fit.features).mean(axis=0), axis=1)
    return -((z.max(axis=1, keepdims=True) - z) / gaps[which]).sum(axis=1) / (z.shape[1] - 1) / length


def nci(case: Case) -> Array:
    """Along the weight of the predicted class, and the L1 norm."""
    asked, weight = double(case.asked.features), double(case.head.weight)
    centred = asked - double(case.fit.features).mean(axis=0)
    along = (centred * weight[asked_logits(case).argmax(axis=1)]).sum(axis=1)
    return -along / np.linalg.norm(centred, axis=1) - 1e-4 * np.abs(asked).sum(axis=1)


def pnml(case: Case, ridge: float = 1e-3) -> Array:
    """Regret with a ridge of a share of the mean eigenvalue."""
    rows, asked = _unit(double(case.fit.features)), _unit(double(case.asked.features))
    second = rows.T @ rows
    return _regret(case, _quadratic(second + ridge * np.trace(second) / len(second) * np.eye(len(second)), asked))


def pnml_of_peer(case: Case) -> Array:
    """Regret with the pseudo-inverse."""
    rows, asked = _unit(double(case.fit.features)), _unit(double(case.asked.features))
    return _regret(case, ((asked @ np.linalg.pinv(rows.T @ rows, hermitian=True)) * asked).sum(axis=1))


def _regret(case: Case, q: Array) -> Array:
    z = _unit(double(case.asked.features)) @ double(case.head.weight).T + double(case.head.bias)
    p, share = softmax(z, axis=1), (q / (1 + q))[:, None]
    return np.log((p / (p + (1 - p) * p**share)).sum(axis=1)) / np.log(z.shape[1])


def gmm(case: Case) -> Array:
    """Class covariances with half of the tied one, as fitted with ``tied = 0.5``."""
    asked, means, residuals = _classes(case)
    labels, tied = case.fit.labels.numpy(), ledoit_wolf(residuals, assume_centered=True)[0]
    own = [np.cov(residuals[labels == c].T) for c in range(len(means))]
    return _mixture(asked, means, [0.5 * c + 0.5 * tied for c in own], np.bincount(labels))


def gmm_of_peer(case: Case) -> Array:
    """Class covariances with a ridge of 1e-6."""
    asked, means, residuals = _classes(case)
    labels = case.fit.labels.numpy()
    own = [np.cov(residuals[labels == c].T, bias=True) + 1e-6 * np.eye(asked.shape[1]) for c in range(len(means))]
    return _mixture(asked, means, own, np.bincount(labels))


def _mixture(asked: Array, means: Array, covariances: list[Array], counts: Array) -> Array:
    terms = [
        np.log(n / counts.sum()) - 0.5 * (_quadratic(c, asked - m) + np.linalg.slogdet(c)[1] + len(m) * np.log(2 * np.pi))
        for m, c, n in zip(means, covariances, counts, strict=True)
    ]
    return -logsumexp(np.stack(terms), axis=0)


def _energy_of(case: Case, rows: Array) -> Array:
    return -logsumexp(rows @ double(case.head.weight).T + double(case.head.bias), axis=1)


def _kept(rows: Array, percentile: float) -> Array:
    """The largest activations of each image, zero elsewhere."""
    count = rows.shape[1] - round(rows.shape[1] * percentile / 100)
    out = np.zeros_like(rows)
    where = np.argsort(-rows, axis=1, kind="stable")[:, :count]
    np.put_along_axis(out, where, np.take_along_axis(rows, where, axis=1), axis=1)
    return out


def ash_p(case: Case) -> Array:
    """Prune 65 %."""
    return _energy_of(case, _kept(double(case.asked.features), 65))


def ash_s(case: Case) -> Array:
    """Prune 65 % and scale."""
    rows = double(case.asked.features)
    kept = _kept(rows, 65)
    return _energy_of(case, kept * np.exp(rows.sum(axis=1) / kept.sum(axis=1))[:, None])


def ash_b(case: Case) -> Array:
    """Prune 65 % and level."""
    rows = double(case.asked.features)
    count = rows.shape[1] - round(rows.shape[1] * 0.65)
    return _energy_of(case, (_kept(rows, 65) > 0) * (rows.sum(axis=1, keepdims=True) / count))


def scale(case: Case) -> Array:
    """Scale by the concentration above 85 %."""
    rows = double(case.asked.features)
    return _energy_of(case, rows * np.exp(rows.sum(axis=1) / _kept(rows, 85).sum(axis=1))[:, None])


def lts(case: Case) -> Array:
    """Scale the logits."""
    rows = double(case.asked.features)
    return -logsumexp(asked_logits(case) * (rows.sum(axis=1) / _kept(rows, 95).sum(axis=1))[:, None] ** 2, axis=1)


def react(case: Case) -> Array:
    """Clip at the 90th percentile of all activations."""
    return _energy_of(case, np.minimum(double(case.asked.features), np.percentile(double(case.fit.features), 90)))


def dice(case: Case) -> Array:
    """Keep a tenth of the contributions."""
    weight = double(case.head.weight)
    part = double(case.fit.features).mean(axis=0) * weight
    z = double(case.asked.features) @ np.where(part > np.quantile(part, 0.9), weight, 0).T + double(case.head.bias)
    return -logsumexp(z, axis=1)


def gradnorm(case: Case) -> Array:
    """Closed form of the gradient's L1 norm."""
    p = softmax(asked_logits(case), axis=1)
    return -np.abs(p.shape[1] * p - 1).sum(axis=1) * np.abs(double(case.asked.features)).sum(axis=1)
