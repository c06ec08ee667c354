"""offmap check: a dry run."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from offmap.cli import options
from offmap.cli.exits import say
from offmap.cli.progress import emit
from offmap.cli.tables import show
from offmap.core.errors import DataError

COLUMNS = ("item", "status", "reason", "format", "size", "bits", "modality", "spacing", "scored_share", "detail")


def check(
    inputs: options.Inputs,
    *,
    gate: Annotated[Path | None, typer.Option("--gate", metavar="GATE", help="Also prepare each image as this gate would.")] = None,
    volumes: Annotated[bool, typer.Option("--volumes", help="A DICOM series or a NIfTI file is one item.")] = False,
    jobs: options.Jobs = None,
    encoder: options.Encoder = None,
    device: options.Device = "auto",
    trust_classifier: options.TrustClassifier = False,
    expect: options.Expect = None,
    json_lines: options.Json = False,
) -> None:
    """Tell what would be read, how, and why not; nothing is scored or written."""
    from offmap.pipeline.check import check as dry_run
    from offmap.pipeline.gate import cores

    loaded = None
    if gate is not None:
        import offmap

        loaded = offmap.load(gate, expect=expect, encoder=encoder, trust_classifier=trust_classifier, device=device)
    rows, counts = [], Counter[str]()
    for row in dry_run(inputs, loaded, volumes=volumes, jobs=jobs or cores()):
        counts[str(row["status"])] += 1
        if json_lines:
            emit({"event": "item", **row})
        else:
            rows.append([row[column] for column in COLUMNS])
    if json_lines:
        emit({"event": "done", "ok": counts["ok"], "not_assessed": counts["not_assessed"]})
    else:
        show(COLUMNS, rows)
        say(f"{counts['ok']} would be scored, {counts['not_assessed']} would not")
    if not counts["ok"]:
        raise DataError("no usable image among the inputs; the column 'reason' says why")
