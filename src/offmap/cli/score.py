"""offmap score: images become rows with a degree and a verdict."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offmap.cli import options, outputs
from offmap.cli.exits import say
from offmap.cli.progress import emit, progress
from offmap.cli.tables import show
from offmap.core.allocator import keep_freed_memory
from offmap.core.errors import DataError
from offmap.report.words import VERDICTS, WITHHELD

if TYPE_CHECKING:
    from offmap.pipeline.run import Summary

TableOut = Annotated[
    Path, typer.Option("--out", metavar="FILE", help="Score table; the ending .csv, .jsonl or .parquet says the form.", show_default=False)
]
Maps = Annotated[Path | None, typer.Option("--maps", metavar="DIR", help="Also write a heat map of every image to this folder.")]
Report = Annotated[Path | None, typer.Option("--report", metavar="DIR", help="Also write DIR/index.html, the page to look at.")]
Operator = Annotated[
    str | None,
    typer.Option("--operator", metavar="NAME:KEY=VALUE,...", help="Inputs are measurements (.npy, .npz) of this kind, as ct:views=24."),
]
Reference = Annotated[
    Path | None, typer.Option("--reference", metavar="FILE", help="Images that the measurements were made of, for the PSNR.")
]
Identifiers = Annotated[
    bool, typer.Option("--include-identifiers", help="Write patient identifiers from the files into the table and the report.")
]


def score(
    gate: options.Gate,
    inputs: options.Inputs,
    *,
    out: TableOut,
    maps: Maps = None,
    report: Report = None,
    operator: Operator = None,
    reference: Reference = None,
    include_identifiers: Identifiers = False,
    jobs: options.Jobs = None,
    encoder: options.Encoder = None,
    device: options.Device = "auto",
    trust_classifier: options.TrustClassifier = False,
    expect: options.Expect = None,
    no_cache: options.NoCache = False,
    json_lines: options.Json = False,
) -> None:
    """Score images, or measurements with --operator: one row an item, with a degree in bits and a verdict."""
    if reference is not None and operator is None:
        raise typer.BadParameter("goes with --operator, for measurements", param_hint="--reference")
    for folder in (maps, report):
        if folder is not None:
            outputs.folder(folder)
    keep_freed_memory()
    import offmap

    loaded = offmap.load(gate, expect=expect, encoder=encoder, trust_classifier=trust_classifier, device=device)
    start = time.monotonic()
    with progress(json_lines) as tell:
        if operator is None:
            named, cached = include_identifiers, not no_cache
            summary = loaded.score_to(
                inputs, out, maps=maps, report=report, jobs=jobs, include_identifiers=named, progress=tell, use_cache=cached
            )
        else:
            from offmap.pipeline.measuring import write_measurements

            summary = write_measurements(
                loaded, inputs, out, operator=operator, reference=reference, maps=maps, report=report, progress=tell
            )
    seconds = round(time.monotonic() - start, 2)
    places = {"out": out, "maps": maps, "report": report and report / "index.html"}
    written = {name: str(path) for name, path in places.items() if path is not None}
    if json_lines:
        counts = {"verdicts": {verdict: summary.verdicts[verdict] for verdict in VERDICTS}, "reasons": dict(summary.reasons)}
        withheld = {"maps_withheld": summary.withheld} if summary.withheld else {}
        emit({"event": "done", "n": summary.n, **counts, **withheld, "seconds": seconds, **_cascade(summary, seconds), **written})
    else:
        told(summary.verdicts, summary.reasons, seconds)
        if passed := _cascade(summary, seconds).get("cascade"):
            words = f"{passed['part']} was needed for {passed['images']} of {summary.n} images ({passed['share']:.1%})"
            say(f"{words}; {passed['ms_per_image']:g} ms an image on average, reading included.")
        if summary.withheld:
            say(f"{summary.withheld} maps withheld: {WITHHELD}.")
        for name, path in written.items():
            say(f"{name:7} {path}")
    if summary.n == summary.verdicts["not_assessed"]:
        raise DataError(f"none of the {summary.n} items could be assessed; the column 'reason' of {out} says why")


def _cascade(summary: "Summary", seconds: float) -> dict[str, Any]:
    """How many images the second part of a cascade was needed for, and what an image took; nothing without one."""
    n = sum(count for verdict, count in summary.verdicts.items() if verdict != "not_assessed")
    if not summary.second or not n:
        return {}
    passed = {"part": summary.second, "images": summary.passed_on, "share": round(summary.passed_on / n, 4)}
    return {"cascade": {**passed, "ms_per_image": round(1000 * seconds / n, 2)}}


def told(verdicts: Mapping[str, int], reasons: Mapping[str, int], seconds: float) -> None:
    """The table at the end of a run."""
    n = sum(verdicts.values())
    rows = [[words, verdicts.get(verdict, 0), f"{verdicts.get(verdict, 0) / max(n, 1):.1%}"] for verdict, words in VERDICTS.items()]
    show(["verdict", "images", "share"], rows, title=f"{n} items in {seconds:g} s", err=True)
    if reasons:
        say("Not assessed: " + ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())))
