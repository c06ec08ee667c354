"""MECAM's protocol: networks with four exits trained from scratch, and every detector that runs on them.

    python benchmarks/mecam.py
    python benchmarks/mecam.py --depth 50 --seeds 1 --sets brain
    python benchmarks/mecam.py --sets histology --seeds 1 --epochs 2 --folder /tmp/short      (a trial of the script)

Each division of each set of classes trains a network of its own on its fit part, a share of which chooses the checkpoint. Further rows
are of the same training: ``mecam, checkpoint chosen on the test images`` is what the paper's code does, and ``mecam, exits added
afterwards`` has linear exits fitted on the frozen network. Networks and trials stay in ``--folder``;
run again, it goes on where it stopped.
"""

import argparse
import copy
import json
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import Made, markdown, read_csv, write_csv, write_markdown
from safetensors.torch import load_file, save_file
from torch import Tensor

from offmap.benchmark.classifier import codes
from offmap.benchmark.plan import Method, choose, needs_of
from offmap.benchmark.results import Results, evaluate
from offmap.benchmark.run import Bench, Own
from offmap.benchmark.setup import Setup
from offmap.benchmark.suite import Suite, read_suite
from offmap.benchmark.summary import summarise
from offmap.core.encoder import Encoder, Input
from offmap.pipeline import recipe as recipes
from offmap.pipeline.cache import root
from offmap.pipeline.stream import Stream
from offmap.represent.multi_exit import WithExits, train_exits
from offmap.represent.nets.multi_exit import MultiExitResNet
from offmap.represent.train.multi_exit import ExitPlan, train_multi_exit, with_own_exits

