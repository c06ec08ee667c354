"""What methods on the feature maps of the built-in encoder find on near and far sets, and where; trains the networks first.

    python benchmarks/feature_maps.py --sets brain_no_tumour,kermany_normal

Suite near-far v1 with its divisions, first seed by default; images prepared as by the recipe `standard`, grey. Networks are trained on the
fit part alone, 15 % of it chooses the checkpoint on drawn anomalies; detectors without training are fitted on the same part. Fit images
have a random file form; test images and all other sets are read as they are.

`planted`: the test images against the same with a drawn tumour each; `pixel`: its mask against the map, enlarged, over the pixels of all of
these. `cpu ms`: processor time an image, encoder and method, one thread. Defaults are those of the package, but for the number of steps;
they were chosen on drawn pictures, without any of these sets.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from generative import FORM_SEED, mean, read
from results import Made, markdown, write_csv, write_markdown
from torch import Tensor
from torch.nn import functional

from offmap.benchmark import metrics
from offmap.benchmark.suite import Suite, read_suite
from offmap.core import registry
from offmap.core.detector import Detector, Fitted
from offmap.core.encoder import Encoder
from offmap.core.trainer import Examples
from offmap.datasets import local
from offmap.represent.encoder import BuiltinEncoder
from offmap.represent.trained import named
from offmap.simulate.lesions import plant_tumour

PLAIN = ("patchcore", "padim", "anomaly_dino", "dpmm")
TRAINED = ("feature_flow", "rd4ad", "simplenet", "invad")
BATCH = 32


@dataclass
class Method:
    """A fitted detector, where its signals come from, and what it took to make.

    Args:
        seconds: processor time of training and fitting.
        kilobytes: state of the detector, and of its network without the encoder.
        drawn: AUROC of drawn anomalies at the checkpoint that was kept; empty without training.
    """

    fitted: Fitted
    encoder: Encoder
    seconds: float
    kilobytes: float
    drawn: str = ""

    def scores(self, images: Tensor) -> np.ndarray:
        """Of prepared images."""
        parts = [self.fitted.score(self.encoder.encode(part, self.fitted.detector.needs)) for part in images.split(BATCH)]
        return torch.cat(parts).double().numpy()

    def maps(self, images: Tensor) -> Tensor:
        """Enlarged to the images' size."""
        parts = [self.fitted.map(self.encoder.encode(part, self.fitted.detector.needs)) for part in images.split(BATCH)]
        return functional.interpolate(torch.cat(parts)[:, None], size=images.shape[2:], mode="bilinear", align_corners=False)[:, 0]


