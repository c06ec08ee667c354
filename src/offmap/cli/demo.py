"""offmap demo: from images to a report, on data that is at hand."""

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offmap.cli import options, outputs
from offmap.cli.data import megabytes
from offmap.cli.exits import say
from offmap.cli.progress import emit, progress
from offmap.cli.tables import show

if TYPE_CHECKING:
    from offmap.datasets.local import DemoData

FLAGGED = ("review", "reject")
PHANTOMS, EACH = 350, 60
"""Drawn in-distribution images, and images of each strange kind, where there are no real ones."""


def demo(
    *,
    out: options.Out,
    jobs: options.Jobs = None,
    device: options.Device = "auto",
    json_lines: options.Json = False,
) -> None:
    """Fit on real images, score ordinary and strange ones, and write scores and a report."""
    outputs.folder(out)
    from offmap.datasets.local import demo_sets

    with progress(json_lines) as tell:
        chosen = demo_sets(phantoms=draw, progress=megabytes(tell))
        say(chosen.sentence)
        import offmap

        gate = offmap.fit(chosen.fit, device=device, jobs=jobs, progress=tell)
        identity = gate.save(out / "gate")
        manifest = listed(chosen, out / "inputs.csv")
        gate.score_to(manifest, out / "scores.csv", report=out / "report", jobs=jobs, progress=tell)
    rows = summary(out / "scores.csv", chosen.kinds)
    page = out / "report" / "index.html"
    if json_lines:
        emit({"event": "done", "gate": str(out / "gate"), "id": identity, "data": chosen.sentence, "sets": rows, "report": str(page)})
        return
    show(["set", "kind", "images", "median bits", "flagged"], [[*row.values()] for row in rows])
    degree = gate.card["calibration"]
    limit = f"{degree['cap_bits']} bits are the most that {degree['n']} images can show"
    print(f"Flagged = review or reject. Of ordinary images about {degree['alpha']:.0%} are, by design; {limit}.")
    print(f"Look at  {page}\nScores   {out / 'scores.csv'}\nGate     {out / 'gate'}")


def draw(folder: Path) -> Mapping[str, Sequence[Path]]:
    """Phantoms for a machine without data and without network."""
    from offmap.simulate.phantoms import write_phantoms

    kinds = write_phantoms(folder, n=PHANTOMS, seed=0, near=EACH, far=EACH)
    return {kind: sorted(place.glob("*.png")) for kind, place in kinds.items()}


def listed(chosen: "DemoData", path: Path) -> Path:
    """A manifest of all inputs with the column ``set``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "set"])
        writer.writerows([item, name] for name, items in chosen.score.items() for item in items)
    return path


def summary(table: Path, kinds: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row a set: how many images, their median degree, and the share of them that was flagged."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    out = []
    for name, kind in kinds.items():
        own = [row for row in rows if row["meta.set"] == name and row["status"] == "ok"]
        bits = [float(row["surprise_bits"]) for row in own]
        flagged = sum(row["verdict"] in FLAGGED for row in own)
        median = round(statistics.median(bits), 2) if bits else None
        out.append({"set": name, "kind": kind, "n": len(own), "median_bits": median, "flagged": f"{flagged / max(len(own), 1):.0%}"})
    return out
