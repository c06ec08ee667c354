"""Checks of scores and maps."""

import copy
import tempfile
from pathlib import Path

import torch

from offmap.core import bundle
from offmap.core.detector import Fitted, Localiser
from offmap.core.types import STATIC
from offmap.testing.subject import Check, Subject, demand, rows_of, same


def higher_is_more_ood(subject: Subject) -> None:
    """Images with a planted shift score higher than in-distribution ones (AUROC of at least 0.9)."""
    fitted = subject.fitted()
    usual, odd = fitted.score(subject.unseen(60)), fitted.score(subject.unseen(60, ood=True))
    difference = odd[:, None] - usual[None, :]
    area = float((difference > 0).double().mean() + 0.5 * (difference == 0).double().mean())
    demand(area >= 0.9, f"AUROC {area:.3f} of planted shifts; below 0.5 means that the sign is turned")


def gives_one_number_an_image(subject: Subject) -> None:
    """Scores have shape (N,), are float32 and finite, for many images and for one."""
    fitted = subject.fitted()
    for count in (24, 1):
        scores = fitted.score(subject.unseen(count))
        demand(tuple(scores.shape) == (count,), f"shape {tuple(scores.shape)} for {count} images")
        demand(scores.dtype == torch.float32, f"type {scores.dtype}, float32 expected")
        demand(bool(torch.isfinite(scores).all()), "scores are not finite")


def scores_one_image_as_in_its_batch(subject: Subject) -> None:
    """An image's score does not depend on which others are in the batch (methods with ``stream = True`` are exempt)."""
    if subject.detector.stream:
        return
    fitted, signals = subject.fitted(), subject.unseen(12)
    alone = torch.cat([fitted.score(rows_of(signals, slice(i, i + 1))) for i in range(12)])
    same(fitted.score(signals), alone, "in a batch and alone")


def follows_the_order_of_images(subject: Subject) -> None:
    """Permuted images give permuted scores (methods with ``stream = True`` are exempt)."""
    if subject.detector.stream:
        return
    fitted, signals = subject.fitted(), subject.unseen(24)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(5))
    same(fitted.score(signals)[order], fitted.score(rows_of(signals, order)), "in another order")


def needs_no_label_to_score(subject: Subject) -> None:
    """Labels may help to fit; scoring neither asks for them nor changes with them."""
    demand("label" not in subject.detector.needs, "needs contains 'label'; put it into fit_needs or fit_uses")
    fitted, signals = subject.fitted(), subject.unseen(12)
    labelled = {**signals, "label": torch.full((12,), 99)}
    same(fitted.score(signals), fitted.score(labelled), "with and without labels", tolerance=0.0)


def survives_saving(subject: Subject) -> None:
    """A gate on disk, tensors and parameters, gives the same scores, to the last bit."""
    fitted, signals, method = subject.fitted(), subject.unseen(12), subject.detector.method()
    entry = {"method": method, "params": fitted.detector.params()}
    with tempfile.TemporaryDirectory() as folder:
        bundle.write(Path(folder) / "gate", {"stages": {"part": entry}}, {"part": fitted.state})
        read = bundle.read(Path(folder) / "gate")
    again = Fitted(type(fitted.detector).from_params(read.manifest["stages"]["part"]["params"]), read.stages["part"])
    same(fitted.score(signals), again.score(signals), "before and after saving", tolerance=0.0)


def survives_moving(subject: Subject) -> None:
    """The same scores after ``to`` another device."""
    fitted, signals = subject.fitted(), subject.unseen(12)
    same(fitted.score(signals), fitted.to("cpu").score(signals), "after to('cpu')", tolerance=0.0)
    if subject.device is not None:
        there = {name: value.to(subject.device) for name, value in signals.items()}
        same(fitted.score(signals), fitted.to(subject.device).score(there), f"on {subject.device}", tolerance=1e-3)


