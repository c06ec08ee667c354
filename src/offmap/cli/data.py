"""offmap data: public data sets to try offmap on."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from offmap.cli import options
from offmap.cli.exits import say
from offmap.cli.progress import Event, emit, progress
from offmap.cli.tables import show

app = typer.Typer(help="Public data sets: list them, or fetch one.", no_args_is_help=True)


@app.command("list")
def listed(*, json_lines: options.Json = False) -> None:
    """List the data sets that can be fetched, and the local ones."""
    from offmap.datasets import local
    from offmap.datasets.catalogue import catalogue

    known = catalogue().values()
    root = local.find()
    found = local.sets(root).values() if root is not None else []
    if json_lines:
        for entry in known:
            emit({"event": "set", "name": entry.name, "what": entry.what, "n": entry.n, "licence": entry.licence, "url": entry.url})
        for place in found:
            emit({"event": "local", "name": place.name, "folder": str(place.folder), "n": place.n})
        emit({"event": "done", "sets": len(known), "local": len(found)})
        return
    rows = [[e.name, e.what, e.n, f"{e.side} x {e.side}", e.size, e.licence] for e in known]
    show(["name", "what", "images", "pixels", "size", "licence"], rows, title="To fetch with 'offmap data get NAME'")
    if found:
        show(["name", "images", "folder"], [[p.name, p.n, p.folder] for p in found], title="On this machine")


@app.command()
def get(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of 'offmap data list'.", show_default=False)],
    *,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder to keep it in; the cache if not given.")] = None,
    json_lines: options.Json = False,
) -> None:
    """Fetch a data set; an interrupted download goes on where it stopped."""
    from offmap.datasets.fetch import get as fetch

    with progress(json_lines) as tell:
        path = fetch(name, folder=out, progress=megabytes(tell))
    if json_lines:
        emit({"event": "done", "path": str(path)})
    else:
        say(f"{path}: fit with 'offmap fit {path}::train_images --out gate'")


def megabytes(tell: Callable[[Event], None]) -> Callable[[int, int | None], None]:
    """Progress of a download, told once a megabyte."""
    told = -1

    def on(received: int, total: int | None) -> None:
        nonlocal told
        if received >> 20 != told or received == total:
            told = received >> 20
            tell({"event": "download", "done": received, "total": total, "unit": "bytes"})

    return on
