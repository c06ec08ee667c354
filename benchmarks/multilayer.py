"""Forms of the multi-layer detector side by side: what in-distribution images say of each, and then its near and far AUROC.

    python benchmarks/multilayer.py --beside hub:../shared/weights/mobilenet_v2_imagenet
    python benchmarks/multilayer.py --encoder hub:../shared/weights/mobilenet_v2_imagenet --brief --judge-seeds 1

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
from damage import GLOBAL, LOCAL, halves, undamaged
from features import PRINT, Extractor, Vectors, folder_of, signals
from layers import REDUCTIONS, Choice, combined, fit, parts, scored, subsets
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
from offmap.prepare.preparation import Preparation
from offmap.represent.open import open_encoder
from offmap.score.multilayer_mahalanobis import MultilayerMahalanobis

FAMILIES: Mapping[str, tuple[str, ...]] = {"local": (*LOCAL, *GRADED), "site": SITES, "global": GLOBAL}
BRIEF: Mapping[str, tuple[str, ...]] = {"local": tuple(GRADED), "site": SITES}
CLUSTERS, FEWEST = 4, 15
REPEATS = 200
VERSION = 1
"""Raised where results on disk no longer hold."""

Scores = dict[str, dict[str, np.ndarray]]
"""By form, by set: scores."""
Cells = dict[tuple[str, str], dict[str, list[np.ndarray]]]
"""By in-distribution set and family, by form: AUROC replicates, the first the AUROC itself."""

COLUMNS: Mapping[str, MultilayerMahalanobis] = {
    "separate, raw features": MultilayerMahalanobis(normalise=False, conditional=False, scale="dimension"),
    "separate, scaled by dimension": MultilayerMahalanobis(conditional=False, scale="dimension"),
    "separate, scaled by layer": MultilayerMahalanobis(conditional=False, scale="layer"),
    "conditional, scaled by dimension": MultilayerMahalanobis(conditional=True, scale="dimension"),
    "conditional, scaled by layer": MultilayerMahalanobis(conditional=True, scale="layer"),
}
BRIEF_COLUMNS = ("separate, scaled by dimension", "conditional, scaled by layer")
SHIPPED_BEFORE = "separate, scaled by dimension, logsumexp, without the shallowest"
BRIEF_SINGLES = ("mahalanobis", "mahalanobis_pp", "knn")
SINGLES = (*BRIEF_SINGLES, "residual", "mm_pp", "multilayer_fisher")


def own_layers(vectors: Vectors) -> Vectors:
    """Without what is no layer."""
    return {name: value for name, value in vectors.items() if name.startswith("features.")}


def every_form(source: Vectors, rows: np.ndarray, held: np.ndarray, asked: Mapping[str, Vectors], *, brief: bool) -> Scores:
    """Scores of every form of the detector, of the choices by entropy, and of the detectors they are compared with."""
    made: Scores = {}
    layers = [name.removeprefix("features.") for name in own_layers(source)]
    for column, detector in COLUMNS.items():
        if brief and column not in BRIEF_COLUMNS:
            continue
        found = parts(source, rows, held, asked, detector)
        for name, subset in subsets(layers).items():
            for reduction in REDUCTIONS:
                made[f"{column}, {reduction}, {name}"] = combined(found, layers, Choice(reduction, subset))
    for detector_name, detector in others(brief=brief).items():
        fitted = fit(detector, source, rows, held)
        made[detector_name] = {name: scored(fitted, own_layers(v)) for name, v in asked.items()}
    return made


def others(*, brief: bool) -> dict[str, Detector]:
    """Layers chosen by entropy, and single detectors with their defaults; in brief fewer of these."""
    classes = registry.load_all("score", Detector)
    if brief:
        return {name: classes[name]() for name in BRIEF_SINGLES}
    chosen = MultilayerMahalanobis(choose="entropy", conditional=False, scale="dimension", reduction="logsumexp")
    given = MultilayerMahalanobis(choose="entropy", conditional=True, scale="layer", reduction="mean")
    return {
        "separate, scaled by dimension, logsumexp, by entropy": chosen,
        "conditional, scaled by layer, mean, by entropy": given,
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
        brief: fewer forms, and fewer kinds of damage (those of ``sites.py``), for an encoder that takes long.
    """

    encoder: str
    own: str
    beside: str
    seeds: int
    cluster_seeds: int
    judge: bool
    brief: bool = False


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


