"""Scoring into files: table, maps, page; all appear whole or not at all."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from offmap.core.errors import ConfigError
from offmap.core.types import Source
from offmap.pipeline.answers import signal_of
from offmap.pipeline.inputs import PathLike, sources
from offmap.pipeline.run import MapFolder, Result, Summary, follow, results
from offmap.pipeline.stream import Progress
from offmap.read.dicom_header import IDENTIFIERS
from offmap.read.load import PATIENT_COLUMNS
from offmap.report.page import Page
from offmap.report.writer import TableWriter

if TYPE_CHECKING:
    from offmap.pipeline.gate import Gate


def write(
    gate: "Gate",
    inputs: PathLike | Sequence[PathLike],
    out: Path,
    *,
    maps: Path | None,
    report: Path | None,
    jobs: int | None,
    identifiers: bool,
    progress: Progress | None,
    use_cache: bool,
    blocks: bool = False,
) -> Summary:
    """Score all inputs into a table and, when asked for, a folder of maps and a page; see ``Gate.score_to``.

    Args:
        blocks: maps are those of the detector's own grid, not brought onto the image.
    """
    if maps is not None and not gate.scorer.maps:
        parts = ", ".join(gate.recipe.parts)
        raise ConfigError(f"--maps: no part of this gate draws maps ({parts}); fit with one that does, such as patchcore")
    spare_inputs(inputs, out)
    found = sources(inputs, volumes=gate.volumes)
    picture = maps is not None or report is not None
    stream = gate.stream(jobs, maps=picture, picture=picture, identifiers=identifiers, use_cache=use_cache)
    summary = Summary(gate.second)
    with ExitStack() as stack:
        table = stack.enter_context(
            TableWriter(
                out,
                parts=gate.scorer.columns,
                identifiers=IDENTIFIERS if identifiers else (),
                meta=columns(found),
                answers=signal_of(gate.encoder) in stream.needs,
            )
        )
        page = stack.enter_context(Page(report, gate.card, histogram=gate.histogram(), table=out.name)) if report is not None else None
        folder = MapFolder(maps, grid=blocks) if maps is not None else None
        rows = results(gate, stream.over(found), maps=picture)
        for i, result in enumerate(follow(rows, total=len(found), progress=progress, summary=summary)):
            table.append(result.row)
            if folder is not None:
                folder.write(i, result)
            if page is not None:
                _show(gate, page, result)
    return summary


def _show(gate: "Gate", page: Page, result: Result) -> None:
    near = []
    if gate.neighbours is not None and result.features is not None and page.wants(result.row):
        near = gate.near(result.features)
    page.add(result.row, result.picture, result.overlay, neighbours=near)


def spare_inputs(inputs: PathLike | Sequence[PathLike], out: Path) -> None:
    """Refuse a table that would take the place of an input.

    Raises:
        ConfigError: it is one.
    """
    named = [inputs] if isinstance(inputs, str | Path) else inputs
    if out.exists() and any(Path(given).exists() and Path(given).samefile(out) for given in named):
        raise ConfigError(f"{out} is an input and would be overwritten; give another file for the table")


def columns(found: Sequence[Source]) -> list[str]:
    """Columns of the manifests, patients apart."""
    return list(dict.fromkeys(k for s in found for k in s.meta if k not in PATIENT_COLUMNS))
