"""What makes all images comparable: steps that are recorded in the gate and replayed at scoring."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from offmap.core import registry
from offmap.core.component import Component
from offmap.core.errors import ConfigError, ReadError
from offmap.core.types import Image


class Step(Component, ABC):
    """One change of an image. A new one is one file of ``offmap/prepare/``, known by the file's name."""

    @abstractmethod
    def __call__(self, image: Image) -> Image:
        """The changed image; the given one is left as it is.

        Pixels, frame, spacing and mask of the result fit each other.

        Raises:
            ReadError: the step cannot be done on this image; carries the reason code.
        """

    @abstractmethod
    def describe(self) -> str:
        """The step in words, for the gate's card."""


@dataclass(frozen=True)
class Preparation:
    """Steps in their order.

    Args:
        steps: applied from the first to the last.
    """

    steps: tuple[Step, ...]

    def apply(self, image: Image) -> Image:
        """The prepared image: float32 ``(C, H, W)`` or ``(C, D, H, W)``, contiguous, finite.

        Raises:
            ReadError: a step cannot be done (its own reason), or what comes out is not finite (``non_finite``) or has
                one value everywhere (``constant``).
        """
        _check(image.pixels, "as read")
        for step in self.steps:
            image = step(image)
        if image.pixels.dtype != np.float32 or not image.pixels.flags.c_contiguous:
            image = dataclasses.replace(image, pixels=np.ascontiguousarray(image.pixels, dtype=np.float32))
        _check(image.pixels, "after preparation")
        return image

    def to_json(self) -> list[dict[str, Any]]:
        """One table a step: its ``method`` and its parameters, as JSON values."""
        return [{"method": step.method()} | step.params() for step in self.steps]

    @classmethod
    def from_json(cls, tables: Sequence[Mapping[str, Any]], *, where: str = "prepare") -> "Preparation":
        """The inverse of ``to_json``; parameters that are left out take their defaults.

        Args:
            tables: one a step, each with a ``method``.
            where: what to call it in a message.

        Raises:
            ConfigError: unknown step or parameter (with the nearest name), wrong type, or out of range.
        """
        return cls(tuple(_step(table, f"{where}.{i}") for i, table in enumerate(tables)))

    def describe(self) -> list[str]:
        """The steps in words, for the gate's card."""
        return [step.describe() for step in self.steps]


def _step(table: Mapping[str, Any], where: str) -> Step:
    name = table.get("method")
    if not isinstance(name, str):
        raise ConfigError(f"[{where}] has no method; steps: {', '.join(registry.load_all('prepare', Step))}")
    step = registry.load("prepare", name, Step)
    return step.from_params({k: v for k, v in table.items() if k != "method"}, where=f"{where}.{name}")


def _check(pixels: np.ndarray, when: str) -> None:
    if pixels.size == 0:
        raise ReadError("bad_geometry", f"the image {when} has the shape {pixels.shape}: no pixel at all")
    low, high = pixels.min(), pixels.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ReadError("non_finite", f"the image {when} holds NaN or infinite pixels")
    if low == high:
        raise ReadError("constant", f"all pixels {when} have the value {float(low):.6g}")
