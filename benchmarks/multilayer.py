"""Forms of the multi-layer detector side by side: what in-distribution images say of each, and then its near and far AUROC.

    python benchmarks/multilayer.py --encoders builtin,hub:../shared/weights/mobilenet_v2_imagenet

Forms are ranked by in-distribution images alone, in four families: drawn lesions and pasted pieces (``local``), other sites
(``site``), corruptions (``global``), and clusters of in-distribution images left out of the fit (``cluster``). The near and far
columns are computed afterwards with the divisions of ``near_far.py``; they take no part in the ranking.
"""

import argparse
import dataclasses
import hashlib
import json
import multiprocessing
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from damage import GLOBAL, LOCAL, halves
from features import PRINT, Extractor, Vectors, folder_of, signals
from layers import fit, scored
from near_far import Data, Key, runs
from reductions import features
from results import Made, markdown, write_csv, write_markdown
from scipy.stats import rankdata
from sites import GRADED, SITES, estranged

from offmap.benchmark import metrics
from offmap.benchmark.suite import Suite, read_suite
from offmap.core import registry
from offmap.core.detector import Detector
from offmap.datasets import local
from offmap.pipeline import recipe as recipes
from offmap.pipeline.cache import root
from offmap.represent.open import open_encoder
from offmap.score._reductions import REDUCTIONS, TAILS, Parts, Reduction, Tails, terms
from offmap.score.multilayer_mahalanobis import MultilayerMahalanobis

FAMILIES: Mapping[str, tuple[str, ...]] = {"local": (*LOCAL, *GRADED), "site": SITES, "global": GLOBAL}
CLUSTERS, FEWEST = 4, 15
REPEATS = 200
VERSION = 1
"""Raised where results on disk no longer hold."""

Scores = dict[str, dict[str, np.ndarray]]
"""By form, by set: scores."""
Cells = dict[tuple[str, str], dict[str, list[np.ndarray]]]
"""By in-distribution set and family, by form: AUROC replicates, the first the AUROC itself."""

COLUMNS: Mapping[str, MultilayerMahalanobis] = {
    "separate, raw features": MultilayerMahalanobis(skip=0, normalise=False, conditional=False, scale="dimension", reduction="mean_knn"),
    "separate, scaled by dimension": MultilayerMahalanobis(skip=0, conditional=False, scale="dimension", reduction="mean_knn"),
    "separate, scaled by layer": MultilayerMahalanobis(skip=0, conditional=False, scale="layer", reduction="mean_knn"),
    "conditional, scaled by dimension": MultilayerMahalanobis(skip=0, conditional=True, scale="dimension", reduction="mean_knn"),
    "conditional, scaled by layer": MultilayerMahalanobis(skip=0, conditional=True, scale="layer", reduction="mean_knn"),
}
SHIPPED_BEFORE = "separate, scaled by dimension | logsumexp | without the shallowest"
SINGLES = ("mahalanobis", "mahalanobis_pp", "knn", "residual", "mm_pp", "multilayer_fisher")


