"""Copies of in-distribution images that were made strange on purpose, and copies that were only saved in another way.

A copy is made where damage happens to a real image: after the window and the crop, before the steps that change size and detail.
Decode workers make them, one image at a time, so that memory stays flat; never imports torch.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Literal

import numpy as np

from offmap.core.errors import OODError, ReadError
from offmap.core.types import Image, NotAssessed, Outcome, Source
from offmap.pipeline.worker import Work
from offmap.prepare.preparation import Preparation
from offmap.read.load import load
from offmap.read.messages import Message, pack
from offmap.simulate.anomalies import ANOMALIES
from offmap.simulate.corruptions import CORRUPTIONS, corrupt
from offmap.simulate.forms import FORMS
from offmap.simulate.lesions import LesionRanges, plant_lesion

Group = Literal["clean", "form", "local", "whole"]

EARLY = ("window", "crop")
"""Steps before the damage."""

SEVERITIES = (2, 4)
"""Of corruptions; the least and the greatest rank little, as no detector sees them, or all do."""

LESIONS = MappingProxyType({"lesion_faint": LesionRanges(radius=(0.03, 0.08), contrast=(0.06, 0.2)), "lesion": LesionRanges()})
"""Drawn lesions, hard and easy to see."""

CLEAN = "clean"


@dataclass(frozen=True)
class Kind:
    """One way to change an image.

    Args:
        group: ``clean`` and ``form`` are in distribution; ``local`` (a part) and ``whole`` are anomalies.
        colour: whether grey images are left out.
        severity: of a corruption; 0 = none.
    """

    group: Group
    colour: bool = False
    severity: int = 0


def kinds() -> dict[str, Kind]:
    """All kinds by name; corruptions that need MONAI are left out, so that every installation ranks alike."""
    found = {CLEAN: Kind("clean")} | {name: Kind("form") for name in FORMS if name != "native"}
    found |= {name: Kind("local") for name in (*LESIONS, *ANOMALIES)}
    for name, corruption in CORRUPTIONS.items():
        if not corruption.monai:
            found |= {f"{name}.{severity}": Kind("whole", corruption.colour, severity) for severity in SEVERITIES}
    return found


KINDS: Mapping[str, Kind] = MappingProxyType(kinds())


@dataclass(frozen=True)
class CopyWork(Work):
    """Makes every copy of the images that are asked for, and of no other.

    Args:
        wanted: digests of the images.
        seed: with the image's digest and the kind it decides the damage.
    """

    wanted: frozenset[str] = frozenset()
    seed: int = field(default=0)

    def __call__(self, source: Source) -> Iterator[Message]:
        """Messages of the copies of one source's images; the item of each is ``DIGEST/KIND``."""
        for outcome in load(source, limits=self.limits):
            if isinstance(outcome, Image) and outcome.digest in self.wanted:
                yield from self.copies(outcome)

    def copies(self, image: Image) -> Iterator[Message]:
        """Messages of the copies of one image."""
        steps = Preparation.from_json(self.steps, where="prepare")
        early, late = halves(steps)
        for name, kind in KINDS.items():
            if kind.colour and image.pixels.shape[0] != 3:
                continue
            if kind.group in ("clean", "form"):
                made = partial(_formed, image, name, steps)
            else:
                made = partial(_damaged, image, name, early, late, self.seed)
            outcome = _tried(made, f"{image.digest}/{name}")
            yield pack(dataclasses.replace(outcome, item=f"{image.digest}/{name}", mask=None) if isinstance(outcome, Image) else outcome)


def halves(preparation: Preparation) -> tuple[Preparation, Preparation]:
    """The steps before the damage, and those after it."""
    at = next((i for i, step in enumerate(preparation.steps) if step.method() not in EARLY), len(preparation.steps))
    return Preparation(preparation.steps[:at]), Preparation(preparation.steps[at:])


def _tried(make: Callable[[], Image], item: str) -> Outcome:
    try:
        return make()
    except ReadError as error:
        return NotAssessed(item, error.reason, str(error))
    except OODError:
        return NotAssessed(item, "failed", "this image cannot be changed in this way")


def _formed(image: Image, name: str, steps: Preparation) -> Image:
    return steps.apply(image if name == CLEAN else FORMS[name](image))


def _damaged(image: Image, name: str, early: Preparation, late: Preparation, seed: int) -> Image:
    seen = early.apply(image)
    pixels = np.clip(seen.pixels, 0.0, 1.0)
    number = zlib.crc32(f"{seed}:{name.partition('.')[0]}:{image.digest}".encode())
    rng = np.random.default_rng(number)
    if name in LESIONS:
        changed = plant_lesion(pixels, rng=rng, ranges=LESIONS[name]).pixels
    elif name in ANOMALIES:
        changed = ANOMALIES[name](pixels, np.ascontiguousarray(pixels[..., ::-1]), rng=rng).pixels
    else:
        changed = corrupt(pixels, name.partition(".")[0], severity=KINDS[name].severity, seed=number)
    return late.apply(dataclasses.replace(seen, pixels=np.ascontiguousarray(changed)))
