"""offmap fit: in-distribution images become a gate."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from offmap.cli import options, outputs
from offmap.cli.exits import INTERRUPTED, say, speaker
from offmap.cli.progress import emit, progress
from offmap.core.allocator import keep_freed_memory
from offmap.core.errors import BundleError

Train = Annotated[
    list[str],
    typer.Argument(metavar="TRAIN", help="In-distribution images, given like the inputs of 'offmap score'.", show_default=False),
]
GateOut = Annotated[Path, typer.Option("--out", metavar="GATE", help="Folder to write the gate to.", show_default=False)]
RecipeName = Annotated[str, typer.Option("--recipe", metavar="NAME|FILE.toml", help="What to fit; 'offmap methods' lists the names.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one value of the recipe, as in score.knn.k=5; repeatable."),
]
Cascade = Annotated[
    str,
    typer.Option(
        "--cascade",
        metavar="FIRST,THEN",
        help="Two recipes or detectors: THEN runs only on images that FIRST leaves undecided, as in standard,diffusion.",
    ),
]
Layers = Annotated[str, typer.Option("--layers", metavar="A,B", help="Layers of the encoder; its own choice if not given.")]
Labels = Annotated[Path | None, typer.Option("--labels", metavar="CSV", help="Table with the columns 'path' and 'label'.")]
Alpha = Annotated[
    float | None,
    typer.Option(
        "--alpha",
        metavar="RATE",
        help="Share of in-distribution images that may go to review, a tenth of it to reject; the recipe's, 0.05, if not given.",
    ),
]
Volumes = Annotated[bool, typer.Option("--volumes", help="A DICOM series or a NIfTI file is one item.")]
Neighbours = Annotated[bool, typer.Option("--keep-neighbours", help="Keep thumbnails of the training images in the gate.")]
Report = Annotated[
    Path | None,
    typer.Option(
        "--report", metavar="DIR", help="Also write DIR/index.html: the training while it runs, then the card, with training images."
    ),
]
Limit = Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="Use at most this many images.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the training of a network that was interrupted; its checkpoints are in GATE.training.")
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed of every random choice.")]


def fit(
    train: Train,
    *,
    out: GateOut,
    recipe: RecipeName = "standard",
    settings: Settings = None,
    cascade: Cascade = "",
    encoder: options.Encoder = None,
    layers: Layers = "",
    labels: Labels = None,
    alpha: Alpha = None,
    volumes: Volumes = False,
    keep_neighbours: Neighbours = False,
    report: Report = None,
    limit: Limit = None,
    seed: Seed = 0,
    resume: Resume = False,
    jobs: options.Jobs = None,
    device: options.Device = "auto",
    trust_classifier: options.TrustClassifier = False,
    expect: options.Expect = None,
    no_cache: options.NoCache = False,
    json_lines: options.Json = False,
) -> None:
    """Fit and calibrate a gate on in-distribution images."""
    chosen = pairs(settings or [])
    keep_freed_memory()
    import offmap
    from offmap.pipeline.resumable import beside, clear
    from offmap.represent.train.parallel import Crew, joined

    training = beside(outputs.gate(out))
    if report is not None:
        outputs.apart(report, out, training)
    with _kept(training), joined(device) as place, progress(json_lines) as tell:
        gate = offmap.fit(
            train,
            recipe=recipe,
            settings=chosen,
            cascade=[name.strip() for name in cascade.split(",") if name.strip()],
            encoder=encoder,
            layers=[name.strip() for name in layers.split(",") if name.strip()],
            labels=labels,
            alpha=alpha,
            volumes=volumes,
            keep_neighbours=keep_neighbours,
            report=report if Crew.present().rank == 0 else None,
            limit=limit,
            seed=seed,
            device=place,
            jobs=jobs,
            trust_classifier=trust_classifier,
            training=training,
            resume=resume,
            progress=tell if Crew.present().rank == 0 else None,
            use_cache=not no_cache,
        )
        identity = gate.save(out)
    if "training" in gate.card:
        clear(training)
    finish(identity, gate.card, out, expect, json_lines)


@contextmanager
def _kept(training: Path) -> Iterator[None]:
    """At an interrupt, say where the training is and how it goes on.

    Raises:
        typer.Exit: interrupted.
    """
    from offmap.pipeline.resumable import begun

    try:
        yield
    except KeyboardInterrupt:
        if not begun(training):
            raise
        say(f"{speaker()}: interrupted; the training so far is kept in {training}: the same command with --resume goes on with it")
        raise typer.Exit(INTERRUPTED) from None


def finish(identity: str, card: Mapping[str, Any], out: Path, expect: str | None, json_lines: bool) -> None:
    """Tell what was made.

    Raises:
        BundleError: the gate is not the expected one.
    """
    if json_lines:
        facts = {"n_used": card["data"]["n_used"], "dropped": card["data"]["dropped"], "warnings": card["warnings"]}
        emit({"event": "done", "out": str(out), "id": identity, **facts})
    else:
        for line in told(card):
            say(line)
        say(f"Gate: {out}  {identity}")
    if expect not in (None, identity):
        raise BundleError(f"{out} is not the gate that --expect names ({expect}): other images, settings or versions")


def told(card: Mapping[str, Any]) -> list[str]:
    """What a person should know of a gate that was just fitted."""
    from offmap.pipeline.training import told as sentence

    data, calibration = card["data"], card["calibration"]
    reach = " and ".join(calibration["reachable"]) or "no flag"
    lines = [
        *([sentence(card["training"])] if "training" in card else []),
        f"Fitted recipe {card['recipe']!r} on {data['n_used']} images with the encoder {card['encoder']['name']}.",
        f"Calibrated on {calibration['n']} ({calibration['kind']}): at most {calibration['cap_bits']} bits; {reach} within reach.",
        calibration["guarantee"],
        *_cascade(card.get("cascade")),
    ]
    if calibration["false_alarm_interval"]:
        low, high = calibration["false_alarm_interval"]
        lines.append(f"For this calibration set the long-run false-alarm rate lies between {low:.1%} and {high:.1%} (90 %).")
    return lines + [f"Warning: {text}" for text in card["warnings"]]


def _cascade(cascade: Mapping[str, Any] | None) -> list[str]:
    if not cascade:
        return []
    return [
        f"{cascade['then']} runs on {cascade['share']:.0%} of images like these, which {cascade['first']} leaves undecided: "
        f"{cascade['ms_mean']:g} ms an image on average instead of {cascade['ms_first'] + cascade['ms_then']:.3g}."
    ]


def pairs(settings: list[str]) -> dict[str, str]:
    """``["score.knn.k=5"]`` as a mapping.

    Raises:
        typer.BadParameter: no ``=`` or no key.
    """
    split = [text.partition("=") for text in settings]
    for (key, sign, _), text in zip(split, settings, strict=True):
        if not key or not sign:
            raise typer.BadParameter(f"{text!r} must look like KEY=VALUE, as in score.knn.k=5", param_hint="--set")
    return {key.strip(): value for key, _, value in split}
