"""What goes wrong in tomography, drawn into prepared images with exact masks: stars, streaks, a missing wedge."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float

from offmap.core.errors import ConfigError
from offmap.simulate.lesions import Planted, foreground, pick
from offmap.simulate.texture import rise

LEAST = 1 / 255
"""Change of brightness from which a pixel counts as changed."""

Pixels = Float[np.ndarray, "c h w"]


@dataclass(frozen=True)
class StarRanges:
    """From what stars are drawn, each uniformly between two ends.

    Args:
        radius: length of a ray, share of the shorter side.
        core: radius of the bright core, share of the shorter side.
        contrast: brightness added in the core; rays fall off from there.
        rays: number of rays, whole numbers.
        width: of a ray at the core, share of the core's radius.
    """

    radius: tuple[float, float] = (0.08, 0.2)
    core: tuple[float, float] = (0.012, 0.03)
    contrast: tuple[float, float] = (0.4, 0.8)
    rays: tuple[int, int] = (5, 9)
    width: tuple[float, float] = (0.4, 0.8)

    def __post_init__(self) -> None:
        for name in ("radius", "core", "contrast", "rays", "width"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ConfigError(f"stars: {name} = {(low, high)} must be two ends, 0 < low <= high")


def star(
    pixels: Pixels, *, rng: np.random.Generator, ranges: StarRanges | None = None, where: Bool[np.ndarray, "h w"] | None = None
) -> Planted:
    """A metal-like star: a bright core with rays, alternately bright and dark, that fall off with the distance.

    Args:
        pixels: in [0, 1].
        rng: source of randomness.
        ranges: from what it is drawn; the defaults if not given.
        where: the core lies inside; the foreground if not given.

    Raises:
        ConfigError: ``where`` is empty.
    """
    r, side = ranges or StarRanges(), min(pixels.shape[1:])
    drawn = {name: float(rng.uniform(*getattr(r, name))) for name in ("radius", "core", "contrast", "width")}
    drawn["rays"] = float(rng.integers(r.rays[0], r.rays[1] + 1))
    drawn["turn"] = float(rng.uniform(0, 2 * np.pi))
    centre = pick(where if where is not None else foreground(pixels), rng)
    y, x = (np.arange(n, dtype=np.float64) - c for n, c in zip(pixels.shape[1:], centre, strict=True))
    far, angle = np.hypot(y[:, None], x[None, :]), np.arctan2(y[:, None], x[None, :])
    core, radius = max(0.8, drawn["core"] * side), drawn["radius"] * side
    turns = (angle - drawn["turn"]) * drawn["rays"] / (2 * np.pi)
    across = np.abs(turns - np.rint(turns)) * 2 * np.pi / drawn["rays"] * far
    fall = rise(far, radius, core)
    lit = np.exp(-0.5 * (across / max(0.5, drawn["width"] * core)) ** 2) * fall
    signs = np.where(np.rint(turns).astype(int) % 2 == 0, 1.0, -0.6)
    change = drawn["contrast"] * np.maximum(rise(far, 1.5 * core, 0.5 * core), 0.0) + 0.6 * drawn["contrast"] * signs * lit
    return _planted(pixels, np.where(far <= max(radius, 1.5 * core), change, 0.0), drawn, centre)


def streaks(
    pixels: Pixels,
    *,
    rng: np.random.Generator,
    count: tuple[int, int] = (2, 6),
    contrast: tuple[float, float] = (0.1, 0.3),
    width: tuple[float, float] = (0.006, 0.02),
) -> Planted:
    """Straight soft lines through one place, from border to border, bright or dark.

    Args:
        pixels: in [0, 1].
        rng: source of randomness.
        count: number of lines.
        contrast: change of brightness in the middle of a line.
        width: deviation of its profile, share of the shorter side.

    Raises:
        ConfigError: ends that are not ``0 < low <= high``.
    """
    for name, (low, high) in (("count", count), ("contrast", contrast), ("width", width)):
        if not 0 < low <= high:
            raise ConfigError(f"streaks: {name} = {(low, high)} must be two ends, 0 < low <= high")
    lines, centre = int(rng.integers(count[0], count[1] + 1)), pick(foreground(pixels), rng)
    drawn: dict[str, float] = {"count": float(lines)}
    y, x = (np.arange(n, dtype=np.float64) - c for n, c in zip(pixels.shape[1:], centre, strict=True))
    change = np.zeros(pixels.shape[1:])
    for i in range(lines):
        angle, height = float(rng.uniform(0, np.pi)), float(rng.uniform(*contrast) * rng.choice([-1.0, 1.0]))
        across = np.abs(x[None, :] * np.sin(angle) - y[:, None] * np.cos(angle))
        change += height * np.exp(-0.5 * (across / max(0.5, float(rng.uniform(*width)) * min(pixels.shape[1:]))) ** 2)
        drawn |= {f"angle_{i}": angle, f"contrast_{i}": height}
    return _planted(pixels, change, drawn, centre)


def missing_wedge(pixels: Pixels, *, rng: np.random.Generator, degrees: tuple[float, float] = (20.0, 60.0)) -> Planted:
    """A wedge of the plane of frequencies is lost, as with a scan of limited angle; the mask is where pixels changed by 1/255 or more.

    Args:
        pixels: in [0, 1].
        rng: source of randomness.
        degrees: opening of the wedge, in (0, 180).

    Raises:
        ConfigError: an impossible opening.
    """
    if not 0 < degrees[0] <= degrees[1] < 180:
        raise ConfigError(f"missing_wedge: degrees = {degrees} must be two ends in (0, 180)")
    opening, axis = float(rng.uniform(*degrees)), float(rng.uniform(0, np.pi))
    height, width = pixels.shape[1:]
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :]
    away = np.abs((np.arctan2(rows, columns) - axis + np.pi / 2) % np.pi - np.pi / 2)
    keep = (away > np.deg2rad(opening) / 2) | (np.hypot(rows, columns) == 0)
    keep &= np.roll(keep[::-1, ::-1], (1, 1), axis=(0, 1))
    lost = np.fft.ifft2(np.fft.fft2(pixels.astype(np.float64)) * keep).real - pixels
    return _planted(pixels, lost, {"degrees": opening, "axis": axis}, None)


ARTEFACTS: Mapping[str, Callable[..., Planted]] = MappingProxyType({"star": star, "streaks": streaks, "missing_wedge": missing_wedge})
"""All kinds by name."""


def _planted(pixels: Pixels, change: Float[np.ndarray, "*k"], drawn: Mapping[str, float], centre: tuple[int, ...] | None) -> Planted:
    """The image with its change where that is visible, and the mask of just these pixels."""
    given = pixels.astype(np.float32)
    changed = np.clip(pixels + change, 0.0, 1.0).astype(np.float32)
    mask = (np.abs(changed - given) >= LEAST).any(axis=0)
    place = {} if centre is None else {"centre_h": float(centre[0]), "centre_w": float(centre[1])}
    return Planted(np.where(mask, changed, given), mask, MappingProxyType({**drawn, **place}))
