"""What detectors of a generative model find on near and far sets, and what each costs; trains the model first.

    python benchmarks/generative.py --sets brain_no_tumour --size 32 --steps 4000
    python benchmarks/generative.py --family vae --size 64 --minutes 5 --background
    python benchmarks/generative.py --sets brain_no_tumour,kermany_normal,isic2017,busi_normal_benign,lung_normal

Suite near-far v1 with its divisions, first seed by default; images prepared as by the recipe `standard`, grey, at the model's size. The
model is trained on the fit part alone, and its checkpoint chosen on anomalies that are drawn into a tenth of that part; detectors make
their statistics on the held-out part. Fit and held-out images have a random file form; test images and all other sets are read as they
are. The detectors' defaults were chosen before this table was made, without any of these sets.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from results import Made, markdown, write_csv, write_markdown
from torch import Tensor

from offmap.benchmark import metrics
from offmap.benchmark.suite import Suite, read_suite
from offmap.core import registry
from offmap.core.detector import Detector, Fitted, missing
from offmap.core.encoder import Encoder, Input
from offmap.core.trainer import Examples
from offmap.core.types import Signals, Source
from offmap.datasets import local
from offmap.pipeline import recipe as recipes
from offmap.pipeline.stream import Stream
from offmap.represent.autoencoder import AutoencoderEncoder
from offmap.represent.companions import WithCompanions
from offmap.represent.diffusion import DiffusionEncoder
from offmap.represent.gan import GANEncoder
from offmap.represent.layers import normalise
from offmap.represent.train.companions import Beside, train_beside
from offmap.represent.train.diffusion import DiffusionPlan, TrainedDiffusion, train_diffusion
from offmap.represent.train.gan import GANPlan, TrainedGAN, train_gan
from offmap.represent.train.objectives import AutoencoderPlan, DAEPlan, ReconstructionPlan, VAEPlan, VQVAEPlan
from offmap.represent.train.reconstruction import TrainedAutoencoder, train_reconstruction
from offmap.represent.trainers.latent_diffusion import LatentDiffusion
from offmap.score.fusion import Fusion
from offmap.score.reconstruction import Reconstruction

FORM_SEED = 0

BATCH = 32

Plan = DiffusionPlan | GANPlan | ReconstructionPlan


@dataclass(frozen=True)
class TrainedLatent:
    """A codec and its diffusion model, as far as the table tells."""

    steps: int
    kept: int
    area: float
    rate: float
    notes: tuple[str, ...]


Model = TrainedDiffusion | TrainedGAN | TrainedAutoencoder | TrainedLatent

FAMILIES: Mapping[str, Plan] = {
    "autoencoder": AutoencoderPlan(),
    "autoencoder_u": AutoencoderPlan(uncertainty=True),
    "dae": DAEPlan(),
    "diffusion": DiffusionPlan(),
    "gan": GANPlan(),
    "latent_diffusion": LatentDiffusion(),
    "vae": VAEPlan(),
    "vq_vae": VQVAEPlan(),
}
"""Plans by the name of their family."""

ONE_PASS = Fusion(methods=("complexity", "dose", "reconstruction"), reduce="mean", settings=("reconstruction.measure=ssim",))
"""What the recipe ``vae`` makes of one pass."""

MEASURES = ("l1", "l2", "ssim", "ssim_contrast", "perceptual", "normalised")


class Grey(Encoder):
    """Gives prepared images as they are, grey."""

    name, layers, provides, sha256 = "grey", (), frozenset({"image"}), ""

    def __init__(self, size: int) -> None:
        self.input = Input(size, 1, (0.0,), (1.0,))

    def encode(self, images: Float[Tensor, "n c h w"], needs: frozenset[str]) -> Signals:
        return {"image": normalise(images, self.input)}

    def to(self, device: torch.device | str) -> "Grey":
        return self

    def state(self) -> dict[str, Tensor] | None:
        return None

    def config(self) -> dict[str, Any]:
        return {}


def read(files: Sequence[Path], size: int, *, form_seed: int | None) -> Tensor:
    """Prepared grey images of files."""
    plan = recipes.read(recipes.STANDARD, {})
    stream = Stream(Grey(size), plan.preparation(size), frozenset({"image"}), jobs=2, form_seed=form_seed, use_cache=False)
    return torch.cat([batch.signals["image"] for batch in stream.over([Source(p, str(p)) for p in files])])


@dataclass
class Scored:
    """Scores of one detector on the test part and the other sets, and milliseconds an image."""

    own: np.ndarray
    others: Mapping[str, np.ndarray]
    ms: float


def train(fit: Tensor, plan: Plan, beside: Beside, out: Path | None, seed: int) -> tuple[Model, Encoder]:
    """A model of the fit part, or the one in the folder; with a VAE, what stands beside it."""
    if isinstance(plan, LatentDiffusion):
        return latent(fit, plan, seed)
    if isinstance(plan, DiffusionPlan):
        found = train_diffusion(fit, plan, seed=seed, out=out, resume=True)
        return found, DiffusionEncoder(found.net, plan.size)
    if isinstance(plan, GANPlan):
        made = train_gan(fit, plan, seed=seed, out=out, resume=True)
        return made, GANEncoder(made.model)
    restored = train_reconstruction(fit, plan, seed=seed, out=out, resume=True)
    if not isinstance(plan, VAEPlan):
        return restored, AutoencoderEncoder(restored.net)
    state = restored.net.state_dict() | train_beside(fit, plan, beside, seed=seed, out=out, resume=True)
    return restored, WithCompanions.rebuilt({"net": restored.net.shape.to_json()}, state)


def latent(fit: Tensor, plan: LatentDiffusion, seed: int) -> tuple[Model, Encoder]:
    """A codec and a diffusion model of its codes."""
    start = time.perf_counter()
    rows = torch.arange(len(fit))[-max(1, round(plan.held_out * len(fit))) :]
    found = plan.train(Examples(fit, None, rows), seed=seed, device=torch.device("cpu"))
    steps, kept, areas = (found.facts[key] for key in ("steps", "kept_step", "drawn_anomalies_auroc"))
    area = areas[min(len(areas) - 1, kept // plan.check_every - 1)]
    rate = (steps + plan.code_steps) * plan.batch / (time.perf_counter() - start)
    return TrainedLatent(steps, kept, area, rate, tuple(found.warnings)), plan.open(0, found.state, device=torch.device("cpu"))


def score(detector: Detector, encoder: Encoder, held_out: Tensor, test: Tensor, others: Mapping[str, Tensor]) -> Scored:
    """Fit on the held-out part, and score."""
    signals = encoder.encode(held_out, detector.needs)
    fitted = detector.fit([signals], held_out=[signals])
    start = time.perf_counter()
    own = scores(fitted, encoder, test)
    ms = 1000 * (time.perf_counter() - start) / len(test)
    return Scored(own, {name: scores(fitted, encoder, x) for name, x in others.items()}, ms)


def scores(fitted: Fitted, encoder: Encoder, images: Tensor) -> np.ndarray:
    """In batches, as a gate scores."""
    parts = [fitted.score(encoder.encode(x, fitted.detector.needs)) for x in images.split(BATCH)]
    return torch.cat(parts).double().numpy()


def detectors(encoder: Encoder, asked: str) -> dict[str, Detector]:
    """Those that read nothing but the model, or those that were asked for; reconstruction with each measure, fusion with parts of it."""
    found: dict[str, Detector] = {}
    for name, cls in registry.load_all("score", Detector).items():
        found |= {f"{name} {m}": cls.from_params({"measure": m}) for m in MEASURES} if cls is Reconstruction else {name: cls()}
    found["fusion"] = ONE_PASS
    gives = encoder.provides - {"image"}
    return {n: d for n, d in found.items() if (not asked or d.method() in asked.split(",")) and not missing(d.needs | d.fit_needs, gives)}


def run(suite: Suite, own: str, seed: int, plan: Plan, args: argparse.Namespace) -> list[dict[str, object]]:
    """Rows of one in-distribution set and seed, one for each detector and other set."""
    division = suite.divide(suite.items(own), seed)
    formed, native = (read(suite.files(own), args.size, form_seed=form) for form in (FORM_SEED, None))
    others = {name: read(suite.files(name)[: args.most], args.size, form_seed=None) for name in suite.others(own)}
    fit, held_out, test = formed[division.fit], formed[division.held_out], native[division.test]
    start = time.perf_counter()
    folder = args.checkpoints and args.checkpoints / f"{own}-{args.family}-{seed}"
    trained, encoder = train(fit, plan, Beside(args.background, args.corruption, args.members), folder, seed)
    describe(own, seed, len(fit), trained, time.perf_counter() - start)
    rows: list[dict[str, object]] = []
    for name, detector in detectors(encoder, args.methods).items():
        found = score(detector, encoder, held_out, test, others)
        for other, kind in suite.others(own).items():
            area = metrics.auroc(found.own, found.others[other])
            rows.append(
                {"id_set": own, "other_set": other, "kind": kind, "seed": seed, "method": name, "passes": detector.passes}
                | {"auroc": area, "ms": found.ms, "n_id": len(test), "n_other": len(others[other])}
                | {"trained_images": len(fit), "steps": trained.steps, "kept": trained.kept, "drawn_auroc": trained.area}
                | {"train_images_per_s": trained.rate}
            )
        print(f"  {name:28s} {found.ms:8.2f} ms  near {mean(rows, name, 'near'):.3f}  far {mean(rows, name, 'far'):.3f}", flush=True)
    return rows


def describe(own: str, seed: int, images: int, trained: Model, seconds: float) -> None:
    """One line about the training."""
    print(
        f"{own}, seed {seed}: {images} images, {trained.steps} steps in {seconds:.0f} s, {trained.rate:.0f} images/s, "
        f"kept step {trained.kept}, drawn anomalies {trained.area:.3f} {'; '.join(trained.notes)}",
        flush=True,
    )


def mean(rows: Sequence[Mapping[str, Any]], method: str, kind: str) -> float:
    """Mean AUROC of a method on the sets of one kind."""
    return float(np.mean([row["auroc"] for row in rows if row["method"] == method and row["kind"] == kind]))


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, object]]:
    """One line for each in-distribution set and method, best near mean first."""
    lines: list[dict[str, object]] = []
    for own in dict.fromkeys(row["id_set"] for row in rows):
        part = [row for row in rows if row["id_set"] == own]
        for method in dict.fromkeys(row["method"] for row in part):
            mine = [row for row in part if row["method"] == method]
            far = [row for row in mine if row["kind"] == "far"]
            worst = min(far, key=lambda row: row["auroc"])
            near = {
                row["other_set"]: np.mean([r["auroc"] for r in mine if r["other_set"] == row["other_set"]])
                for row in mine
                if row["kind"] == "near"
            }
            lines.append(
                {"id_set": own, "method": method, "passes": mine[0]["passes"], "ms an image": np.mean([r["ms"] for r in mine])}
                | {"near": mean(part, method, "near"), "far": mean(part, method, "far")}
                | {
                    "worst far": f"{worst['auroc']:.3f} ({worst['other_set']})",
                    "near sets": ", ".join(f"{k} {v:.3f}" for k, v in near.items()),
                }
            )
    return sorted(lines, key=lambda line: (str(line["id_set"]), -float(str(line["near"]))))


def against(rows: Sequence[Mapping[str, Any]], method: str, baseline: str) -> list[dict[str, object]]:
    """How far a method lies above a baseline: on the near mean of each in-distribution set, and on the pair where it does worst."""
    lines: list[dict[str, object]] = []
    means: list[float] = []
    gains: list[float] = []
    for own in dict.fromkeys(row["id_set"] for row in rows):
        part = [row for row in rows if row["id_set"] == own]
        pairs: dict[str, float] = {}
        for other in dict.fromkeys(row["other_set"] for row in part):
            both = [[r["auroc"] for r in part if (r["method"], r["other_set"]) == (name, other)] for name in (method, baseline)]
            if all(both):
                pairs[other] = float(np.mean(both[0]) - np.mean(both[1]))
        if pairs:
            worst = min(pairs, key=lambda other: pairs[other])
            means.append(mean(part, method, "near") - mean(part, baseline, "near"))
            below = sum(value < -0.01 for value in pairs.values())
            gains += [value for other, value in pairs.items() if any(r["other_set"] == other and r["kind"] == "near" for r in part)]
            lines.append(
                {"id_set": own, f"{method} - {baseline}, near": means[-1], "worst pair": f"{pairs[worst]:+.3f} ({worst})"}
                | {"pairs below by more than 0.01": f"{below} of {len(pairs)}"}
            )
    if len(lines) > 1:
        for name, values in (("mean of the sets", means), (f"mean of the {len(gains)} near pairs", gains)):
            lines.append({"id_set": name, f"{method} - {baseline}, near": float(np.mean(values))})
    return lines


def trainings(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, object]]:
    """One line for each model."""
    keys = ("id_set", "seed", "trained_images", "steps", "kept", "drawn_auroc", "train_images_per_s")
    found = {(row["id_set"], row["seed"]): {key: row[key] for key in keys} for row in rows}
    return list(found.values())


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, default=None, help="suite file; default near-far-v1.toml of the local data")
    parser.add_argument("--sets", default="brain_no_tumour", help="in-distribution sets, separated by commas")
    parser.add_argument("--family", default="diffusion", choices=sorted(FAMILIES))
    parser.add_argument("--methods", default="", help="detectors, separated by commas; default all")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--most", type=int, default=200, help="images of each other set, the first in sorted order")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--widths", default="", help="channels of each level of the network; the family's own when empty")
    parser.add_argument("--steps", type=int, default=None, help="optimiser steps; 4000 where no minutes are given")
    parser.add_argument("--minutes", type=float, default=None, help="wall-clock time of the training")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--background", action="store_true", help="train a background model beside a VAE")
    parser.add_argument("--corruption", type=float, default=Beside().corruption, help="share of its pixels that are random")
    parser.add_argument("--members", type=int, default=1, help="VAEs in all, for waic")
    parser.add_argument("--gradients", action="store_true", help="keep the gradients of a VAE's decoder, for gradcon")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoints", type=Path, default=None, help="folder in which training goes on where it was")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    suite = read_suite(args.suite or (local.find() or Path()) / "near-far-v1.toml")
    plan = FAMILIES[args.family]
    widths = tuple(map(int, args.widths.split(","))) if args.widths else plan.widths
    steps = args.steps or (None if args.minutes else 4000)
    plan = replace(plan, widths=widths, steps=steps, minutes=args.minutes, precision=args.precision, batch=args.batch)
    plan = replace(plan, gradients=args.gradients) if isinstance(plan, VAEPlan) else plan
    plan = replace(plan, size=args.size) if isinstance(plan, DiffusionPlan | GANPlan) else plan
    made = Made.now()
    rows = [row for own in args.sets.split(",") for seed in suite.seeds[: args.seeds] for row in run(suite, own, seed, plan, args)]
    name = f"generative-{args.family}"
    write_csv(args.out / f"{name}.csv", rows)
    body = [*markdown(summary(rows)), "", *markdown(trainings(rows))]
    for method in ("fusion", "generative_fusion"):
        fused = against(rows, method, "elbo")
        body = [*markdown(fused), "", *body] if fused else body
    write_markdown(args.out / f"{name}.md", f"Detectors of a model of the family {args.family}, near-far v1, {args.size} px", body, made)


if __name__ == "__main__":
    main()
