"""Drawn lesions with exact masks: soft-edged blobs of stated size, contrast and texture."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32

from offmap.core.errors import ConfigError
from offmap.simulate.texture import fractal_field, rise, smooth_field


@dataclass(frozen=True, eq=False)
class Planted:
    """An image into which something strange was put.

    Args:
        pixels: float32 in [0, 1].
        mask: True exactly where something was put; outside, the pixels are those of the given image.
        drawn: the numbers that were drawn, by name.
    """

    pixels: Float32[np.ndarray, "c *s"]
    mask: Bool[np.ndarray, "*s"]
    drawn: Mapping[str, float]


@dataclass(frozen=True)
class LesionRanges:
    """From what lesions are drawn, each uniformly between two ends.

    Args:
        radius: mean radius, share of the shortest side.
        contrast: change of brightness in the middle, absolute, for pixels in [0, 1].
        edge: width of the soft edge, share of the radius.
        texture: standard deviation of the grain, share of the contrast.
        irregularity: how far the outline strays from an ellipse, share of the radius.
        sign: brighter, darker, or either.
    """

    radius: tuple[float, float] = (0.04, 0.14)
    contrast: tuple[float, float] = (0.12, 0.45)
    edge: tuple[float, float] = (0.15, 0.5)
    texture: tuple[float, float] = (0.05, 0.3)
    irregularity: tuple[float, float] = (0.05, 0.25)
    sign: Literal["bright", "dark", "either"] = "either"

    def __post_init__(self) -> None:
        for name in ("radius", "contrast", "edge", "texture", "irregularity"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ConfigError(f"lesions: {name} = {(low, high)} must be two ends, 0 <= low <= high")
        if self.radius[0] <= 0 or self.edge[0] <= 0 or self.edge[1] > 1:
            raise ConfigError(f"lesions: radius = {self.radius} and edge = {self.edge} must be above 0, edge at most 1")


def plant_lesion(
    pixels: Float[np.ndarray, "c *s"],
    *,
    rng: np.random.Generator,
    ranges: LesionRanges | None = None,
    where: Bool[np.ndarray, "*s"] | None = None,
) -> Planted:
    """Draw one lesion into a prepared image or volume.

    Args:
        pixels: in [0, 1], ``(C, H, W)`` or ``(C, D, H, W)``.
        rng: source of randomness.
        ranges: from what size, contrast and texture are drawn; the defaults if not given.
        where: the centre lies inside; the foreground if not given.

    Raises:
        ConfigError: ``where`` is empty.
    """
    r = ranges or LesionRanges()
    shape = pixels.shape[1:]
    drawn = {k: float(rng.uniform(*getattr(r, k))) for k in ("radius", "contrast", "edge", "texture", "irregularity")}
    centre = pick(where if where is not None else foreground(pixels), rng)
    radius = max(1.0, drawn["radius"] * min(shape))
    strength = _blob(shape, centre, radius, drawn["edge"], drawn["irregularity"], rng)
    grain = 1.0 + drawn["texture"] * smooth_field(shape, max(0.7, radius / 6), rng)
    sign = _sign(float(pixels.mean(axis=0)[centre]), r.sign, rng)
    changed = np.clip(pixels + sign * drawn["contrast"] * strength * grain, 0.0, 1.0).astype(np.float32)
    mask = strength > 0
    place = {f"centre_{axis}": float(c) for axis, c in zip("dhw"[-len(shape) :], centre, strict=True)}
    return Planted(np.where(mask, changed, pixels.astype(np.float32)), mask, MappingProxyType(drawn | place | {"sign": sign}))


@dataclass(frozen=True)
class TumourRanges:
    """From what tumours are drawn, each uniformly between two ends.

    Args:
        radius: mean radius of the whole, share of the shortest side.
        contrast: change of brightness of the rim, absolute, for pixels in [0, 1]; may be below 0.
        core: radius of the darker core, share of the whole's.
        core_contrast: change of brightness of the core, share of the rim's.
        oedema: radius of the soft surrounding, share of the whole's, at least 1.
        oedema_contrast: change of brightness there, share of the rim's.
        edge: width of the soft edges, share of the radius.
        texture: standard deviation of the fractal grain, share of the rim's contrast.
        irregularity: how far outlines stray from an ellipse, share of the radius.
    """

    radius: tuple[float, float] = (0.05, 0.12)
    contrast: tuple[float, float] = (0.15, 0.35)
    core: tuple[float, float] = (0.3, 0.6)
    core_contrast: tuple[float, float] = (-0.5, 0.3)
    oedema: tuple[float, float] = (1.1, 1.6)
    oedema_contrast: tuple[float, float] = (0.15, 0.4)
    edge: tuple[float, float] = (0.3, 0.7)
    texture: tuple[float, float] = (0.1, 0.3)
    irregularity: tuple[float, float] = (0.1, 0.3)

    def __post_init__(self) -> None:
        for name, (low, high) in ((f.name, getattr(self, f.name)) for f in fields(self)):
            if not low <= high or ("contrast" not in name and low < 0):
                raise ConfigError(f"tumours: {name} = {(low, high)} must be two ends, low <= high, at least 0 unless it is a contrast")
        if self.radius[0] <= 0 or self.oedema[0] < 1 or self.core[1] > 1 or self.edge[0] <= 0 or self.edge[1] > 1:
            raise ConfigError(
                f"tumours: radius = {self.radius} must be above 0, core = {self.core} at most 1, oedema = {self.oedema} at least 1, "
                f"edge = {self.edge} in (0, 1]"
            )


def plant_tumour(
    pixels: Float[np.ndarray, "c *s"],
    *,
    rng: np.random.Generator,
    ranges: TumourRanges | None = None,
    where: Bool[np.ndarray, "*s"] | None = None,
) -> Planted:
    """Draw a tumour with a rim, a core and soft surroundings into a prepared image or volume, inside the foreground only.

    Args:
        pixels, rng, where: as of ``plant_lesion``.
        ranges: from what it is drawn; the defaults if not given.

    Returns:
        The image, the mask of all that changed (with the surroundings), and every number that was drawn.

    Raises:
        ConfigError: ``where`` is empty.
    """
    r = ranges or TumourRanges()
    body, shape = foreground(pixels), pixels.shape[1:]
    drawn = {f.name: float(rng.uniform(*getattr(r, f.name))) for f in fields(r)}
    centre = pick(where if where is not None else body, rng)
    radius = max(1.0, drawn["radius"] * min(shape))
    whole, inner, outer = (
        _blob(shape, centre, max(1.0, radius * share), drawn["edge"], drawn["irregularity"], rng)
        for share in (1.0, drawn["core"], drawn["oedema"])
    )
    share = np.maximum(drawn["oedema_contrast"] * outer, whole + inner * (drawn["core_contrast"] - 1.0) * whole)
    share = np.where(whole > 0.5, whole + inner * (drawn["core_contrast"] - 1.0) * whole, share)
    grain = 1.0 + drawn["texture"] * fractal_field(shape, 2.0, rng)
    changed = np.clip(pixels + drawn["contrast"] * share * grain, 0.0, 1.0).astype(np.float32)
    mask = (np.maximum(whole, outer) > 0) & body
    place = {f"centre_{axis}": float(c) for axis, c in zip("dhw"[-len(shape) :], centre, strict=True)}
    return Planted(np.where(mask, changed, pixels.astype(np.float32)), mask, MappingProxyType(drawn | place))


def foreground(pixels: Float[np.ndarray, "c *s"]) -> Bool[np.ndarray, "*s"]:
    """Where the image, blurred, is brighter than a tenth of its range; everywhere if that is nowhere."""
    from scipy import ndimage

    grey = pixels.mean(axis=0, dtype=np.float64)
    blurred = ndimage.gaussian_filter(grey, 0.02 * min(grey.shape), mode="nearest")
    found = np.asarray(blurred > grey.min() + 0.1 * (grey.max() - grey.min()))
    return found if bool(found.any()) else np.ones_like(found)


def pick(where: Bool[np.ndarray, "*s"], rng: np.random.Generator) -> tuple[int, ...]:
    """A random position inside a mask.

    Raises:
        ConfigError: the mask is empty.
    """
    places = np.flatnonzero(where)
    if places.size == 0:
        raise ConfigError("the mask of allowed places is empty")
    return tuple(int(i) for i in np.unravel_index(int(rng.choice(places)), where.shape))


def _blob(
    shape: tuple[int, ...], centre: tuple[int, ...], radius: float, edge: float, irregularity: float, rng: np.random.Generator
) -> Float[np.ndarray, "*s"]:
    """1 inside an irregular ellipsoid, falling to 0 over the edge."""
    turn, _ = np.linalg.qr(rng.standard_normal((len(shape), len(shape))))
    axes = rng.uniform(0.75, 1.3, size=len(shape))
    offsets = np.stack(np.broadcast_arrays(*(g - c for g, c in zip(np.ogrid[tuple(map(slice, shape))], centre, strict=True))))
    turned = np.tensordot(turn, offsets, axes=1) / (radius * axes.reshape(-1, *[1] * len(shape)))
    distance = np.sqrt((turned**2).sum(axis=0))
    outline = distance + irregularity * smooth_field(shape, max(1.0, radius / 2), rng) * np.clip(distance, 0.0, 1.0)
    outline[distance > 2.0] = 2.0
    strength = rise(outline, 1.0 + edge / 2, 1.0 - edge / 2)
    strength[centre] = 1.0
    return strength


def _sign(brightness: float, sign: str, rng: np.random.Generator) -> float:
    """Brighter or darker; where either is allowed, rather towards where there is room."""
    if sign != "either":
        return 1.0 if sign == "bright" else -1.0
    return 1.0 if rng.uniform(0.25, 0.75) > brightness else -1.0
