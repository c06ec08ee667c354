"""Fewer images than dimensions: every method with a covariance or principal directions ranks images as float64 formulas do.

Which methods these are is read off their state, not off a list. The formulas below use numpy, scipy and scikit-learn only. A method
without a formula here is compared with itself on float64 features.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.special import log_softmax, logsumexp, softmax
from scipy.stats import chi2, spearmanr
from sklearn.covariance import ledoit_wolf
from sklearn.neighbors import KernelDensity
from sklearn.svm import OneClassSVM as Machine

from offmap.core import registry
from offmap.core.detector import Detector, Fitted
from offmap.core.types import Signals

Array = NDArray[np.float64]
METHODS = registry.load_all("score", Detector)
DIRECTIONS = {"factor", "factors", "background", "basis", "rest", "axes"}
"""Last words of the names of tensors that hold a covariance or directions."""

POSITIVE = {"mahalanobis", "mahalanobis_pp", "radial_mahalanobis", "mm_pp", "residual", "residual_mahalanobis", "kpca", "pnml"}
"""Methods whose number is a distance, or at least never negative."""


@dataclass(frozen=True)
class Data:
    """Features of three classes: 64 directions that vary, and noise; half of the asked images have a direction more."""

    fit: Array
    labels: NDArray[np.int64]
    held: Array
    asked: Array
    weight: Array
    bias: Array

    @property
    def width(self) -> int:
        return self.fit.shape[1]

    def logits(self, rows: Array) -> Array:
        return rows @ self.weight.T + self.bias

    def signals(self, rows: Array, dtype: torch.dtype, *, layers: bool, labels: NDArray[np.int64] | None = None) -> Signals:
        out = {"features.last": rows, "logits": self.logits(rows), "head.weight": self.weight, "head.bias": self.bias}
        if layers:
            out |= {"features.a": rows[:, : self.width // 2], "features.b": rows[:, self.width // 2 :]}
        else:
            out["features.penultimate"] = rows
        named = {name: torch.from_numpy(array).to(dtype) for name, array in out.items()}
        return named | ({} if labels is None else {"label": torch.from_numpy(labels)})


def drawn(count: int, width: int) -> Data:
    """The same for the same sizes; all numbers are float32 to the last digit."""
    rng = np.random.default_rng(count + width)
    centres, mix = 2 * rng.normal(size=(3, width)), rng.normal(size=(64, width)) / 4
    odd = rng.normal(size=width)

    def part(size: int, shift: Array) -> tuple[Array, NDArray[np.int64]]:
        which = np.arange(size) % 3
        rows = 3 + centres[which] + rng.normal(size=(size, 64)) @ mix + 0.3 * rng.normal(size=(size, width)) + shift[:, None] * odd
        return np.maximum(0, rows).astype(np.float32).astype(np.float64), which

    fit, labels = part(count, np.zeros(count))
    held, _ = part(90, np.zeros(90))
    asked, _ = part(120, np.linspace(0, 0.5, 120))
    weight = ((centres - centres.mean(axis=0)) / width).astype(np.float32).astype(np.float64)
    return Data(fit, labels, held, asked, weight, np.array([3.0, 3.25, 2.75]))


def fitted(method: str, data: Data, dtype: torch.dtype = torch.float32) -> Fitted:
    options = {"radial_mahalanobis": {"beta": 0.5}, "combood": {"k": 5}, "d_knn": {"k": 5}}.get(method, {})
    detector = METHODS[method](**options)
    layers = layered(detector)
    cuts = np.array_split(np.arange(len(data.fit)), 3)
    batches = [data.signals(data.fit[at], dtype, layers=layers, labels=data.labels[at]) for at in cuts]
    return detector.fit(batches, held_out=[data.signals(data.held, dtype, layers=layers, labels=np.arange(len(data.held)) % 3)])


def layered(detector: Detector) -> bool:
    return any("*" in name for name in detector.needs)


def has_directions(method: str) -> bool:
    """It reads features, and its state holds a covariance or directions."""
    detector = METHODS[method]()
    given = {"features.last", "features.penultimate", "features.*", "logits", "head.weight", "head.bias", "label"}
    if detector.passes != "1F" or not detector.needs | detector.fit_needs <= given:
        return False
    state = fitted(method, drawn(90, 12)).state
    return bool(DIRECTIONS & {name.rpartition(".")[2] for name in state})


GAUSSIAN = [method for method in METHODS if has_directions(method)]


def unit(rows: Array) -> Array:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def quadratic(covariance: Array, rows: Array) -> Array:
    return (rows * cho_solve(cho_factor(covariance, lower=True), rows.T).T).sum(axis=1)


def shrunk(centred: Array) -> Array:
    covariance: Array = ledoit_wolf(centred, assume_centered=True)[0]
    return covariance


def classes(rows: Array, labels: NDArray[np.int64]) -> tuple[Array, Array]:
    means = np.stack([rows[labels == c].mean(axis=0) for c in range(3)])
    return means, rows - means[labels]


def each(fit: Array, labels: NDArray[np.int64], asked: Array) -> Array:
    """Squared distances to the classes."""
    means, residuals = classes(fit, labels)
    covariance = shrunk(residuals)
    return np.stack([quadratic(covariance, asked - mean) for mean in means], axis=1)


def relative(fit: Array, labels: NDArray[np.int64], asked: Array) -> Array:
    mean = fit.mean(axis=0)
    return each(fit, labels, asked).min(axis=1) - quadratic(shrunk(fit - mean), asked - mean)


def mahavar(data: Data, _: Fitted) -> Array:
    own, asked = (each(data.fit, data.labels, rows) for rows in (data.fit, data.asked))
    share = 0.5 * own.min(axis=1).sum() / own.var(axis=1).sum()
    return asked.min(axis=1) - share * asked.var(axis=1)


def gmm(data: Data, _: Fitted) -> Array:
    means, residuals = classes(data.fit, data.labels)
    tied, terms = shrunk(residuals), []
    for c, mean in enumerate(means):
        own = residuals[data.labels == c]
        weight = (data.width + 1) / (data.width + len(own))
        covariance = (1 - weight) * own.T @ own / (len(own) - 1) + weight * tied
        share = np.log(len(own) / len(residuals))
        terms.append(share - 0.5 * quadratic(covariance, data.asked - mean) - 0.5 * np.linalg.slogdet(covariance)[1])
    return -logsumexp(np.stack(terms), axis=0)


def eigen(second: Array) -> tuple[Array, Array]:
    """Descending."""
    values, vectors = np.linalg.eigh(second)
    return np.maximum(values[::-1], 0), vectors[:, ::-1]


def holding(values: Array, share: float) -> int:
    return int((np.cumsum(values) / values.sum() < share).sum()) + 1


def off(rows: Array, basis: Array) -> Array:
    return np.linalg.norm(rows - rows @ basis @ basis.T, axis=1)


def residual(data: Data, _: Fitted) -> Array:
    origin = -np.linalg.pinv(data.weight, rcond=1e-6) @ data.bias
    values, vectors = eigen((data.fit - origin).T @ (data.fit - origin))
    return off(data.asked - origin, vectors[:, : min(holding(values, 0.95), len(data.fit) - 1, data.width - 1)])


def residual_mahalanobis(data: Data, _: Fitted) -> Array:
    mean = data.fit.mean(axis=0)
    values, vectors = eigen((data.fit - mean).T @ (data.fit - mean))
    rest = vectors[:, min(holding(values, 0.9), len(data.fit) - 1, data.width - 1) :]
    return quadratic(shrunk((data.fit - mean) @ rest), (data.asked - mean) @ rest)


def vim(data: Data, _: Fitted) -> Array:
    origin = -np.linalg.pinv(data.weight, rcond=1e-6) @ data.bias
    wanted = 1000 if data.width >= 2048 else data.width // 2
    basis = eigen((data.fit - origin).T @ (data.fit - origin))[1][:, : min(wanted, len(data.fit) - 1)]
    alpha = data.logits(data.fit).max(axis=1).mean() / off(data.fit - origin, basis).mean()
    return alpha * off(data.asked - origin, basis) - logsumexp(data.logits(data.asked), axis=1)


def neco(data: Data, _: Fitted) -> Array:
    mean, scale = data.fit.mean(axis=0), data.fit.std(axis=0)
    rows, asked = (data.fit - mean) / scale, (data.asked - mean) / scale
    values, vectors = eigen(rows.T @ rows)
    basis = vectors[:, : min(holding(values, 0.9), len(rows) - 1)]
    return -np.linalg.norm(asked @ basis, axis=1) / np.linalg.norm(asked, axis=1)


def kpca(data: Data, found: Fitted) -> Array:
    """With the frequencies that were drawn."""
    frequencies = found.state["frequencies"].double().numpy()
    rows, asked = (np.hstack([np.cos(unit(x) @ frequencies), np.sin(unit(x) @ frequencies)]) for x in (data.fit, data.asked))
    centred = rows - rows.mean(axis=0)
    values, vectors = eigen(centred.T @ centred)
    return off(asked - rows.mean(axis=0), vectors[:, : min(holding(values, 0.9), len(rows) - 1)])


def pnml(data: Data, _: Fitted) -> Array:
    second = unit(data.fit).T @ unit(data.fit)
    q = quadratic(second + 1e-3 * np.trace(second) / data.width * np.eye(data.width), unit(data.asked))[:, None]
    log_p = log_softmax(data.logits(unit(data.asked)), axis=1)
    p = softmax(data.logits(unit(data.asked)), axis=1)
    return np.log((p / (p + (1 - p) * np.exp(log_p * q / (1 + q)))).sum(axis=1))


def kde(data: Data, _: Fitted) -> Array:
    rows, asked = unit(data.fit), unit(data.asked)
    mean = rows.mean(axis=0)
    values, vectors = eigen((rows - mean).T @ (rows - mean) / (len(rows) - 1))
    axes = vectors[:, :16] / np.sqrt(values[:16])
    return -np.asarray(KernelDensity(bandwidth=len(rows) ** (-1 / 20)).fit((rows - mean) @ axes).score_samples((asked - mean) @ axes))


def one_class_svm(data: Data, _: Fitted) -> Array:
    mean = data.fit.mean(axis=0)
    basis = eigen((data.fit - mean).T @ (data.fit - mean))[1][:, :64]
    rows = (data.fit - mean) @ basis
    machine = Machine(nu=0.05, gamma=1 / (rows.shape[1] * rows.var(axis=0).mean())).fit(rows)
    return -np.asarray(machine.decision_function((data.asked - mean) @ basis))


def kth(rows: Array, bank: Array, k: int = 5) -> Array:
    squared = np.square(rows).sum(axis=1)[:, None] + np.square(bank).sum(axis=1) - 2 * rows @ bank.T
    return np.sqrt(np.maximum(0, np.sort(squared, axis=1)[:, k - 1]))


def standard(values: Array, held: Array) -> Array:
    return np.asarray((values - held.mean(axis=0)) / held.std(axis=0, ddof=1))


def combood(data: Data, _: Fitted) -> Array:
    bank = unit(data.fit)
    logs = [
        np.stack([np.log(kth(rows, bank)), np.log(each(bank, data.labels, rows).min(axis=1))], axis=1)
        for rows in (unit(data.asked), unit(data.held))
    ]
    return standard(*logs).sum(axis=1)


def d_knn(data: Data, _: Fitted) -> Array:
    mean = unit(data.fit).mean(axis=0)
    bank, asked, held = (unit(x) - mean for x in (data.fit, data.asked, data.held))
    values, vectors = eigen(bank.T @ bank)
    basis = vectors[:, : holding(values, 0.9)]
    both = [np.stack([kth(x @ basis, bank @ basis), kth(x - x @ basis @ basis.T, bank - bank @ basis @ basis.T)], 1) for x in (asked, held)]
    return standard(*both).sum(axis=1)


def logs_by_layer(data: Data) -> tuple[Array, Array]:
    """Log distances of the asked and of the held-out images, features of length one standardised."""
    out = []
    for columns in (slice(0, data.width // 2), slice(data.width // 2, None)):
        fit, asked, held = (unit(x[:, columns]) for x in (data.fit, data.asked, data.held))
        mean, scale = fit.mean(axis=0), fit.std(axis=0, ddof=1)
        covariance = shrunk((fit - mean) / scale)
        out.append([np.log(quadratic(covariance, (x - mean) / scale)) for x in (asked, held)])
    return np.stack([a for a, _ in out], axis=1), np.stack([h for _, h in out], axis=1)


def multilayer_mahalanobis(data: Data, _: Fitted) -> Array:
    """The deeper layer given the shallower: the distance of both less that of the shallower, under one covariance."""
    half, fits, asked = data.width // 2, [], []
    for columns in (slice(0, half), slice(half, None)):
        fit, rows = unit(data.fit[:, columns]), unit(data.asked[:, columns])
        scale = np.sqrt(fit.var(axis=0, ddof=1).mean())
        fits.append((fit - fit.mean(axis=0)) / scale)
        asked.append((rows - fit.mean(axis=0)) / scale)
    covariance = shrunk(np.hstack(fits))
    return quadratic(covariance, np.hstack(asked)) - quadratic(covariance[:half, :half], asked[0])


def multilayer_fisher(data: Data, _: Fitted) -> Array:
    asked, held = logs_by_layer(data)
    count, upper = len(held), max(2, round(0.1 * len(held)))

    def surprise(values: Array, others: Array, total: int) -> Array:
        counts = (others[None] >= values[:, None]).sum(axis=1)
        return -np.log((counts + (1 if total > count else 0)) / total)

    ordered = np.sort(held, axis=0)
    excess = (ordered[-upper:] - ordered[-upper]).sum(axis=0) / (upper - 1)
    own = 2 * surprise(held, held, count).sum(axis=1)
    freedom = min(2 * own.mean() ** 2 / own.var(ddof=1), 4)
    beyond = np.maximum(0, asked - ordered[-1]) / excess
    statistic = 2 * (surprise(asked, held, count + 1) + beyond).sum(axis=1)
    return -np.asarray(chi2.logsf(statistic / (own.mean() / freedom), freedom))


def joint(data: Data, _: Fitted) -> Array:
    """Blocks of length one side by side."""
    half = data.width // 2
    rows, asked = (np.hstack([unit(x[:, :half]), unit(x[:, half:])]) for x in (data.fit, data.asked))
    return each(rows, data.labels, asked).min(axis=1)


def powered(rows: Array) -> Array:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True) ** 0.5


FORMULAS: dict[str, Callable[[Data, Fitted], Array]] = {
    "mahalanobis": lambda d, _: each(d.fit, d.labels, d.asked).min(axis=1),
    "mahalanobis_pp": lambda d, _: each(unit(d.fit), d.labels, unit(d.asked)).min(axis=1),
    "radial_mahalanobis": lambda d, _: each(powered(d.fit), d.labels, powered(d.asked)).min(axis=1),
    "relative_mahalanobis": lambda d, _: relative(d.fit, d.labels, d.asked),
    "relative_mahalanobis_pp": lambda d, _: relative(unit(d.fit), d.labels, unit(d.asked)),
    "mm_pp": joint,
    "mahavar": mahavar,
    "gmm": gmm,
    "residual": residual,
    "residual_mahalanobis": residual_mahalanobis,
    "vim": vim,
    "neco": neco,
    "kpca": kpca,
    "pnml": pnml,
    "kde": kde,
    "one_class_svm": one_class_svm,
    "combood": combood,
    "d_knn": d_knn,
    "multilayer_mahalanobis": multilayer_mahalanobis,
    "multilayer_fisher": multilayer_fisher,
}


def checked(method: str, data: Data) -> None:
    found = fitted(method, data)
    layers = layered(found.detector)
    scores = found.score(data.signals(data.asked, torch.float32, layers=layers)).double().numpy()
    if method in FORMULAS:
        truth = FORMULAS[method](data, found)
    else:
        exact = fitted(method, data, torch.float64)
        truth = exact.score(data.signals(data.asked, torch.float64, layers=layers)).double().numpy()
    assert spearmanr(scores, truth).statistic >= 0.999
    if method in POSITIVE:
        assert scores.min() >= 0


@pytest.mark.parametrize("count", [200, 848, 2000])
@pytest.mark.parametrize("method", GAUSSIAN)
def test_it_ranks_images_as_its_float64_formula(method: str, count: int) -> None:
    checked(method, drawn(count, 256))


@pytest.mark.slow
@pytest.mark.parametrize("method", GAUSSIAN)
def test_it_does_so_with_2048_dimensions(method: str) -> None:
    checked(method, drawn(848, 2048))


def test_the_methods_are_found_by_their_state() -> None:
    assert set(FORMULAS) <= set(GAUSSIAN)
    assert {"knn", "msp", "ecod"}.isdisjoint(GAUSSIAN)