def made(name: str, fit: Tensor, seed: int, args: argparse.Namespace) -> Method:
    """Train where there is something to train, and fit."""
    detector = registry.load("score", name, Detector)()
    start, drawn, own = time.process_time(), "", 0.0
    encoder: Encoder = BuiltinEncoder.shipped(size=args.size)
    if name in TRAINED:
        settings = {"size": args.size, "steps": args.steps, "check_every": max(1, args.steps // 8), "precision": args.precision}
        trainer = named(name).from_params(settings)
        check = torch.randperm(len(fit), generator=torch.Generator().manual_seed(seed))[: max(4, round(0.15 * len(fit)))].sort().values
        found = trainer.train(Examples(fit, None, check), seed=seed, device=torch.device("cpu"))
        encoder = trainer.open(0, found.state, device=torch.device("cpu"))
        areas, step = found.facts["drawn_anomalies_auroc"], found.facts["kept_step"]
        drawn = f"{areas[min(len(areas), max(1, step // settings['check_every'])) - 1]:.3f} (step {step} of {found.facts['steps']})"
        own = sum(v.numel() * v.element_size() for k, v in found.state.items() if k.startswith("net."))
        fit = fit[:BATCH]
    batches = [encoder.encode(part, detector.needs) for part in fit.split(BATCH)]
    fitted = detector.fit(batches, generator=torch.Generator().manual_seed(seed))
    size = own + sum(v.numel() * v.element_size() for v in fitted.state.values())
    return Method(fitted, encoder, time.process_time() - start, size / 1000, drawn)


def planted(images: Tensor, seed: int) -> tuple[Tensor, np.ndarray]:
    """The same images with a tumour each, and the masks."""
    rng = np.random.default_rng(seed)
    found = [plant_tumour(image, rng=rng) for image in images.numpy()]
    return torch.from_numpy(np.stack([one.pixels for one in found])), np.stack([one.mask for one in found])


def run(suite: Suite, own: str, seed: int, args: argparse.Namespace) -> list[dict[str, object]]:
    """Rows of one in-distribution set and seed, one for each method and other set."""
    division, kinds = suite.divide(suite.items(own), seed), suite.others(own)
    formed, native = (read(suite.files(own), args.size, form_seed=form) for form in (FORM_SEED, None))
    most = {name: args.near if kind == "near" else args.far for name, kind in kinds.items()}
    others = {name: read(suite.files(name)[: most[name]], args.size, form_seed=None) for name in kinds}
    fit, test = formed[division.fit], native[division.test]
    ill, masks = planted(test, seed)
    rows: list[dict[str, object]] = []
    for name in args.methods.split(","):
        method = made(name, fit, seed, args)
        start = time.process_time()
        usual = method.scores(test)
        cost = 1000 * (time.process_time() - start) / len(test)
        maps = method.maps(ill).numpy()
        facts = {
            "planted": metrics.auroc(usual, method.scores(ill)),
            "pixel": metrics.auroc(maps[~masks], maps[masks]),
            "cpu_ms": cost,
            "made_cpu_s": method.seconds,
            "state_kb": method.kilobytes,
            "drawn_auroc": method.drawn,
        }
        for other, kind in kinds.items():
            area = metrics.auroc(usual, method.scores(others[other]))
            about = {"id_set": own, "other_set": other, "kind": kind, "seed": seed, "method": name, "auroc": area}
            rows.append(about | facts | {"n_fit": len(fit), "n_id": len(test), "n_other": len(others[other])})
        near, far = (mean(rows, name, kind) for kind in ("near", "far"))
        print(f"{own} {name:13s} near {near:.3f} far {far:.3f} " + " ".join(f"{k} {v}" for k, v in facts.items()), flush=True)
    return rows


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, object]]:
    """One line for each in-distribution set and method, best near mean first."""
    lines: list[dict[str, object]] = []
    for own in dict.fromkeys(row["id_set"] for row in rows):
        part = [row for row in rows if row["id_set"] == own]
        for name in dict.fromkeys(row["method"] for row in part):
            mine = [row for row in part if row["method"] == name]
            average = {key: float(np.mean([row[key] for row in mine])) for key in ("planted", "pixel", "cpu_ms", "made_cpu_s", "state_kb")}
            sets = dict.fromkeys(row["other_set"] for row in mine if row["kind"] == "near")
            each = {s: float(np.mean([row["auroc"] for row in mine if row["other_set"] == s])) for s in sets}
            lines.append(
                {"id set": own, "method": name, "near": mean(part, name, "near"), "far": mean(part, name, "far")}
                | {"planted": average["planted"], "pixel": average["pixel"]}
                | {"cpu ms": f"{average['cpu_ms']:.1f}", "to make, cpu s": f"{average['made_cpu_s']:.0f}"}
                | {"state kB": f"{average['state_kb']:.0f}", "drawn": mine[0]["drawn_auroc"]}
                | {"near sets": ", ".join(f"{k} {v:.3f}" for k, v in each.items())}
            )
    return sorted(lines, key=lambda line: (str(line["id set"]), -float(str(line["near"]))))


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, default=None, help="suite file; default near-far-v1.toml of the local data")
    parser.add_argument("--sets", default="brain_no_tumour,kermany_normal", help="in-distribution sets, separated by commas")
    parser.add_argument("--methods", default=",".join((*PLAIN, *TRAINED)), help="detectors, separated by commas")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--near", type=int, default=200, help="images of each near set, the first in sorted order")
    parser.add_argument("--far", type=int, default=50, help="images of each far set")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    suite = read_suite(args.suite or (local.find() or Path()) / "near-far-v1.toml")
    how = Made.now()
    rows: list[dict[str, object]] = []
    for own in args.sets.split(","):
        rows += [row for seed in suite.seeds[: args.seeds] for row in run(suite, own, seed, args)]
        write_csv(args.out / "feature_maps.csv", rows)
        write_markdown(args.out / "feature_maps.md", f"Methods on feature maps, near-far v1, {args.size} px", markdown(summary(rows)), how)


if __name__ == "__main__":
    main()
