"""From sources to batches of signals: workers decode ahead, the encoder follows, order is kept, memory is flat."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

import offmap
from offmap.core.encoder import Encoder
from offmap.core.signals import is_kept, is_map
from offmap.core.types import STATIC, Image, NotAssessed, Source
from offmap.pipeline.cache import FeatureCache, location
from offmap.pipeline.lanes import in_order
from offmap.pipeline.worker import Work, foreign_modality
from offmap.prepare.preparation import Preparation
from offmap.read.limits import DEFAULT, Limits
from offmap.read.load import PATIENT_COLUMNS, described, load
from offmap.read.messages import Message, pack, unpack
from offmap.read.parts import Known
from offmap.read.workers import Workers

T = TypeVar("T")
BATCH = 32
_PREFETCH = 4 * BATCH
_NO_PIXELS = np.zeros((1, 0, 0), dtype=np.float32)
_NOWHERE = Source(Path(), "array")
_PRINT = "~fingerprint"


@dataclass
class Batch:
    """Items in input order, and the signals of those that were assessed.

    Args:
        entries: prepared images (without pixels where the cache answered) and refusals, in input order.
        signals: one row per image among ``entries``, in their order.
        sources: where each entry came from.
        pictures: 8-bit pictures of the images as read, by position in ``entries``; only when asked for.
        prints: fingerprints that find copies, by position in ``entries``; only when asked for.
    """

    entries: list[Image | NotAssessed]
    signals: dict[str, Tensor]
    sources: list[Source] = field(default_factory=list, repr=False)
    pictures: dict[int, np.ndarray] = field(default_factory=dict)
    prints: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def images(self) -> list[Image]:
        """The assessed entries."""
        return [e for e in self.entries if isinstance(e, Image)]


@dataclass(frozen=True)
class Stream:
    """How images become signals; the same object serves fit and score.

    Args:
        needs: signals to give; one that caches do not keep, such as a map, switches the cache off.
        jobs: decode workers; 0 = in this process.
        use_cache: look up and keep vectors by content.
    """

    encoder: Encoder
    preparation: Preparation
    needs: frozenset[str]
    jobs: int = 1
    limits: Limits = DEFAULT
    form_seed: int | None = None
    picture: bool = False
    fingerprint: bool = False
    identifiers: bool = False
    modalities: tuple[str, ...] = ()
    volumes: bool = False
    use_cache: bool = True
    device: torch.device = field(default=torch.device("cpu"))

    def over(self, sources: Sequence[Source]) -> Iterator[Batch]:
        """Batches of all items of the sources, in input order."""
        cache = self.cache()
        work = self._work(None if cache is None else location(*self._fingerprint()))
        with Workers(work, jobs=self.jobs, limits=self.limits) as workers:
            yield from self._batches(_ahead(workers.run(sources), _PREFETCH), cache)

    def over_images(self, images: Iterable[Image]) -> Iterator[Batch]:
        """The same for images that are in memory already."""
        work = self._work(None)
        yield from self._batches(((_NOWHERE, work.finish(image)) for image in images), None)

    def over_messages(self, messages: Iterable[tuple[Source, Message]]) -> Iterator[Batch]:
        """The same for images that were prepared elsewhere, each with the source it came from; nothing is cached."""
        yield from self._batches(_ahead(messages, _PREFETCH), None)

    def _work(self, cache: Any) -> Work:
        return Work(
            steps=self.preparation.to_json(),
            form_seed=self.form_seed,
            picture=self.picture,
            fingerprint=self.fingerprint,
            identifiers=self.identifiers,
            cache=cache,
            modalities=self.modalities,
            limits=self.limits,
        )

    def _fingerprint(self) -> tuple[Any, ...]:
        return (
            offmap.__version__,
            self.encoder.sha256,
            self.encoder.config(),
            sorted(self.needs),
            self.preparation.to_json(),
            self.form_seed,
            self.volumes,
            self.fingerprint,
        )

    def cache(self) -> FeatureCache | None:
        """Signals of images that were encoded before with the same weights and steps; None where none are kept."""
        if not (self.use_cache and all(map(is_kept, self.needs))) or self.picture or self.identifiers:
            return None
        return FeatureCache(location(*self._fingerprint()))

    def _batches(self, messages: Iterable[tuple[Source, Message]], cache: FeatureCache | None) -> Iterator[Batch]:
        lanes = torch.get_num_threads() if self.encoder.reentrant and self.device.type == "cpu" else 1
        yield from in_order(self._gathered(messages, cache), lambda item: self._encode(*item, cache), lanes=lanes)
        if cache is not None:
            cache.close()

    def _gathered(
        self, messages: Iterable[tuple[Source, Message]], cache: FeatureCache | None
    ) -> Iterator[tuple[Batch, Mapping[int, Mapping[str, np.ndarray]]]]:
        """Batches that are not encoded yet, with the vectors that the cache knows."""
        size = 1 if self.volumes else BATCH
        batch, known, shape = Batch([], {}), dict[int, Mapping[str, np.ndarray]](), None
        for source, message in messages:
            (header, arrays), entry, vectors = self._entry(source, message, cache)
            own = entry.spatial if isinstance(entry, Image) and vectors is None else None
            if len(batch.entries) >= size or (shape is not None and own not in (None, shape)):
                yield batch, known
                batch, known, shape = Batch([], {}), {}, None
            shape = own or shape
            at = len(batch.entries)
            if vectors is not None:
                known[at] = vectors
                if _PRINT in vectors:
                    batch.prints[at] = vectors[_PRINT]
            if "picture" in header:
                batch.pictures[at] = arrays[header["picture"]]
            if "fingerprint" in header:
                batch.prints[at] = arrays[header["fingerprint"]]
            batch.entries.append(entry)
            batch.sources.append(source)
        if batch.entries:
            yield batch, known

    def _entry(
        self, source: Source, message: Message, cache: FeatureCache | None
    ) -> tuple[Message, Image | NotAssessed, Mapping[str, np.ndarray] | None]:
        """What a message tells, with the vectors of an image that the cache holds."""
        header, arrays = message
        own = min((header[extra] for extra in ("picture", "fingerprint") if extra in header), default=len(arrays))
        outcome = unpack((header, list(arrays[:own])))
        if not isinstance(outcome, Known):
            return message, outcome, None
        found = cache.get(outcome.digest) if cache is not None else None
        image = None if found is None else unpack((found[0], [_NO_PIXELS]))
        if found is None or not isinstance(image, Image):
            return self._entry(source, self._again(source, outcome), None)
        vectors = found[1]
        image = described(replace(image, item=outcome.item), source)
        refused = foreign_modality(image, self.modalities)
        return (message, image, vectors) if refused is None else (message, refused, None)

    def _again(self, source: Source, lost: Known) -> Message:
        """Decode an image that the cache held a moment ago: another run has emptied it, or it is damaged."""
        for outcome in load(source, limits=self.limits):
            if isinstance(outcome, Image) and outcome.digest == lost.digest:
                return self._work(None).finish(outcome)
        return pack(NotAssessed(lost.item, "failed", "the file changed during the run; run again"))

    def _encode(self, batch: Batch, known: Mapping[int, Mapping[str, np.ndarray]], cache: FeatureCache | None) -> Batch:
        at = [i for i, e in enumerate(batch.entries) if isinstance(e, Image)]
        fresh = [i for i in at if i not in known]
        signals: dict[str, Tensor] = {}
        if fresh:
            images = stack([e.pixels for i in fresh if isinstance(e := batch.entries[i], Image)]).to(self.device)
            signals = dict(self.encoder.encode(images, self.needs))
        elif known and (static := self.needs & set(STATIC)):
            blank = torch.zeros(1, self.encoder.input.channels, *self.encoder.input.sides, device=self.device)
            signals = dict(self.encoder.encode(blank, static))
        if cache is not None and fresh:
            cache.put([_row(batch, i, n, signals) for n, i in enumerate(fresh)])
        batch.signals = _merge(at, fresh, known, signals, self.device) if known else signals
        return _without(batch, at, self.encoder.refused(batch.signals)) if at else batch


def chosen(signals: Mapping[str, Tensor], rows: Sequence[int]) -> dict[str, Tensor]:
    """Some rows of a batch."""
    return {name: value if name in STATIC else value[list(rows)] for name, value in signals.items()}


def _without(batch: Batch, at: Sequence[int], refused: Mapping[int, str]) -> Batch:
    """The batch with refusals in place of the images that the encoder cannot assess."""
    for row, reason in refused.items():
        batch.entries[at[row]] = NotAssessed(batch.entries[at[row]].item, reason)
    if refused:
        batch.signals = chosen(batch.signals, [row for row in range(len(at)) if row not in refused])
    return batch


def stack(pixels: Sequence[np.ndarray]) -> Tensor:
    """Prepared images ``(C, *S)`` of one spatial shape as one ``(N, C, *S)`` float32 tensor; grey is repeated where colour is met."""
    channels = max(p.shape[0] for p in pixels)
    return torch.from_numpy(
        np.stack([p if p.shape[0] == channels else np.repeat(p, channels, axis=0) for p in pixels]).astype(np.float32, copy=False)
    )


def _row(batch: Batch, i: int, n: int, signals: Mapping[str, Tensor]) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
    entry = batch.entries[i]
    if not isinstance(entry, Image):
        raise TypeError("only images are kept")
    manifest = batch.sources[i].meta
    own = {k: v for k, v in entry.meta.items() if k not in manifest}
    group = "" if set(PATIENT_COLUMNS) & set(manifest) else entry.group
    header, _ = pack(replace(entry, pixels=_NO_PIXELS, mask=None, meta=own, group=group, item=""))
    vectors = {k: v[n].cpu().numpy() for k, v in signals.items() if k not in STATIC and is_kept(k) and (v.ndim <= 3 or is_map(k))}
    if i in batch.prints:
        vectors[_PRINT] = batch.prints[i]
    return entry.digest, header, vectors


def _merge(
    at: Sequence[int],
    fresh: Sequence[int],
    known: Mapping[int, Mapping[str, np.ndarray]],
    signals: Mapping[str, Tensor],
    device: torch.device,
) -> dict[str, Tensor]:
    position = {i: n for n, i in enumerate(fresh)}
    names = [name for name in next(iter(known.values())) if name != _PRINT]
    merged = {k: v for k, v in signals.items() if k in STATIC}
    for name in names:
        merged[name] = torch.stack(
            [signals[name][position[i]] if i in position else torch.tensor(known[i][name], device=device) for i in at]
        )
    return merged


def _ahead(items: Iterable[T], depth: int) -> Iterator[T]:
    """Pull items in a thread, so that decoding goes on while the encoder runs."""
    buffer: queue.Queue[tuple[T | None, BaseException | None, bool]] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def pull() -> None:
        try:
            for item in items:
                if not _put(buffer, (item, None, False), stop):
                    return
            _put(buffer, (None, None, True), stop)
        except BaseException as error:
            _put(buffer, (None, error, True), stop)

    thread = threading.Thread(target=pull, daemon=True, name="offmap-decode")
    thread.start()
    try:
        while True:
            item, error, done = buffer.get()
            if error is not None:
                raise error
            if done:
                return
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join(timeout=10)


def _put(buffer: "queue.Queue[T]", item: T, stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            buffer.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False


Progress = Callable[[dict[str, Any]], None]
