"""offmap import-weights: a foreign .pt file becomes safetensors."""

from pathlib import Path
from typing import Annotated

import typer

from offmap.cli import options
from offmap.cli.exits import say
from offmap.cli.progress import emit


def import_weights(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File of torch.save (.pt, .pth, .bin).", show_default=False)],
    *,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where to; FILE with the ending .safetensors if not given.")
    ] = None,
    json_lines: options.Json = False,
) -> None:
    """Turn foreign weights into safetensors, in a process with limits."""
    from offmap.represent import import_weights as weights

    target = out or file.with_suffix(".safetensors")
    shapes = weights.import_weights(file, target)
    if json_lines:
        emit({"event": "done", "out": str(target), "tensors": len(shapes)})
    else:
        say(f"{len(shapes)} tensors written to {target}")
