"""One thin file a command; heavy packages are imported inside the commands, so that help is quick."""

from typing import Annotated

import typer

from offmap import __version__
from offmap.cli import (
    add_exits,
    benchmark,
    check,
    data,
    demo,
    evaluate,
    explain,
    fit,
    import_weights,
    inspect,
    klip,
    methods,
    recommend,
    score,
    study,
    train_encoder,
)
from offmap.cli.exits import Guarded

app = typer.Typer(
    name="offmap",
    cls=Guarded,
    help="Is this medical image off the map that a model was trained on: how far, where, and what to do?",
    epilog="Exit codes: 0 done, 2 usage, 3 no usable data, 4 gate refused, 130 interrupted, 1 anything else. Not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(fit.fit)
app.command()(score.score)
app.command()(explain.explain)
app.command()(check.check)
app.command()(inspect.inspect)
app.command()(methods.methods)
app.command()(recommend.recommend)
app.command()(benchmark.benchmark)
app.command()(study.study)
app.command()(evaluate.evaluate)
app.add_typer(klip.app, name="klip")
app.add_typer(data.app, name="data")
app.command()(demo.demo)
app.command()(train_encoder.train_encoder)
app.command()(add_exits.add_exits)
app.command()(import_weights.import_weights)


def _version(asked: bool) -> bool:
    if asked:
        print(__version__)
        raise typer.Exit
    return asked


@app.callback()
def offmap(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")] = False,
) -> None:
    """Is this medical image off the map that a model was trained on: how far, where, and what to do?"""


def main() -> None:
    """The command ``offmap``."""
    app(prog_name="offmap")
