"""offmap train-encoder: the built-in encoder, trained again or on other images."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offmap.cli import options, outputs
from offmap.cli.exits import say
from offmap.cli.progress import emit, progress

if TYPE_CHECKING:
    from offmap.represent.train.loop import Progress


def train_encoder(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES", help="Image files and folders, without labels.", show_default=False)],
    *,
    out: options.Out,
    teacher: Annotated[
        str, typer.Option("--teacher", metavar="NAME_OR_DIR", help="Encoder of transformers to learn from.", show_default=False)
    ],
    minutes: Annotated[float | None, typer.Option("--minutes", metavar="N", help="How long to train.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", min=1, help="How many steps to train, instead of minutes.")] = None,
    batch: Annotated[int, typer.Option("--batch", metavar="N", min=2, help="Views a step.")] = 64,
    drawn: Annotated[int, typer.Option("--drawn", metavar="N", min=0, help="Drawn pictures added to the images.")] = 2850,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed of every random choice.")] = 0,
    device: options.Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in DIR.")] = False,
    json_lines: options.Json = False,
) -> None:
    """Train a small encoder from a large one, in the form of the built-in encoder."""
    outputs.folder(out)
    from offmap.represent.train.loop import Plan, train

    plan = Plan(steps=steps, minutes=minutes, batch=batch, procedural=drawn)
    with progress(json_lines) as tell:

        def on(step: "Progress") -> None:
            held_out = None if math.isnan(step.held_out) else round(step.held_out, 5)
            tell({"event": "train", "done": step.step, "total": steps, "loss": round(step.loss, 5), "held_out": held_out})

        made = train(images, out, teacher=teacher, plan=plan, seed=seed, device=device, resume=resume, progress=on)
    if json_lines:
        emit({"event": "done", "out": str(made.folder), "steps": made.steps, "held_out": made.held_out, "images": made.images})
    else:
        say(f"Trained {made.steps} steps on {made.images} images ({made.skipped} could not be read); held-out loss {made.held_out:.4f}")
        say(f"Encoder: {made.folder}")
