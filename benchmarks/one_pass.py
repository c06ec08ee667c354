"""Processor seconds of the encoder's pass alone, and of all methods that need nothing more, on its signals.

    python benchmarks/one_pass.py --encoder builtin
    python benchmarks/one_pass.py --encoder hub:../shared/weights/mobilenet_v2_imagenet

A linear head on the deepest layer makes a classifier of the encoder: nearest mean of two kinds of images. Each batch is encoded once and
scored by every method in turn, so both are measured under the same load. Fits are timed apart. Seconds are processor seconds of one
thread, so that other work on the machine hardly counts.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Pillow
from results import Made, markdown, write_csv, write_markdown
from torch import Tensor

from offmap.benchmark.suite import read_suite
from offmap.core import registry
from offmap.core.detector import Detector, Fitted, missing
from offmap.core.encoder import Encoder
from offmap.core.errors import OODError
from offmap.core.types import STATIC, Signals
from offmap.datasets import local
from offmap.represent.open import open_encoder

BATCH = 256
KINDS = ("kermany_normal", "isic2017")


def pixels(path: Path, encoder: Encoder) -> Tensor:
    """A file at the encoder's size, grey repeated where it wants colour."""
    size, mode = encoder.input.size, "L" if encoder.input.channels == 1 else "RGB"
    with Pillow.open(path) as opened:
        array = np.asarray(opened.convert(mode).resize((size, size)), dtype=np.float32) / 255
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


class Classifier:
    """An encoder with a linear head on what its deepest layer has above zero.

    Args:
        encoder: gives features and maps.
        needs: what to ask of it.
    """

    def __init__(self, encoder: Encoder, needs: frozenset[str]) -> None:
        self.encoder, self.needs = encoder, needs
        self.head: tuple[Tensor, Tensor] | None = None

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Signals; the head is made from the first labelled images."""
        signals = {name: value for name, value in self.encoder.encode(images, self.needs).items() if name not in ("logits", *STATIC)}
        rows = signals["features.last"].clamp_min(0)
        if self.head is None and labels is not None:
            means = torch.stack([rows[labels == c].mean(dim=0) for c in range(len(KINDS))])
            weight = means - means.mean(dim=0)
            scale = 5 / (rows @ weight.T).amax(dim=1).mean().abs()
            self.head = scale * weight, torch.ones(len(KINDS))
        assert self.head is not None
        weight, bias = self.head
        signals |= {"features.penultimate": rows, "logits": rows @ weight.T + bias, "head.weight": weight, "head.bias": bias}
        return signals if labels is None else {**signals, "label": labels}


def batches(images: Tensor, count: int) -> Iterator[Tensor]:
    """The images again and again, until there are ``count``, each time a little darker."""
    for first in range(0, count, BATCH):
        at = torch.arange(first, min(count, first + BATCH))
        yield images[at % len(images)] * (1 - 0.01 * (first // BATCH % 10))


def fits(methods: dict[str, type[Detector]], fit: Sequence[Signals], held: Sequence[Signals]) -> tuple[dict[str, Fitted], dict[str, float]]:
    """Every method of one forward pass that the signals suffice for, and the seconds its fit took."""
    fitted, seconds = {}, {}
    for name, kind in methods.items():
        try:
            detector = kind()
            if detector.passes != "1F" or missing(detector.needs | detector.fit_needs, fit[0]):
                continue
            start = time.process_time()
            fitted[name] = detector.fit(fit, held_out=held)
            seconds[name] = time.process_time() - start
        except OODError as error:
            print(f"{name} is left out: {error}")
    return fitted, seconds


def measured(classifier: Classifier, fitted: dict[str, Fitted], images: Tensor, count: int) -> tuple[float, dict[str, float]]:
    """Processor seconds of the encoder, and of each method."""
    spent, seconds = 0.0, dict.fromkeys(fitted, 0.0)
    for batch in batches(images, count):
        start = time.process_time()
        signals = classifier(batch)
        spent += time.process_time() - start
        for name, one in fitted.items():
            start = time.process_time()
            one.score(signals)
            seconds[name] += time.process_time() - start
    return spent, seconds


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="builtin")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--fit", type=int, default=800)
    parser.add_argument("--methods", default="", help="some of them, by comma")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    made, encoder = Made.now(), open_encoder(args.encoder)
    suite = read_suite((local.find() or Path()) / "near-far-v1.toml")
    files = [path for pair in zip(*(suite.files(kind) for kind in KINDS), strict=False) for path in pair]
    images = torch.stack([pixels(path, encoder) for path in files[: args.fit + 256]])
    labels = torch.arange(len(images)) % len(KINDS)
    methods = registry.load_all("score", Detector)
    methods = {name: kind for name, kind in methods.items() if not args.methods or name in args.methods.split(",")}
    classifier = Classifier(encoder, encoder.provides | {"image"})
    cut = [slice(i, i + BATCH) for i in range(0, len(images), BATCH)]
    parts = [classifier(images[at], labels[at]) for at in cut]
    fitted, fit_seconds = fits(methods, parts[:-1], parts[-1:])
    spent, seconds = measured(classifier, fitted, images, args.images)
    rows = [
        {"method": name, "ms per 1,000 images": 1e6 * s / args.images, "share of the pass": s / spent, "fit, s": fit_seconds[name]}
        for name, s in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    whole = sum(seconds.values())
    total = {
        "encoder": encoder.name.rpartition("/")[2],
        "images": args.images,
        "features": int(parts[0]["features.last"].shape[1]),
        "methods": len(fitted),
        "encoder alone, s": spent,
        "all methods, s": whole,
        "both : encoder": 1 + whole / spent,
        "fits, s": sum(fit_seconds.values()),
    }
    print("\n".join([*markdown([total]), "", *markdown(rows)]))
    if not args.methods:
        tag = "builtin" if args.encoder == "builtin" else encoder.name.rpartition("/")[2]
        write_csv(args.out / f"one_pass_{tag}.csv", rows)
        write_csv(args.out / f"one_pass_{tag}_total.csv", [total])
        write_markdown(args.out / f"one_pass_{tag}.md", "One pass feeds all methods", [*markdown([total]), "", *markdown(rows)], made)


if __name__ == "__main__":
    main()
