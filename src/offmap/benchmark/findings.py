"""What a benchmark leaves behind: tidy tables, a Markdown page, plots, and a page to look at."""

import csv
import datetime
import json
import math
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import offmap
from offmap.benchmark.guards import ToldApart
from offmap.benchmark.plots import draw
from offmap.benchmark.results import COLUMNS, Results, Row
from offmap.benchmark.run import Bench
from offmap.benchmark.summary import KINDS, Line, not_run
from offmap.report.comparison import Comparison, Plot

PACKAGES = ("torch", "numpy", "scipy", "Pillow", "scikit-learn")
DIGITS = 6
"""Of numbers in the tables."""


def write(bench: Bench, results: Results, summary: Sequence[Line], apart: Sequence[ToldApart]) -> None:
    """Everything into the folder of the run.

    Files: ``results.csv`` and ``.parquet`` (tidy), ``summary.csv``, ``summary.md``, ``guards.csv``, ``run.json``, ``plots/*.svg``,
    ``index.html``.
    """
    out = bench.setup.out
    out.mkdir(parents=True, exist_ok=True)
    rows = [{name: _cell(row.get(name)) for name in COLUMNS} for row in results.rows]
    _csv(out / "results.csv", rows, COLUMNS)
    _parquet(out / "results.parquet", rows)
    names = list(dict.fromkeys(name for line in summary for name in line))
    _csv(out / "summary.csv", [{name: _cell(line.get(name)) for name in names} for line in summary], names)
    _csv(out / "guards.csv", [_guard(each) for each in apart], list(_guard(apart[0])) if apart else ["id_set"])
    (out / "run.json").write_text(json.dumps(facts(bench), indent=1, default=str) + "\n", encoding="utf-8")
    plots = draw(bench, [line["method"] for line in summary], out / "plots")
    page = _page(bench, results, summary, apart, plots)
    page.to_html(out / "index.html")
    (out / "summary.md").write_text("\n".join(markdown(page, summary)) + "\n", encoding="utf-8")


def facts(bench: Bench) -> dict[str, Any]:
    """What the numbers rest on, for a second run elsewhere."""
    setup = bench.setup
    heads = {f"{own}, seed {seed}": round(head.accuracy, 4) for (own, seed), head in bench.heads.items()}
    return {
        "suite": setup.suite.name,
        "offmap": offmap.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "encoder": {"name": setup.encoder.name, "sha256": setup.encoder.sha256, "layers": setup.encoder.layers},
        "recipe": setup.recipe.name,
        "prepare": setup.recipe.preparation(setup.encoder.input.size).to_json(),
        "form_seed": setup.form_seed,
        "seeds": setup.seeds,
        "images": {name: len(encoded.at) for name, encoded in bench.sets.items()},
        "balanced_accuracy_of_trained_heads": heads,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "notes": bench.notes,
    }


