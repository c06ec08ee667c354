"""The compared methods: a detector of offmap, and how a peer is asked for the same."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import truths
from case import Case
from sklearn.decomposition import PCA
from torch import Tensor

from offmap.core.detector import Detector
from offmap.score.ash_b import ASHB
from offmap.score.ash_p import ASHP
from offmap.score.ash_s import ASHS
from offmap.score.dice import DICE
from offmap.score.energy import Energy
from offmap.score.entropy import Entropy
from offmap.score.fdbd import FDBD
from offmap.score.gen import GEN
from offmap.score.gmm import GMM
from offmap.score.gradnorm import GradNorm
from offmap.score.gram import Gram
from offmap.score.isolation_forest import IsolationForest
from offmap.score.kde import KDE
from offmap.score.kl_matching import KLMatching
from offmap.score.knn import KNN
from offmap.score.lof import LOF
from offmap.score.lts import LTS
from offmap.score.mahalanobis import Mahalanobis
from offmap.score.max_logit import MaxLogit
from offmap.score.msp import MSP
from offmap.score.nci import NCI
from offmap.score.nnguide import NNGuide
from offmap.score.one_class_svm import OneClassSVM
from offmap.score.openmax import OpenMax
from offmap.score.pnml import PNML
from offmap.score.react import ReAct
from offmap.score.relative_mahalanobis import RelativeMahalanobis
from offmap.score.residual import Residual
from offmap.score.scale import SCALE
from offmap.score.she import SHE
from offmap.score.temperature_scaling import TemperatureScaling
from offmap.score.vim import ViM
from offmap.score.vra import VRA

Score = Callable[[], Any]
"""Scores the asked images."""

Reads = Literal["logits", "features", "features and logits", "maps"]
Truth = Callable[[Case], "np.ndarray[Any, Any]"]


@dataclass(frozen=True)
class Sizes:
    """Of the data a pair is compared on."""

    count: int = 4000
    asked: int = 5000
    width: int = 2048
    classes: int = 100
    side: int = 0


@dataclass(frozen=True)
class Pair:
    """One method on both sides.

    Args:
        detector: ours.
        theirs: fits the peer; gives a function that scores.
        reads: what scoring is handed; where a peer applies the head itself, ours is timed with the head, too.
        turned: brings the peer's number to our unit.
        truth: our number by numpy in float64.
        peer_truth: the peer's own number by numpy in float64, where it means another; not given: ours.
        labelled: ours is fitted with labels and head.
        note: what a reader should know.
    """

    detector: Detector
    theirs: Callable[[Any, Case], Score]
    reads: Reads
    turned: Callable[["np.ndarray[Any, Any]"], "np.ndarray[Any, Any]"] = field(default=lambda scores: scores)
    truth: Truth | None = None
    peer_truth: Truth | None = None
    sizes: Sizes = Sizes()
    labelled: bool = True
    note: str = ""


def _on_logits(name: str, **options: Any) -> Callable[[Any, Case], Score]:
    """A detector of pytorch-ood on logits."""

    def fit(peer: Any, case: Case) -> Score:
        made = getattr(peer, name)(None, **options)
        made.fit_logits(case.fit.logits, case.fit.labels)
        return lambda: made.predict_logits(case.asked.logits)

    return fit


def _on_features(name: str, *given: str, **options: Any) -> Callable[[Any, Case], Score]:
    """A detector of pytorch-ood on features; ``given`` names what its constructor takes: ``head``, ``w``, ``b``."""

    def fit(peer: Any, case: Case) -> Score:
        parts = {"head": case.head, "w": case.head.weight, "b": case.head.bias}
        made = getattr(peer, name)(None, **{key: parts[key] for key in given}, **options)
        made.fit_features(case.fit.features, case.fit.labels)
        return lambda: made.predict_features(case.asked.features)

    return fit


def _on_maps(name: str, **options: Any) -> Callable[[Any, Case], Score]:
    """A detector of pytorch-ood on feature maps, given maps of one position."""

    def fit(peer: Any, case: Case) -> Score:
        made = getattr(peer, name)(None, torch.nn.Sequential(torch.nn.Flatten(), case.head), **options)
        made.fit_feature_maps(case.fit.features[:, :, None, None], case.fit.labels)
        return lambda: made.predict_feature_maps(case.asked.features[:, :, None, None])

    return fit


def _gradnorm(peer: Any, case: Case) -> Score:
    head = torch.nn.Linear(case.head.in_features, case.head.out_features)
    head.load_state_dict(case.head.state_dict())
    made = peer.GradNorm(head, param_filter=lambda name: name == "weight")
    return lambda: made.to("cpu").predict(case.asked.features)


def _gram(peer: Any, case: Case) -> Score:
    class Head(torch.nn.Module):
        """The classifier on pooled maps."""

        def forward(self, maps: Tensor) -> Tensor:
            """Logits."""
            return case.head(maps.mean(dim=(2, 3)))

    made = peer.Gram(Head(), [torch.nn.Identity()], case.head.out_features, num_poles_list=range(1, 6))
    made.fit([(case.fit.maps, case.fit.labels)])
    return lambda: made.predict_structured(case.asked.logits, [case.asked.maps])


def _units(rows: Tensor) -> "np.ndarray[Any, Any]":
    return torch.nn.functional.normalize(rows, dim=1).numpy()


def _ledoit_wolf(_: Any, case: Case) -> Score:
    from sklearn.covariance import LedoitWolf

    made = LedoitWolf().fit(case.fit.features.numpy())
    return lambda: made.mahalanobis(case.asked.features.numpy())


def _pca(_: Any, case: Case) -> Score:
    made = PCA(512, svd_solver="covariance_eigh").fit(case.fit.features.numpy())

    def score() -> Any:
        rows = case.asked.features.numpy()
        return np.linalg.norm(rows - made.inverse_transform(made.transform(rows)), axis=1)

    return score


def _neighbours(_: Any, case: Case) -> Score:
    from sklearn.neighbors import NearestNeighbors

    made = NearestNeighbors(n_neighbors=50, n_jobs=-1).fit(_units(case.fit.features))
    return lambda: made.kneighbors(_units(case.asked.features))[0][:, -1]


def _lof(_: Any, case: Case) -> Score:
    from sklearn.neighbors import LocalOutlierFactor

    made = LocalOutlierFactor(n_neighbors=20, novelty=True, n_jobs=-1).fit(_units(case.fit.features))
    return lambda: -made.score_samples(_units(case.asked.features))


def _svm(_: Any, case: Case) -> Score:
    from sklearn.svm import OneClassSVM as Machine

    pca = PCA(64, svd_solver="covariance_eigh").fit(case.fit.features.double().numpy())
    rows = pca.transform(case.fit.features.double().numpy())
    made = Machine(nu=0.05, gamma=1 / (rows.shape[1] * rows.var(axis=0).mean())).fit(rows)
    return lambda: -made.decision_function(pca.transform(case.asked.features.numpy()))


def _forest(_: Any, case: Case) -> Score:
    from sklearn.ensemble import IsolationForest as Forest

    pca = PCA(64, svd_solver="covariance_eigh").fit(case.fit.features.double().numpy())
    made = Forest(n_estimators=100, max_samples=256, random_state=0, n_jobs=-1).fit(
        pca.transform(case.fit.features.numpy()).astype(np.float32)
    )
    return lambda: -made.score_samples(pca.transform(case.asked.features.numpy()).astype(np.float32))


def _kde(_: Any, case: Case) -> Score:
    from sklearn.neighbors import KernelDensity

    rows = _units(case.fit.features.double())
    pca = PCA(16, svd_solver="covariance_eigh", whiten=True).fit(rows)
    made = KernelDensity(bandwidth=len(rows) ** (-1 / 20)).fit(pca.transform(rows))
    return lambda: -made.score_samples(pca.transform(_units(case.asked.features)))


def _logit(scores: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    return np.log(np.clip(scores, 1e-300, None)) - np.log(np.clip(1 - scores, 1e-300, None))


FEW = Sizes(asked=300)
SMALL = Sizes(width=128, classes=10)
MAPS = Sizes(count=1000, asked=1000, width=64, classes=10, side=7)
SHRINKS = "pytorch-ood neither divides nor shrinks the covariance: another estimator, each right by its own formula"

PYTORCH_OOD = (
    Pair(MSP(), _on_logits("MaxSoftmax"), "logits", lambda s: 1 + s, truths.msp, note="1 - p in float32 rounds; ours does not"),
    Pair(MaxLogit(), _on_logits("MaxLogit"), "logits", truth=truths.max_logit),
    Pair(Energy(), _on_logits("EnergyBased"), "logits", truth=truths.energy),
    Pair(Entropy(), _on_logits("Entropy"), "logits", truth=truths.entropy, note="pytorch-ood floors p at 1e-7"),
    Pair(GEN(), _on_logits("GEN"), "logits", lambda s: 100 * s, truths.gen, note="pytorch-ood floors p at 1e-7, and averages"),
    Pair(KLMatching(), _on_logits("KLMatching"), "logits", truth=truths.kl_matching),
    Pair(
        TemperatureScaling(),
        _on_logits("TemperatureScaling"),
        "logits",
        lambda s: 1 + s,
        truths.temperature_scaling,
        note="50 steps of size 0.01 do not reach the minimum; ours is found by bisection",
    ),
    Pair(
        OpenMax(tail=25),
        _on_logits("OpenMax", tailsize=25),
        "logits",
        _logit,
        sizes=Sizes(asked=1000, classes=10),
        note="ours is the log-odds of the same probability, which ties at 1; correct images only, another origin of the tail",
    ),
    Pair(
        Mahalanobis(),
        _on_features("Mahalanobis"),
        "features",
        lambda s: 2 * 4000 * s,
        truths.mahalanobis,
        truths.mahalanobis_of_peer,
        FEW,
        note=SHRINKS,
    ),
    Pair(
        Mahalanobis(),
        _on_features("Mahalanobis"),
        "features",
        lambda s: 2 * 4000 * s,
        truths.mahalanobis,
        truths.mahalanobis_of_peer,
        Sizes(asked=200, classes=1000),
        note=SHRINKS,
    ),
    Pair(
        RelativeMahalanobis(),
        _on_features("RMD"),
        "features",
        lambda s: 4000 * s,
        truths.relative_mahalanobis,
        truths.relative_mahalanobis_of_peer,
        FEW,
        note=SHRINKS,
    ),
    Pair(ViM(components=512), _on_features("ViM", "w", "b", d=512), "features and logits", truth=truths.vim),
    Pair(KNN(k=50), _on_features("KNN", k=50), "features", truth=truths.knn, sizes=Sizes(count=20_000, asked=1000)),
    Pair(NNGuide(k=10), _on_features("NNGuide", "head", k=10), "features and logits", truth=truths.nnguide),
    Pair(SHE(), _on_features("SHE", "head"), "features and logits", truth=truths.she),
    Pair(FDBD(), _on_features("fDBD", "head"), "features and logits", truth=truths.fdbd),
    Pair(NCI(alpha=1e-4), _on_features("NCI", "head", alpha=1e-4), "features and logits", truth=truths.nci),
    Pair(
        PNML(),
        _on_features("PNML", "head"),
        "features",
        truth=truths.pnml,
        peer_truth=truths.pnml_of_peer,
        note="ours adds a ridge, pytorch-ood takes the pseudo-inverse, in which directions never seen count as certain",
    ),
    Pair(
        GMM(tied=0.5),
        _on_features("GMM"),
        "features",
        truth=truths.gmm,
        peer_truth=truths.gmm_of_peer,
        sizes=SMALL,
        note="ours draws each class's covariance to the tied one (here by half), pytorch-ood adds a ridge of 1e-6",
    ),
    Pair(ASHB(percentile=65), _on_maps("ASH", variant="ash-b"), "features", truth=truths.ash_b),
    Pair(ASHP(percentile=65), _on_maps("ASH", variant="ash-p"), "features", truth=truths.ash_p),
    Pair(ASHS(percentile=65), _on_maps("ASH", variant="ash-s"), "features", truth=truths.ash_s),
    Pair(SCALE(percentile=85), _on_maps("SCALE", percentile=0.85), "features", truth=truths.scale),
    Pair(ReAct(), _on_maps("ReAct"), "features", truth=truths.react),
    Pair(
        VRA(lower=1, upper=99, low="clip"),
        _on_maps("VRA"),
        "features",
        note="one pair of limits for all dimensions (the paper) against one for each dimension",
    ),
    Pair(LTS(), _on_features("LTS", "head"), "features", truth=truths.lts),
    Pair(DICE(), _on_features("DICE", "w", "b", p=0.9), "features", truth=truths.dice, sizes=Sizes(asked=300)),
    Pair(GradNorm(), _gradnorm, "features and logits", lambda s: 100 * s, truths.gradnorm, note="closed form against autograd"),
    Pair(
        Gram(powers=5, per_class=True),
        _gram,
        "maps",
        sizes=MAPS,
        note="ranges by predicted class and a fixed held-out quarter, against labels and a random tenth",
    ),
)
"""pytorch-ood 0.4.0."""

SCIKIT_LEARN = (
    Pair(Mahalanobis(), _ledoit_wolf, "features", truth=truths.one_gaussian, labelled=False),
    Pair(Residual(components=512), _pca, "features", truth=truths.residual, labelled=False),
    Pair(KNN(k=50), _neighbours, "features", truth=truths.knn, sizes=Sizes(count=20_000, asked=1000), labelled=False),
    Pair(LOF(), _lof, "features", sizes=Sizes(count=4000, asked=2000), labelled=False),
    Pair(OneClassSVM(), _svm, "features", labelled=False),
    Pair(IsolationForest(), _forest, "features", labelled=False, note="other random trees"),
    Pair(KDE(), _kde, "features", labelled=False),
)
"""scikit-learn, put together by hand where it has parts only."""