def subsets(count: int) -> dict[str, int]:
    """How many of the shallowest layers are left out, by the name of the choice."""
    return {"all": 0, "without the shallowest": 1, "deeper half": count // 2}


def own_layers(vectors: Vectors) -> Vectors:
    """Without what is no layer."""
    return {name: value for name, value in vectors.items() if name.startswith("features.")}


def columns_of(
    detector: MultilayerMahalanobis, source: Vectors, rows: np.ndarray, held: np.ndarray, asked: Mapping[str, Vectors]
) -> dict[str, Parts]:
    """Standardised log distances of every set; the held-out rows come as the empty name."""
    fitted = fit(detector, source, rows, held)
    sets = {"": signals(source, held), **{name: signals(own_layers(v)) for name, v in asked.items()}}
    return {name: detector.parts(fitted.state, given) for name, given in sets.items()}


def reduced(found: Mapping[str, Parts], reduction: Reduction, skip: int) -> dict[str, np.ndarray]:
    """Scores of every set but the held-out rows, standardised on these."""
    tails = Tails.of(found[""].layers[:, skip:]) if reduction in TAILS else None
    made = {}
    for name, part in found.items():
        layers = part.layers[:, skip:]
        own = None if tails is None else tails.of_held(layers) if name == "" else tails.of_unseen(layers)
        made[name] = terms(reduction, Parts(layers, part.neighbour, own)).numpy()
    mean, spread = made[""].mean(axis=0), made[""].std(axis=0, ddof=1)
    return {name: ((value - mean) / spread).sum(axis=1) for name, value in made.items() if name}


def every_form(source: Vectors, rows: np.ndarray, held: np.ndarray, asked: Mapping[str, Vectors]) -> Scores:
    """Scores of every form of the detector, of the choices by entropy, and of the detectors they are compared with."""
    made: Scores = {}
    count = len(own_layers(source))
    for column, detector in COLUMNS.items():
        found = columns_of(detector, source, rows, held, asked)
        for name, skip in subsets(count).items():
            for reduction in REDUCTIONS:
                made[f"{column} | {reduction} | {name}"] = reduced(found, reduction, skip)
    for detector_name, detector in others().items():
        fitted = fit(detector, source, rows, held)
        made[detector_name] = {name: scored(fitted, own_layers(v)) for name, v in asked.items()}
    return made


def others() -> dict[str, Detector]:
    """Layers chosen by entropy, and single detectors with their defaults."""
    classes = registry.load_all("score", Detector)
    chosen = MultilayerMahalanobis(choose="entropy", conditional=False, scale="dimension", reduction="logsumexp")
    given = MultilayerMahalanobis(choose="entropy", conditional=True, scale="layer", reduction="mean")
    return {
        "separate, scaled by dimension | logsumexp | by entropy": chosen,
        "conditional, scaled by layer | mean | by entropy": given,
        **{name: classes[name]() for name in SINGLES},
    }


@dataclass(frozen=True)
class Task:
    """One set under one encoder.

    Args:
        encoder, own: which.
        beside: the encoder whose features make the clusters.
        seeds, cluster_seeds: divisions.
        judge: in-distribution images only, else near and far sets.
    """

    encoder: str
    own: str
    beside: str
    seeds: int
    cluster_seeds: int
    judge: bool


def suite_of() -> Suite:
    """The suite."""
    return read_suite((local.find() or Path()) / "near-far-v1.toml")


@dataclass
class Evidence:
    """What one encoder says: AUROCs of the families, and those of near and far pairs."""

    cells: Cells = field(default_factory=dict)
    pairs: dict[Key, dict[str, list[np.ndarray]]] = field(default_factory=dict)

    def add(self, place: tuple[str, str], scores: Scores, own: str, kinds: Sequence[str], rng: np.random.Generator) -> None:
        """AUROC of each form, mean over kinds, with replicates over images that are the same for all forms."""
        sizes = {name: len(value) for name, value in next(iter(scores.values())).items()}
        counts = {name: metrics.resampled(sizes[name], repeats=REPEATS, rng=rng) for name in (own, *kinds)}
        counts = {name: np.concatenate([np.ones_like(c[:1]), c]) for name, c in counts.items()}
        for form, found in scores.items():
            drawn = [metrics.auroc_replicates(found[own], found[kind], counts[own], counts[kind]) for kind in kinds]
            self.cells.setdefault(place, {}).setdefault(form, []).append(np.nanmean(drawn, axis=0))


def strange(suite: Suite, own: str, whole: Extractor, late: Extractor, early: object) -> tuple[Vectors, np.ndarray, dict[str, Vectors]]:
    """As ``reductions.features``, with graded lesions and sites besides."""
    formed, rows, asked = features(suite, own, whole, late, early)
    tested = suite.files(own)[::4][:100]
    names = [[p.parent.name, p.name, p.stat().st_size] for p in tested]
    more = {kind: late.of_images([own, names, kind, 1], estranged(tested, kind, early)) for kind in (*GRADED, *SITES)}  # type: ignore[arg-type]
    return formed, rows, {**asked, **more}


def clusters(native: Vectors, other: Vectors) -> Iterator[np.ndarray]:
    """Labels of in-distribution images by what no form reads: thumbnails, and another encoder's deepest layer."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    deepest = torch.nn.functional.normalize(list(own_layers(other).values())[-1].double(), dim=1).numpy()
    deepest = (deepest - deepest.mean(axis=0)) / deepest.std(axis=0).clip(1e-6)
    for described in (native[PRINT].numpy().astype(np.float64), deepest):
        reduced_to = PCA(20, random_state=0).fit_transform(described)
        yield KMeans(CLUSTERS, n_init=10, random_state=0).fit_predict(reduced_to)


def left_out(native: Vectors, label: np.ndarray, seed: int) -> Iterator[Scores]:
    """Scores with each cluster in turn left out of the fit and called strange."""
    for cluster in range(CLUSTERS):
        inside, outside = np.flatnonzero(label != cluster), np.flatnonzero(label == cluster)
        if len(outside) < FEWEST:
            continue
        order = np.random.default_rng(seed).permutation(inside)
        first, second = round(0.5 * len(order)), round(0.7 * len(order))
        asked = {"own": signals(native, order[second:]), "out": signals(native, outside)}
        yield every_form(own_layers(native), order[:first], order[first:second], {k: own_layers(v) for k, v in asked.items()})


def judged(task: Task) -> Evidence:
    """What the in-distribution images of one set say under one encoder."""
    suite, encoder, other = suite_of(), open_encoder(task.encoder), open_encoder(task.beside)
    plan, evidence, own = recipes.read(recipes.STANDARD), Evidence(), task.own
    steps, beside = plan.preparation(encoder.input.size), plan.preparation(other.input.size)
    early, after = halves(steps)
    whole = Extractor(encoder, steps, jobs=1)
    formed, rows, asked = strange(suite, own, whole, Extractor(encoder, after, jobs=1), early)
    for seed in range(101, 101 + task.seeds):
        order = np.random.default_rng(seed).permutation(rows)
        cut = round(0.7 * len(order))
        scores = every_form(own_layers(formed), order[:cut], order[cut:], asked)
        for family, kinds in FAMILIES.items():
            evidence.add((own, family), scores, "clean", kinds, np.random.default_rng(seed))
    native = whole.of_files(suite.files(own))
    for label in clusters(native, Extractor(other, beside, jobs=1).of_files(suite.files(own))):
        for seed in range(101, 101 + task.cluster_seeds):
            for scores in left_out(native, label, seed):
                evidence.add((own, "cluster"), scores, "own", ("out",), np.random.default_rng(seed))
    return evidence


def compared(task: Task) -> Evidence:
    """Near and far AUROC of every form for one in-distribution set; near pairs with replicates."""
    suite, encoder, evidence = suite_of(), open_encoder(task.encoder), Evidence()
    whole = Extractor(encoder, recipes.read(recipes.STANDARD).preparation(encoder.input.size), jobs=1)
    native = {name: whole.of_files(suite.files(name)) for name in suite.sets}
    data = Data(native, {task.own: whole.of_files(suite.files(task.own), form_seed=0)})
    one = replace(suite, near={task.own: suite.near[task.own]})
    counts = {name: drawn(name, len(suite.files(name))) for name in suite.others(task.own)}
    mine = drawn(f"own {task.own}", len(suite.files(task.own)))
    for own, test, source, rows, held, asked in runs(one, data, task.seeds, forms=True):
        for form, found in every_form(own_layers(source), rows, held, asked).items():
            for other, kind in suite.others(own).items():
                keep = slice(None) if kind == "near" else slice(1)
                values = metrics.auroc_replicates(found["own"], found[other], mine[keep][:, test], counts[other][keep])
                evidence.pairs.setdefault((own, other), {}).setdefault(form, []).append(values)
    return evidence


def drawn(name: str, count: int) -> np.ndarray:
    """How often each image of a set is drawn, the same for all forms, sets and encoders; the first row is the set itself."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return np.concatenate([np.ones((1, count), np.float32), metrics.resampled(count, repeats=1000, rng=rng)])


def work(task: Task) -> Evidence:
    """One task, kept on disk; a second run reads it."""
    torch.set_num_threads(1)
    text = json.dumps([VERSION, *dataclasses.astuple(task)])
    path = root() / "benchmarks" / "multilayer" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.npz"
    if not path.exists():
        found = judged(task) if task.judge else compared(task)
        arrays = {"|".join(("cells", *k, f)): np.stack(v) for k, forms in found.cells.items() for f, v in forms.items()}
        arrays |= {"|".join(("pairs", *k, f)): np.stack(v) for k, forms in found.pairs.items() for f, v in forms.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npz")
        np.savez(part, **arrays)
        part.replace(path)
        print(f"  {task.encoder} {task.own} {'judged' if task.judge else 'compared'}", flush=True)
    evidence = Evidence()
    with np.load(path) as arrays:
        for name in arrays.files:
            kind, own, other, form = name.split("|", 3)
            (evidence.cells if kind == "cells" else evidence.pairs).setdefault((own, other), {})[form] = list(arrays[name])
    return evidence


def table(suite: Suite, evidence: Mapping[str, Evidence]) -> list[dict[str, object]]:
    """One row a form, the best mean rank first."""
    forms = list(next(iter(next(iter(evidence.values())).cells.values())))
    means = {
        (name, *place): np.array([np.mean(v[f], axis=0) for f in forms]) for name, e in evidence.items() for place, v in e.cells.items()
    }
    ranks = np.mean([rankdata(-value[:, 0]) for value in means.values()], axis=0)
    before = forms.index(SHIPPED_BEFORE)
    rng = np.random.default_rng(0)
    by_set = np.stack([np.mean([v[:, 0] for k, v in means.items() if k[1] == own], axis=0) for own in suite.ids])
    drawn = by_set[rng.integers(len(by_set), size=(2000, len(by_set)))].mean(axis=1)
    rows = []
    for i, form in enumerate(forms):
        both = np.mean([value[i] for value in means.values()], axis=0)
        low, high = metrics.interval(both[1:])
        families = {f: np.mean([v[i, 0] for k, v in means.items() if k[2] == f]) for f in (*FAMILIES, "cluster")}
        better = float((drawn[:, i] > drawn[:, before]).mean())
        line: dict[str, object] = {"form": form, "rank": ranks[i], "auroc": both[0], "auroc_lo": low, "auroc_hi": high, **families}
        line |= {"above_previous_default": better}
        for name, found in evidence.items():
            line |= {f"{name}.{key}": value for key, value in outside(suite, found, form).items()}
        rows.append(line)
    return sorted(rows, key=lambda row: float(str(row["rank"])))


def outside(suite: Suite, evidence: Evidence, form: str) -> dict[str, object]:
    """Near and far of one form, and its paired differences."""
    kinds = {(own, other): kind for own in suite.ids for other, kind in suite.others(own).items()}
    mean = {key: np.mean(found[form], axis=0) for key, found in evidence.pairs.items()}
    if not mean:
        return {}
    near = [key for key in mean if kinds[key] == "near"]
    far = [float(mean[key][0]) for key in mean if kinds[key] == "far"]
    total = np.mean([mean[key] for key in near], axis=0)
    low, high = metrics.interval(total[1:])
    line: dict[str, object] = {"near": total[0], "near_lo": low, "near_hi": high, "far": np.mean(far), "worst_far": min(far)}
    for other, short in ((SHIPPED_BEFORE, "previous"), ("mahalanobis", "mahalanobis")):
        gap = total - np.mean([np.mean(evidence.pairs[key][other], axis=0) for key in near], axis=0)
        low, high = metrics.interval(gap[1:])
        line |= {f"minus_{short}": gap[0], f"minus_{short}_lo": low, f"minus_{short}_hi": high}
    return line | {f"near.{other}": mean[own, other][0] for own, other in near}


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", default="builtin", help="separated by commas; each is judged with the next one's clusters")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cluster-seeds", type=int, default=1)
    parser.add_argument("--judge-only", action="store_true", help="in-distribution images only: no near or far set is read")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    made, suite, names = Made.now(), suite_of(), args.encoders.split(",")
    stages = (True,) if args.judge_only else (True, False)
    tasks = [
        Task(name, own, names[(i + 1) % len(names)], args.seeds, args.cluster_seeds, judge)
        for judge in stages
        for i, name in enumerate(names)
        for own in suite.ids
    ]
    evidence = {folder_of(name): Evidence() for name in names}
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for task, found in zip(tasks, pool.map(work, tasks), strict=True):
            evidence[folder_of(task.encoder)].cells.update(found.cells)
            evidence[folder_of(task.encoder)].pairs.update(found.pairs)
    rows = table(suite, evidence)
    write_csv(args.out / "multilayer.csv", rows)
    write_markdown(args.out / "multilayer.md", "Forms of the multi-layer detector", markdown(rows), made)
    print(
        "\n".join(
            markdown([{k: v for k, v in row.items() if k in ("form", "rank", "auroc", "above_previous_default")} for row in rows[:20]])
        )
    )


if __name__ == "__main__":
    main()
