"""offmap evaluate: when a classifier will fail, from a table of its predictions."""

from pathlib import Path
from typing import Annotated

import typer

from offmap.cli import options, outputs
from offmap.cli.exits import say
from offmap.cli.progress import emit
from offmap.cli.tables import show

PredictionTable = Annotated[
    Path,
    typer.Option(
        "--predictions",
        metavar="CSV",
        help="Columns path, label and prob.<class> (or path, correct); optional confidence, ood, split, group, strata.",
        show_default=False,
    ),
]
Scores = Annotated[Path | None, typer.Option("--scores", metavar="FILE", help="Score table of 'offmap score' for the same images.")]
GateOf = Annotated[
    Path | None,
    typer.Option("--gate", metavar="GATE", help="Gate that made the scores, so that 'offmap explain --abstain' can apply the thresholds."),
]
Calibration = Annotated[
    str, typer.Option("--calibration", metavar="SPLIT", help="Split that chooses thresholds; 'calibration' or 'validation' if not given.")
]
OodFailure = Annotated[
    str,
    typer.Option("--ood-failure", metavar="WHEN", help="An image marked ood is a failure 'always', or only when its answer is 'wrong'."),
]
Risk = Annotated[float, typer.Option("--risk", metavar="SHARE", help="Largest share of failures among accepted images.")]
Probability = Annotated[float, typer.Option("--probability", metavar="P", help="With which the risk is to be kept.")]
Testing = Annotated[str, typer.Option("--testing", metavar="NAME", help="fixed_sequence or bonferroni.")]
Strata = Annotated[str, typer.Option("--strata", metavar="A,B", help="Columns that divide the images; all with few values if not given.")]
Repeats = Annotated[int, typer.Option("--repeats", metavar="N", help="Bootstrap samples of the intervals.")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Of every random choice.")]


def evaluate(
    *,
    predictions: PredictionTable,
    out: options.Out,
    scores: Scores = None,
    gate: GateOf = None,
    calibration: Calibration = "",
    ood_failure: OodFailure = "always",
    risk: Risk = 0.05,
    probability: Probability = 0.95,
    testing: Testing = "fixed_sequence",
    strata: Strata = "",
    repeats: Repeats = 1000,
    seed: Seed = 0,
    json_lines: options.Json = False,
) -> None:
    """Tell how well confidences and scores foretell a classifier's failures, and when to abstain."""
    outputs.folder(out)
    import offmap
    from offmap.report.evaluation import WHOLE
    from offmap.report.ranking import refuse_foreign

    refuse_foreign(out / "index.html")
    found = offmap.evaluate(
        predictions,
        scores=scores,
        gate=gate,
        calibration=calibration,
        ood_failure=ood_failure,
        risk=risk,
        probability=probability,
        testing=testing,
        strata=[name.strip() for name in strata.split(",") if name.strip()],
        repeats=repeats,
        seed=seed,
    )
    found.save(out)
    if json_lines:
        for metric in found.report.metrics:
            emit({"event": "metric", **metric.facts()})
        emit({"event": "done", "out": str(out), **found.summary()})
        return
    whole = found.report.of(WHOLE, "")
    names = list(next(iter(whole.values()), {}))
    show(("confidence", *names), [(name, *(metrics[m].measure.value for m in names)) for name, metrics in whole.items()])
    for line in (found.report.title, *found.report.sentences, *(f"Note: {text}" for text in found.report.warnings)):
        say(line)
    say(f"All of it: {out / 'index.html'}")
