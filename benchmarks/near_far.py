"""How well the gate separates near and far sets: suite near-far v1, every label-free detector, with and without each means.

    python benchmarks/near_far.py --encoder builtin
    python benchmarks/near_far.py --encoder hub:../shared/weights/mobilenet_v2_imagenet

Nothing is fitted, standardised or chosen on anything but in-distribution images. Fit and held-out images have a random file form
(unless the row says otherwise); test images and all other sets are read as they are.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from features import Extractor, Vectors, folder_of, without
from layers import REDUCTIONS, Choice, combined, fit, parts, scored, subsets
from results import Made, markdown, write_csv, write_markdown

from offmap.benchmark import metrics
from offmap.benchmark.suite import Suite, read_suite
from offmap.core import registry
from offmap.core.detector import Detector, missing
from offmap.datasets import local
from offmap.pipeline import recipe as recipes
from offmap.pipeline.recipe import Recipe
from offmap.represent.open import open_encoder
from offmap.score.multilayer_mahalanobis import MultilayerMahalanobis

FORM_SEED = 0
REPEATS = 1000
Key = tuple[str, str]
"""In-distribution set, other set."""


@dataclass
class Row:
    """One line of the table: what was run, and for each pair and seed the scores of both sides."""

    method: str
    layers: str
    forms: bool
    low_pass: bool
    default: bool = False
    scores: dict[Key, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = field(default_factory=dict)

    def add(self, own: str, test: np.ndarray, found: Mapping[str, np.ndarray], others: Mapping[str, str]) -> None:
        """Keep the scores of one seed."""
        for other in others:
            self.scores.setdefault((own, other), []).append((test, found["own"], found[other]))


@dataclass
class Data:
    """Features of all sets under one preparation."""

    native: Mapping[str, Vectors]
    formed: Mapping[str, Vectors]


def read(suite: Suite, extractor: Extractor) -> Data:
    """Features of every set as it is, and of in-distribution sets in a random form."""
    native = {name: extractor.of_files(suite.files(name)) for name in suite.sets}
    formed = {name: extractor.of_files(suite.files(name), form_seed=FORM_SEED) for name in suite.own}
    return Data(native, formed)


def runs(
    suite: Suite, data: Data, seeds: int, *, forms: bool
) -> Iterator[tuple[str, np.ndarray, Vectors, np.ndarray, np.ndarray, dict[str, Vectors]]]:
    """For each set and seed: its name, test rows, fit features, fit rows, held-out rows, and what is scored."""
    for own in suite.own:
        source = data.formed[own] if forms else data.native[own]
        for seed in suite.seeds[:seeds]:
            division = suite.divide(suite.items(own), seed)
            test = {name: value[torch.from_numpy(division.test)] for name, value in data.native[own].items()}
            asked = {"own": test, **{other: data.native[other] for other in suite.others(own)}}
            yield own, division.test, source, division.fit, division.held_out, asked


def reductions(suite: Suite, data: Data, layers: tuple[str, ...], plan: Recipe, seeds: int, *, forms: bool, low_pass: bool) -> list[Row]:
    """Every reduction over every choice of layers; the default's row is checked against the detector itself on each first seed."""
    choices = {(r, name): Choice(r, subset) for name, subset in subsets(layers).items() for r in REDUCTIONS}
    rows = {key: Row(f"multilayer {key[0]}", key[1], forms, low_pass) for key in choices}
    chosen = next(iter(plan.parts.values()))
    default = default_of(chosen, layers)
    checked: set[str] = set()
    for own, test, source, fit_rows, held, asked in runs(suite, data, seeds, forms=forms):
        found = parts(source, fit_rows, held, asked, chosen if isinstance(chosen, MultilayerMahalanobis) else None)
        made = {key: combined(found, layers, choice) for key, choice in choices.items()}
        for key, scores in made.items():
            rows[key].add(own, test, scores, suite.others(own))
        if default in made and own not in checked:
            same(scored(fit(chosen, source, fit_rows, held), asked["own"]), made[default]["own"])
            checked.add(own)
    if default in rows:
        rows[default].default = True
    return list(rows.values())