def strange(
    suite: Suite, own: str, whole: Extractor, late: Extractor, early: Preparation, *, brief: bool
) -> tuple[Vectors, np.ndarray, dict[str, Vectors]]:
    """As ``reductions.features``, with graded lesions and sites besides, or with these alone."""
    tested = suite.files(own)[::4][:100]
    names = [[p.parent.name, p.name, p.stat().st_size] for p in tested]
    if brief:
        count = len(suite.files(own))
        formed, rows = whole.of_files(suite.files(own), form_seed=0), np.flatnonzero(np.arange(count) % 4 != 0)
        asked = {"clean": late.of_images([own, names, "clean"], undamaged(tested, early))}
    else:
        formed, rows, asked = features(suite, own, whole, late, early)
    more = {kind: late.of_images([own, names, kind, 1], estranged(tested, kind, early)) for kind in (*GRADED, *SITES)}
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


def left_out(native: Vectors, label: np.ndarray, seed: int, *, brief: bool) -> Iterator[Scores]:
    """Scores with each cluster in turn left out of the fit and called strange."""
    for cluster in range(CLUSTERS):
        inside, outside = np.flatnonzero(label != cluster), np.flatnonzero(label == cluster)
        if len(outside) < FEWEST:
            continue
        order = np.random.default_rng(seed).permutation(inside)
        first, second = round(0.5 * len(order)), round(0.7 * len(order))
        asked = {"own": signals(native, order[second:]), "out": signals(native, outside)}
        yield every_form(own_layers(native), order[:first], order[first:second], {k: own_layers(v) for k, v in asked.items()}, brief=brief)


def judged(task: Task) -> Evidence:
    """What the in-distribution images of one set say under one encoder."""
    suite, encoder, other = suite_of(), open_encoder(task.encoder), open_encoder(task.beside)
    plan, evidence, own = recipes.read(recipes.STANDARD), Evidence(), task.own
    steps, beside = plan.preparation(encoder.input.size), plan.preparation(other.input.size)
    early, after = halves(steps)
    whole = Extractor(encoder, steps, jobs=1)
    formed, rows, asked = strange(suite, own, whole, Extractor(encoder, after, jobs=1), early, brief=task.brief)
    for seed in range(101, 101 + task.seeds):
        order = np.random.default_rng(seed).permutation(rows)
        cut = round(0.7 * len(order))
        scores = every_form(own_layers(formed), order[:cut], order[cut:], asked, brief=task.brief)
        for family, kinds in (BRIEF if task.brief else FAMILIES).items():
            evidence.add((own, family), scores, "clean", kinds, np.random.default_rng(seed))
    native = whole.of_files(suite.files(own))
    for label in clusters(native, Extractor(other, beside, jobs=1).of_files(suite.files(own))):
        for seed in range(101, 101 + task.cluster_seeds):
            for scores in left_out(native, label, seed, brief=task.brief):
                evidence.add((own, "cluster"), scores, "own", ("out",), np.random.default_rng(seed))
    return evidence


def compared(task: Task) -> Evidence:
    """Near and far AUROC of every form for one in-distribution set; near pairs with replicates."""
    suite, encoder, evidence = suite_of(), open_encoder(task.encoder), Evidence()
    whole = Extractor(encoder, recipes.read(recipes.STANDARD).preparation(encoder.input.size), jobs=1)
    native = {name: whole.of_files(suite.files(name)) for name in suite.sets}
    data = Data(native, {task.own: whole.of_files(suite.files(task.own), form_seed=0)})
    one = replace(suite, ids=tuple(given for given in suite.ids if given.set == task.own))
    counts = {name: drawn(name, len(suite.files(name))) for name in suite.others(task.own)}
    mine = drawn(f"own {task.own}", len(suite.files(task.own)))
    for own, test, source, rows, held, asked in runs(one, data, task.seeds, forms=True):
        for form, found in every_form(own_layers(source), rows, held, asked, brief=task.brief).items():
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


