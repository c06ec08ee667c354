"""A study: tasks by methods of uncertainty by shifts on one set of images (after Wong et al., MICCAI 2025, arXiv 2509.18326).

The backbone is frozen and the same for all tasks; each task has a small network of its own on it. All tasks share images and divisions.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int

from offmap.benchmark.corrupted import Damage
from offmap.benchmark.division import Division, divided
from offmap.benchmark.encoded import Encoded, Reading
from offmap.benchmark.image_set import Item
from offmap.benchmark.study_file import Shift, Study
from offmap.benchmark.study_images import Images, classes, find_images, value
from offmap.benchmark.study_networks import Labelled, Seen, TaskRun, Views, methods_of, plan_views, run_task
from offmap.core import duplicates
from offmap.core.detector import Detector
from offmap.core.encoder import Encoder
from offmap.core.errors import ConfigError
from offmap.pipeline import recipe as recipes
from offmap.pipeline.stream import Progress
from offmap.represent.viewed import OTHER, SCORED, ViewedEncoder

HELD, TEST = "held_out", "test"
"""Names of the in-distribution sets that are scored."""


@dataclass(frozen=True, eq=False)
class Truth:
    """What is known of the clinical answer on some images.

    Args:
        failed: 1 = the answer is wrong (or any answer would be), 0 = right, NaN = not known.
        patients: equal for images of one patient; empty where unknown.
    """

    failed: Float[np.ndarray, " n"]
    patients: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class SeedRun:
    """One division, one network for each task.

    Args:
        tasks: what each task's network said.
        truth: of the sets ``held_out``, ``test`` and every shift.
    """

    seed: int
    tasks: Mapping[str, TaskRun]
    truth: Mapping[str, Truth]


@dataclass(eq=False)
class StudyRun:
    """All scores of a study.

    Args:
        study: what was asked.
        images: its items.
        views: that tasks look at.
        seeds: one run each.
        notes: what readers must know: images that could not be read, copies that were left out.
        encoder: name and digest of the frozen backbone.
    """

    study: Study
    images: Images
    views: Views
    seeds: list[SeedRun] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    encoder: tuple[str, str] = ("", "")


def run_study(
    study: Study, *, out: Path, encoder: Encoder, jobs: int = 1, device: torch.device | None = None, progress: Progress | None = None
) -> StudyRun:
    """Read the images once, train, fit and score.

    Args:
        out: folder in which features are kept for another run.
        encoder: the frozen backbone.
        jobs: decode workers.

    Raises:
        ConfigError: the study makes no sense on these images.
        DataError: too few images or patients to be divided.
    """
    methods, images = methods_of(study), find_images(study)
    views = plan_views(study, methods, encoder.input.size)
    viewed = ViewedEncoder(encoder, views.scored, views.other)
    run = StudyRun(study, images, views, encoder=(encoder.name, encoder.sha256))
    preparation = recipes.read(recipes.STANDARD).preparation(encoder.input.size)
    needs = frozenset({SCORED, OTHER} if views.other else {SCORED})
    place = device or torch.device("cpu")
    reading = Reading(viewed, preparation, needs, out / "features", jobs, device=place, progress=progress)
    _Work(run, methods, reading, progress).all()
    return run


@dataclass(eq=False)
class _Work:
    """A study on its way."""

    run: StudyRun
    methods: Mapping[str, Detector]
    reading: Reading
    progress: Progress | None
    sets: dict[str, Encoded] = field(default_factory=dict)

    def all(self) -> None:
        """Everything."""
        study, images = self.run.study, self.run.images
        own = self._encode("in distribution", images.own, self.reading)
        scored = replace(self.reading, needs=frozenset({SCORED}))
        for name, mine in images.shifts.items():
            self.sets[name] = self._encode(name, mine, scored)
        copies = self._drop_copies(own)
        here = [images.own[i] for i in own.at]
        items = own.of(images.own)
        divisions = {seed: Division(*divided([items[i] for i in own.at], study.shares, seed, copies)) for seed in study.seeds}
        tested = np.unique(np.concatenate([division.test for division in divisions.values()]))
        for shift in study.shifts:
            if shift.damage:
                damage = Damage(shift.damage, shift.severity, frozenset(here[i].name for i in tested.tolist()))
                rows = own.at[tested]
                kept = f"{shift.damage}-{shift.severity}-{hashlib.sha256(rows.tobytes()).hexdigest()[:12]}"
                known = scored.known(kept, images.own)
                self.sets[shift.name] = known or scored.encode(kept, images.own, only=rows, damage=damage)
        seen = _seen(own, self.reading.needs)
        for number, (seed, division) in enumerate(divisions.items()):
            if self.progress is not None:
                self.progress({"event": "train and score", "done": number, "total": len(divisions)})
            self.run.seeds.append(self._seed(seed, division, own, seen, here))

    def _encode(self, name: str, items: Sequence[Item], reading: Reading) -> Encoded:
        found = reading.known(name, items) or reading.encode(name, items)
        if found.refused:
            reasons = ", ".join(sorted({reason for _, reason in found.refused}))
            self.run.notes.append(f"{len(found.refused)} of {len(items)} images of {name} could not be used ({reasons}).")
        if len(found.at) == 0:
            raise ConfigError(
                f"study {self.run.study.name}: none of the {len(items)} images of {name} can be read; `offmap check` says why"
            )
        return found

    def _drop_copies(self, own: Encoded) -> list[tuple[int, ...]]:
        """Groups of copies within the in-distribution images; copies of these among the shifts are left out."""
        if own.prints is None:
            return []
        names = [name for name, found in self.sets.items() if found.prints is not None]
        prints = np.concatenate([own.prints, *(p for name in names if (p := self.sets[name].prints) is not None)])
        digests = [*own.digests, *(digest for name in names for digest in self.sets[name].digests)]
        n, groups = len(own.at), duplicates.find(prints, digests)
        twins = {row for group in groups if min(group) < n for row in group if row >= n}
        start = n
        for name in names:
            found = self.sets[name]
            keep = np.array([start + i not in twins for i in range(len(found.at))])
            start += len(found.at)
            if not keep.all():
                self.run.notes.append(f"{int((~keep).sum())} images of {name} are copies of in-distribution images and were left out.")
                self.sets[name] = _kept(found, keep)
            if not keep.any():
                raise ConfigError(f"study {self.run.study.name}: all images of the shift {name!r} are copies of in-distribution images")
        return [tuple(row for row in group if row < n) for group in groups if sum(row < n for row in group) > 1]

    def _seed(self, seed: int, division: Division, own: Encoded, seen: Seen, here: Sequence[Item]) -> SeedRun:
        study, views = self.run.study, self.run.views
        rows = {"fit": division.fit, HELD: division.held_out, TEST: division.test}
        sets = {HELD: seen.rows(division.held_out), TEST: seen.rows(division.test)}
        items: dict[str, list[Item]] = {name: [here[i] for i in rows[name].tolist()] for name in (HELD, TEST)}
        for shift in study.shifts:
            found = self.sets[shift.name]
            at = np.arange(len(found.at)) if not shift.damage else np.flatnonzero(np.isin(found.at, own.at[division.test]))
            among = self.run.images.own if shift.damage else self.run.images.shifts[shift.name]
            sets[shift.name] = _seen(found, frozenset({SCORED})).rows(at)
            items[shift.name] = [among[i] for i in found.at[at].tolist()]
        tasks = {}
        for task in study.tasks:
            names = classes(task, here)
            labels = np.array([names.index(task.label(value(item, task.column))) if names else 0 for item in here], dtype=np.int64)
            _enough(task.name, names, labels, rows, seed)
            parts = {part: Labelled(seen.rows(at), labels[at]) for part, at in rows.items()}
            tasks[task.name] = run_task(study, task, names, views.tasks[task.name], self.methods, parts, sets, seed)
        clinical, by_name = tasks[study.clinical.name], {shift.name: shift for shift in study.shifts}
        truth = {name: _truth(study, by_name.get(name), found, clinical, clinical.answers[name]) for name, found in items.items()}
        return SeedRun(seed, tasks, truth)


def _truth(study: Study, shift: Shift | None, items: Sequence[Item], clinical: TaskRun, answers: Int[np.ndarray, " n"]) -> Truth:
    """Which clinical answers are wrong."""
    task, patients = study.clinical, tuple(item.patient for item in items)
    semantic = shift is not None and shift.kind == "semantic"
    if semantic and study.semantic_ood_is_failure:
        return Truth(np.ones(len(items)), patients)
    failed = np.full(len(items), np.nan)
    for i, (item, answer) in enumerate(zip(items, answers.tolist(), strict=True)):
        label = (shift.truth if shift is not None else "") or task.label(value(item, task.column))
        if label in clinical.classes:
            failed[i] = float(clinical.classes[answer] != label)
        elif label and semantic:
            failed[i] = 1.0
    return Truth(failed, patients)


def _enough(task: str, names: Sequence[str], labels: Int[np.ndarray, " n"], rows: Mapping[str, Int[np.ndarray, " _"]], seed: int) -> None:
    for part, at in rows.items():
        lacking = sorted(set(range(len(names))) - set(labels[at].tolist()))
        if lacking:
            raise ConfigError(
                f"task {task!r}: no image of the class {names[lacking[0]]!r} is in the {part} part of seed {seed}; give more images of it, "
                "join it to another class with rename, or choose other seeds"
            )


def _seen(encoded: Encoded, needs: frozenset[str]) -> Seen:
    vectors = encoded.vectors
    features = torch.cat([vectors[name] for name in (SCORED, OTHER) if name in needs and name in vectors], dim=1)
    return Seen(features, tuple(int(digest[:15], 16) if digest else i for i, digest in enumerate(encoded.digests)))


def _kept(found: Encoded, keep: np.ndarray) -> Encoded:
    rows = np.flatnonzero(keep)
    index = torch.from_numpy(rows)
    pick = [tuple(values[i] for i in rows.tolist()) if values else () for values in (found.digests, found.patients)]
    prints = None if found.prints is None else found.prints[rows]
    return Encoded(found.at[rows], {name: v[index] for name, v in found.vectors.items()}, pick[0], prints, found.refused, pick[1])