def same(detector: np.ndarray, parts_of_it: np.ndarray) -> None:
    """Refuse a table whose parts do not add up to the detector.

    Raises:
        SystemExit: the largest difference is above a hundredth of a standard deviation.
    """
    worst = float(np.abs(detector - parts_of_it).max())
    if worst > 1e-2:
        raise SystemExit(f"the parts do not add up to the detector: they differ by {worst} standard deviations")


def default_of(chosen: Detector, layers: tuple[str, ...]) -> tuple[str, str]:
    """Reduction and layers of the recipe's detector, as this table names them."""
    if not isinstance(chosen, MultilayerMahalanobis):
        return "", ""
    read = chosen.layers or layers[min(chosen.skip, len(layers) - 1) :]
    return chosen.reduction, next((name for name, subset in subsets(layers).items() if subset == read), "")


def detectors(provides: frozenset[str], asked: str) -> dict[str, Detector]:
    """Every other detector of the registry that needs nothing but features, or those that were asked for."""
    found = {name: cls() for name, cls in registry.load_all("score", Detector).items() if cls is not MultilayerMahalanobis}
    have = {name for name in provides if name.startswith("features.") and name != "features.penultimate"}
    wanted = asked.split(",") if asked else list(found)
    return {name: d for name, d in found.items() if name in wanted and not missing(d.needs | d.fit_needs, have)}


def single(suite: Suite, data: Data, name: str, detector: Detector, seeds: int) -> Row:
    """One detector with its defaults."""
    row = Row(name, "last", True, True)
    for own, test, source, fit_rows, held, asked in runs(suite, data, seeds, forms=True):
        fitted = fit(detector, source, fit_rows, held)
        row.add(own, test, {key: scored(fitted, given) for key, given in asked.items()}, suite.others(own))
    return row


@dataclass(frozen=True)
class Weights:
    """How often each image of each set is drawn in each bootstrap sample; the same for all rows of a table."""

    own: Mapping[str, np.ndarray]
    other: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, suite: Suite, data: Data) -> "Weights":
        """Drawn once, seed 0."""
        rng = np.random.default_rng(0)
        counts = {name: len(next(iter(v.values()))) for name, v in data.native.items()}
        own = {name: metrics.resampled(counts[name], repeats=REPEATS, rng=rng) for name in suite.own}
        return cls(own, {name: metrics.resampled(count, repeats=REPEATS, rng=rng) for name, count in counts.items()})


def pair_tables(row: Row, suite: Suite, weights: Weights) -> tuple[dict[Key, list[float]], dict[Key, np.ndarray]]:
    """AUROC of each pair and seed, and the bootstrap replicates of its mean over seeds."""
    values = {key: [metrics.auroc(own, other) for _, own, other in found] for key, found in row.scores.items()}
    samples = {
        key: np.mean([metrics.auroc_replicates(a, b, weights.own[key[0]][:, test], weights.other[key[1]]) for test, a, b in found], axis=0)
        for key, found in row.scores.items()
    }
    return values, samples


