"""The network of a gate from the gate's own images: some train it, the others fit and calibrate what reads it."""

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from offmap.calibrate.split import split
from offmap.core.duplicates import equal, join
from offmap.core.encoder import Encoder, Input
from offmap.core.errors import ConfigError, DataError
from offmap.core.trainer import Examples, Sheet, Trainer
from offmap.core.types import Signals
from offmap.pipeline.collect import Collected, codes
from offmap.pipeline.learn import MAP_ROWS, SMALLEST
from offmap.pipeline.store import SignalStore
from offmap.pipeline.stream import BATCH, Progress, chosen
from offmap.represent.pair import resized
from offmap.represent.train import checkpoint
from offmap.represent.train.parallel import Crew
from offmap.represent.trained import TrainedEncoder

BYTES = 16 * 1024**3
"""Bound of the prepared images in memory."""


@dataclass
class Pixels:
    """Prepared images in memory, of one size."""

    images: list[Tensor] = field(default_factory=list)
    _bytes: int = 0

    def append(self, signals: Signals) -> None:
        """Keep one batch.

        Raises:
            ConfigError: images of another size, or more than ``BYTES``.
        """
        batch = signals["image"].detach().cpu()
        if self.images and batch.shape[2:] != self.images[0].shape[1:]:
            raise ConfigError(
                f"the network is trained on images of one size; {tuple(batch.shape[2:])} and {tuple(self.images[0].shape[1:])} were "
                'prepared: end the steps with [prepare.resize] size = "encoder"'
            )
        self._bytes += batch.numel() * batch.element_size()
        if self._bytes > BYTES:
            raise ConfigError(f"{len(self.images)} prepared images fill {BYTES / 1e9:.0f} GB of memory; train on fewer with --limit")
        self.images.extend(batch.unbind())

    def take(self, rows: np.ndarray) -> Tensor:
        """Some of them as ``(n, C, *S)``; grey is repeated where colour is met."""
        chosen = [self.images[int(row)] for row in rows]
        channels = max(len(image) for image in chosen)
        return torch.stack([image.expand(channels, *image.shape[1:]) for image in chosen])


def require_room(count: int, seen: Input) -> None:
    """Refuse more images than fit into memory, before one is read.

    Args:
        count: of images that will be read.
        seen: what the network sees.

    Raises:
        ConfigError: they would take more than ``BYTES``, or than the machine has.
    """
    needed, room = 4 * count * seen.channels * math.prod(seen.sides), min(BYTES, _installed())
    if needed > room:
        size = " x ".join(map(str, seen.sides))
        raise ConfigError(
            f"{count} items of {size} would fill {needed / 1e9:.1f} GB of memory, {room / 1e9:.1f} GB are the most: train on fewer with "
            "--limit, or take a smaller --set train.size"
        )


