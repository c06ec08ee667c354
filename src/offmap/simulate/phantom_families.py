"""Procedural pictures that look like medical ones (chest, brain, skin, tissue), and some that do not (scene, page, waves).

Each function draws one picture, float64 in [0, 1], ``(H, W)`` or ``(H, W, 3)``; every call varies anatomy and exposure.
They exist so that offmap can be tried without any data; no result on them says anything about patients.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from jaxtyping import Float

from offmap.simulate.texture import fractal_field, rise, smooth_field

Plane = Float[np.ndarray, "h w"]
Colour = Float[np.ndarray, "h w 3"]


def chest(size: int, rng: np.random.Generator) -> Plane:
    """A frontal chest film: bright body, dark lungs with ribs and vessels, spine, heart, diaphragm."""
    y, x = _grid(size)
    x = x - rng.normal(0, 0.03)
    y = y - rng.normal(0, 0.03)
    width, height = rng.uniform(0.24, 0.3), rng.uniform(0.48, 0.58)
    wobble = 0.05 * smooth_field((size, size), size / 12, rng)
    lungs = np.zeros_like(wobble)
    for side in (-1, 1):
        low = rise(y, height + 0.25, height - 0.02) if side < 0 else rise(y, height + 0.2, height - 0.06)
        lungs += rise(np.hypot((x - side * 0.36) / width, (y + 0.02) / height) + wobble, 1.06, 0.9) * low
    body = rise(np.abs(x) - 0.1 * y + wobble, 0.98, 0.86) * (0.62 + 0.12 * y)
    ribs = rise(np.sin((y * rng.uniform(19, 23)) + 5.5 * x**2 - 2.5 * np.abs(x) + rng.uniform(0, 6)), 0.35, 0.95)
    heart = rise(np.hypot((x - rng.uniform(0.08, 0.14)) / rng.uniform(0.24, 0.34), (y - 0.3) / 0.3) + wobble, 1.1, 0.75)
    spine = np.exp(-((x / 0.09) ** 2)) * (0.8 + 0.2 * np.sin(y * 32))
    vessels = rise(np.abs(fractal_field((size, size), 2.6, rng)), 0.18, 0.0) * np.exp(-(((np.abs(x) - 0.2) / 0.2) ** 2))
    film = body - lungs * (0.42 - 0.09 * ribs - 0.08 * vessels) + 0.26 * heart * body + 0.14 * spine + 0.05 * ribs * body
    collar = np.exp(-(((y + 0.62 - 0.25 * np.abs(x)) / 0.035) ** 2)) * rise(np.abs(x), 0.75, 0.6)
    return _exposed(film + 0.1 * collar, rng, grain=0.012, blur=0.7)


def brain(size: int, rng: np.random.Generator) -> Plane:
    """A T1-like axial slice: bright scalp ring, dark skull, grey and white matter, dark ventricles, noise."""
    y, x = _grid(size)
    turn = rng.normal(0, 0.06)
    x, y = x * np.cos(turn) + y * np.sin(turn) - rng.normal(0, 0.03), y * np.cos(turn) - x * np.sin(turn) - rng.normal(0, 0.03)
    a, b = rng.uniform(0.62, 0.7), rng.uniform(0.78, 0.86)
    radius = np.hypot(x / a, y / b) + 0.008 * smooth_field((size, size), size / 14, rng)
    folds = fractal_field((size, size), 2.2, rng) * 0.06
    sulci = rise(np.abs(smooth_field((size, size), size / 45, rng)), 0.35, 0.0) * rise(radius, 0.6, 0.85)
    matter = 0.48 + 0.22 * rise(radius + folds + 0.06 * sulci, 0.84, 0.7) - 0.26 * sulci
    matter -= 0.35 * np.exp(-((x / 0.012) ** 2)) * rise(radius, 0.3, 0.5)
    spread, tilt = rng.uniform(0.05, 0.09), rng.uniform(0.12, 0.22)
    for side in (-1, 1):
        u, v = x - side * (spread + tilt * np.abs(y + 0.02)), y + 0.02
        matter -= 0.5 * rise(np.hypot(u / rng.uniform(0.045, 0.07), v / rng.uniform(0.22, 0.3)), 1.1, 0.8)
        matter -= 0.1 * rise(np.hypot((x - side * 0.2) / 0.08, (y - 0.02) / 0.16), 1.1, 0.8)
    inside = rise(radius, 0.93, 0.9)
    scalp = rise(np.abs(radius - 1.04), 0.035, 0.015) * rng.uniform(0.6, 0.8)
    slice_ = np.clip(matter, 0.06, 1.0) * inside + scalp + 0.1 * rise(np.abs(radius - 0.965), 0.05, 0.02)
    noise = 0.014
    noisy = np.hypot(slice_ + noise * rng.standard_normal(slice_.shape), noise * rng.standard_normal(slice_.shape))
    return _exposed(noisy, rng, grain=0.0, blur=0.6)


def skin(size: int, rng: np.random.Generator) -> Colour:
    """A dermoscopy-like picture: skin, a pigmented spot with an irregular outline, sometimes hair."""
    y, x = _grid(size)
    tone = np.array([0.86, 0.66, 0.56]) * rng.uniform(0.88, 1.05) + rng.normal(0, 0.015, 3)
    texture = 0.025 * fractal_field((size, size), 1.8, rng) + 0.02 * smooth_field((size, size), size / 6, rng)
    picture = tone * (1.0 + texture[..., None])
    radius = np.hypot((x - rng.normal(0, 0.08)) / rng.uniform(0.3, 0.5), (y - rng.normal(0, 0.08)) / rng.uniform(0.3, 0.5))
    spot = rise(radius + 0.12 * smooth_field((size, size), size / 14, rng), 1.1, 0.75)
    network = 0.8 + 0.2 * rise(np.abs(smooth_field((size, size), size / 60, rng)), 0.9, 0.1)
    pigment = np.array([0.42, 0.24, 0.17]) * rng.uniform(0.75, 1.25)
    share = (spot * network * rng.uniform(0.7, 0.95))[..., None]
    picture = (1 - share) * picture + share * pigment * (1.0 + 0.15 * smooth_field((size, size), size / 25, rng)[..., None])
    for _ in range(int(rng.integers(0, 7))):
        angle, offset, bend = rng.uniform(0, np.pi), rng.uniform(-0.9, 0.9), rng.normal(0, 0.25)
        along, across = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
        hair = rise(np.abs(across - offset - bend * along**2), 0.014, 0.004) * 0.75
        picture = picture * (1 - hair[..., None]) + 0.12 * hair[..., None]
    light = 1.0 - 0.22 * rise(np.hypot(x, y), 0.6, 1.4)
    return _exposed(picture * light[..., None], rng, grain=0.008, blur=0.7)


def tissue(size: int, rng: np.random.Generator) -> Colour:
    """A stained section: pink ground, pale gaps, violet nuclei."""
    pink = np.array([0.87, 0.62, 0.77]) + rng.normal(0, 0.015, 3)
    ground = pink * (1.0 + 0.08 * fractal_field((size, size), 2.2, rng)[..., None])
    gaps = rise(smooth_field((size, size), size / rng.uniform(11, 16), rng), 0.9, 1.3)[..., None]
    picture = ground * (1 - gaps) + 0.95 * gaps
    y, x = _grid(size)
    violet = np.array([0.38, 0.24, 0.52]) * rng.uniform(0.9, 1.1)
    for _ in range(int(rng.integers(90, 150))):
        cy, cx = rng.uniform(-1, 1, 2)
        if gaps[int((cy + 1) / 2 * (size - 1)), int((cx + 1) / 2 * (size - 1)), 0] > 0.5:
            continue
        _nucleus(picture, (y, x), (cy, cx), violet * rng.uniform(0.8, 1.2), rng)
    return _exposed(picture, rng, grain=0.012, blur=0.8)


def scene(size: int, rng: np.random.Generator) -> Colour:
    """Overlapping coloured discs of all sizes ("dead leaves"), with the statistics of photographs."""
    picture = np.empty((size, size, 3))
    picture[:] = rng.uniform(0, 1, 3)
    y, x = _grid(size)
    for radius in np.sort(0.04 / np.maximum(rng.uniform(0.06, 1, 200), 1e-3))[::-1]:
        cy, cx = rng.uniform(-1.1, 1.1, 2)
        picture[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = rng.uniform(0, 1, 3)
    return _exposed(picture * (1 + 0.08 * fractal_field((size, size), 1.5, rng)[..., None]), rng, grain=0.01, blur=0.6)


def page(size: int, rng: np.random.Generator) -> Plane:
    """A scanned report: lines of dark words on white."""
    sheet = np.full((size, size), 0.95)
    pitch, left = int(size * rng.uniform(0.035, 0.055)), int(size * rng.uniform(0.06, 0.12))
    for top in range(pitch, size - pitch, pitch):
        column = left
        while column < size - left:
            word = int(rng.integers(2, 9) * pitch * 0.35)
            strokes = rng.random((max(2, pitch // 2), min(word, size - left - column) or 1)) < 0.45
            sheet[top : top + strokes.shape[0], column : column + strokes.shape[1]][strokes] = 0.12
            column += word + pitch // 3
            if rng.random() < 0.07:
                break
    return _exposed(sheet, rng, grain=0.01, blur=0.5)


def waves(size: int, rng: np.random.Generator) -> Plane:
    """A test pattern: two gratings over each other."""
    y, x = _grid(size)
    total = np.zeros((size, size))
    for _ in range(2):
        angle, frequency = rng.uniform(0, np.pi), rng.uniform(15, 60)
        total = total + np.sin(frequency * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 6))
    return _exposed(0.5 + 0.22 * total, rng, grain=0.01, blur=0.5)


MEDICAL: Mapping[str, Callable[[int, np.random.Generator], np.ndarray]] = MappingProxyType(
    {"chest": chest, "brain": brain, "skin": skin, "tissue": tissue}
)
FOREIGN: Mapping[str, Callable[[int, np.random.Generator], np.ndarray]] = MappingProxyType({"scene": scene, "page": page, "waves": waves})


def _grid(size: int) -> tuple[Plane, Plane]:
    """Rows and columns from -1 to 1."""
    line = (np.arange(size) + 0.5) / size * 2 - 1
    rows, columns = np.meshgrid(line, line, indexing="ij")
    return rows, columns


def _exposed(picture: Float[np.ndarray, "h w *c"], rng: np.random.Generator, *, grain: float, blur: float) -> Float[np.ndarray, "h w *c"]:
    """What a device adds: a little blur, grain, and an exposure that varies from picture to picture."""
    from scipy import ndimage

    soft = ndimage.gaussian_filter(picture, (blur, blur) + (0,) * (picture.ndim - 2))
    soft = np.clip(soft * rng.uniform(0.94, 1.06), 0.0, 1.0) ** rng.uniform(0.92, 1.09)
    return np.asarray(np.clip(soft + grain * rng.standard_normal(soft.shape), 0.0, 1.0))


def _nucleus(
    picture: Colour, grid: tuple[Plane, Plane], centre: tuple[float, float], colour: Float[np.ndarray, "3"], rng: np.random.Generator
) -> None:
    size = picture.shape[0]
    reach = max(3, int(size * 0.045))
    row, column = (int((c + 1) / 2 * size) for c in centre)
    rows, columns = slice(max(0, row - reach), row + reach), slice(max(0, column - reach), column + reach)
    dy, dx = grid[0][rows, columns] - centre[0], grid[1][rows, columns] - centre[1]
    angle = rng.uniform(0, np.pi)
    u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    share = rise(np.hypot(u / rng.uniform(0.03, 0.05), v / rng.uniform(0.022, 0.035)), 1.15, 0.85)[..., None] * 0.85
    picture[rows, columns] = (1 - share) * picture[rows, columns] + share * colour
