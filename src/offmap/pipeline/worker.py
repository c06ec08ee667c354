"""What a decode worker does with one source: read, give a file form, prepare, pack. It never imports torch."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from offmap.core.duplicates import fingerprint
from offmap.core.errors import ReadError
from offmap.core.types import Image, NotAssessed, Outcome, Source
from offmap.explain.maps import display
from offmap.pipeline.cache import FeatureCache
from offmap.prepare.preparation import Preparation
from offmap.read.limits import DEFAULT, Limits
from offmap.read.load import load
from offmap.read.messages import Message, pack


@dataclass(frozen=True)
class Work:
    """The task of a worker, sent to it once.

    Args:
        steps: preparation as JSON; empty = decode only.
        form_seed: give each image one random file form; None = as it is.
        picture: also send an 8-bit picture of the image as read.
        fingerprint: also send what finds copies of the image.
        identifiers: read patient data (the user asked for it).
        cache: feature cache to look into before decoding; None = decode all.
        modalities: DICOM modalities that the gate was fitted on; empty = any.
    """

    steps: Sequence[Mapping[str, Any]] = ()
    form_seed: int | None = None
    picture: bool = False
    fingerprint: bool = False
    identifiers: bool = False
    cache: Path | None = None
    modalities: tuple[str, ...] = ()
    limits: Limits = field(default=DEFAULT)

    def __call__(self, source: Source) -> Iterator[Message]:
        """Messages of one source, in the order of its parts."""
        known = _cache(self.cache).has if self.cache else None
        for outcome in load(source, limits=self.limits, identifiers=self.identifiers, known=known):
            if isinstance(outcome, Image):
                yield self.finish(outcome)
            else:
                yield pack(outcome)

    def finish(self, image: Image) -> Message:
        """Prepare one decoded image and pack it, with its picture and fingerprint when asked for."""
        outcome = self.prepared(image)
        header, arrays = pack(outcome)
        if isinstance(outcome, Image):
            if self.picture:
                header["picture"] = len(arrays)
                arrays = [*arrays, display(image)]
            if self.fingerprint:
                header["fingerprint"] = len(arrays)
                arrays = [*arrays, fingerprint(outcome.pixels)]
        return header, arrays

    def prepared(self, image: Image) -> Outcome:
        """The image after all steps, or why it cannot be assessed."""
        refused = foreign_modality(image, self.modalities)
        if refused is not None:
            return refused
        try:
            if self.form_seed is not None:
                image = _random_form(image, self.form_seed)
            if self.steps:
                image = _preparation(_frozen(self.steps)).apply(image)
        except ReadError as error:
            return NotAssessed(image.item, error.reason, str(error))
        except Exception as error:  # one odd image must not stop the run; only the type is told, a message may quote data
            return NotAssessed(image.item, "failed", f"preparation raised {type(error).__name__}")
        low, high = float(np.min(image.pixels)), float(np.max(image.pixels))
        if not np.isfinite(low + high):
            return NotAssessed(image.item, "non_finite", "pixels are not finite after preparation")
        if low == high:
            return NotAssessed(image.item, "constant", "all pixels have one value after preparation")
        return image


def foreign_modality(image: Image, known: tuple[str, ...]) -> NotAssessed | None:
    """A refusal when the DICOM tags name a modality that the gate was not fitted on; None = fine or not known."""
    if not known or not image.modality or image.modality in known:
        return None
    return NotAssessed(image.item, "wrong_modality", f"DICOM modality {image.modality}; the gate was fitted on {', '.join(known)}")


def _random_form(image: Image, seed: int) -> Image:
    from offmap.simulate.forms import random_form

    return random_form(image, seed=seed)


def _frozen(steps: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps(list(steps), sort_keys=True)


@lru_cache(maxsize=4)
def _preparation(steps: str) -> Preparation:
    return Preparation.from_json(json.loads(steps), where="prepare")


@lru_cache(maxsize=1)
def _cache(path: Path) -> FeatureCache:
    return FeatureCache(path)