def table(suite: Suite, evidence: Evidence) -> list[dict[str, object]]:
    """One row a form, the best mean rank first."""
    forms = list(next(iter(evidence.cells.values())))
    means = {place: np.array([np.mean(found[form], axis=0) for form in forms]) for place, found in evidence.cells.items()}
    ranks = np.mean([rankdata(-value[:, 0]) for value in means.values()], axis=0)
    before = forms.index(SHIPPED_BEFORE)
    by_set = np.stack([np.mean([v[:, 0] for (own, _), v in means.items() if own == name], axis=0) for name in suite.own])
    drawn_sets = np.random.default_rng(0).integers(len(by_set), size=(2000, len(by_set)))
    resampled = by_set[drawn_sets].mean(axis=1)
    rows = []
    for i, form in enumerate(forms):
        total = np.mean([value[i] for value in means.values()], axis=0)
        low, high = metrics.interval(total[1:])
        found = {family: np.mean([v[i, 0] for (_, f), v in means.items() if f == family]) for family in sorted({f for _, f in means})}
        line: dict[str, object] = {"form": form, "rank": ranks[i], "auroc": total[0], "auroc_lo": low, "auroc_hi": high, **found}
        line |= {
            "above_before": float((resampled[:, i] > resampled[:, before]).mean()),
            "sets_above": f"{int((by_set[:, i] > by_set[:, before]).sum())} of {len(by_set)}",
        }
        rows.append(line | outside(suite, evidence, form))
    return sorted(rows, key=lambda row: float(str(row["rank"])))


def outside(suite: Suite, evidence: Evidence, form: str) -> dict[str, object]:
    """Near and far of one form, and its paired differences."""
    kinds = {(own, other): kind for own in suite.own for other, kind in suite.others(own).items()}
    mean = {key: np.mean(found[form], axis=0) for key, found in evidence.pairs.items()}
    if not mean:
        return {}
    near = [key for key in mean if kinds[key] == "near"]
    far = [float(mean[key][0]) for key in mean if kinds[key] == "far"]
    total = np.mean([mean[key] for key in near], axis=0)
    low, high = metrics.interval(total[1:])
    line: dict[str, object] = {"near": total[0], "near_lo": low, "near_hi": high, "far": np.mean(far), "worst_far": min(far)}
    for other, short in ((SHIPPED_BEFORE, "before"), ("mahalanobis", "mahalanobis")):
        gap = total - np.mean([np.mean(evidence.pairs[key][other], axis=0) for key in near], axis=0)
        low, high = metrics.interval(gap[1:])
        line |= {f"minus_{short}": gap[0], f"minus_{short}_lo": low, f"minus_{short}_hi": high}
    return line | {f"near.{other}": mean[own, other][0] for own, other in near}


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="builtin")
    parser.add_argument("--beside", default="builtin", help="encoder whose deepest layer makes clusters; best another one")
    parser.add_argument("--seeds", type=int, default=5, help="divisions for near and far sets")
    parser.add_argument("--judge-seeds", type=int, default=3, help="divisions for damaged images")
    parser.add_argument("--cluster-seeds", type=int, default=1)
    parser.add_argument("--brief", action="store_true", help="fewer forms and kinds of damage, for an encoder that takes long")
    parser.add_argument("--judge-only", action="store_true", help="in-distribution images only: no near or far set is read")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    made, suite, evidence = Made.now(), suite_of(), Evidence()
    first = Task(args.encoder, "", args.beside, args.judge_seeds, args.cluster_seeds, judge=True, brief=args.brief)
    tasks = [replace(first, own=own) for own in suite.own]
    if not args.judge_only:
        tasks += [replace(task, seeds=args.seeds, judge=False) for task in tasks]
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for found in pool.map(work, tasks):
            evidence.cells.update(found.cells)
            evidence.pairs.update(found.pairs)
    rows, name = table(suite, evidence), folder_of(args.encoder)
    write_csv(args.out / f"multilayer_{name}.csv", rows)
    short = [{key: value for key, value in row.items() if not key.startswith("near.")} for row in rows]
    write_markdown(args.out / f"multilayer_{name}.md", f"Forms of the multi-layer detector, {name}", markdown(short), made)
    print("\n".join(markdown([{k: row[k] for k in ("form", "rank", "auroc", "above_before")} for row in rows[:20]])))


if __name__ == "__main__":
    main()
