"""The images of a set as signals: read and encoded once, vectors kept on disk, large signals handed on batch by batch."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int
from torch import Tensor

from offmap.benchmark.corrupted import Damage, DamageWork
from offmap.benchmark.image_set import Item, sources_of
from offmap.core.encoder import Encoder
from offmap.core.types import STATIC, Image, NotAssessed, Source
from offmap.pipeline.stream import Batch, Progress, Stream
from offmap.prepare.preparation import Preparation
from offmap.read.workers import Workers

Seen = Callable[[Int[np.ndarray, " n"], Sequence[Image], Mapping[str, Tensor]], None]
"""Called with positions in the list of items, the prepared images, and their signals."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """Vectors of the images of one set that could be assessed, in the order of its items.

    Args:
        at: position of each row in the list of items.
        vectors: signals ``(N, ...)`` by name, on the CPU; static ones as they are.
        digests: SHA-256 of each image.
        prints: fingerprints that find copies, ``(N, 1024)``.
        refused: name and reason of each item that could not be assessed.
        patients: equal for images of one patient (a digest), as their files or tables name them; empty where unknown.
    """

    at: Int[np.ndarray, " n"]
    vectors: Mapping[str, Tensor]
    digests: tuple[str, ...] = ()
    prints: Float32[np.ndarray, "n p"] | None = field(default=None, repr=False)
    refused: tuple[tuple[str, str], ...] = ()
    patients: tuple[str, ...] = ()

    def of(self, items: Sequence[Item]) -> list[Item]:
        """The items, with the patients that are known since they were read, where the suite names none."""
        found = dict(zip(self.at.tolist(), self.patients, strict=True))
        return [item if item.patient else replace(item, patient=found.get(i, "")) for i, item in enumerate(items)]

    def rows(self, items: Int[np.ndarray, " k"]) -> Int[np.ndarray, " j"]:
        """Rows of some items by their position; those that were refused are left out."""
        where = np.full(int(max(self.at.max(initial=-1), items.max(initial=-1))) + 1, -1)
        where[self.at] = np.arange(len(self.at))
        found: np.ndarray = where[items]
        return found[found >= 0]

    def items(self, items: Int[np.ndarray, " k"]) -> Int[np.ndarray, " j"]:
        """Those of some items that were not refused, by position."""
        there: np.ndarray = self.at[self.rows(items)]
        return there


@dataclass(frozen=True)
class Reading:
    """How images of a benchmark become signals.

    Args:
        needs: vector signals to keep; feature maps and images are handed to ``seen`` only.
        folder: where vectors are kept between runs.
        jobs: decode workers.
    """

    encoder: Encoder
    preparation: Preparation
    needs: frozenset[str]
    folder: Path
    jobs: int = 1
    volumes: bool = False
    device: torch.device = field(default=torch.device("cpu"))
    progress: Progress | None = None

    @property
    def _asked(self) -> frozenset[str]:
        """Signals to compute: the deepest layer by its own name too where its alias is needed, since aliases are not kept."""
        deepest = f"features.{self.encoder.layers[-1]}"
        alone = "features.last" in self.needs and not any(fnmatchcase(deepest, need) for need in self.needs)
        return self.needs | {deepest} if alone else self.needs

    def known(self, name: str, items: Sequence[Item], *, form_seed: int | None = None) -> Encoded | None:
        """What an earlier run kept of the same files, weights, steps and signals; None where it did not."""
        path = self._path(name, items, form_seed)
        return _load(path) if path.exists() else None

    def encode(
        self,
        name: str,
        items: Sequence[Item],
        *,
        form_seed: int | None = None,
        only: Int[np.ndarray, " k"] | None = None,
        damage: Damage | None = None,
        large: frozenset[str] = frozenset(),
        seen: Seen | None = None,
        keep: bool = True,
    ) -> Encoded:
        """Read and encode a set in one pass.

        Args:
            name: of the set, for messages and files.
            items: its images.
            form_seed: give each image one random file form; None = as it is.
            only: positions of the items to read; all when None.
            damage: a corruption of those that it wants.
            large: further signals that ``seen`` gets and nobody keeps.
            seen: called once for each batch.
            keep: write the vectors to disk.
        """
        wanted = range(len(items)) if only is None else only.tolist()
        order, collected = {items[i].name: i for i in wanted}, _Collected()
        stream = Stream(
            self.encoder,
            self.preparation,
            self._asked | large,
            jobs=self.jobs,
            form_seed=form_seed,
            fingerprint=damage is None,
            volumes=self.volumes,
            use_cache=False,
            device=self.device,
        )
        sources = sources_of([items[i] for i in wanted])
        for batch in stream.over(sources) if damage is None else _damaged(stream, sources, damage):
            collected.take(batch, order, seen)
            if self.progress is not None:
                self.progress({"event": f"encode {name}", "done": collected.count, "total": len(wanted)})
        encoded = collected.whole()
        if damage is None:
            encoded = replace(encoded, refused=(*encoded.refused, *_lost(encoded, items, wanted, order)))
        if keep:
            _save(self._path(name, items, form_seed), encoded)
        return encoded

    def _path(self, name: str, items: Sequence[Item], form_seed: int | None) -> Path:
        what = [
            2,
            self.encoder.sha256,
            self.encoder.config(),
            sorted(self._asked),
            self.preparation.to_json(),
            form_seed,
            self.volumes,
            stamp(items),
        ]
        digest = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
        return self.folder / f"{safe}{'' if form_seed is None else '.formed'}.{digest}.safetensors"


def _lost(encoded: Encoded, items: Sequence[Item], wanted: Sequence[int], order: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Items that gave neither an image nor a reason, each with one."""
    there, told = set(encoded.at.tolist()), {name for name, _ in encoded.refused}
    for i in wanted:
        if i not in there and items[i].name not in told:
            yield items[i].name, "several images in one file" if order[items[i].name] == i else "listed twice"


