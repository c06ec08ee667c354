"""What networks that learnt to find altered pixels find on near and far sets and in planted tumours, and what over-training does.

    python benchmarks/synthetic_anomaly.py --families fpi,cutpaste,many

Suite near-far v1 with its divisions, first seed; images prepared as by the recipe `standard`, grey. Each network is trained on the fit part
alone, to the last step; its checkpoint is chosen on a task that is held out, made on a tenth of that part. Fit and held-out images have a
random file form; test images and all other sets are read as they are. Tumours with exact masks are planted into the test images. At each
checkpoint the near and planted areas are measured too, which chooses nothing: `kept` is the checkpoint that the held-out task chose,
`last` the one at the end, `aucp` the one with the best AUROC of training images against the unlabelled test images and near sets
(transductive), and `best near` the one with the best near mean, which nobody could choose without labels.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from generative import FORM_SEED, read
from results import Made, markdown, write_csv, write_markdown
from safetensors.torch import load_file
from torch import Tensor

from offmap.benchmark import metrics
from offmap.benchmark.suite import Suite, read_suite
from offmap.core.detector import Detector
from offmap.datasets import local
from offmap.represent.nets.synthetic_anomaly import SyntheticAnomalyNet
from offmap.represent.synthetic_anomaly import MAP, SyntheticAnomalyEncoder
from offmap.represent.train import checkpoint
from offmap.represent.train.checkpoint import under
from offmap.represent.train.judged import Judged
from offmap.represent.train.synthetic_anomaly import SyntheticAnomalyPlan, TrainedSyntheticAnomaly, train_synthetic_anomaly
from offmap.score.cutpaste import CutPaste
from offmap.score.synthetic_anomaly import SyntheticAnomaly
from offmap.simulate.lesions import foreground, plant_tumour

FAMILIES: Mapping[str, dict[str, Any]] = {
    "fpi": {"tasks": ("fpi",)},
    "pii": {"tasks": ("pii",)},
    "nsa": {"tasks": ("nsa",)},
    "cutpaste": {"tasks": ("cutpaste", "cutpaste_scar"), "objective": "class", "unaltered": 1 / 3},
    "many": {"tasks": ("fpi", "pii", "nsa", "cutpaste", "warp"), "objective": "both"},
}
"""What each network is trained on; the held-out task is the option of the command."""


@dataclass(frozen=True, eq=False)
class Tumours:
    """Test images with one tumour each.

    Args:
        images: with it.
        masks: where, True where anything changed.
        bodies: foreground.
    """

    images: Tensor
    masks: np.ndarray
    bodies: np.ndarray

    @classmethod
    def into(cls, images: Tensor, seed: int) -> "Tumours":
        """Plant."""
        rng = np.random.default_rng(seed)
        found = [plant_tumour(image.numpy(), rng=rng) for image in images]
        bodies = np.stack([foreground(image.numpy()) for image in images])
        return cls(torch.from_numpy(np.stack([f.pixels for f in found])), np.stack([f.mask for f in found]), bodies)

    def areas(self, maps: np.ndarray) -> dict[str, float]:
        """Pixel AUROC and average precision, inside the foreground; and AUROC over all pixels."""
        inside, outside = maps[self.masks], maps[self.bodies & ~self.masks]
        whole = metrics.auroc(maps[~self.masks], inside)
        return {
            "pixel_auroc": metrics.auroc(outside, inside),
            "pixel_ap": metrics.aupr_out(outside, inside),
            "pixel_auroc_all": whole,
            "pixel_share": float(len(inside) / (len(inside) + len(outside))),
        }


@dataclass(frozen=True, eq=False)
class Parts:
    """All images of one in-distribution set and seed."""

    fit: Tensor
    held_out: Tensor
    test: Tensor
    others: Mapping[str, Tensor]
    kinds: Mapping[str, str]
    tumours: Tumours

    @classmethod
    def of(cls, suite: Suite, own: str, seed: int, args: argparse.Namespace) -> "Parts":
        """Read them."""
        division, kinds = suite.divide(suite.items(own), seed), dict(suite.others(own))
        formed, native = (read(suite.files(own), args.size, form_seed=form) for form in (FORM_SEED, None))
        others = {name: read(suite.files(name)[: args.most], args.size, form_seed=None) for name in kinds}
        test = native[division.test]
        return cls(formed[division.fit], formed[division.held_out], test, others, kinds, Tumours.into(test, seed))


def detectors(net: SyntheticAnomalyNet) -> dict[str, Detector]:
    """Those that the network can feed."""
    maps = {"synthetic_anomaly": SyntheticAnomaly(), "synthetic_anomaly share=1": SyntheticAnomaly(share=1.0)}
    return {**(maps if net.shape.objective != "class" else {}), "cutpaste": CutPaste()}


def measure(net: SyntheticAnomalyNet, parts: Parts, *, only: str = "") -> dict[str, dict[str, float]]:
    """AUROC of each other set and of planted tumours, and of their pixels, by detector."""
    encoder, use = SyntheticAnomalyEncoder(net, parts.test.shape[-1]), detectors(net)
    needs = frozenset().union(*(detector.needs for detector in use.values()))
    sets = {n: x for n, x in parts.others.items() if not only or parts.kinds[n] == only} | {"planted": parts.tumours.images}
    sets |= {"": parts.test, "fit": parts.fit}
    held_out, signals = encoder.encode(parts.held_out, needs), {n: encoder.encode(x, needs) for n, x in sets.items()}
    found: dict[str, dict[str, float]] = {}
    for name, detector in use.items():
        fitted = detector.fit([held_out])
        scores = {n: fitted.score(x).double().numpy() for n, x in signals.items()}
        values = {n: metrics.auroc(scores[""], s) for n, s in scores.items() if n not in ("", "fit")}
        pooled = np.concatenate([s for n, s in scores.items() if n == "" or parts.kinds.get(n) == "near"])
        values["aucp"] = metrics.auroc(scores["fit"], pooled)
        if detector.method() == "synthetic_anomaly":
            values |= parts.tumours.areas(encoder.encode(parts.tumours.images, frozenset({MAP}))[MAP][:, 0].numpy())
        found[name] = values
    return found


def mean(values: Mapping[str, float], parts: Parts, kind: str) -> float:
    """Mean AUROC of the sets of one kind."""
    return float(np.mean([v for n, v in values.items() if parts.kinds.get(n) == kind]))


def trained(family: str, plan: SyntheticAnomalyPlan, parts: Parts, seed: int) -> tuple[TrainedSyntheticAnomaly, list[dict[str, object]]]:
    """Train to the last step; a row for each checkpoint and detector."""
    curve: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:

        def watch(now: Judged) -> None:
            if now.step % plan.check_every and now.done < 1:
                return
            net = SyntheticAnomalyNet(plan.shape(1))
            net.load_state_dict(under("average", load_file(Path(folder) / checkpoint.FILE)))
            for name, values in measure(net.eval(), parts, only="near").items():
                row = {"family": family, "step": now.step, "loss": now.loss, "held_out_loss": now.held_out, "held_out_task": now.area}
                near = {n: v for n, v in values.items() if parts.kinds.get(n) == "near"}
                rest = {n: v for n, v in values.items() if n not in parts.kinds and n != "pixel_share"}
                curve.append({**row, "detector": name, "near": mean(values, parts, "near"), **near, **rest})
            last = curve[-1]
            print(f"  {family} {now.step} loss {now.loss:.4f} held-out {now.area:.3f} near {last['near']:.3f}", flush=True)

        found = train_synthetic_anomaly(parts.fit, plan, seed=seed, out=Path(folder), progress=watch)
    print(
        f"{family}: {found.steps} steps, {found.rate:.0f} images/s, kept {found.kept} ({found.area:.3f}) {'; '.join(found.notes)}",
        flush=True,
    )
    return found, curve


def chosen(curve: Sequence[Mapping[str, Any]], margin: float) -> Mapping[str, Any]:
    """The row that AUCp chooses, by the same rule as the trainer's: the latest that is not worse than the best so far."""
    highest, found = 0.0, curve[0]
    for row in curve:
        highest = max(highest, row["aucp"])
        found = row if row["aucp"] >= highest - margin else found
    return found


