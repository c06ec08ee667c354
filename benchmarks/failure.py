"""The example of docs/how-to/when-will-it-fail.md: a classifier of chest X-rays, its predictions, a gate's scores, and the evaluation.

    python benchmarks/failure.py

Bound and probability are fixed here, before anything is looked at. ``predictions.csv``, ``scores.csv``, the gate and the evaluation stay in
``--folder``, so that `offmap evaluate` and `offmap explain` can be run on them again.
"""

import argparse
import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from results import Made, markdown, write_csv, write_markdown

import offmap
from offmap.benchmark.classifier import Head, train_head
from offmap.core.encoder import Encoder
from offmap.datasets import local
from offmap.decide.abstain import LearnThenTest
from offmap.pipeline import recipe as recipes
from offmap.pipeline.cache import root as cache
from offmap.pipeline.evaluate import Evaluation
from offmap.pipeline.gate import Gate
from offmap.pipeline.inputs import paths
from offmap.pipeline.stream import Stream
from offmap.represent.encoder import BuiltinEncoder
from offmap.represent.probe import probed

RISK, PROBABILITY, SEED = 0.1, 0.9, 0
PARTS = {"train": (300, 100), "validation": (300, 100), "test": (300, 100)}
"""Normal and pneumonia X-rays of children in each part."""

TIGHT = 0.05
"""A bound that the classifier breaks where all its answers are accepted, for the check of the promise."""

DRAWS = 200
File = tuple[Path, str]


def files(images: Path) -> dict[str, list[File]]:
    """Files with their labels by part; the children's at random, all of the adults."""
    rng, out = np.random.default_rng(SEED), {name: list[File]() for name in PARTS}
    for k, label in enumerate(("normal", "pneumonia")):
        found = sorted((images / "kermany" / label).glob("*.jpg"))
        order, first = rng.permutation(len(found)).tolist(), 0
        for name, counts in PARTS.items():
            out[name] += [(found[i], label) for i in order[first : first + counts[k]]]
            first += counts[k]
    adults = [("no_finding", "normal"), ("pneumonia", "pneumonia")]
    return out | {"nih": [(path, label) for folder, label in adults for path in sorted((images / "nih" / folder).glob("*.jpg"))]}


def classifier(train: Sequence[File]) -> Encoder:
    """A logistic head on the built-in encoder."""
    base = BuiltinEncoder.shipped()
    stream = Stream(base, recipes.read().preparation(base.input.size), frozenset({"feature_map.last"}), jobs=0, use_cache=False)
    sources = paths([str(path) for path, _ in train], volumes=False).sources
    features = torch.cat([batch.signals["feature_map.last"].mean(dim=(2, 3)) for batch in stream.over(sources)])
    labels = [label for _, label in train]
    head: Head = train_head(features, labels, features, labels)
    return probed(base, head.weight, head.bias, class_names=head.classes)


def predict(gate: Gate, parts: Mapping[str, Sequence[File]], out: Path) -> None:
    """Predictions of every image that was not trained on, in the gate's own preparation."""
    stream = replace(gate.stream(0, use_cache=False), needs=frozenset({"logits"}))
    names = gate.encoder.class_names
    with out.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "label", *(f"prob.{name}" for name in names), "split", "ood"])
        for part, few in parts.items():
            if part == "train":
                continue
            sources = paths([str(path) for path, _ in few], volumes=False).sources
            chances = torch.cat([batch.signals["logits"] for batch in stream.over(sources)]).double().softmax(dim=1).tolist()
            for (path, label), row in zip(few, chances, strict=True):
                table.writerow([path, label, *(f"{p:.8f}" for p in row), part, int(part == "nih")])


