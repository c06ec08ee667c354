"""Do detectors notice images that were changed so that the classifier errs? FGSM and PGD on a network trained here, every detector on it.

    python benchmarks/adversarial.py

Brain MR in four classes: a ResNet-18 with four exits at 96 px is trained on half of the images, detectors are fitted on a quarter that it
was not trained on (a fifth of it standardises), the last quarter is the test. The attack knows the network and its normalisation, not the
detector. Detection: share of attacked test images above the score that 5 % of the clean test images exceed.
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from results import Made, markdown, write_csv, write_markdown
from torch import Tensor

from offmap.benchmark.metrics import auroc, fpr95_id_positive
from offmap.core import registry
from offmap.core.detector import Detector, Fitted, missing
from offmap.core.encoder import Encoder, Input
from offmap.core.errors import OODError
from offmap.core.types import STATIC, Signals
from offmap.datasets import local
from offmap.pipeline import recipe as recipes
from offmap.pipeline.inputs import paths
from offmap.pipeline.stream import Stream
from offmap.represent.attack import attacked
from offmap.represent.encoder import BuiltinEncoder
from offmap.represent.train.multi_exit import ExitPlan, train_multi_exit, with_own_exits

SET, CLASSES = "brain_mr", ("glioma", "meningioma", "no_tumour", "pituitary")
SIDE, BATCH, STEPS = 96, 32, 10
EPSILONS = (1, 2, 4, 8)
"""In 255ths."""


@dataclass
class Outcome:
    """Scores of one detector by set of images, or why there are none."""

    passes: str
    scores: dict[str, list[np.ndarray]] = field(default_factory=dict)
    reason: str = ""


def read(root: Path, classes: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Images as the recipe ``standard`` prepares them, and their classes."""
    steps = recipes.read().preparation(SIDE)
    images, labels = [], []
    for k, name in enumerate(classes):
        stream = Stream(BuiltinEncoder.shipped(size=SIDE), steps, frozenset({"image"}), jobs=0, use_cache=False)
        for batch in stream.over(paths(str(root / "images" / SET / name), volumes=False).sources):
            images.append(batch.signals["image"].mean(dim=1, keepdim=True))
            labels += [k] * len(batch.images)
    return torch.cat(images), torch.tensor(labels)


