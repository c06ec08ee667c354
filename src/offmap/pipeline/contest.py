"""Many detectors on the same images: who can run, fitted once, scored in one pass; a failure becomes a reason."""

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float64, Shaped

from offmap.core import registry
from offmap.core.detector import Detector, Fitted, missing
from offmap.core.encoder import Encoder
from offmap.core.errors import ConfigError, OODError
from offmap.core.signals import is_map
from offmap.core.types import STATIC, Image, Signals
from offmap.pipeline.store import SignalStore
from offmap.pipeline.stream import Batch
from offmap.pipeline.synthetic import KINDS
from offmap.score.fusion import Fusion

Rows = Shaped[np.ndarray, " _"]
ANY = "any"
"""The budget without an end."""


@dataclass
class Contestant:
    """A detector, and how it did.

    Args:
        name: method, or a fusion with its parts.
        reason: why it was not run; empty while all is well.
        fit_s, score_s: seconds to fit, and to score ``scored`` images.
        scores: by kind of copy, one number for each test image; NaN where there is no such copy.
    """

    name: str
    detector: Detector
    reason: str = ""
    fitted: Fitted | None = None
    fit_s: float = 0.0
    score_s: float = 0.0
    scored: int = 0
    scores: dict[str, Float64[np.ndarray, " n"]] = field(default_factory=dict)

    @property
    def needs(self) -> frozenset[str]:
        """Signals that fitting or scoring reads, without labels."""
        return (self.detector.needs | self.detector.fit_needs) - {"label"}

    @property
    def passes(self) -> str:
        """Network passes; of a fusion those of its dearest part."""
        if not isinstance(self.detector, Fusion):
            return self.detector.passes
        return max((registry.load("score", name, Detector).passes for name in self.detector.methods), key=evaluations)

    @property
    def state_mb(self) -> float:
        """Learned tensors, MB."""
        return 0.0 if self.fitted is None else sum(t.numel() * t.element_size() for t in self.fitted.state.values()) / 1e6

    def fail(self, error: Exception) -> None:
        """Out of the contest; the text of an error that offmap did not raise may hold data, so only its type is told."""
        self.reason = str(error) if isinstance(error, OODError) else f"{type(error).__name__} while fitting or scoring"
        self.fitted = None

    def fit(self, store: SignalStore, fit_rows: Rows, held_out: Rows, *, seed: int, device: torch.device) -> None:
        """Fit on some rows of a store; a detector that reads maps on those whose maps were kept."""
        needs = self.detector.needs | self.detector.fit_needs
        uses = {u for u in self.detector.fit_uses if not missing([u], store.names) and not is_map(u)}
        if "label" in needs and "label" not in store.names:
            self.reason = "needs labels: give a manifest whose column label is complete"
            return
        start = time.perf_counter()
        try:
            mapped = any(name == "image" or name.startswith("feature_map") for name in needs)
            parts = [store.has_map(rows) if mapped else rows for rows in (fit_rows, held_out)]
            batches, unseen = (store.batches(rows, needs | uses, device=device) for rows in parts)
            self.fitted = self.detector.fit(batches, held_out=unseen, generator=torch.Generator().manual_seed(seed))
        except Exception as error:  # one method must not stop the others
            self.fail(error)
        self.fit_s = time.perf_counter() - start

    def score(self, signals: Signals, places: Sequence[tuple[int, str]], count: int) -> None:
        """Scores of a batch whose rows are the given images and kinds, out of ``count`` images."""
        if self.fitted is None:
            return
        start = time.perf_counter()
        try:
            found = self.fitted.score(signals).double().cpu().numpy()
        except Exception as error:  # one method must not stop the others
            self.fail(error)
            return
        self.score_s += time.perf_counter() - start
        self.scored += len(places)
        for value, (row, kind) in zip(found, places, strict=True):
            self.scores.setdefault(kind, np.full(count, np.nan))[row] = value


def evaluations(passes: str) -> float:
    """Network passes of ``1F`` or ``2F+1B``, forward and backward counted alike; infinite where a letter stands for a number."""
    terms = [re.fullmatch(r"(\d+)[FB]", term.strip()) for term in passes.split("+")]
    return float(sum(float(term[1]) if term else float("inf") for term in terms))


def enter(methods: Sequence[str]) -> list[Contestant]:
    """Every detector asked for; none named: every one there is.

    Raises:
        ConfigError: an unknown method (with the nearest name), or one named twice.
    """
    if len(set(methods)) < len(methods):
        raise ConfigError(f"methods = {', '.join(methods)}: one is named twice")
    classes = {name: registry.load("score", name, Detector) for name in methods} or registry.load_all("score", Detector)
    return [Contestant(name, cls()) for name, cls in classes.items()]


def screen(entered: Sequence[Contestant], encoder: Encoder, budget: str) -> None:
    """Give those a reason that cannot run with this encoder, or cost more than the budget.

    Raises:
        ConfigError: a budget that is none.
    """
    limit = float("inf") if budget == ANY else evaluations(budget)
    if budget != ANY and not np.isfinite(limit):
        raise ConfigError(f"budget = {budget!r} must look like 1F or 2F+1B (network passes per image, forward and backward), or be {ANY!r}")
    for one in entered:
        lacking = missing(one.needs, encoder.provides)
        if lacking:
            one.reason = f"needs {', '.join(lacking)}, which the encoder {encoder.name} does not give"
        elif evaluations(one.passes) > limit:
            one.reason = f"takes {one.passes} an image, above the budget of {budget}"
        elif one.detector.stream:
            one.reason = "remembers the stream of images, which a ranking of single images does not show"
        else:
            try:
                encoder.ready(one.needs)
            except OODError as error:
                one.fail(error)


def score_all(running: Sequence[Contestant], batches: Iterable[Batch], rows: Mapping[str, int], kept: "Kept") -> None:
    """One pass over the copies: every contestant scores each batch; vectors are kept for later ones.

    Args:
        rows: number of each test image by its digest.
        kept: is filled.
    """
    for batch in batches:
        images = [e for e in batch.entries if isinstance(e, Image)]
        named = [i.item.rpartition("/") for i in images]
        if not images or any(kind not in KINDS or digest not in rows for digest, _, kind in named):
            continue
        places = [(rows[digest], kind) for digest, _, kind in named]
        for one in running:
            one.score(batch.signals, places, len(rows))
        kept.add(batch.signals, places)


@dataclass
class Kept:
    """Vectors of all copies, in the order in which they were scored."""

    store: SignalStore
    places: list[tuple[int, str]] = field(default_factory=list)

    def add(self, signals: Signals, places: Sequence[tuple[int, str]]) -> None:
        """Keep one batch; images and maps are left out."""
        self.store.append({k: v for k, v in signals.items() if k in STATIC or not (v.ndim > 3 or k.startswith("feature_map"))})
        self.places.extend(places)

    def score(self, one: Contestant, count: int, device: torch.device, size: int = 256) -> None:
        """Let a contestant that reads vectors only score all copies."""
        whole = np.arange(len(self.places))
        for start, batch in zip(
            range(0, len(whole), size), self.store.batches(whole, one.detector.needs, device=device, size=size), strict=True
        ):
            one.score(batch, self.places[start : start + size], count)