def kept_bounds(predictions: Path) -> list[dict[str, object]]:
    """How often the promise is broken over 200 draws, on the validation and test images together, which are one population."""
    with predictions.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] in ("validation", "test")]
    chances = np.array([[float(row["prob.normal"]), float(row["prob.pneumonia"])] for row in rows])
    surer = chances.max(axis=1)
    loss = np.array([float(("normal", "pneumonia")[k] != row["label"]) for k, row in zip(chances.argmax(axis=1), rows, strict=True)])
    out, n = list[dict[str, object]](), len(rows)
    for risk, testing in ((risk, testing) for risk in (RISK, TIGHT) for testing in ("fixed_sequence", "bonferroni")):
        rule = LearnThenTest(risk=risk, probability=PROBABILITY, testing=testing)
        for way in ("400 drawn with replacement, risk on all", "random halves, risk on the other half"):
            rng, broken, covered = np.random.default_rng(SEED), 0, list[float]()
            for _ in range(DRAWS):
                order = rng.permutation(n)
                own, rest = (rng.integers(0, n, n // 2), np.arange(n)) if way.startswith("400") else (order[: n // 2], order[n // 2 :])
                taken = rule.choose(surer[own], loss[own], generator=rng).accepts(surer[rest])
                broken += bool(taken.any()) and float(loss[rest][taken].mean()) > risk
                covered.append(float(taken.mean()))
            shares = {"broken": broken / DRAWS, "stated at most": 1 - PROBABILITY, "mean coverage": float(np.mean(covered))}
            out.append(
                {
                    "bound": risk,
                    "testing": testing,
                    "draws": f"{DRAWS} x {way}",
                    **shares,
                    "nothing accepted": float(np.mean(np.array(covered) == 0)),
                }
            )
    return out


def told(found: Evaluation, gate: Gate, scores: Path) -> list[str]:
    """Every number that the page cites."""
    report = found.report
    lines = ["```", report.title, *report.sentences, *(f"Note: {text}" for text in report.warnings), "```", ""]
    for split in ("test", "nih"):
        for confidence in ("max_probability", "score"):
            augrc = found.metric("augrc", confidence, stratum="split", value=split)
            error = found.metric("error", confidence, stratum="split", value=split)
            lines.append(
                f"- {split}, {confidence}: AUGRC {augrc.value:.3f} ({augrc.low:.3f} to {augrc.high:.3f}), wrong {100 * error.value:.1f} %"
            )
    verdicts = {"test": Counter[str](), "nih": Counter[str]()}
    with scores.open(encoding="utf-8") as file:
        for row, split in zip(csv.DictReader(file), (e for e in ["validation"] * 400 + ["test"] * 400 + ["nih"] * 500), strict=True):
            if split in verdicts:
                verdicts[split][row["verdict"]] += 1
    lines += [f"- verdicts of the gate on {split}: {dict(sorted(counts.items()))}" for split, counts in verdicts.items()]
    rows = [
        {
            "split": e.split,
            "method": e.method,
            "confidence": e.confidence,
            "estimate": f"{e.measure.value:.2f} ({e.measure.low:.2f} to {e.measure.high:.2f})",
        }
        | {"truth": "" if e.truth is None else f"{e.truth.value:.2f}"}
        for e in report.estimates
    ]
    return [*lines, "", *markdown(rows)]


def main() -> None:
    """Train, predict, score, evaluate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=None, help="of tables, gate and evaluation; a folder of the cache if not given")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    data = local.find()
    if data is None or not all((data / "images" / name).is_dir() for name in ("kermany", "nih")):
        raise SystemExit("no images of kermany and nih: set OFFMAP_DATA to a folder with images/kermany/normal and so on")
    made, folder = Made.now(), args.folder or cache() / "benchmarks" / "failure"
    folder.mkdir(parents=True, exist_ok=True)
    parts = files(data / "images")
    encoder = classifier(parts["train"])
    gate = offmap.fit([str(path) for path, _ in parts["train"]], encoder=encoder, keep_neighbours=True, jobs=0, seed=SEED)
    gate.save(folder / "gate")
    predict(gate, parts, folder / "predictions.csv")
    gate.score_to([str(path) for name, few in parts.items() if name != "train" for path, _ in few], folder / "scores.csv", jobs=0)
    found = offmap.evaluate(
        folder / "predictions.csv",
        scores=folder / "scores.csv",
        gate=folder / "gate",
        ood_failure="wrong",
        risk=RISK,
        probability=PROBABILITY,
        seed=SEED,
    )
    found.save(folder / "evaluation")
    rows = kept_bounds(folder / "predictions.csv")
    write_csv(args.out / "failure.csv", rows)
    heading = "How often the bound was broken on children's X-rays that were not trained on, validation and test images together:"
    body = [*told(found, gate, folder / "scores.csv"), "", heading, "", *markdown(rows)]
    write_markdown(args.out / "failure.md", "When a classifier will fail", body, made)
    print("\n".join(body))
    print(f"tables, gate and evaluation: {folder}")


if __name__ == "__main__":
    main()