def _installed() -> int:
    """Bytes of memory that the machine has; ``BYTES`` where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return BYTES


def fitting(images: Float[Tensor, "n c *s"], seen: Input) -> Float[Tensor, "n c *t"]:
    """Images at the size that the network sees.

    Raises:
        ConfigError: volumes of another size, or of another number of axes than it sees.
    """
    sides = tuple(images.shape[2:])
    if sides == seen.sides:
        return images
    if len(sides) == seen.axes == 2:
        return resized(images, seen.size)
    has, wants = (" x ".join(map(str, some)) for some in (sides, seen.sides))
    raise ConfigError(
        f"items of {has} were prepared, and a network for {wants} is to be trained: "
        + (
            'end the steps with [prepare.resize] size = "encoder" and change its size with --set train.size'
            if len(sides) == seen.axes
            else ("give --volumes, or an array of images" if seen.axes == 2 else "give volumes, or leave --volumes out")
        )
    )


@dataclass(frozen=True, eq=False)
class Shares:
    """Rows that train, that choose the checkpoint, and that make the gate; disjoint, by patient where known, copies together."""

    train: np.ndarray
    check: np.ndarray
    gate: np.ndarray


def shares(trainer: Trainer, data: Collected, copies: Sequence[Sequence[int]], seed: int) -> Shares:
    """Divide the images, each class by itself where the trainer needs labels.

    A patient with images of several classes, or copies that do, stand with the rarest of them.

    Raises:
        ConfigError: labels are missing, or all the same.
        DataError: too few patients or images, of a class or for the gate.
    """
    groups, digests = [i.group for i in data.kept], [i.digest for i in data.kept]
    stratum = np.zeros(data.n, dtype=np.int64)
    units = join(data.n, [*equal(groups), *equal(digests), *((rows[0], row) for rows in copies for row in rows[1:])])
    names = [""]
    if trainer.labelled:
        values, names = _labels(trainer, data)
        counts = np.bincount(values)
        for unit in np.unique(units):
            rows = np.flatnonzero(units == unit)
            stratum[rows] = min(values[rows], key=lambda k: (counts[k], k))
    chosen: list[list[np.ndarray]] = [[], [], []]
    parts = (trainer.share * (1 - trainer.held_out), trainer.share * trainer.held_out, 1 - trainer.share)
    for k, name in enumerate(names):
        rows = np.flatnonzero(stratum == k)
        found = len(np.unique(units[rows]))
        if found < trainer.fewest:
            raise DataError(_too_few(trainer, name, len(rows), found))
        links = [[int(row) for row in np.flatnonzero(units[rows] == unit)] for unit in np.unique(units[rows])]
        divided = split([groups[i] for i in rows], [digests[i] for i in rows], shares=parts, seed=seed, copies=links)
        for part, some in zip(chosen, divided, strict=True):
            part.append(rows[some])
    found_shares = Shares(*(np.sort(np.concatenate(part)) for part in chosen))
    if len(found_shares.gate) < SMALLEST:
        raise DataError(
            f"{len(found_shares.gate)} of {data.n} images are left to make the gate when {trainer.share:.0%} train its network; "
            f"at least {SMALLEST} are needed: give more images, or lower --set train.share"
        )
    return found_shares


def require_in_step(name: str, trainers: Sequence[Trainer]) -> None:
    """Refuse several processes where they would not share the work.

    Args:
        name: of the recipe.

    Raises:
        ConfigError: nothing is trained, a training does not run in step, or its batch or its minutes cannot be shared.
    """
    crew = Crew.present()
    if crew.size == 1:
        return
    alone = [f"train:{trainer.method()}" for trainer in trainers if not trainer.in_step]
    if alone or not trainers:
        what = f"{alone[0]} is trained in one process" if alone else f"recipe {name!r} trains no network"
        raise ConfigError(f"{what}: start one process instead of {crew.size}")
    for trainer in trainers:
        settings = trainer.params()
        crew.require_share(int(settings.get("batch", crew.size)), settings.get("minutes"))


def _labels(trainer: Trainer, data: Collected) -> tuple[np.ndarray, list[str]]:
    if not any(data.labels):
        raise ConfigError(
            f"train:{trainer.method()} needs labels: give --labels with a CSV of the columns path and label, "
            "or a manifest with a column label"
        )
    values, names = codes(data.labels)
    if len(names) < 2:
        raise ConfigError(f"all {data.n} images have the label {names[0]!r}; a classifier needs two classes or more")
    return values, names


def _too_few(trainer: Trainer, name: str, images: int, units: int) -> str:
    what = f"class {name!r} has {images} images" if trainer.labelled else f"there are {images} images"
    apart = f" of {units} patients (or clusters of copies)" if units != images else ""
    out = ": leave the class out or give more" if trainer.labelled else ": give more"
    return f"{what}{apart}; to train and to test a network at least {trainer.fewest} that are no copies are needed{out}"


def train(
    trainer: Trainer,
    pixels: Pixels,
    data: Collected,
    parts: Shares,
    *,
    seed: int,
    device: torch.device,
    folder: Path | None,
    progress: Progress | None,
) -> tuple[TrainedEncoder, dict[str, Any], list[str], list[Sheet]]:
    """Train on the parts ``train`` and ``check``.

    Args:
        folder: for checkpoints; what is found there is gone on with.

    Returns:
        The network, facts for the card (with the pictures that a gate may keep), warnings, and all pictures.

    Raises:
        ConfigError: the training went astray, or there are checkpoints of another one.
    """
    rows = np.sort(np.concatenate([parts.train, parts.check]))
    labels, names = codes(data.labels) if trainer.labelled else (None, [])
    examples = Examples(
        fitting(pixels.take(rows), trainer.input),
        None if labels is None else torch.from_numpy(labels[rows]),
        torch.from_numpy(np.searchsorted(rows, parts.check)),
    )
    if progress is not None:
        progress({"event": "train", "done": 0, "total": None})
    before, start = 0.0 if folder is None else checkpoint.spent(folder), time.monotonic()
    found = trainer.train(examples, seed=seed, device=device, folder=folder, progress=progress)
    seconds = round(before + time.monotonic() - start, 1)
    counts = {} if labels is None else dict(zip(names, np.bincount(labels[rows], minlength=len(names)).tolist(), strict=True))
    kept = [{"picture": sheet.picture, "caption": sheet.caption} for sheet in found.sheets if sheet.made_up]
    facts = {
        "trainer": trainer.method(),
        "images": {"train": len(parts.train), "checkpoint": len(parts.check), "gate": len(parts.gate)},
        **({"classes": counts} if counts else {}),
        **found.facts,
        **({"sheets": kept} if kept else {}),
        "seconds": seconds,
        "device": str(device),
    }
    return TrainedEncoder(trainer, names, found.state, device=device), facts, list(found.warnings), list(found.sheets)


def fill(
    store: SignalStore,
    encoder: Encoder,
    pixels: Pixels,
    rows: np.ndarray,
    needs: frozenset[str],
    maps: frozenset[str],
    *,
    device: torch.device,
    progress: Progress | None,
) -> tuple[np.ndarray, dict[int, str]]:
    """Put the signals of some images into the store; what only maps need, for the first ``MAP_ROWS``. Volumes go one by one.

    Returns:
        Rows that are in the store, and those that the encoder cannot assess, with the reason.
    """
    kept, refused = [], dict[int, str]()
    size = BATCH if encoder.input.axes == 2 else 1
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        asked = needs | (maps if start < MAP_ROWS else frozenset())
        signals = encoder.encode(pixels.take(some).to(device), asked)
        bad = encoder.refused(signals)
        refused |= {int(some[n]): reason for n, reason in bad.items()}
        fine = [n for n in range(len(some)) if n not in bad]
        if fine:
            store.append(signals if not bad else chosen(signals, fine))
        kept.append(some[fine])
        if progress is not None:
            progress({"event": "encode", "done": start + len(some), "total": len(rows)})
    return np.concatenate(kept) if kept else rows, refused


def told(training: Mapping[str, Any]) -> str:
    """One sentence of what was trained, from the card's facts."""
    count = training["images"]
    words = f"Trained {training['trainer']} in {training['seconds']:.0f} s on {count['train']} images; "
    words += f"{count['checkpoint']} chose the checkpoint"
    kept, areas = training.get("kept_epoch"), training.get("validation_auroc")
    if kept and areas:
        words += f" (epoch {kept} of {training['epochs']}, validation AUROC {areas[kept - 1]:.3f})"
    return f"{words}, {count['gate']} others make the gate."