def summary(row: Row, suite: Suite, weights: Weights, encoder: str) -> tuple[dict[str, object], list[dict[str, object]]]:
    """The row of the summary, and its tidy rows (one a pair)."""
    values, samples = pair_tables(row, suite, weights)
    kinds = {(own, other): kind for own in suite.own for other, kind in suite.others(own).items()}
    near, far = ([key for key in values if kinds[key] == kind] for kind in ("near", "far"))
    by_seed = np.mean([values[key] for key in near], axis=0)
    low, high = metrics.interval(np.mean([samples[key] for key in near], axis=0))
    far_low, far_high = metrics.interval(np.mean([samples[key] for key in far], axis=0))
    worst = min(far, key=lambda key: float(np.mean(values[key])))
    what = {
        "encoder": encoder,
        "method": row.method,
        "layers": row.layers,
        "default": row.default,
        "random_form": row.forms,
        "low_pass": row.low_pass,
    }
    line = {
        **what,
        "near": by_seed.mean(),
        "near_lo": low,
        "near_hi": high,
        "near_sd": by_seed.std(ddof=1) if len(by_seed) > 1 else 0.0,
        "far": np.mean([values[key] for key in far]),
        "far_lo": far_low,
        "far_hi": far_high,
        "worst": np.mean(values[worst]),
        "worst_pair": "/".join(worst),
        **{f"near.{other}": np.mean(values[own, other]) for own, other in near},
    }
    return line, [{**what, **tidy(key, kinds[key], row.scores[key], values[key], samples[key])} for key in values]


def tidy(
    key: Key, kind: str, found: list[tuple[np.ndarray, np.ndarray, np.ndarray]], values: list[float], sample: np.ndarray
) -> dict[str, object]:
    """One pair, mean over seeds."""
    low, high = metrics.interval(sample)
    names = ("aupr_in", "aupr_out", "fpr95_ood_positive", "fpr95_id_positive")
    others = {name: np.mean([getattr(metrics, name)(own, other) for _, own, other in found]) for name in names}
    sizes = {"seeds": len(found), "n_id": len(found[0][1]), "n_other": len(found[0][2])}
    return {
        "id_set": key[0],
        "other_set": key[1],
        "kind": kind,
        **sizes,
        "auroc": np.mean(values),
        "auroc_lo": low,
        "auroc_hi": high,
        **others,
    }


def everything(
    suite: Suite, plan: Recipe, encoder_name: str, seeds: int, jobs: int, methods: str
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """All rows of one encoder, and the tidy rows of its default gate."""
    encoder = open_encoder(encoder_name)
    lines, pairs, weights = [], [], None
    for low_pass in (True, False):
        steps = plan if low_pass else without(plan, "detail")
        data = read(suite, Extractor(encoder, steps.preparation(encoder.input.size), jobs))
        weights = weights or Weights.of(suite, data)
        rows = [r for forms in (True, False) for r in reductions(suite, data, encoder.layers, plan, seeds, forms=forms, low_pass=low_pass)]
        if low_pass:
            rows += [single(suite, data, name, d, seeds) for name, d in detectors(encoder.provides, methods).items()]
        for row in rows:
            line, found = summary(row, suite, weights, folder_of(encoder_name))
            lines.append(line)
            pairs += found if row.default and row.forms else []
            means = " ".join(f"{name} {float(str(line[name])):.4f}" for name in ("near", "far", "worst"))
            print(f"  {row.method:28s} {row.layers:24s} forms {row.forms!s:5} low-pass {low_pass!s:5} {means}", flush=True)
    return lines, pairs


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, default=None, help="suite file; default near-far-v1.toml of the local data")
    parser.add_argument("--encoder", default="builtin")
    parser.add_argument("--recipe", default=recipes.STANDARD)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", default="", help="other detectors, separated by commas; default all label-free ones")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    root = local.find()
    suite = read_suite(args.suite or (root or Path()) / "near-far-v1.toml")
    plan = recipes.read(args.recipe, dict(s.split("=", 1) for s in args.set))
    made = Made.now()
    lines, pairs = everything(suite, plan, args.encoder, args.seeds, args.jobs, args.methods)
    name = f"near_far_{folder_of(args.encoder)}"
    write_csv(args.out / f"{name}.csv", lines)
    write_csv(args.out / f"{name}_pairs.csv", pairs)
    shown = sorted(lines, key=lambda line: (not line["default"], -float(str(line["near"]))))
    write_markdown(args.out / f"{name}.md", f"near-far v1, {folder_of(args.encoder)}", markdown(shown), made)


if __name__ == "__main__":
    main()
