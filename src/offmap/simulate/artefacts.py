"""What goes wrong before and after the exposure: ghosts, a lost margin, a turned head, another stain, burnt-in marks.

Functions ``(pixels, level, rng) -> pixels`` for ``simulate.corruptions``; the same generator gives the same pattern at every level.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float

Pixels = Float[np.ndarray, "c h w"]

STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Optical density in red, green and blue of haematoxylin, eosin and diaminobenzidine.

Source: Ruifrok and Johnston, Analytical and Quantitative Cytology and Histology 23, 2001.
"""

GLYPHS: Mapping[str, str] = MappingProxyType(
    {
        "0": "01110 10001 10011 10101 11001 10001 01110",
        "1": "00100 01100 00100 00100 00100 00100 01110",
        "2": "01110 10001 00001 00110 01000 10000 11111",
        "3": "01110 10001 00001 00110 00001 10001 01110",
        "4": "00010 00110 01010 10010 11111 00010 00010",
        "5": "11111 10000 11110 00001 00001 10001 01110",
        "7": "11111 00001 00010 00100 01000 01000 01000",
        "A": "01110 10001 10001 11111 10001 10001 10001",
        "I": "01110 00100 00100 00100 00100 00100 01110",
        "L": "10000 10000 10000 10000 10000 10000 11111",
        "P": "11110 10001 10001 11110 10000 10000 10000",
        "R": "11110 10001 10001 11110 10100 10010 10001",
        "S": "01111 10000 10000 01110 00001 00001 11110",
    }
)
"""Seven rows of five points."""


def ghosting(x: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    """Lines of k-space pulsate with ``1 + level cos(2 pi k s / H + phase)``: two faint copies, moved by s rows up and down.

    The phase lies between an eighth and a quarter of a turn, so that the ghosts add to the image.
    """
    step = max(1, round(x.shape[-2] / rng.uniform(2.5, 5.0)))
    phase = rng.uniform(0.25, 0.5) * np.pi
    up, down = np.roll(x, step, axis=-2), np.roll(x, -step, axis=-2)
    real = x + 0.5 * level * np.cos(phase) * (up + down)
    imaginary = 0.5 * level * np.sin(phase) * (up - down)
    return np.asarray(np.hypot(real, imaginary))


def crop(x: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    """A margin of ``level`` of each side is lost, and the rest fills the image; which part of it on either end is drawn."""
    start = rng.uniform(0.0, 1.0, size=2) * level
    height, width = x.shape[-2:]
    rows = (np.arange(height) + 0.5) * (1 - level) + start[0] * height - 0.5
    columns = (np.arange(width) + 0.5) * (1 - level) + start[1] * width - 0.5
    return _read(x, *np.meshgrid(rows, columns, indexing="ij"))


def rotation(x: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    """Turned about its middle by ``level`` degrees, either way; corners repeat the edge."""
    angle = np.deg2rad(level) * rng.choice([-1.0, 1.0])
    height, width = x.shape[-2:]
    y, z = np.meshgrid(np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij")
    rows = np.cos(angle) * y + np.sin(angle) * z + (height - 1) / 2
    return _read(x, rows, -np.sin(angle) * y + np.cos(angle) * z + (width - 1) / 2)


def stain_shift(x: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    """Amounts of haematoxylin, eosin and residue become ``c (1 + level a) + level b / 5``, with a and b drawn in [-1, 1].

    Optical density is ``-ln x = c STAINS`` with rows of length one; colour images only.
    Source: Tellez et al., IEEE Trans. Med. Imaging 37, 2018, arXiv 1808.05896 (colour in the space of stains).
    """
    stains = STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True)
    gain, offset = (v / np.abs(v).max() for v in rng.uniform(-1.0, 1.0, size=(2, 3)))
    density = -np.log(np.maximum(x, 1 / 255)).transpose(1, 2, 0)
    change = level * (density @ np.linalg.inv(stains) * gain + 0.2 * offset)
    return np.asarray(x * np.exp(-change @ stains).transpose(2, 0, 1))


def overlay(x: Pixels, level: float, rng: np.random.Generator) -> Pixels:
    """So many burnt-in marks: an L or R in a corner, a ruler on a side, then lines of letters in the other corners.

    Each is white on dark and black on bright ground.
    """
    height, width = x.shape[-2:]
    corners = rng.permutation(4)
    large, small = max(1, round(0.1 * height / 7)), max(1, round(0.045 * height / 7))
    marks = [_letters(rng.choice(["L", "R"]), large), _ruler(round(0.5 * height), rng)]
    marks += [_letters("".join(rng.choice(list(GLYPHS), size=5)), small) for _ in range(3)]
    places = [int(corners[0]), 4 + int(rng.integers(2)), *map(int, corners[1:])]
    out = x.copy()
    for mark, place in list(zip(marks, places, strict=True))[: int(level)]:
        mark = mark[:height, :width]
        top, left = _place(place, mark.shape, (height, width))
        ground = out[:, top : top + mark.shape[0], left : left + mark.shape[1]]
        ground[:, mark] = 1.0 if ground.mean() < 0.5 else 0.0
    return out


def _read(x: Pixels, rows: Float[np.ndarray, "h w"], columns: Float[np.ndarray, "h w"]) -> Pixels:
    """Linear interpolation at positions in pixels; edges are repeated."""
    from scipy import ndimage

    return np.stack([ndimage.map_coordinates(plane, [rows, columns], order=1, mode="nearest") for plane in x])


def _letters(text: str, scale: int) -> Bool[np.ndarray, "h w"]:
    planes = [np.array([[point == "1" for point in row] for row in GLYPHS[letter].split()]) for letter in text]
    gap = np.zeros((7, 1), dtype=bool)
    line = np.hstack([part for plane in planes for part in (plane, gap)][:-1])
    return np.kron(line, np.ones((scale, scale), dtype=bool))


def _ruler(length: int, rng: np.random.Generator) -> Bool[np.ndarray, "h w"]:
    """An upright line with a tick every tenth or so, each fifth one longer."""
    step = max(2, round(length / rng.integers(10, 16)))
    depth = max(3, length // 12)
    ruler = np.zeros((max(length, 2), depth), dtype=bool)
    ruler[:, 0] = True
    ruler[::step, : max(2, depth // 2)] = True
    ruler[:: 5 * step] = True
    return ruler


def _place(place: int, size: tuple[int, ...], shape: tuple[int, int]) -> tuple[int, int]:
    """Top left pixel of a mark: 0 to 3 the corners, 4 and 5 the middle of the left and right side; off the edge by a thirtieth."""
    free = [n - side for n, side in zip(shape, size, strict=True)]
    near = [min(n // 30, space) for n, space in zip(shape, free, strict=True)]
    top = free[0] // 2 if place >= 4 else near[0] if place in (0, 1) else free[0] - near[0]
    return top, near[1] if place in (0, 2, 4) else free[1] - near[1]
