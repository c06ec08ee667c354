"""Whether a gate flags at most the share of unseen in-distribution images that it promises: every detector, many random divisions.

    python benchmarks/false_alarms.py

Each set is divided at random, copies together: 70 % make a gate through the product's own code (fit, held-out and calibration part,
or five folds), 30 % are unseen. Detectors are those of the registry, with the built-in encoder; those that need labels or a head get a
linear head, trained on a third of the images that takes no further part.
"""

import argparse
import dataclasses
import hashlib
import multiprocessing
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from features import PRINT, Extractor, Vectors, signals
from results import Made, markdown, read_csv, write_csv, write_markdown
from torch import Tensor, nn

from offmap.benchmark import metrics
from offmap.benchmark.suite import read_suite
from offmap.calibrate.split import split
from offmap.calibrate.threshold import beta_binomial_band
from offmap.core import registry
from offmap.core.detector import Detector, missing
from offmap.core.duplicates import find
from offmap.core.errors import OODError
from offmap.core.types import Frame, Image
from offmap.datasets import local
from offmap.pipeline import recipe as recipes
from offmap.pipeline.learn import Parts, divide, fit_scorer
from offmap.pipeline.recipe import Division, Recipe
from offmap.pipeline.store import SignalStore
from offmap.represent.open import open_encoder

UNSEEN = 0.3
LABELLED = {
    "kermany, 2 classes": ("kermany_normal", "kermany_pneumonia"),
    "brain, 3 classes": ("brain_no_tumour", "brain_glioma", "brain_meningioma"),
    "lung, 2 classes": ("lung_normal", "lung_aca"),
}
EACH = 300
"""Images of each class at most."""
SMALLER: Mapping[str, Mapping[str, int]] = {
    "patchcore": {"max_bank": 200, "pool": 2000},
    "isolation_forest": {"trees": 50},
}
"""Settings that let a slow method be fitted hundreds of times."""
FORM_SEED = 0
CPU = torch.device("cpu")


@dataclass
class Cell:
    """One in-distribution set as a gate sees it.

    Args:
        formed: signals in a random form, of which gates are made.
        native: the same images as they are.
        images: without pixels.
        copies: rows that stay together.
        labels: of the classes; None without.
    """

    name: str
    formed: Vectors
    native: Vectors
    images: list[Image]
    copies: list[tuple[int, ...]]
    labels: np.ndarray | None = None


def plain(files: Sequence[Path], prints: Tensor) -> tuple[list[Image], list[tuple[int, ...]]]:
    """Images without pixels, and which are copies of each other."""
    pixels = np.zeros((1, 0, 0), dtype=np.float32)
    names = [hashlib.sha256(f"{p.parent.name}/{p.name}".encode()).hexdigest() for p in files]
    images = [Image(pixels, str(p), Frame.whole((1, 1)), digest=name) for p, name in zip(files, names, strict=True)]
    return images, find(prints.numpy(), names)


def cell(extractor: Extractor, name: str, files: Sequence[Path], *, maps: bool) -> Cell:
    """A set without labels."""
    formed = extractor.of_files(files, form_seed=FORM_SEED)
    images, copies = plain(files, formed[PRINT])
    if maps:
        return Cell(name, extractor.maps(files, form_seed=FORM_SEED), extractor.maps(files), images, copies)
    return Cell(name, signals(formed), signals(extractor.of_files(files)), images, copies)


def labelled(extractor: Extractor, name: str, classes: Sequence[Sequence[Path]]) -> Cell:
    """A set with classes and a head that was trained on every third image, which then is left out."""
    files = [p for paths in classes for p in paths[:EACH]]
    labels = np.concatenate([np.full(min(EACH, len(paths)), k) for k, paths in enumerate(classes)])
    formed, native = (extractor.of_files(files, form_seed=seed) for seed in (FORM_SEED, None))
    head = torch.arange(len(files)) % 3 == 0
    weight, bias = trained(signals(formed)["features.last"][head], torch.from_numpy(labels)[head])
    rows = (~head).numpy()
    images, copies = plain([p for p, keep in zip(files, rows, strict=True) if keep], formed[PRINT][~head])
    both = [with_head({k: v[~head] for k, v in signals(part).items()}, weight, bias) for part in (formed, native)]
    return Cell(name, both[0], both[1], images, copies, labels[rows])