def divided(labels: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Half of each class trains, a quarter fits detectors, a quarter tests."""
    rng = torch.Generator().manual_seed(seed)
    parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for label in labels.unique():
        rows = torch.nonzero(labels == label).flatten()
        rows = rows[torch.randperm(len(rows), generator=rng)]
        for part, few in zip(parts, rows.tensor_split([len(rows) // 2, 3 * len(rows) // 4]), strict=True):
            part.append(few)
    train, fit, test = (torch.cat(part) for part in parts)
    return train, fit[torch.randperm(len(fit), generator=rng)], test


def candidates(encoder: Encoder) -> tuple[dict[str, Detector], dict[str, Outcome]]:
    """Detectors that this encoder suffices for, and the others with what they lack."""
    able, found = {}, {}
    for name, kind in registry.load_all("score", Detector).items():
        detector = kind()
        lacking = missing((detector.needs | detector.fit_needs) - {"label"}, encoder.provides)
        found[name] = Outcome(detector.passes, reason=f"needs {', '.join(lacking)}" if lacking else "")
        if not lacking:
            able[name] = detector
    return able, found


def signals(encoder: Encoder, images: Tensor, needs: frozenset[str], labels: Tensor | None = None) -> list[Signals]:
    """Of all images, batch by batch."""
    out: list[Signals] = []
    for i, part in enumerate(images.split(BATCH)):
        one = dict(encoder.encode(part, needs))
        out.append(one if labels is None else {**one, "label": labels[i * BATCH : i * BATCH + len(part)]})
    return out


def fitted(
    able: Mapping[str, Detector], encoder: Encoder, images: Tensor, labels: Tensor, outcomes: dict[str, Outcome]
) -> dict[str, Fitted]:
    """Every detector fitted on the same signals; a fifth is held out."""
    needs = frozenset().union(*(d.needs | d.fit_needs for d in able.values())) - {"label"}
    cut = 4 * len(images) // 5
    own, held = signals(encoder, images[:cut], needs, labels[:cut]), signals(encoder, images[cut:], needs, labels[cut:])
    out = {}
    for name, detector in able.items():
        try:
            out[name] = detector.fit(own, held_out=held, generator=torch.Generator().manual_seed(0))
        except OODError as error:
            outcomes[name].reason = str(error)[:120]
    return out


def score(found: Mapping[str, Fitted], encoder: Encoder, images: Tensor, name: str, outcomes: dict[str, Outcome]) -> Tensor:
    """Scores of all detectors on one set of images; the classifier's answers."""
    needs = frozenset({"logits"}).union(*(f.detector.needs for f in found.values()))
    answers = []
    for part in images.split(BATCH):
        one = dict(encoder.encode(part, needs))
        answers.append(one["logits"].argmax(dim=1))
        for method, each in found.items():
            named = {k: v for k, v in one.items() if k in STATIC or len(v) == len(part)}
            outcomes[method].scores.setdefault(name, []).append(each.score(named).numpy())
    return torch.cat(answers)


def table(outcomes: Mapping[str, Outcome], attacks: list[str]) -> list[dict[str, object]]:
    """One row a detector that ran; the best mean AUROC first."""
    rows = []
    for method, outcome in outcomes.items():
        if not outcome.scores:
            continue
        clean = np.concatenate(outcome.scores["clean"])
        row: dict[str, object] = {"method": method, "passes": outcome.passes}
        others = {name: np.concatenate(outcome.scores[name]) for name in attacks}
        row |= {f"auroc.{name}": auroc(clean, other) for name, other in others.items()}
        row |= {f"detected.{name}": 1 - fpr95_id_positive(clean, other) for name, other in others.items()}
        rows.append(row)
    return sorted(rows, key=lambda row: -sum(float(str(row[f"auroc.{name}"])) for name in attacks))


def short(rows: list[dict[str, object]], attacks: list[str]) -> list[dict[str, object]]:
    """AUROC and detection rate in one cell."""
    return [
        {"method": row["method"], "passes": row["passes"]}
        | {name: f"{float(str(row[f'auroc.{name}'])):.2f} / {100 * float(str(row[f'detected.{name}'])):.0f} %" for name in attacks}
        for row in rows
    ]


def main() -> None:
    """Train, attack, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    root = local.find()
    if root is None or not (root / "images" / SET).is_dir():
        raise SystemExit(f"no images of {SET}: set OFFMAP_DATA to a folder with images/{SET}/<class>")
    made, start = Made.now(), time.monotonic()
    images, labels = read(root, CLASSES)
    train, fit, test = divided(labels, args.seed)
    spec = Input(SIDE, 1, (0.5,), (0.25,))
    plan = ExitPlan(epochs=args.epochs, batch=32, precision=args.precision, balanced=True)
    trained = train_multi_exit(images[train], labels[train], plan, spec=spec, width=args.width, seed=args.seed)
    seconds = time.monotonic() - start
    encoder = with_own_exits(trained.net, spec)
    able, outcomes = candidates(encoder)
    found = fitted(able, encoder, images[fit], labels[fit], outcomes)
    truth = labels[test]
    kinds = {"clean": images[test]} | {
        f"{kind} {e}/255": attacked(encoder, images[test], truth, kind=kind, epsilon=e / 255, steps=STEPS)
        for kind in ("fgsm", "pgd")
        for e in EPSILONS
    }
    accuracy = [
        {"images": name, "accuracy": float((score(found, encoder, x, name, outcomes) == truth).double().mean())}
        for name, x in kinds.items()
    ]
    attacks = [name for name in kinds if name != "clean"]
    rows = table(outcomes, attacks)
    write_csv(args.out / "adversarial.csv", rows)
    write_csv(args.out / "adversarial_accuracy.csv", accuracy)
    lacking = [f"- `{name}`: {outcome.reason}" for name, outcome in outcomes.items() if outcome.reason]
    body = [
        f"{len(train)} images train the network ({args.epochs} epochs, {seconds:.0f} s with reading), {len(fit)} fit detectors, "
        f"{len(test)} test. PGD: {STEPS} steps.",
        "",
        *markdown(accuracy),
        "",
        "AUROC of attacked against clean test images / share detected at 5 % false alarms:",
        "",
        *markdown(short(rows, attacks)),
        "",
        "Not run:",
        "",
        *lacking,
    ]
    write_markdown(args.out / "adversarial.md", "Adversarial inputs", body, made)
    print("\n".join(body))
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
