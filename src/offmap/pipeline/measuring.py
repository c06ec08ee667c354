"""Files of measurements into a table, maps, reconstructions and a page, a few at a time."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from offmap.core.encoder import Input
from offmap.core.errors import ConfigError, ReadError, SignalError
from offmap.core.types import Frame, Image, NotAssessed, Source
from offmap.explain.maps import display, overlay, to_image
from offmap.pipeline.inputs import PathLike, paths, sources
from offmap.pipeline.measured import assess, explained_by, klip_encoder
from offmap.pipeline.run import NARROWEST, MapFolder, Result, Summary, follow
from offmap.pipeline.stream import Progress, Stream
from offmap.pipeline.writing import columns, spare_inputs
from offmap.read.load import PATIENT_COLUMNS
from offmap.read.measurements import open_array
from offmap.report.page import Page
from offmap.report.row import Row
from offmap.report.view import refusal
from offmap.report.writer import TableWriter
from offmap.represent.klip import TOGETHER, KlipEncoder
from offmap.represent.layers import normalise

if TYPE_CHECKING:
    from offmap.pipeline.gate import Gate

ARRAYS = (".npy", ".npz")


@dataclass(frozen=True, eq=False)
class Item:
    """One measurement of a file, or why it is none.

    Args:
        values: ``(C, *M)``; None where it was refused.
        refused: the reason.
    """

    name: str
    source: Source
    values: Float[Tensor, "c *m"] | None = None
    refused: NotAssessed | None = None


def write_measurements(
    gate: "Gate",
    inputs: PathLike | Sequence[PathLike],
    out: Path,
    *,
    operator: str | None,
    reference: PathLike | None = None,
    maps: Path | None = None,
    report: Path | None = None,
    blocks: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Score measurements into a table and, when asked for, a folder of maps and a page.

    Args:
        inputs: ``.npy`` and ``.npz`` files, folders, globs, manifests; an array is one measurement or a stack of them.
        out: the table, ``.csv``, ``.jsonl`` or ``.parquet``.
        operator: as the user states it; the gate's when None.
        reference: images in the order of the measurements, for the peak signal-to-noise ratio: an array in [0, 1] of the
            reconstructions' size, or image files, which are prepared as the gate prepares images.
        maps: folder for maps, overlays and reconstructions.
        report: folder for ``index.html``.
        blocks: maps are those of the blocks, not brought onto the image.

    Raises:
        ConfigError: the gate has no KLIP encoder or another operator, or references do not fit.
        DataError: there is nothing to score.
    """
    encoder = klip_encoder(gate, operator)
    if maps is not None and not gate.scorer.maps:
        raise ConfigError(f"--maps: no part of this gate draws maps ({', '.join(gate.recipe.parts)})")
    spare_inputs(inputs, out)
    found = sources(inputs, volumes=False)
    clean = None if reference is None else references(gate, reference, sum(1 for _ in items(found, encoder)))
    summary, pictures = Summary(), maps is not None or report is not None
    with ExitStack() as stack:
        table = stack.enter_context(TableWriter(out, parts=list(gate.recipe.parts), meta=columns(found), measured=True))
        page = stack.enter_context(_page(gate, report, out)) if report is not None else None
        folder = MapFolder(maps, grid=blocks) if maps is not None else None
        rows = results(gate, encoder, items(found, encoder), clean, pictures=pictures, progress=progress)
        for i, result in enumerate(follow(rows, total=None, progress=progress, summary=summary)):
            table.append(result.row)
            if folder is not None:
                folder.write(i, result)
            if page is not None:
                page.add(result.row, result.picture, result.overlay)
    return summary


def items(found: Sequence[Source], encoder: KlipEncoder) -> Iterator[Item]:
    """Every measurement of every source, in order; at least one item a source."""
    for source in found:
        try:
            array = open_array(source)
            shape = _real_shape(array)
            count = _count(shape, encoder)
        except ReadError as error:
            yield Item(source.item, source, refused=NotAssessed(source.item, error.reason, str(error)))
            continue
        if count is None:
            yield Item(source.item, source, values=_channels(_real(array), encoder))
            continue
        for i in range(count):
            yield Item(f"{source.item}[{i}]", source, values=_channels(_real(array[i]), encoder))


def results(
    gate: "Gate",
    encoder: KlipEncoder,
    found: Iterator[Item],
    reference: Float[np.ndarray, "n c h w"] | None,
    *,
    pictures: bool,
    progress: Progress | None = None,
) -> Iterator[Result]:
    """Score measurements a few at a time, in order.

    Args:
        reference: one for each item, or none.
        pictures: also draw reconstruction and overlay.
        progress: told why the first item of each reason was not assessed.
    """
    first, told = 0, set[str]()
    while some := list(islice(found, TOGETHER)):
        for result, why in _batch(gate, encoder, some, None if reference is None else reference[first : first + len(some)], pictures):
            if why and progress is not None and result.row.reason not in told:
                told.add(result.row.reason)
                progress({"event": "warning", "message": f"{result.row.item}: {why}"})
            yield result
        first += len(some)


