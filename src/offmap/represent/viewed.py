"""Features of several views of each image: views that keep its labels, and views that give it a new one (mirrored, turned, cut out)."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from offmap.core.encoder import Encoder
from offmap.core.errors import ConfigError
from offmap.core.types import Signals
from offmap.represent.augmented import View, seen, views
from offmap.represent.layers import normalise
from offmap.represent.probe import Backboned

SCORED, OTHER = "views.scored", "views.other"
"""Names of the signals: views that every image needs, and views that only images to train on need."""

WINDOW = 0.75
"""Side of the window that the task "crop position" cuts out, as a share of the image's side."""

WHOLE: View = (1.0, 1.0, 0, 0)
MIRRORED: View = (-1.0, 1.0, 0, 0)


@dataclass(frozen=True)
class Look:
    """One view of a square image.

    Args:
        quarters: quarter turns to the left.
        windows: what is seen, one after another, as ``represent.augmented.View``.
    """

    quarters: int = 0
    windows: tuple[View, ...] = ()

    def of(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The view."""
        turned = torch.rot90(pixels, self.quarters, (2, 3)) if self.quarters else pixels
        for window in self.windows:
            turned = seen(turned, window)
        return turned


def made(kind: str, size: int) -> dict[str, Look]:
    """Classes of a task that is made from the images themselves; the first is the one in which images are scored.

    Args:
        kind: ``laterality flip``, ``crop position`` or ``rotation``.
        size: side of the encoder's input, in pixels.

    Raises:
        ConfigError: there is no such task.
    """
    move = round((1 - WINDOW) / 2 * size)
    corners = {"upper left": (-1, -1), "upper right": (1, -1), "lower left": (-1, 1), "lower right": (1, 1)}
    kinds = {
        "laterality flip": {"as it is": Look(), "mirrored": Look(0, (MIRRORED,))},
        "crop position": {
            "centre": Look(0, ((WINDOW, WINDOW, 0, 0),)),
            **{name: Look(0, ((WINDOW, WINDOW, move * x, move * y),)) for name, (x, y) in corners.items()},
        },
        "rotation": {"upright": Look(), **{f"{90 * i} degrees": Look(i) for i in (1, 2, 3)}},
    }
    if kind not in kinds:
        raise ConfigError(f"there is no task {kind!r} to be made from images; there are: {', '.join(kinds)}")
    return kinds[kind]


def augmented(look: Look, size: int, *, flips: bool) -> tuple[Look, ...]:
    """The views of test-time augmentation of a view, the view itself first; without the mirrored one where a flip changes the label."""
    wanted = [view for view in views(size, size, upside_down=False) if flips or view[0] > 0]
    return tuple(look if view == WHOLE else Look(look.quarters, (*look.windows, view)) for view in wanted)


class ViewedEncoder(Encoder):
    """A frozen backbone that looks at each image several times.

    Gives ``views.scored (N, A, D)`` and ``views.other (N, B, D)``: the mean of the deepest map over each cell of a grid, so that what
    lies left and right is not mixed. One forward pass a view.

    Args:
        base: hands out its backbone.
        scored, other: views of each signal.
        grid: cells of a side; D = channels times ``grid**2``.

    Raises:
        ConfigError: the encoder has no backbone to hand out, or one that gives no map.
    """

    def __init__(self, base: Encoder, scored: tuple[Look, ...], other: tuple[Look, ...], *, grid: int = 2) -> None:
        if not isinstance(base, Backboned):
            raise ConfigError(f"{base.name} has no backbone for the networks of a study: use builtin or hub:NAME_OR_DIR")
        self.base, self.looks, self.grid = base, {SCORED: scored, OTHER: other}, grid
        self.name, self.layers, self.input = base.name, base.layers, base.input
        self.provides = frozenset({SCORED, OTHER})
        self._backbone: nn.Module = base.backbone()
        note = json.dumps([{name: [repr(look) for look in found] for name, found in self.looks.items()}, grid])
        self.sha256 = hashlib.sha256(f"{base.sha256}\n{note}".encode()).hexdigest()

    def encode(self, images: Float[Tensor, "n c h w"], needs: frozenset[str]) -> Signals:
        """As ``Encoder.encode``."""
        pixels = normalise(images, self.base.input)
        pixels = pixels.expand(-1, self.base.input.channels, *pixels.shape[2:])
        wanted = {name: looks for name, looks in self.looks.items() if name in needs and looks}
        found: dict[Look, Tensor] = {}
        with torch.no_grad():
            for look in {look: None for looks in wanted.values() for look in looks}:
                found[look] = self._features(look.of(pixels).contiguous())
        return {name: torch.stack([found[look] for look in looks], dim=1) for name, looks in wanted.items()}

    def _features(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        maps = self._backbone(pixels)
        if maps.ndim == 3:
            tokens: Tensor = maps.mean(dim=1)
            return tokens.float()
        cells: Tensor = functional.adaptive_avg_pool2d(maps, self.grid)
        return cells.flatten(1).float()

    def to(self, device: torch.device | str) -> "ViewedEncoder":
        """The same encoder on another device."""
        return ViewedEncoder(self.base.to(device), self.looks[SCORED], self.looks[OTHER], grid=self.grid)

    def state(self) -> None:
        """None: no gate keeps it."""
        return

    def config(self) -> dict[str, Any]:
        """What the base records, with the digest of the views."""
        return {"kind": "viewed", "base": self.base.config(), "sha256": self.sha256}