def trained(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Weights ``(K, D)`` and bias ``(K,)`` of a linear classifier: cross-entropy with a small weight decay, on standardised features."""
    mean, spread = features.mean(dim=0), features.std(dim=0).clamp_min(1e-6)
    layer = nn.Linear(features.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimiser = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value: Tensor = nn.functional.cross_entropy(layer((features - mean) / spread), labels) + 1e-3 * layer.weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    weight = layer.weight.detach() / spread
    return weight, layer.bias.detach() - weight @ mean


def with_head(vectors: Vectors, weight: Tensor, bias: Tensor) -> Vectors:
    """The signals that a classifier with this head gives."""
    last = vectors["features.last"]
    return {"features.last": last, "features.penultimate": last, "logits": last @ weight.T + bias, "head.weight": weight, "head.bias": bias}


def share(found: Cell, detector: Detector, kind: str, splits: int) -> dict[str, object]:
    """One row: the share flagged over all divisions, its standard error, and how many divisions lie in their band."""
    plan = replace(recipes.read(), parts={"detector": detector}, calibrate=Division(kind=kind))  # type: ignore[arg-type]
    row: dict[str, object] = {"set": found.name, "method": detector.method(), "calibration": kind, "splits": splits}
    flags = {form: np.full((splits, len(found.images)), np.nan) for form in ("random_form", "as_it_is")}
    sizes = []
    with SignalStore() as store:
        store.append(found.formed)
        if found.labels is not None:
            store.add("label", found.labels)
        for seed in range(splits):
            try:
                unseen, calibration = one(plan, store, found, seed, flags)
            except OODError as error:
                return row | {"status": "refused", "reason": str(error)[:120]}
            sizes.append((calibration, len(unseen)))
    for form, values in flags.items():
        row |= {f"share.{form}": np.nanmean(values, axis=1).mean(), f"se.{form}": error_of(values)}
        inside = [within(np.nansum(v), n, m, plan.decide.alpha) for v, (n, m) in zip(values, sizes, strict=True)]
        row |= {f"inside.{form}": np.mean(inside) if kind == "split" else ""}
    n, m = (round(float(np.mean([pair[i] for pair in sizes]))) for i in (0, 1))
    return row | {"n_calibration": n, "n_unseen": m, "status": "ok"}


def one(plan: Recipe, store: SignalStore, found: Cell, seed: int, flags: Mapping[str, np.ndarray]) -> tuple[np.ndarray, int]:
    """One division: a gate of the known images, and which of the unseen ones it flags."""
    groups, digests = [""] * len(found.images), [i.digest for i in found.images]
    known, unseen = split(groups, digests, shares=(1 - UNSEEN, UNSEEN), seed=1000 + seed, copies=found.copies)
    place = {int(row): i for i, row in enumerate(known)}
    copies = [rows for rows in ([place[r] for r in group if r in place] for group in found.copies) if len(rows) > 1]
    division = [
        Parts(*(known[rows] for rows in (p.fit, p.held_out, p.calibrate)))
        for p in divide(plan.calibrate, [found.images[i] for i in known], copies, seed)
    ]
    scorer = fit_scorer(plan, store, division, seed=seed, device=CPU)
    rows = torch.from_numpy(unseen)
    for form, vectors in (("random_form", found.formed), ("as_it_is", found.native)):
        batch = {k: v if k.startswith("head.") else v[rows] for k, v in vectors.items()}
        p_value = torch.cat(
            [scorer({k: v if k.startswith("head.") else v[i : i + 64] for k, v in batch.items()}).p_value for i in range(0, len(rows), 64)]
        )
        flags[form][seed, unseen] = plan.decide.alpha * (1 + 1e-9) >= p_value.numpy()
    return unseen, scorer.ranks.n


def error_of(values: np.ndarray) -> float:
    """Standard error of the mean share by bootstrap over images."""
    counts = metrics.resampled(values.shape[1], repeats=500, rng=np.random.default_rng(0)).astype(np.float64)
    there = ~np.isnan(values)
    shares = (counts @ np.where(there, values, 0.0).T) / np.maximum(counts @ there.T.astype(np.float64), 1e-12)
    return float(shares.mean(axis=1).std(ddof=1))


def within(flagged: float, calibration: int, unseen: int, alpha: float) -> bool:
    """Whether the number flagged lies in its central 99 % band: Beta-binomial, as exact for exchangeable images without ties."""
    low, high = beta_binomial_band(calibration, unseen, alpha)
    return bool(low <= flagged <= high)


def methods(provides: Sequence[str]) -> dict[str, Detector]:
    """Detectors of the registry whose needs are provided."""
    found = {}
    for name, cls in registry.load_all("score", Detector).items():
        detector = cls.from_params(dict(SMALLER.get(name, {})))
        if not missing(detector.needs | detector.fit_needs, provides):
            found[name] = detector
    return found


def work(task: tuple[str, str, int, frozenset[str]]) -> list[dict[str, object]]:
    """All rows of one set and one kind of signals; runs in a process of its own."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    what, name, splits, asked = task
    suite = read_suite((local.find() or Path()) / "near-far-v1.toml")
    encoder = open_encoder("builtin")
    extractor = Extractor(encoder, recipes.read().preparation(encoder.input.size), jobs=1)
    if what == "labels":
        found = labelled(extractor, name, [suite.files(part) for part in LABELLED[name]])
        chosen = methods([*found.formed, "label"])
        chosen = {n: d for n, d in chosen.items() if missing(d.needs | d.fit_needs, ["features.last"])}
    elif what == "maps" and asked and not asked & {"patchcore", "gram"}:
        return []
    else:
        found = cell(extractor, name, suite.files(name), maps=what == "maps")
        chosen = {n: mapped(d, found) for n, d in methods(list(found.formed)).items()}
    rows = []
    for method, detector in chosen.items() if not asked else [(n, d) for n, d in chosen.items() if n in asked]:
        for kind in ("split", "cross"):
            row = share(found, detector, kind, splits)
            rows.append(row)
            print("  ", method, {k: v if isinstance(v, str) else round(float(v), 4) for k, v in row.items()}, flush=True)  # type: ignore[arg-type]
    return rows


def mapped(detector: Detector, found: Cell) -> Detector:
    """A detector of feature maps, told which layers there are."""
    names = tuple(k.removeprefix("feature_map.") for k in found.formed if k.startswith("feature_map."))
    if names and "layers" in {f.name for f in dataclasses.fields(detector)}:  # type: ignore[arg-type]
        return replace(detector, layers=names)  # type: ignore[type-var]
    return detector


def verdict(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """The two questions, answered for each form of the unseen images."""
    lines = []
    good = [r for r in rows if r["status"] == "ok"]
    for form, words in (("random_form", "in a random form, as in calibration"), ("as_it_is", "as they are")):
        over = [r for r in good if float(str(r[f"share.{form}"])) > 0.05 + 2 * float(str(r[f"se.{form}"]))]
        inside = [float(str(r[f"inside.{form}"])) for r in good if r["calibration"] == "split"]
        shares = [float(str(r[f"share.{form}"])) for r in good]
        named = "; ".join(f"{r['method']} on {r['set']} ({r['calibration']}) {float(str(r[f'share.{form}'])):.3f}" for r in over)
        lines.append(
            f"- Unseen images {words}: {len(good) - len(over)} of {len(good)} cells have a mean share <= 5 % + 2 standard errors "
            f"(mean of all {np.mean(shares):.3f}, largest {max(shares):.3f}{'; above: ' + named if named else ''}); "
            f"of the divisions of split gates {np.mean(inside):.1%} lie inside their 99 % Beta-binomial band."
        )
    refused = [r for r in rows if r["status"] != "ok"]
    lines += [f"- Refused: {r['method']} on {r['set']} ({r['calibration']}): {r['reason']}" for r in refused]
    return lines


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--methods", default="", help="some of them, by comma; the others keep their rows in the table")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    made = Made.now()
    ids = read_suite((local.find() or Path()) / "near-far-v1.toml").own
    asked = frozenset(filter(None, args.methods.split(",")))
    tasks = [(what, name, args.splits, asked) for what, names in (("maps", ids), ("vectors", ids), ("labels", LABELLED)) for name in names]
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        rows: list[Mapping[str, object]] = [row for found in pool.map(work, tasks) for row in found]
    if asked:
        rows = [row for row in read_csv(args.out / "false_alarms.csv") if row["method"] not in asked] + rows
    write_csv(args.out / "false_alarms.csv", rows)
    names = (
        "set",
        "method",
        "calibration",
        "n_calibration",
        "n_unseen",
        "share.random_form",
        "se.random_form",
        "inside.random_form",
        "share.as_it_is",
        "se.as_it_is",
    )
    shown = [{name: row.get(name, "") for name in names} for row in rows if row["status"] == "ok"]
    write_markdown(
        args.out / "false_alarms.md", f"False alarms at 5 %, {args.splits} divisions", [*verdict(rows), "", *markdown(shown)], made
    )
    print("\n".join(verdict(rows)))


if __name__ == "__main__":
    main()