def _batch(
    gate: "Gate", encoder: KlipEncoder, some: Sequence[Item], reference: np.ndarray | None, pictures: bool
) -> Iterator[tuple[Result, str]]:
    at = [i for i, item in enumerate(some) if item.values is not None]
    found = None
    if at:
        y = torch.stack([values for item in some if (values := item.values) is not None])
        names, clean = [some[i].name for i in at], None if reference is None else reference[at]
        found = assess(gate, encoder, y, names, reference=clean, explained=explained_by(gate))
    for i, item in enumerate(some):
        meta = {k: v for k, v in item.source.meta.items() if k not in PATIENT_COLUMNS}
        if item.refused is not None:
            row = Row(item=item.name, status="not_assessed", reason=item.refused.reason, verdict="not_assessed", meta=meta)
            yield Result(row), item.refused.detail
        elif found is not None:
            n = at.index(i)
            row = replace(found.rows[n], meta=meta)
            if row.status != "ok":
                yield Result(row), refusal(row)
                continue
            grid = None if found.map is None else found.map[n]
            heat, picture, painted = _shown(gate, found.reconstruction[n], grid) if pictures else (None, None, None)
            yield Result(row, heat, picture, painted, reconstruction=found.reconstruction[n], grid=grid), ""


def _shown(
    gate: "Gate", reconstruction: Float32[np.ndarray, "c h w"], grid: Float32[np.ndarray, "_h _w"] | None
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray | None]:
    """Map on the reconstruction, picture of it, and both together."""
    frame = Frame.whole(reconstruction.shape[1:])
    picture = display(Image(reconstruction, "", frame))
    if grid is None:
        return None, picture, None
    heat = to_image(grid, frame)
    low, usual = next(iter(gate.scorer.map_limits.values()))
    return heat, picture, overlay(picture, heat, low=low, high=max(usual, float(grid.max()), low + NARROWEST))


def references(gate: "Gate", given: PathLike, count: int) -> Float32[np.ndarray, "n c h w"]:
    """Images that measurements were made of, one for each.

    Raises:
        ConfigError: another number or size, values outside [0, 1], or a file that cannot be read.
    """
    size, channels = gate.encoder.input.size, gate.encoder.input.channels
    found = paths(given, volumes=False).sources
    if len(found) == 1 and found[0].path.suffix.lower() in ARRAYS:
        images = _array_of_images(found[0], (channels, size, size))
    else:
        stream = Stream(gate.encoder, gate.preparation, frozenset({"image"}), jobs=0, device=gate.device)
        parts = []
        for batch in stream.over(found):
            for entry in batch.entries:
                if isinstance(entry, NotAssessed):
                    raise ConfigError(f"--reference: {entry.item} cannot be read ({entry.reason})")
            parts.append(normalise(batch.signals["image"], Input(size, channels, (0.0,) * channels, (1.0,) * channels)).cpu().numpy())
        images = np.concatenate(parts) if parts else np.zeros((0, channels, size, size), np.float32)
    if len(images) != count:
        raise ConfigError(f"--reference: {len(images)} images for {count} measurements; give one for each, in the same order")
    return images


def _array_of_images(source: Source, one: tuple[int, ...]) -> Float32[np.ndarray, "n c h w"]:
    try:
        array = open_array(source)
    except ReadError as error:
        raise ConfigError(f"--reference: {source.item} cannot be read: {error}") from error
    if array.dtype.kind == "c" or array.shape[-2:] != one[1:] or array.size % math.prod(one):
        wanted = " x ".join(map(str, one[1:]))
        raise ConfigError(f"--reference: {source.item} of shape {array.shape} holds no images of {wanted} pixels, as reconstructions are")
    images = np.asarray(array, dtype=np.float32).reshape(-1, *one)
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise ConfigError(f"--reference: {source.item} has values from {low:.4g} to {high:.4g}; they must lie in [0, 1]")
    return images


def _page(gate: "Gate", report: Path, out: Path) -> Page:
    title = "Are these measurements on the map?"
    return Page(report, gate.card, histogram=gate.histogram(), table=out.name, title=title, picture="reconstruction")


def _real_shape(array: np.ndarray) -> tuple[int, ...]:
    """Shape with real and imaginary part as an axis of their own before the last two, as operators have it."""
    return (*array.shape[:-2], 2, *array.shape[-2:]) if array.dtype.kind == "c" and array.ndim >= 2 else array.shape


def _real(values: np.ndarray) -> Tensor:
    if values.dtype.kind == "c":
        values = np.stack([values.real, values.imag], axis=-3)
    return torch.from_numpy(np.array(values, dtype=np.float32))


def _count(shape: tuple[int, ...], encoder: KlipEncoder) -> int | None:
    """How many measurements an array of this shape holds; None for a single one.

    Raises:
        ReadError: it holds none of the operator's.
    """
    size, channels = (encoder.input.size,) * 2, encoder.input.channels
    one = encoder.operator.measured(size)
    if shape in ((channels, *one), one if channels == 1 else ()) and (channels > 1 or shape == one):
        return None
    if shape[1:] in (((channels, *one)), one if channels == 1 else ((channels, *one))):
        return shape[0]
    try:
        encoder.operator.check(torch.zeros(1, 1, *shape[-len(one) :]), size)
    except SignalError as error:
        raise ReadError("wrong_measurement", f"an array of shape {shape}: {error}") from error
    raise ReadError("wrong_measurement", f"an array of shape {shape} does not hold measurements of {channels} x {one}")


def _channels(values: Tensor, encoder: KlipEncoder) -> Float[Tensor, "c *m"]:
    one = encoder.operator.measured((encoder.input.size,) * 2)
    return values[None] if values.shape == one else values
