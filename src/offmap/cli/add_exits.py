"""offmap add-exits: exits for a classifier that is trained already, for the method mecam."""

from pathlib import Path
from typing import Annotated

from typer import Option

from offmap.cli import options
from offmap.cli.exits import say
from offmap.cli.fit import Labels, Layers, RecipeName, Settings, Train, pairs
from offmap.cli.progress import emit

FileOut = Annotated[Path, Option("--out", metavar="FILE.safetensors", help="File to write the exits to.", show_default=False)]
Strength = Annotated[float, Option("--strength", metavar="C", help="Inverse of the penalty on the exits' weights.")]


def add_exits(
    train: Train,
    *,
    out: FileOut,
    labels: Labels = None,
    recipe: RecipeName = "standard",
    settings: Settings = None,
    encoder: options.Encoder = None,
    layers: Layers = "",
    strength: Strength = 1.0,
    jobs: options.Jobs = None,
    device: options.Device = "auto",
    trust_classifier: options.TrustClassifier = False,
    json_lines: options.Json = False,
) -> None:
    """Train exits on labelled images; the network itself is not changed. Name the file in a recipe: [encoder] exits."""
    from offmap.pipeline.exits import add_exits as train_on
    from offmap.represent.exits_file import check_ending, save_exits

    check_ending(out)
    made = train_on(
        train,
        labels=labels,
        recipe=recipe,
        settings=pairs(settings or []),
        encoder=encoder,
        layers=[name.strip() for name in layers.split(",") if name.strip()],
        strength=strength,
        device=device,
        jobs=jobs,
        trust_classifier=trust_classifier,
    )
    save_exits(made, out)
    if json_lines:
        emit({"event": "done", "out": str(out), "layers": list(made.exits.layers), "classes": made.exits.classes})
    else:
        say(f"Exits for {made.exits.classes} classes at {', '.join(made.exits.layers)} of {made.name}: {out}")
