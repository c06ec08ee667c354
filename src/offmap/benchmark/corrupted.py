"""Test images with graded damage, made in the decode workers; a suite's sets ``<id>~<corruption>@<severity>``."""

import dataclasses
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from offmap.core.errors import OODError, ReadError
from offmap.core.types import Image, NotAssessed, Outcome, Source
from offmap.pipeline.synthetic import halves
from offmap.pipeline.worker import Work
from offmap.prepare.preparation import Preparation
from offmap.read.load import load
from offmap.read.messages import Message, pack
from offmap.simulate.corruptions import CORRUPTIONS, corrupt


@dataclass(frozen=True)
class Damage:
    """One corruption of some images.

    Args:
        kind: name of the corruption.
        severity: 1 to 5.
        wanted: names of the images.
    """

    kind: str
    severity: int
    wanted: frozenset[str]


@dataclass(frozen=True)
class DamageWork(Work):
    """Reads images, damages them after window and crop, and prepares the rest of the way.

    Args:
        damage: what is done to which images; the same image always gets the same pattern, whatever the severity.
    """

    damage: Damage = field(default=Damage("noise", 1, frozenset()))

    def __call__(self, source: Source) -> Iterator[Message]:
        """Messages of the damaged images of one source; grey images are left out where the corruption is one of colour."""
        for outcome in load(source, limits=self.limits):
            if not isinstance(outcome, Image) or outcome.item not in self.damage.wanted:
                continue
            if not CORRUPTIONS[self.damage.kind].colour or outcome.pixels.shape[0] == 3:
                yield pack(self._damaged(outcome))

    def _damaged(self, image: Image) -> Outcome:
        try:
            early, late = halves(Preparation.from_json(self.steps, where="prepare"))
            seen = early.apply(image)
            seed = zlib.crc32(f"{self.damage.kind}:{image.digest}".encode())
            pixels = corrupt(np.clip(seen.pixels, 0.0, 1.0), self.damage.kind, severity=self.damage.severity, seed=seed)
            return late.apply(dataclasses.replace(seen, pixels=np.ascontiguousarray(pixels), mask=None))
        except ReadError as error:
            return NotAssessed(image.item, error.reason, str(error))
        except OODError:
            return NotAssessed(image.item, "failed", f"this image cannot be changed by {self.damage.kind}")
