"""A gate: everything fitted and calibrated. ``offmap.fit`` makes one, ``load`` opens one, ``Gate.score`` uses it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from offmap.calibrate.threshold import rank
from offmap.core.encoder import Encoder
from offmap.explain.neighbours import Neighbours
from offmap.pipeline import saved
from offmap.pipeline.answers import free_with, signal_of
from offmap.pipeline.card import card
from offmap.pipeline.inputs import PathLike, images, is_array, sources
from offmap.pipeline.recipe import Recipe
from offmap.pipeline.run import Summary, follow, results
from offmap.pipeline.scorer import Scorer
from offmap.pipeline.stream import Progress, Stream
from offmap.prepare.preparation import Preparation
from offmap.read.limits import DEFAULT, Limits
from offmap.report.histogram import Histogram
from offmap.report.row import Columns
from offmap.report.table import Table
from offmap.represent.deferred import Deferred
from offmap.represent.device import resolve_device

if TYPE_CHECKING:
    from offmap.pipeline.explaining import Explanation


@dataclass(frozen=True, eq=False)
class Gate:
    """A fitted and calibrated gate; never changed, safe to share between threads.

    Args:
        facts: what cannot be read off the other parts: data, warnings, date, version, seed, whether volumes.
        neighbours: features and thumbnails of in-distribution images, when they were asked for.
        device: where the encoder and the detectors live.
        found_id: its id on disk; empty where it was not loaded. (A classifier's file may have another name by now, so that the same gate
            would be written with another manifest.)
    """

    recipe: Recipe
    encoder: Encoder
    preparation: Preparation
    scorer: Scorer
    facts: Mapping[str, Any]
    neighbours: Neighbours | None = None
    device: torch.device = field(default=torch.device("cpu"))
    limits: Limits = DEFAULT
    found_id: str = ""

    @cached_property
    def id(self) -> str:
        """SHA-256 of the manifest."""
        return self.found_id or saved.identity(self)

    @property
    def card(self) -> dict[str, Any]:
        """What it was made of, what it promises, where it ends; JSON values."""
        return {"id": self.id, **card(self)}

    @property
    def second(self) -> str:
        """The part of a cascade that only some images need; empty without a cascade."""
        law = self.scorer.ensemble.cascade
        return "" if law is None else law.cascade.then

    @property
    def volumes(self) -> bool:
        """Whether an item is a volume instead of a slice."""
        return bool(self.facts["volumes"])

    @property
    def modalities(self) -> tuple[str, ...]:
        """DICOM modalities it was fitted on; empty when the images had no tags."""
        return tuple(self.facts["data"]["modalities"])

    def save(self, path: PathLike) -> str:
        """Write the gate's folder, whole or not at all; returns its id.

        Raises:
            ConfigError: the folder exists and is not a gate.
        """
        return saved.save(self, Path(path))

    def score(
        self,
        inputs: Any,
        *,
        axes: str = "",
        spacing: Sequence[float] | None = None,
        jobs: int | None = None,
        include_identifiers: bool = False,
        progress: Progress | None = None,
        use_cache: bool = True,
    ) -> Table:
        """Score paths, folders, globs, manifests, or an array.

        Args:
            inputs: paths as on the command line, or a numpy array or torch tensor.
            axes: of an array: ``"NHW"``, ``"NCHW"``, ``"NDHW"``, ...
            spacing: of an array: mm per pixel of the spatial axes.
            jobs: decode workers; default the number of cores, 0 = in this process.
            include_identifiers: add patient data of DICOM files as columns ``id.<name>``.
            use_cache: look up and keep features by content.

        Raises:
            ConfigError: a path does not exist, axes do not fit.
            DataError: the paths name no image.
        """
        stream = self.stream(jobs, identifiers=include_identifiers, use_cache=use_cache)
        answers = bool(signal_of(self.encoder)) and signal_of(self.encoder) in stream.needs
        if is_array(inputs):
            batches, total = stream.over_images(images(inputs, axes=axes, spacing=spacing)), None
        else:
            found = sources(inputs, volumes=self.volumes)
            batches, total = stream.over(found), len(found)
        found_rows = follow(results(self, batches, maps=False), total=total, progress=progress, summary=Summary(self.second))
        rows = [r.row for r in found_rows]
        extra = Columns.of(rows)
        return Table.from_rows(rows, columns=Columns(self.scorer.columns, extra.identifiers, extra.meta, answers))

    def score_to(
        self,
        inputs: PathLike | Sequence[PathLike],
        out: PathLike,
        *,
        maps: PathLike | None = None,
        report: PathLike | None = None,
        jobs: int | None = None,
        include_identifiers: bool = False,
        progress: Progress | None = None,
        use_cache: bool = True,
    ) -> Summary:
        """Score into a file, row by row, in constant memory; half-written output is removed on any failure.

        Args:
            out: table, ``.csv``, ``.jsonl`` or ``.parquet``.
            maps: folder for one map and overlay an item.
            report: folder for the page ``index.html``.

        Raises:
            ConfigError: a path does not exist; the table's ending is unknown, or it is an input; maps asked of a gate without a localiser.
            DataError: there is nothing to score.
        """
        from offmap.pipeline.writing import write

        return write(
            self,
            inputs,
            Path(out),
            maps=None if maps is None else Path(maps),
            report=None if report is None else Path(report),
            jobs=jobs,
            identifiers=include_identifiers,
            progress=progress,
            use_cache=use_cache,
        )

    def explain(
        self,
        image: Any,
        *,
        axes: str = "",
        spacing: Sequence[float] | None = None,
        abstain: PathLike | None = None,
        abstain_by: str = "",
    ) -> "Explanation":
        """Map, verdict, nearest in-distribution images, and the classifier's answer, of one image (a path or an array).

        Args:
            abstain: what ``offmap.evaluate(..., gate=...)`` saved for this gate (folder or ``abstention.json``), to tell whether the
                answer would be believed at that risk limit.
            abstain_by: the column whose limit decides; ``max_probability`` where the evaluation has it, else ``score``.

        Raises:
            DataError: the image cannot be assessed; the message has the reason.
            ConfigError: the evaluation is damaged, of another gate, lacks the column, or the gate is on no classifier.
        """
        from offmap.pipeline.explaining import explain

        return explain(self, image, axes=axes, spacing=spacing, abstain=abstain, abstain_by=abstain_by)

    def near(self, features: np.ndarray, *, k: int = 3) -> list[np.ndarray]:
        """Thumbnails of the nearest in-distribution images, the nearest first; none when they were not kept."""
        if self.neighbours is None:
            return []
        index, _ = self.neighbours.nearest(torch.from_numpy(features)[None], k=k)
        found = [self.neighbours.picture(i) for i in index[0].tolist()]
        return [picture for picture in found if picture is not None]

    def histogram(self) -> Histogram:
        """Calibration scores and the scores at which verdicts change, for the page."""
        scores = np.sort(self.scorer.ranks.pooled().double().numpy())
        n = len(scores)
        at = {rate: rank(n, rate) for rate in (self.recipe.decide.alpha, self.recipe.decide.reject_at)}
        review, reject = (float(scores[n - k]) if k else None for k in at.values())
        return Histogram(scores, review, reject)

    def to(self, device: str | torch.device) -> "Gate":
        """The same gate on another device."""
        where = resolve_device(str(device))
        return replace(self, encoder=self.encoder.to(where), scorer=self.scorer.to(where), device=where)

    def stream(
        self,
        jobs: int | None,
        *,
        maps: bool = False,
        picture: bool = False,
        identifiers: bool = False,
        use_cache: bool = True,
        answer: bool = False,
    ) -> Stream:
        """How images become the signals that this gate needs; those of the classifier's answer where they are free, or asked for."""
        needs = self.scorer.needs | (self.scorer.map_needs if maps else frozenset())
        if self.neighbours is not None:
            needs = needs | {"features.last"}
        needs = needs | {signal_of(self.encoder) if answer else free_with(self.encoder, needs)} - {""}
        encoder = self.encoder
        if dear := self.scorer.dear - (self.scorer.map_needs if maps else frozenset()):
            encoder = Deferred(encoder, dear, self.scorer.ensemble.undecided, self.id)
        return Stream(
            encoder,
            self.preparation,
            needs,
            jobs=cores() if jobs is None else jobs,
            limits=self.limits,
            picture=picture,
            identifiers=identifiers,
            modalities=self.modalities,
            volumes=self.volumes,
            use_cache=use_cache,
            device=self.device,
        )


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