def _damaged(stream: Stream, sources: Sequence[Source], damage: Damage) -> Iterator[Batch]:
    work = DamageWork(steps=stream.preparation.to_json(), limits=stream.limits, damage=damage)
    with Workers(work, jobs=stream.jobs, limits=stream.limits) as workers:
        yield from stream.over_messages(workers.run(sources))


@dataclass
class _Collected:
    """What one pass has given so far."""

    at: list[int] = field(default_factory=list)
    vectors: dict[str, list[Tensor]] = field(default_factory=dict)
    static: dict[str, Tensor] = field(default_factory=dict)
    digests: list[str] = field(default_factory=list)
    patients: list[str] = field(default_factory=list)
    prints: list[np.ndarray] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.at) + len(self.refused)

    def take(self, batch: Batch, order: Mapping[str, int], seen: Seen | None) -> None:
        """Keep the rows of one batch that were asked for."""
        self.refused += [(e.item, e.reason) for e in batch.entries if isinstance(e, NotAssessed)]
        images = [(i, e) for i, e in enumerate(batch.entries) if isinstance(e, Image)]
        kept = [row for row, (_, image) in enumerate(images) if image.item in order]
        if not kept:
            return
        chosen = [images[row] for row in kept]
        at = np.array([order[image.item] for _, image in chosen])
        rows = torch.tensor(kept)
        signals = {k: v if k in STATIC else v.cpu()[rows] for k, v in batch.signals.items()}
        if seen is not None:
            seen(at, [image for _, image in chosen], signals)
        self.at += at.tolist()
        self.digests += [image.digest for _, image in chosen]
        self.patients += [image.group for _, image in chosen]
        self.prints += [batch.prints[i] for i, _ in chosen if i in batch.prints]
        for name, value in signals.items():
            if name in STATIC:
                self.static[name] = value.cpu()
            elif is_vector(name):
                self.vectors.setdefault(name, []).append(value)

    def whole(self) -> Encoded:
        """All rows, in the order of the items."""
        order = np.argsort(np.array(self.at, dtype=np.int64), kind="stable")
        index = torch.from_numpy(order)
        vectors = {name: torch.cat(parts)[index].contiguous() for name, parts in self.vectors.items()}
        prints = np.stack(self.prints)[order] if self.prints and len(self.prints) == len(order) else None
        digests, patients = (tuple(values[i] for i in order) for values in (self.digests, self.patients))
        at = np.array(self.at, dtype=np.int64)[order]
        return Encoded(at, {**vectors, **self.static}, digests, prints, tuple(self.refused), patients)


def is_vector(name: str) -> bool:
    """Whether a signal is small enough to be kept for all images; aliases are made again."""
    return name != "image" and not name.startswith("feature_map.") and not (name.startswith("features.") and name.endswith(".last"))


def stamp(items: Sequence[Item]) -> str:
    """Digest of the names, sizes and times of files, so that a changed file is read again."""
    found = []
    for item in items:
        paths = [p for p in item.source.members or (item.source.path,) if p.exists()]
        found.append((item.name, item.label, item.patient, [(p.stat().st_size, p.stat().st_mtime_ns) for p in paths]))
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _save(path: Path, encoded: Encoded) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"v.{name}": value.contiguous() for name, value in encoded.vectors.items()} | {"at": torch.from_numpy(encoded.at)}
    if encoded.prints is not None:
        tensors["prints"] = torch.from_numpy(np.ascontiguousarray(encoded.prints))
    note: dict[str, Any] = {"digests": encoded.digests, "refused": encoded.refused, "patients": encoded.patients}
    part = path.with_suffix(".part")
    save_file(tensors, part, {"note": json.dumps(note)})
    part.replace(path)


def _load(path: Path) -> Encoded:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        note = json.loads(file.metadata()["note"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    prints = tensors.pop("prints").numpy() if "prints" in tensors else None
    at = tensors.pop("at").numpy()
    vectors = {name.removeprefix("v."): value for name, value in tensors.items()}
    refused = tuple((a, b) for a, b in note["refused"])
    return Encoded(at, vectors, tuple(note["digests"]), prints, refused, tuple(note["patients"]))
