"""Features of sets of images through the product's own stream, kept on disk so that a second run is quick.

They lie in ``$OFFMAP_CACHE`` (or the platform's cache folder), below ``benchmarks``, one safetensors file for each set, weights,
steps and form.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from offmap.core.encoder import Encoder
from offmap.core.errors import DataError
from offmap.core.types import Image, NotAssessed, Source
from offmap.pipeline.cache import root
from offmap.pipeline.recipe import Recipe
from offmap.pipeline.stream import Batch, Stream
from offmap.prepare.preparation import Preparation

Vectors = dict[str, Tensor]
"""Signals of a set, ``(N, D)`` each."""

PRINT = "fingerprint"


@dataclass(frozen=True)
class Extractor:
    """Turns files or images into features.

    Args:
        encoder: the network.
        preparation: steps before it.
        jobs: decode workers.
    """

    encoder: Encoder
    preparation: Preparation
    jobs: int = 2

    def of_files(self, files: Sequence[Path], *, form_seed: int | None = None) -> Vectors:
        """Features and fingerprints of files, each as it is or in one random form."""
        sources = [Source(p, str(p)) for p in files]
        stream = replace(self._stream(), form_seed=form_seed, fingerprint=True)
        names = [(p.parent.parent.name, p.parent.name, p.name, p.stat().st_size) for p in files]
        return self._kept(("files", names, form_seed), lambda: stream.over(sources))

    def of_images(self, key: object, images: Iterable[Image]) -> Vectors:
        """Features of images that were read already; ``key`` names them in the cache (JSON values)."""
        return self._kept(("images", key), lambda: self._stream().over_images(images))

    def maps(self, files: Sequence[Path], *, form_seed: int | None = None) -> Vectors:
        """Feature maps of the second and third deepest layer; large, so they are not kept on disk."""
        needs = frozenset(f"feature_map.{layer}" for layer in self.encoder.layers[-3:-1])
        stream = replace(self._stream(), needs=needs, form_seed=form_seed)
        return _joined(stream.over([Source(p, str(p)) for p in files]))

    def _stream(self) -> Stream:
        return Stream(self.encoder, self.preparation, frozenset({"features.*"}), jobs=self.jobs, use_cache=False)

    def _kept(self, key: tuple[object, ...], batches: Callable[[], Iterable[Batch]]) -> Vectors:
        text = json.dumps([3, self.encoder.sha256, list(self.encoder.layers), self.encoder.input.size, self.preparation.to_json(), key])
        path = root() / "benchmarks" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            save_file(_joined(batches()), part)
            part.replace(path)
        found = load_file(path)
        layers = {f"features.{layer}": found.pop(f"features.{layer}") for layer in self.encoder.layers}
        return {**layers, **found}


def _joined(batches: Iterable[Batch]) -> Vectors:
    kept: dict[str, list[Tensor]] = {}
    for batch in batches:
        refused = [e for e in batch.entries if isinstance(e, NotAssessed)]
        if refused:
            raise DataError(f"{refused[0].item}: {refused[0].reason}; a benchmark needs all of its images")
        for name, value in batch.signals.items():
            if not name.endswith(".last"):
                kept.setdefault(name, []).append(value)
        if batch.prints:
            kept.setdefault(PRINT, []).append(torch.from_numpy(np.stack([batch.prints[i] for i in range(len(batch.entries))])))
    return {name: torch.cat(values).contiguous() for name, values in kept.items()}


def signals(vectors: Vectors, rows: np.ndarray | None = None) -> Vectors:
    """Features of some rows as a detector wants them, with the alias ``features.last``."""
    found = {
        name: value if rows is None else value[torch.from_numpy(rows)] for name, value in vectors.items() if name.startswith("features.")
    }
    return {**found, "features.last": next(reversed(found.values()))}


def without(recipe: Recipe, step: str) -> Recipe:
    """The recipe without one step of its preparation."""
    return replace(recipe, prepare=tuple((name, table) for name, table in recipe.prepare if name != step))


def folder_of(name: str) -> str:
    """``hub:DIR`` as a short name for tables and files: the last part of the folder."""
    kind, _, rest = name.partition(":")
    return Path(rest).name if rest else kind
