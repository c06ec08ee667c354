"""Checks of data at the edge: few images, one dimension, constants, copies. A clear error or finite scores, never nonsense."""

from collections.abc import Sequence

import torch

from offmap.core.detector import Localiser
from offmap.core.errors import OODError
from offmap.core.signals import base_of
from offmap.core.types import STATIC, Signals
from offmap.testing.subject import Check, Subject, demand, rows_of
from offmap.testing.world import FakeEncoder


def works_with_fewer_images_than_dimensions(subject: Subject) -> None:
    """With 40 images of 96 dimensions, fitting works, and scores are finite and differ between images."""
    if subject.own:
        return
    world = FakeEncoder(width=96, side=4)
    scores = subject.fit(subject.batches(40, world=world)).score(subject.unseen(30, world=world))
    demand(bool(torch.isfinite(scores).all()), "scores are not finite")
    demand(len(torch.unique(scores)) > 15, "most images get one and the same score")


def survives_one_image(subject: Subject) -> None:
    """Fitting on one image is refused with one of offmap's errors, or gives finite scores."""
    _finite_or_refused(subject, subject.batches(1), subject.unseen(4))


def survives_one_dimension(subject: Subject) -> None:
    """Features of one dimension are refused with one of offmap's errors, or give finite scores."""
    if subject.own:
        return
    world = FakeEncoder(width=1, side=4)
    _finite_or_refused(subject, subject.batches(world=world), subject.unseen(4, world=world))


def survives_constant_dimensions(subject: Subject) -> None:
    """Dimensions that never vary do no harm: fitting works and planted shifts score higher."""
    batches = [_with_constants(batch) for batch in subject.batches()]
    fitted = subject.fit(batches)
    usual, odd = fitted.score(_with_constants(subject.unseen(30))), fitted.score(_with_constants(subject.unseen(30, ood=True)))
    demand(float(odd.median()) > float(usual.median()), "planted shifts do not score higher than in-distribution images")


def survives_images_that_are_all_equal(subject: Subject) -> None:
    """Copies of a single image are refused with one of offmap's errors, or give finite scores."""
    one = subject.batches(1)[0]
    copies = rows_of(one, torch.zeros(40, dtype=torch.int64))
    labels = torch.arange(40) % 2
    _finite_or_refused(subject, [{**copies, "label": labels}], subject.unseen(4))


def survives_duplicated_images(subject: Subject) -> None:
    """Every image four times over: fitting works, scores are finite."""
    batches = [rows_of(batch, torch.arange(len(batch["label"])).repeat_interleave(4)) for batch in subject.batches(60)]
    _score(subject, batches, subject.unseen(12))


def survives_odd_labels(subject: Subject) -> None:
    """Labels that are negative, far apart, and in one case seen once do no harm."""
    batches = []
    for i, batch in enumerate(subject.batches()):
        labels = batch["label"] * 1000 - 7
        if i == 0:
            labels[0] = 123_456
        batches.append({**batch, "label": labels})
    _score(subject, batches, subject.unseen(12))


def _with_constants(signals: Signals) -> Signals:
    """The first two dimensions of every feature, and channels of every map, constant; zero in one, not in the other."""
    out = dict(signals)
    for name, value in signals.items():
        if name not in STATIC and (
            name.startswith(("features.", "feature_map.", "proxy_features.", "nac.")) or base_of(name).endswith(".features")
        ):
            out[name] = value.clone()
            out[name][:, 0], out[name][:, 1] = 0.0, 0.1
    return out


def _finite_or_refused(subject: Subject, batches: Sequence[Signals], signals: Signals) -> None:
    try:
        _score(subject, batches, signals)
    except OODError as error:
        demand(len(str(error)) > 20, f"the error says too little: {error}")


def _score(subject: Subject, batches: Sequence[Signals], signals: Signals) -> None:
    fitted = subject.fit(batches)
    demand(bool(torch.isfinite(fitted.score(signals)).all()), "scores are not finite")
    if isinstance(subject.detector, Localiser):
        demand(bool(torch.isfinite(fitted.map(signals)).all()), "the map is not finite")


CHECKS: tuple[Check, ...] = (
    works_with_fewer_images_than_dimensions,
    survives_one_image,
    survives_one_dimension,
    survives_constant_dimensions,
    survives_images_that_are_all_equal,
    survives_duplicated_images,
    survives_odd_labels,
)