def changes_nothing(subject: Subject) -> None:
    """Scoring and mapping change neither the state nor the signals."""
    fitted, signals = subject.fitted(), subject.unseen(12)
    before, given = copy.deepcopy(dict(fitted.state)), copy.deepcopy(dict(signals))
    fitted.score(signals)
    if isinstance(subject.detector, Localiser):
        fitted.map(signals)
    for name, tensor in before.items():
        demand(torch.equal(tensor, fitted.state[name]), f"scoring changed the state {name!r}")
    for name, tensor in given.items():
        demand(torch.equal(tensor, signals[name]), f"scoring changed the signal {name!r}")


def is_deterministic(subject: Subject) -> None:
    """The same data and the same seed give the same detector, to the last bit."""
    signals = subject.unseen(24)
    same(subject.fitted().score(signals), subject.fitted().score(signals), "fitted twice", tolerance=0.0)


def ignores_how_images_are_batched(subject: Subject) -> None:
    """Fitting on batches of another size gives the same scores."""
    signals = subject.unseen(24)
    small, large = subject.fit(subject.batches(size=7)), subject.fit(subject.batches(size=60))
    same(small.score(signals), large.score(signals), "fitted on batches of 7 and of 60", tolerance=1e-3)


def works_in_single_precision(subject: Subject) -> None:
    """Signals in float32 and in float64 give the same scores within 0.1 %."""
    fitted, signals = subject.fitted(), subject.unseen(24)
    double = {name: value.double() if value.is_floating_point() else value for name, value in signals.items()}
    same(fitted.score(signals), fitted.score(double), "from float32 and float64 signals", tolerance=1e-3)
    exact = [{k: v.double() if v.is_floating_point() else v for k, v in batch.items()} for batch in subject.batches()]
    same(fitted.score(signals), subject.fit(exact).score(double), "fitted on float32 and float64 signals", tolerance=1e-3)


def takes_batches_of_mixed_types(subject: Subject) -> None:
    """Batches in float32 and in float64, one after the other, give the same detector within 0.1 %."""
    signals = subject.unseen(24)
    mixed = [
        {k: v.double() if i % 2 and v.is_floating_point() and k not in STATIC else v for k, v in batch.items()}
        for i, batch in enumerate(subject.batches())
    ]
    same(subject.fitted().score(signals), subject.fit(mixed).score(signals), "fitted on batches of mixed types", tolerance=1e-3)


def maps_where_it_is_odd(subject: Subject) -> None:
    """A localiser's map is (N, *S), float32, finite, the same alone and in a batch, and higher where the shift was planted."""
    if not isinstance(subject.detector, Localiser):
        return
    fitted, signals = subject.fitted(), subject.unseen(12, ood=True)
    maps = fitted.map(signals)
    demand(maps.ndim >= 3 and len(maps) == 12, f"shape {tuple(maps.shape)} for 12 images, (12, *S) expected")
    demand(maps.dtype == torch.float32 and bool(torch.isfinite(maps).all()), "the map is not finite float32")
    demand(not bool(maps.requires_grad), "the map carries gradients")
    alone = torch.cat([fitted.map(rows_of(signals, slice(i, i + 1))) for i in range(12)])
    same(maps, alone, "map in a batch and alone", tolerance=1e-3)
    if subject.own or maps.ndim != 3 or min(maps.shape[1:]) < 2:
        return
    corner = maps[:, : maps.shape[1] // 2, : maps.shape[2] // 2].mean()
    demand(float(corner) > float(maps.mean()), "the corner with the planted shift is no odder than the whole map")


CHECKS: tuple[Check, ...] = (
    higher_is_more_ood,
    gives_one_number_an_image,
    scores_one_image_as_in_its_batch,
    follows_the_order_of_images,
    needs_no_label_to_score,
    survives_saving,
    survives_moving,
    changes_nothing,
    is_deterministic,
    ignores_how_images_are_batched,
    works_in_single_precision,
    takes_batches_of_mixed_types,
    maps_where_it_is_odd,
)
