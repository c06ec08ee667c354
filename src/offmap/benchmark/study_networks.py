"""One network for each task of a study, and what every method of uncertainty says with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from offmap.benchmark.study_file import Study, Task
from offmap.core import registry
from offmap.core.component import nearest
from offmap.core.detector import Detector, missing
from offmap.core.errors import ConfigError, OODError
from offmap.core.signals import base_of, settings_of
from offmap.core.types import STATIC, Signals
from offmap.represent.stochastic import DEFAULTS
from offmap.represent.task_head import TaskHead, train_task
from offmap.represent.viewed import Look, augmented, made

PASSES = ("mc_dropout.logits", "tta.logits", "ensemble.logits")
PLAIN = ("logits", "head.weight", "head.bias", "features.penultimate", "features.last")
BATCH = 512


@dataclass(frozen=True)
class TaskViews:
    """Which views of an image a task looks at.

    Args:
        classes: of a task that is made from images, the first is the one in which images are scored.
        of_classes: place of each class's view among all views.
        augmented: places of the views of test-time augmentation, the scored view itself first.
        left_out: views of test-time augmentation that would change the task's label.
    """

    classes: tuple[str, ...]
    of_classes: tuple[int, ...]
    augmented: tuple[int, ...]
    left_out: int


@dataclass(frozen=True)
class Views:
    """All views of a study: first those that every image needs, then those that only images to train on need."""

    scored: tuple[Look, ...]
    other: tuple[Look, ...]
    tasks: Mapping[str, TaskViews]


def plan_views(study: Study, methods: Mapping[str, Detector], size: int) -> Views:
    """The views that the tasks and methods of a study need.

    Args:
        size: side of the encoder's input, in pixels.
    """
    tta = any(base_of(name) == "tta.logits" for detector in methods.values() for name in detector.needs)
    looks = {task.name: made(task.made, size) if task.made else {"": Look()} for task in study.tasks}
    first = {name: next(iter(found.values())) for name, found in looks.items()}
    more = {task.name: augmented(first[task.name], size, flips=task.flips) if tta else (first[task.name],) for task in study.tasks}
    scored = tuple(dict.fromkeys(look for found in more.values() for look in found))
    other = tuple(dict.fromkeys(look for found in looks.values() for look in found.values() if look not in scored))
    place = {look: i for i, look in enumerate((*scored, *other))}
    tasks = {
        task.name: TaskViews(
            tuple(looks[task.name]) if task.made else (),
            tuple(place[look] for look in looks[task.name].values()),
            tuple(place[look] for look in more[task.name]),
            len(augmented(Look(), size, flips=True)) - len(more[task.name]) if tta else 0,
        )
        for task in study.tasks
    }
    return Views(scored, other, tasks)


def methods_of(study: Study) -> dict[str, Detector]:
    """The detectors of a study, by name.

    Raises:
        ConfigError: an unknown method, or one that reads what the networks of a study do not give.
    """
    known = registry.names("score")
    found = {}
    for name in study.methods:
        if name not in known:
            raise ConfigError(f"study {study.name}: there is no method {name!r}{nearest(name, list(known))}. `offmap methods` lists all")
        kind = registry.load("score", name, Detector)
        settings: dict[str, Any] = {"samples": study.passes} if name.startswith("mc_dropout") else {}
        found[name] = kind(**settings)
        _possible(study, name, found[name])
    return found


def _possible(study: Study, name: str, detector: Detector) -> None:
    here = f"study {study.name}: the method {name!r} cannot take part"
    needs = detector.needs | detector.fit_needs
    lacking = missing(needs - {"label"}, (*PLAIN, *PASSES))
    if lacking:
        raise ConfigError(
            f"{here}: it needs {', '.join(lacking)}. The small networks of a study give features, logits and their head, passes with "
            "dropout, ensembles and augmented views, but no gradients, maps or images; choose others, or use offmap benchmark"
        )
    if name == "evidential":
        raise ConfigError(f"{here}: it means something only for a network that was trained evidentially, which those of a study are not")
    if detector.stream:
        raise ConfigError(f"{here}: its score depends on the images before")
    if study.plan.dropout == 0 and any(base_of(need) == "mc_dropout.logits" for need in needs):
        raise ConfigError(f"{here}: dropout = 0, so that all passes would be the same; set dropout above 0 or leave the method out")


@dataclass(frozen=True, eq=False)
class Seen:
    """Features of all views of some images.

    Args:
        features: ``(N, V, D)``.
        seeds: a number of each image, for the masks of dropout.
    """

    features: Float32[Tensor, "n v d"]
    seeds: tuple[int, ...]

    def rows(self, at: Int[np.ndarray, " k"]) -> "Seen":
        """Some of the images."""
        return Seen(self.features[torch.from_numpy(at)], tuple(self.seeds[i] for i in at.tolist()))

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True, eq=False)
class TaskRun:
    """What one task's network said.

    Args:
        classes: of the task.
        accuracy: balanced accuracy on the test part, in [0, 1]; of a made task over all its views.
        answers: number of the class, for each set.
        scores: by method and set, higher = more uncertain.
        reasons: why a method gave none.
        passes: forward passes of each method.
    """

    classes: tuple[str, ...]
    accuracy: float
    answers: Mapping[str, Int[np.ndarray, " _"]]
    scores: Mapping[str, Mapping[str, Float[np.ndarray, " _"]]]
    reasons: Mapping[str, str] = field(default_factory=dict)
    passes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images with the classes of one task.

    Args:
        seen: their views.
        labels: class of each image; of a made task not used.
    """

    seen: Seen
    labels: Int[np.ndarray, " n"]

    def examples(self, views: TaskViews) -> tuple[Float[Tensor, "m d"], Tensor]:
        """Rows to train on or to try: one an image, or one for each class that is made of it."""
        if not views.classes:
            return self.seen.features[:, views.of_classes[0]], torch.from_numpy(self.labels)
        rows = torch.cat([self.seen.features[:, place] for place in views.of_classes])
        return rows, torch.arange(len(views.classes)).repeat_interleave(len(self.seen))


