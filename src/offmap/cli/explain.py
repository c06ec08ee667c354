"""offmap explain: one image, looked at closely."""

from typing import Annotated

import typer

from offmap.cli import options, outputs
from offmap.cli.exits import say
from offmap.cli.progress import emit


def explain(
    gate: options.Gate,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="One image, given like an input of 'offmap score'.", show_default=False)],
    *,
    out: options.Out,
    encoder: options.Encoder = None,
    device: options.Device = "auto",
    trust_classifier: options.TrustClassifier = False,
    expect: options.Expect = None,
    json_lines: options.Json = False,
) -> None:
    """Show where one image is odd, and the in-distribution images nearest to it."""
    outputs.folder(out)
    import offmap

    loaded = offmap.load(gate, expect=expect, encoder=encoder, trust_classifier=trust_classifier, device=device)
    loaded.explain(image).save(out)
    if json_lines:
        emit({"event": "done", "out": str(out)})
    else:
        say(f"Look at {out / 'index.html'}")