def choices(found: TrainedSyntheticAnomaly, curve: Sequence[Mapping[str, Any]], margin: float) -> list[dict[str, object]]:
    """For each detector: near and planted areas of the checkpoints that different rules choose."""
    rows: list[dict[str, object]] = []
    for name in dict.fromkeys(row["detector"] for row in curve if "share" not in str(row["detector"])):
        mine = [row for row in curve if row["detector"] == name]
        rules = {
            "kept": next(row for row in mine if row["step"] == found.kept),
            "last": mine[-1],
            "aucp (transductive)": chosen(mine, margin),
            "best near (needs labels)": max(mine, key=lambda row: row["near"]),
            "worst near": min(mine, key=lambda row: row["near"]),
        }
        for rule, row in rules.items():
            keys = ("near", "planted", "pixel_auroc", "pixel_ap", "held_out_task", "aucp")
            rows.append(
                {"network": row["family"], "detector": name, "checkpoint": rule, "step": row["step"]} | {k: row.get(k, "") for k in keys}
            )
    return rows


def table(found: TrainedSyntheticAnomaly, family: str, parts: Parts) -> list[dict[str, object]]:
    """Kept and last checkpoint against all sets."""
    rows: list[dict[str, object]] = []
    for which, net in (("kept", found.net), ("last", found.last)):
        for name, values in measure(net, parts).items():
            far = {n: v for n, v in values.items() if parts.kinds.get(n) == "far"}
            worst = min(far, key=lambda n: far[n])
            near = ", ".join(f"{n} {v:.3f}" for n, v in values.items() if parts.kinds.get(n) == "near")
            rows.append(
                {"network": family, "detector": name, "checkpoint": which, "near": mean(values, parts, "near"), "near sets": near}
                | {"far": mean(values, parts, "far"), "worst far": f"{worst} {far[worst]:.3f}", "planted": values["planted"]}
                | {key: values.get(key, "") for key in ("pixel_auroc", "pixel_ap", "pixel_auroc_all")}
            )
    return rows


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, default=None, help="suite file; default near-far-v1.toml of the local data")
    parser.add_argument("--set", default="brain_no_tumour", help="in-distribution set")
    parser.add_argument("--families", default="fpi,cutpaste,many", help=f"networks, separated by commas, of {', '.join(FAMILIES)}")
    parser.add_argument("--held-out-task", default="intensity")
    parser.add_argument("--most", type=int, default=100, help="images of each other set, the first in sorted order")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--check-every", type=int, default=125)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    suite = read_suite(args.suite or (local.find() or Path()) / "near-far-v1.toml")
    made, seed = Made.now(), suite.seeds[0]
    parts = Parts.of(suite, args.set, seed, args)
    plan = replace(SyntheticAnomalyPlan(), steps=args.steps, batch=args.batch, precision=args.precision, check_every=args.check_every)
    plan = replace(plan, patience=10_000)
    for family in args.families.split(","):
        own = replace(plan, held_out_task=args.held_out_task, **FAMILIES[family])
        found, curve = trained(family, own, parts, seed)
        note: dict[str, object] = {
            "network": family,
            "tasks": ", ".join(own.tasks),
            "objective": own.objective,
            "held out": own.held_out_task,
        }
        note |= {"images": len(parts.fit), "steps": found.steps, "kept": found.kept, "area": found.area, "images/s": found.rate}
        stem = args.out / f"synthetic_anomaly_{family}"
        title = f"Synthetic-anomaly network {family}, near-far v1, {args.set}, {args.size} px"
        write(stem, title, table(found, family, parts), curve, choices(found, curve, own.margin), note, parts, made)


def write(
    stem: Path,
    title: str,
    rows: Sequence[Mapping[str, object]],
    curve: Sequence[Mapping[str, object]],
    rules: Sequence[Mapping[str, object]],
    note: Mapping[str, object],
    parts: Parts,
    made: Made,
) -> None:
    """The tables of one network."""
    write_csv(stem.with_suffix(".csv"), rows)
    write_csv(stem.with_name(f"{stem.name}_checkpoints.csv"), curve)
    dull = parts.tumours.areas(parts.tumours.images.mean(dim=1).numpy())
    body = [
        *markdown(rows),
        "",
        f"Planted: {len(parts.test)} test images with one tumour each, against the same without. Pixels: AUROC and average precision",
        f"inside the foreground, of which {dull['pixel_share']:.3f} is tumour; `pixel_auroc_all` with the background. Brightness as a map",
        f"has AUROC {dull['pixel_auroc']:.3f} and average precision {dull['pixel_ap']:.3f}.",
        "",
        "Which checkpoint, and what it reaches:",
        "",
        *markdown(rules),
        "",
        "Training:",
        "",
        *markdown([note]),
    ]
    write_markdown(stem.with_suffix(".md"), title, body, made)


if __name__ == "__main__":
    main()
