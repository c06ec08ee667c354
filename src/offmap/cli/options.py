"""Options and arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Gate = Annotated[Path, typer.Argument(metavar="GATE", help="Folder of a gate that 'offmap fit' wrote.", show_default=False)]
Inputs = Annotated[
    list[str],
    typer.Argument(metavar="INPUT", help="Files, folders, globs, a .csv with a 'path' column, FILE.npz::key.", show_default=False),
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write to.", show_default=False)]
Encoder = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        metavar="NAME",
        help="builtin, hub:NAME_OR_DIR, classifier:FILE or diffusion:DIR; as the gate or recipe says if not given.",
    ),
]
TrustClassifier = Annotated[
    bool, typer.Option("--trust-classifier", help="Allow a classifier:FILE to be loaded. It is a program: use only one that you made.")
]
Expect = Annotated[str | None, typer.Option("--expect", metavar="sha256:HEX", help="Refuse a gate whose identity is not this one.")]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.")]
Jobs = Annotated[
    int | None, typer.Option("--jobs", metavar="N", min=1, help="Processes that read files; the number of cores if not given.")
]
Json = Annotated[bool, typer.Option("--json", help='JSON lines on standard output; the last is {"event": "done", ...}.')]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Neither read nor keep features of files seen before.")]
