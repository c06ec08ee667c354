"""offmap klip: block and window of KLIP chosen on in-distribution images, and its block maps."""

import time
from pathlib import Path
from typing import Annotated

import typer

from offmap.cli import options, outputs
from offmap.cli.exits import say
from offmap.cli.fit import Settings, Train, pairs
from offmap.cli.progress import emit, progress
from offmap.cli.score import Operator, Reference, told
from offmap.cli.tables import show
from offmap.core.allocator import keep_freed_memory
from offmap.core.errors import ConfigError, DataError

app = typer.Typer(help="KLIP: choose its block and window, or write its block maps.", no_args_is_help=True)

Given = Annotated[
    Path,
    typer.Argument(
        metavar="GATE_OR_PRIOR",
        help="A gate of the recipe klip, or a diffusion model: its folder, or a gate that keeps one.",
        show_default=False,
    ),
]
Artefact = Annotated[str, typer.Option("--artefact", metavar="NAME", help="star, streaks, missing_wedge, lesion or tumour.")]
Contrast = Annotated[
    str, typer.Option("--contrast", metavar="FROM,TO", help="Brightness of stars, as 0.1,0.3; their own range if not given.")
]
Count = Annotated[int, typer.Option("--count", metavar="N", min=8, help="Images that get an artefact; they do not calibrate the gate.")]
By = Annotated[str, typer.Option("--by", metavar="WHAT", help="What is to be large: AUROC of images, of blocks, or the mean of both.")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed of every random choice; a gate's own is kept.")]


@app.command()
def tune(
    given: Given,
    train: Train,
    *,
    out: options.Out,
    settings: Settings = None,
    artefact: Artefact = "star",
    contrast: Contrast = "",
    count: Count = 40,
    by: By = "both",
    encoder: options.Encoder = None,
    seed: Seed = 0,
    jobs: options.Jobs = None,
    device: options.Device = "auto",
    no_cache: options.NoCache = False,
    json_lines: options.Json = False,
) -> None:
    """Choose block and window with artefacts drawn into in-distribution images; DIR/gate has the choice, DIR/index.html the reasons."""
    outputs.folder(out)
    chosen, limits = pairs(settings or []), _contrast(contrast)
    if by not in ("both", "images", "blocks"):
        raise typer.BadParameter(f"{by!r} must be both, images or blocks", param_hint="--by")
    keep_freed_memory()
    from offmap.pipeline.tuning import tune as choose
    from offmap.report.ranking import refuse_foreign

    refuse_foreign(out / "index.html")
    with progress(json_lines) as tell:
        found = choose(
            given,
            train,
            settings=chosen,
            artefact=artefact,
            contrast=limits,
            count=count,
            by=by,  # type: ignore[arg-type]
            encoder=encoder,
            seed=seed,
            device=device,
            jobs=jobs,
            progress=tell,
            use_cache=not no_cache,
        )
    identity = found.save(out)
    report = found.report()
    if json_lines:
        emit({"event": "done", "out": str(out), "id": identity, "block_in_pixels": found.block, "window": list(found.after.window)})
        return
    heads, rows = report.table()
    show(heads, rows, title="AUROC by block and window of steps; * chosen")
    for line in (*report.sentences, *(f"Note: {text}" for text in report.warnings)):
        say(line)
    say(f"Gate: {out / 'gate'}  {identity}    All of it: {out / 'index.html'}")


@app.command("map")
def block_maps(
    gate: options.Gate,
    inputs: options.Inputs,
    *,
    out: options.Out,
    operator: Operator = None,
    reference: Reference = None,
    jobs: options.Jobs = None,
    encoder: options.Encoder = None,
    device: options.Device = "auto",
    expect: options.Expect = None,
    json_lines: options.Json = False,
) -> None:
    """Write the block map of every image or measurement: DIR/0000000.npy and .png, and a row for each in DIR/results.csv."""
    outputs.folder(out)
    keep_freed_memory()
    import offmap
    from offmap.pipeline.measured import klip_encoder
    from offmap.pipeline.measuring import write_measurements
    from offmap.pipeline.writing import write

    loaded = offmap.load(gate, expect=expect, encoder=encoder, device=device)
    klip_encoder(loaded, operator)
    table, start = out / "results.csv", time.monotonic()
    with progress(json_lines) as tell:
        if operator is None:
            if reference is not None:
                raise ConfigError("--reference goes with --operator, for measurements")
            summary = write(
                loaded, inputs, table, maps=out, report=None, jobs=jobs, identifiers=False, progress=tell, use_cache=True, blocks=True
            )
        else:
            summary = write_measurements(
                loaded, inputs, table, operator=operator, reference=reference, maps=out, blocks=True, progress=tell
            )
    if json_lines:
        emit({"event": "done", "n": summary.n, "reasons": dict(summary.reasons), "out": str(out)})
    else:
        told(summary.verdicts, summary.reasons, round(time.monotonic() - start, 2))
        say(f"Maps: {out}")
    if summary.n == summary.verdicts["not_assessed"]:
        raise DataError(f"none of the {summary.n} items could be assessed; the column 'reason' of {table} says why")


def _contrast(text: str) -> tuple[float, float] | None:
    if not text:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} must be two numbers, as 0.1,0.3", param_hint="--contrast") from None
    return low, high
