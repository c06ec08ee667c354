"""What in-distribution images alone say about the default: which reduction over which layers finds synthetic strangeness best.

    python benchmarks/reductions.py

Three quarters of each in-distribution set are fitted on (five random divisions into fit and held-out part); of the others each is
compared with copies of itself: drawn lesions and pasted pieces ("local"), corruptions of the whole image ("global"). The choice with
the highest mean of the two means is the default. No out-of-distribution image is read.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from damage import GLOBAL, LOCAL, damaged, halves, undamaged
from features import Extractor, Vectors, folder_of
from layers import REDUCTIONS, Choice, combined, parts, subsets
from results import Made, markdown, write_csv, write_markdown

from offmap.benchmark import metrics
from offmap.benchmark.suite import Suite, read_suite
from offmap.datasets import local
from offmap.pipeline import recipe as recipes
from offmap.represent.open import open_encoder

EVERY, MOST = 4, 100
"""Every fourth image is damaged, at most so many of a set."""
REPEATS = 500
FORM_SEED = 0
Values = dict[tuple[str, str], dict[str, list[np.ndarray]]]
"""By reduction and layers, by damage: AUROC replicates of each set and seed; the first is the AUROC itself."""


def features(suite: Suite, own: str, whole: Extractor, late: Extractor, early: object) -> tuple[Vectors, np.ndarray, dict[str, Vectors]]:
    """Features to fit on, rows that may be fitted on, and features of the tested images, clean and damaged."""
    files = suite.files(own)
    tested = files[::EVERY][:MOST]
    formed = whole.of_files(files, form_seed=FORM_SEED)
    names = [[p.parent.name, p.name, p.stat().st_size] for p in tested]
    clean = late.of_images([own, names, "clean"], undamaged(tested, early))  # type: ignore[arg-type]
    found = {kind: late.of_images([own, names, kind], damaged(tested, kind, early)) for kind in (*LOCAL, *GLOBAL)}  # type: ignore[arg-type]
    return formed, np.flatnonzero(np.arange(len(files)) % EVERY != 0), {"clean": clean, **found}


def measure(values: Values, own: tuple[Vectors, np.ndarray, dict[str, Vectors]], layers: tuple[str, ...], seed: int) -> None:
    """Add one set and seed."""
    formed, rows, asked = own
    rng = np.random.default_rng(seed)
    order = rng.permutation(rows)
    cut = round(0.7 * len(order))
    found = parts(formed, order[:cut], order[cut:], asked)
    counts = metrics.resampled(len(next(iter(asked["clean"].values()))), repeats=REPEATS, rng=rng)
    counts = np.concatenate([np.ones_like(counts[:1]), counts])
    for name, subset in subsets(layers).items():
        for reduction in REDUCTIONS:
            scores = combined(found, layers, Choice(reduction, subset))
            for kind in (*LOCAL, *GLOBAL):
                drawn = metrics.auroc_replicates(scores["clean"], scores[kind], counts, counts)
                values.setdefault((reduction, name), {}).setdefault(kind, []).append(drawn)


def lines(values: Values) -> list[dict[str, object]]:
    """One row a choice, the best first."""
    rows = []
    for (reduction, name), found in values.items():
        means = {kind: np.mean(drawn, axis=0) for kind, drawn in found.items()}
        near, wide = (np.mean([means[kind] for kind in kinds], axis=0) for kinds in (LOCAL, GLOBAL))
        both = (near + wide) / 2
        low, high = metrics.interval(both[1:])
        kinds: Mapping[str, object] = {kind: means[kind][0] for kind in (*LOCAL, *GLOBAL)}
        rows.append(
            {
                "reduction": reduction,
                "layers": name,
                "both": both[0],
                "both_lo": low,
                "both_hi": high,
                "local": near[0],
                "global": wide[0],
                **kinds,
            }
        )
    return sorted(rows, key=lambda row: -float(row["both"]))


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="builtin")
    parser.add_argument("--recipe", default=recipes.STANDARD)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    made, suite = Made.now(), read_suite((local.find() or Path()) / "near-far-v1.toml")
    encoder, plan = open_encoder(args.encoder), recipes.read(args.recipe)
    steps = plan.preparation(encoder.input.size)
    early, after = halves(steps)
    values: Values = {}
    for own in suite.own:
        found = features(suite, own, Extractor(encoder, steps, args.jobs), Extractor(encoder, after, args.jobs), early)
        for seed in range(101, 101 + args.seeds):
            measure(values, found, encoder.layers, seed)
        print(f"  {own} done", flush=True)
    rows = lines(values)
    name = f"reductions_{folder_of(args.encoder)}"
    write_csv(args.out / f"{name}.csv", rows)
    shown = [{k: row[k] for k in ("reduction", "layers", "both", "both_lo", "both_hi", "local", "global")} for row in rows]
    best = f"Highest: {rows[0]['reduction']} over {rows[0]['layers']} layers."
    write_markdown(
        args.out / f"{name}.md",
        f"Reductions by in-distribution images alone, {folder_of(args.encoder)}",
        [best, "", *markdown(shown)],
        made,
    )
    print("\n".join([best, *markdown(shown)]))


if __name__ == "__main__":
    main()