SPEC = Input(96, 3, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
HERE = Path(__file__).parent
TEST_CHOSEN, ADDED = "mecam, checkpoint chosen on the test images", "mecam, exits added afterwards"
ONE_PASS = (
    *("msp", "entropy", "max_logit", "energy", "gen", "temperature_scaling", "kl_matching", "openmax", "gradnorm", "she", "react", "ash_s"),
    *("scale", "vra", "nnguide", "fdbd", "neco", "vim", "residual", "knn", "mahalanobis", "mahalanobis_pp", "relative_mahalanobis"),
    *("multilayer_mahalanobis", "mm_pp", "gmm", "laplace_entropy", "laplace_mutual_information"),
)
FURTHER = ("odin", "mecam")
"""Methods that are compared; forms of MECAM are those of the recipe."""


def main() -> None:
    """Train, score, write."""
    args = arguments()
    made, suite = Made.now(), read_suite("mecam-local", args.data)
    plan = ExitPlan(epochs=args.epochs, batch=args.batch, balanced=True, precision=args.precision, augment=args.augment)
    folder = args.folder or root() / "benchmarks" / f"mecam_{args.depth}"
    asked = args.sets.split(",") if args.sets else list(suite.own)
    results, networks, kinds = Results(), list[dict[str, Any]](), {}
    parts = {own: replace(suite, ids=(suite.in_distribution(own),)) for own in asked}
    divisions = {own: divided(part, folder / own / "division", args.seeds) for own, part in parts.items()}
    for seed in suite.seeds[: args.seeds]:
        for own, part in parts.items():
            cell = Cell(part, own, seed, plan, args.depth, folder / own / str(seed), divisions[own])
            networks.append(cell.train())
            kinds |= {(own, other): kind for other, kind in cell.bench.setup.others(own).items()}
            for found in cell.compare():
                join(results, found)
            print(json.dumps(networks[-1]), flush=True)
    write(results, kinds, networks, args.depth, args.out, made)


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--depth", type=int, default=18, choices=(18, 50))
    parser.add_argument("--sets", default="", help="in-distribution sets; all if not given")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--augment", default="light", choices=("light", "strong"))
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    return parser.parse_args()


def setup_of(suite: Suite, encoder: Encoder, methods: tuple[Method, ...], folder: Path, seeds: Iterable[int]) -> Setup:
    """What all parts of this benchmark have in common."""
    return Setup(suite, folder, encoder, recipes.read(str(HERE / "recipes" / "mecam.toml")), methods, tuple(seeds), jobs=2)


def divided(suite: Suite, folder: Path, seeds: int) -> Bench:
    """The divisions of a set, copies kept in one part, with a network that knows nothing."""
    blank = with_own_exits(MultiExitResNet(2, width=1), SPEC)
    bench = Bench(setup_of(suite, blank, choose(["intensity"], blank), folder, suite.seeds[:seeds]))
    bench.run()
    return bench


class Cell:
    """One set, one division: its network and what is measured on it."""

    def __init__(self, suite: Suite, own: str, seed: int, plan: ExitPlan, depth: int, folder: Path, bench: Bench) -> None:
        self.suite, self.own, self.seed, self.plan, self.depth, self.folder, self.bench = suite, own, seed, plan, depth, folder, bench
        self.classes = len(suite.classes(own))
        self.division = bench.divisions[own, seed]

    def images(self, part: np.ndarray) -> tuple[Tensor, Tensor]:
        """Prepared images of a part with their classes."""
        setup, items = self.bench.setup, self.suite.items(self.own)
        names = {items[i].name: i for i in part}
        steps, needs = setup.reading(frozenset()).preparation, frozenset({"image"})
        found = list(Stream(setup.encoder, steps, needs, jobs=2, use_cache=False).over([items[i].source for i in part]))
        at = [names[image.item] for batch in found for image in batch.images]
        numbers, _ = codes([item.label for item in items])
        images = [batch.signals["image"].expand(-1, SPEC.channels, -1, -1) for batch in found if batch.images]
        return torch.cat(images), torch.from_numpy(numbers[at])

    def train(self) -> dict[str, Any]:
        """Train or load; what there is to say of the network."""
        self.net, self.peeked = (MultiExitResNet(self.classes, depth=self.depth) for _ in range(2))
        files = [self.folder / f"{name}.safetensors" for name in ("net", "peeked")]
        if not all(file.exists() for file in files):
            self._train(files)
        self.net.load_state_dict(load_file(files[0]))
        self.peeked.load_state_dict(load_file(files[1]))
        self.net.eval()
        self.peeked.eval()
        told: dict[str, Any] = json.loads((self.folder / "training.json").read_text(encoding="utf-8"))
        return told

    def _train(self, files: list[Path]) -> None:
        images, labels = self.images(self.division.fit)
        test, truth = self.images(self.division.test)
        best = {"area": -1.0, "epoch": -1, "accuracy": []}
        peeked: dict[str, Tensor] = {}

        def watch(epoch: int, net: MultiExitResNet) -> None:
            """What choosing on the test images would keep."""
            chances = probabilities(net, test)
            value = macro_area(chances, truth)
            best["accuracy"].append(balanced(chances, truth))
            if value >= best["area"]:
                best["area"], best["epoch"] = value, epoch
                peeked.update(copy.deepcopy(net.state_dict()))

        start = time.perf_counter()
        found = train_multi_exit(images, labels, self.plan, spec=SPEC, depth=self.depth, seed=self.seed, watch=watch)
        seconds = time.perf_counter() - start
        self.folder.mkdir(parents=True, exist_ok=True)
        for file, state in zip(files, (found.net.state_dict(), peeked), strict=True):
            save_file({name: value.contiguous() for name, value in state.items()}, file)
        told = {
            "set": self.own,
            "seed": self.seed,
            "classes": self.classes,
            "images": len(images),
            "epochs": self.plan.epochs,
            "kept": found.epoch,
            "kept_by_test": best["epoch"],
            "seconds": round(seconds, 1),
            "area": macro_area(probabilities(found.net, test), truth),
            "accuracy": best["accuracy"][found.epoch],
        }
        (self.folder / "training.json").write_text(json.dumps(told), encoding="utf-8")

    def compare(self) -> Iterable[Results]:
        """Every detector on the network, and MECAM on its two variants."""
        recipe = recipes.read(str(HERE / "recipes" / "mecam.toml"))
        own = with_own_exits(self.net, SPEC)
        yield self._run(own, choose((*ONE_PASS, *FURTHER, *recipe.parts), own, recipe=recipe), self.folder / "own", {})
        only = choose(["mecam"], own)
        yield self._run(with_own_exits(self.peeked, SPEC), only, self.folder / "peeked", {"mecam": TEST_CHOSEN})
        images, labels = self.images(self.division.fit)
        added = WithExits(own.base, train_exits(own.base, [(images, labels)], layers=own.exits.layers))
        yield self._run(added, only, self.folder / "added", {"mecam": ADDED})

    def _run(self, encoder: Encoder, methods: tuple[Method, ...], folder: Path, names: dict[str, str]) -> Results:
        """As ``Bench.run``, but that images to fit on are seen as they are, so that each image is read once for fitting and scoring."""
        methods = tuple(method for method in methods if method.reads == "vectors")
        setup = setup_of(self.suite, encoder, methods, folder, [self.seed])
        bench = Bench(setup, divisions={(self.own, self.seed): self.division})
        needs = needs_of(methods, encoder.provides, fit=True)[0] | needs_of(methods, encoder.provides, fit=False)[0]
        for name in (self.own, *setup.others(self.own)):
            reading, items = setup.reading(needs), self.suite.items(name)
            bench.sets[name] = reading.known(name, items) or reading.encode(name, items)
        bench.formed[self.own] = bench.sets[self.own]
        labels = tuple(item.label for item in self.suite.items(self.own))
        bench._vector_trials(Own(self.own, bench.sets[self.own], labels, None))
        return renamed(evaluate(bench), names)


def probabilities(net: MultiExitResNet, images: Tensor) -> Tensor:
    """Of the last exit."""
    with torch.no_grad():
        return torch.cat([net(part).double().softmax(dim=1) for part in images.split(64)])


def macro_area(chances: Tensor, truth: Tensor) -> float:
    """One-against-the-rest AUROC."""
    from offmap.benchmark.metrics import auroc

    return float(np.mean([auroc(chances[truth != k, k].numpy(), chances[truth == k, k].numpy()) for k in truth.unique()]))


def balanced(chances: Tensor, truth: Tensor) -> float:
    """Balanced accuracy."""
    right = chances.argmax(dim=1) == truth
    return float(np.mean([float(right[truth == k].double().mean()) for k in truth.unique()]))


def renamed(results: Results, names: dict[str, str]) -> Results:
    """Rows of the methods that are named, under their new names; all rows where none is named."""
    if not names:
        return results
    rows = [{**row, "method": names[row["method"]]} for row in results.rows if row["method"] in names]
    samples = {(names[name], pair): value for (name, pair), value in results.samples.items() if name in names}
    return Results(rows, samples, {(names[name], pair): value for (name, pair), value in results.values.items() if name in names})


def join(into: Results, other: Results) -> None:
    """Add the results of another division; resamples are averaged over divisions."""
    into.rows += other.rows
    for key, values in other.values.items():
        seen = into.values.setdefault(key, [])
        before = into.samples.get(key, np.zeros_like(other.samples[key]))
        seen += values
        into.samples[key] = before + (other.samples[key] - before) * len(values) / len(seen)


def write(results: Results, kinds: dict[Any, str], networks: list[dict[str, Any]], depth: int, out: Path, made: Made) -> None:
    """Tables: one line a method, one a network, and each form of MECAM on each pair."""
    lines = summarise(results, kinds)
    name = f"mecam_resnet{depth}"
    fpr = fpr_means(results, kinds)
    for line in lines:
        line |= fpr.get(line["method"], {})
    columns = ("method", "far", "far_lo", "far_hi", "near", "near_lo", "near_hi", "far_fpr95_id_positive", "far_fpr95_ood_positive")
    columns += ("far_worst", "far_worst_pair", "passes", "score_ms_per_item")
    table = sorted(({c: line.get(c, "") for c in columns} for line in lines), key=lambda line: -float(line["far"] or 0))
    pairs = by_pair(results)
    write_csv(out / f"{name}.csv", table)
    write_csv(out / f"{name}_networks.csv", networks)
    write_csv(out / f"{name}_pairs.csv", pairs)
    shown = [{k: v for k, v in row.items() if k in ("method", *columns[1:9], "passes")} for row in table]
    body = ["## Networks", "", *markdown(networks), "", "## Methods, means over pairs", "", *markdown(shown)]
    body += ["", "## MECAM's forms on each pair: AUROC, mean over divisions", "", *markdown(pairs)]
    write_markdown(out / f"{name}.md", f"MECAM's protocol, ResNet-{depth} at 96 pixels", body, made)
    if not read_csv(out / f"{name}.csv"):
        raise SystemExit("nothing was measured")


def fpr_means(results: Results, kinds: dict[Any, str]) -> dict[str, dict[str, float]]:
    """Both false positive rates, mean over far pairs and divisions."""
    found: dict[str, dict[str, float]] = {}
    for method in {row["method"] for row in results.rows if row["status"] == "ok"}:
        rows = [r for r in results.rows if r["method"] == method and r["status"] == "ok" and kinds[r["id_set"], r["other_set"]] == "far"]
        found[method] = {f"far_{m}": float(np.mean([r[m] for r in rows])) for m in ("fpr95_id_positive", "fpr95_ood_positive") if rows}
    return found


def by_pair(results: Results) -> list[dict[str, Any]]:
    """Each form of MECAM, and what it is compared with most often."""
    pairs = list(dict.fromkeys(pair for _, pair in results.values))
    rows = []
    for pair in pairs:
        row: dict[str, Any] = {"id": pair[0], "other": pair[1]}
        for method in dict.fromkeys(name for name, its in results.values if its == pair):
            if method.startswith("mecam") or method in ("msp", "energy", "mahalanobis", "knn"):
                row[method] = float(np.mean(results.values[method, pair]))
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