def run_task(
    study: Study,
    task: Task,
    classes: tuple[str, ...],
    views: TaskViews,
    methods: Mapping[str, Detector],
    parts: Mapping[str, Labelled],
    sets: Mapping[str, Seen],
    seed: int,
) -> TaskRun:
    """Train the network of a task, fit every method, and score all sets.

    Args:
        classes: of a column; those of a made task stand in ``views``.
        parts: ``fit``, ``held_out`` and ``test``.
        sets: to be scored.
        seed: of the networks.
    """
    names = views.classes or classes
    x, y = parts["fit"].examples(views)
    held_x, held_y = parts["held_out"].examples(views)
    needs = frozenset().union(*(detector.needs for detector in methods.values()))
    count = study.members if "ensemble.logits" in needs else 1
    heads = []
    for member in range(count):
        generator = torch.Generator().manual_seed(10_000 * seed + member)
        heads.append(train_task(x, y, held_x, held_y, classes=len(names), plan=study.plan, generator=generator))
    networks = _Networks(heads, views, needs)
    whole = networks.plain(x) | {"label": y}
    single = networks.signals(parts["fit"].seen)
    held = {**networks.signals(parts["held_out"].seen)}
    given = {name: networks.signals(found) for name, found in sets.items()}
    scores: dict[str, dict[str, np.ndarray]] = {}
    reasons, passes = {}, {}
    for name, detector in methods.items():
        further = {base_of(need) for need in detector.needs} & set(PASSES)
        passes[name] = {"tta.logits": f"{len(views.augmented)}F", "mc_dropout.logits": f"1F + {study.passes} heads"}.get(
            next(iter(further), ""), f"1F, {count} heads" if further else detector.passes
        )
        try:
            fitted = detector.fit(
                _batches(single if further else whole),
                held_out=_batches(held),
                generator=torch.Generator().manual_seed(seed),
            )
            scores[name] = {
                where: np.concatenate([fitted.score(part).numpy() for part in _batches(found)]) for where, found in given.items()
            }
        except OODError as error:  # one method must not stop the others
            reasons[name] = " ".join(str(error).split())
    answers = {name: found["logits"].argmax(dim=1).numpy() for name, found in given.items()}
    return TaskRun(names, _balanced(heads[0], *parts["test"].examples(views)), answers, scores, reasons, passes)


@dataclass(frozen=True)
class _Networks:
    heads: Sequence[TaskHead]
    views: TaskViews
    needs: frozenset[str]

    def plain(self, features: Float[Tensor, "n d"]) -> dict[str, Tensor]:
        """Signals of one pass."""
        head = self.heads[0]
        hidden = head.hidden(features)
        static = {"head.weight": head.head.weight.detach(), "head.bias": head.head.bias.detach()}
        return {"features.penultimate": hidden, "features.last": hidden, "logits": head.logits(hidden), **static}

    def signals(self, seen: Seen) -> dict[str, Tensor]:
        """Signals of one pass and of the further ones that are needed, of the view in which images are scored."""
        features = seen.features[:, self.views.augmented[0]]
        found, head = self.plain(features), self.heads[0]
        for name in self.needs:
            base = base_of(name)
            if base == "mc_dropout.logits":
                found[name] = head.passes(found["features.penultimate"], seen.seeds, int(settings_of(name, DEFAULTS)["passes"]))
            elif base == "tta.logits":
                found[name] = head.logits(head.hidden(seen.features[:, list(self.views.augmented)]))
            elif base == "ensemble.logits":
                found[name] = torch.stack([each.logits(each.hidden(features)) for each in self.heads], dim=1)
        return found


def _batches(signals: Mapping[str, Tensor]) -> list[Signals]:
    count = len(signals["logits"])
    return [{name: v if name in STATIC else v[start : start + BATCH] for name, v in signals.items()} for start in range(0, count, BATCH)]


def _balanced(head: TaskHead, features: Float[Tensor, "n d"], labels: Tensor) -> float:
    right = head.logits(head.hidden(features)).argmax(dim=1) == labels
    shares = [float(right[labels == k].float().mean()) for k in labels.unique()]
    return float(np.mean(shares))