def markdown(page: Comparison, summary: Sequence[Line]) -> list[str]:
    """The summary as a Markdown page."""
    kinds = [kind for kind in KINDS if any(kind in line for line in summary)]
    head = ["method", *(f"{kind} [95 %] ± sd" for kind in kinds), "worst far", "passes", "fit, s", "score, ms", "peak, MB", "state, MB"]
    lines = [f"# {page.title}", "", page.subtitle, "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for line in summary:
        cells = [f"**{line['method']}**" if line["method"] == page.default else line["method"]]
        cells += [_interval(line, kind) for kind in kinds]
        worst = f"{line['far_worst']:.3f} ({line['far_worst_pair']})" if "far_worst" in line else ""
        costs = (
            line["passes"],
            f"{line['fit_s']:.2f}",
            f"{line['score_ms_per_item']:.3f}",
            f"{line['peak_mb']:.0f}",
            f"{line['state_mb']:.2f}",
        )
        lines.append("| " + " | ".join([*cells, worst, *costs]) + " |")
    for title, found in (("Read this first", page.warnings), ("Copies left out", page.copies), ("Notes", page.notes)):
        lines += ["", f"## {title}", "", *(f"- {text}" for text in found)] if found else []
    if page.not_run:
        lines += ["", "## Not run", "", "| what | reason |", "|---|---|", *(f"| {what} | {reason} |" for what, reason in page.not_run)]
    return lines


def _page(bench: Bench, results: Results, summary: Sequence[Line], apart: Sequence[ToldApart], plots: Sequence[Plot]) -> Comparison:
    setup = bench.setup
    part, detector = next(iter(setup.recipe.parts.items()))
    default = part if any(m.name == part for m in setup.methods) else detector.method()
    count = sum(len(encoded.at) for encoded in bench.sets.values())
    pairs: dict[str, dict[str, float]] = {}
    for (method, (own, other)), values in results.values.items():
        pairs.setdefault(f"{own} / {other}", {})[method] = sum(values) / len(values)
    kinds = {f"{own} / {other}": kind for own in bench.own for other, kind in setup.others(own).items()}
    told = {f"{each.own} / {each.other}": each for each in apart}
    seeds = f"{len(setup.seeds)} division{'s' if len(setup.seeds) > 1 else ''}"
    return Comparison(
        title=f"Benchmark {setup.suite.name}",
        subtitle=f"{len(summary)} methods, {count:,} images, {len(bench.own)} in-distribution sets, {seeds}; encoder {setup.encoder.name}.",
        summary=summary,
        default=default,
        pairs={name: pairs[name] for name in kinds if name in pairs},
        kinds=kinds,
        told={name: _briefly(each) for name, each in told.items() if each.warns},
        warnings=_warnings(apart, kinds),
        copies=[overlap.sentence for overlap in results.overlaps],
        notes=[*bench.notes, *_heads(bench)],
        not_run=not_run(results),
        plots=plots,
        facts=facts(bench),
    )


def _warnings(apart: Sequence[ToldApart], kinds: Mapping[str, str]) -> list[str]:
    """Guards in a sentence each; those of near and covariate-shifted sets by name."""
    out = []
    warned = [each for each in apart if each.warns]
    close = [each.sentence for each in warned if kinds.get(f"{each.own} / {each.other}") in ("near", "covariate")]
    if warned:
        out.append(
            f"File statistics alone (size, compression, format) tell {len(warned)} of {len(apart)} pairs of sets apart: "
            "there a high AUROC may say how files were made, not what they show."
        )
    return [*out, *close]


def _heads(bench: Bench) -> list[str]:
    """How good the trained classifiers are."""
    out = []
    for own in bench.setup.own:
        found = [head for (name, _), head in bench.heads.items() if name == own]
        if found:
            mean = sum(head.accuracy for head in found) / len(found)
            out.append(f"Classifier of {own} ({', '.join(found[0].classes)}): balanced accuracy {mean:.3f} on test images.")
    return out


def _briefly(each: ToldApart) -> str:
    """What tells two sets apart, for a cell."""
    value = each.alone.get(each.best, 0.0)
    return f"{each.best} {value:.2f}" if value >= each.auroc - 0.05 else f"all together {each.auroc:.2f}"


def _guard(each: ToldApart) -> dict[str, Any]:
    found = {"id_set": each.own, "other_set": each.other, "auroc": _cell(each.auroc), "best": each.best, "warns": each.warns}
    return {**found, "best_auroc": _cell(each.alone.get(each.best)), "sentence": each.sentence}


def _interval(line: Line, kind: str) -> str:
    if kind not in line:
        return ""
    return f"{line[kind]:.3f} [{line[f'{kind}_lo']:.3f}, {line[f'{kind}_hi']:.3f}] ± {line[f'{kind}_sd']:.3f}"


def _cell(value: Any) -> Any:
    """Numbers rounded; None for what is not there or not a number."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return round(float(value), DIGITS) if isinstance(value, float) else value


def _csv(path: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _parquet(path: Path, rows: Sequence[Row]) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
