"""What each detector of a trained model costs: network evaluations, milliseconds and memory an image.

    python benchmarks/generative_costs.py

Every trainer's network at its default size, with fresh weights: costs do not depend on what was learnt. Detectors are fitted on 64 grey
images of noise and score the same in batches of 32, once before the clock runs. `MB` is the peak of the process above what it held before,
with memory that was freed given back first. Detectors that read the built-in encoder alone are left out. One thread.
"""

import argparse
import ctypes
import ctypes.util
import time
from dataclasses import fields
from pathlib import Path

import torch
from results import Made, markdown, write_csv, write_markdown
from torch import Tensor

from offmap.benchmark.trial import peak
from offmap.core import registry
from offmap.core.detector import Detector, Fitted, missing
from offmap.core.encoder import Encoder
from offmap.core.errors import OODError
from offmap.core.trainer import Trainer
from offmap.represent.encoder import BuiltinEncoder
from offmap.represent.trained import STAGE
from offmap.score.reconstruction import Reconstruction

BATCH = 32
MEASURES = ("l2", "ssim", "perceptual", "normalised")
EVERYTHING = {"background": True, "gradients": True, "members": 3}
"""Settings of a trainer, where it has them, with which every detector of its family can be fed."""


def trainer_of(cls: type[Trainer]) -> Trainer:
    """With all that its detectors may ask for."""
    own = {f.name: f.default for f in fields(cls) if f.name in EVERYTHING}
    return cls.from_params({name: EVERYTHING[name] for name, usual in own.items() if type(usual) is type(EVERYTHING[name])})


def detectors(encoder: Encoder) -> dict[str, Detector]:
    """Those that need this network; reconstruction with each of its measures."""
    found: dict[str, Detector] = {}
    for name, cls in registry.load_all("score", Detector).items():
        found |= {f"{name} {m}": cls.from_params({"measure": m}) for m in MEASURES} if cls is Reconstruction else {name: cls()}
    gives, plain = encoder.provides, BuiltinEncoder.shipped().provides
    asks = {name: d.needs | d.fit_needs for name, d in found.items()}
    return {name: d for name, d in found.items() if not missing(asks[name], gives) and missing(asks[name], plain)}


def scored(fitted: Fitted, encoder: Encoder, images: Tensor) -> None:
    """Score all, in batches."""
    for part in images.split(BATCH):
        fitted.score(encoder.encode(part, fitted.detector.needs))


def give_back() -> None:
    """Return freed memory to the system, where its library can."""
    library = ctypes.CDLL(ctypes.util.find_library("c"))
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def row(name: str, trainer: Trainer, encoder: Encoder, method: str, detector: Detector, images: Tensor) -> dict[str, object]:
    """One line of the table."""
    asks = detector.needs | detector.fit_needs
    signals = [encoder.encode(part, asks) for part in images.split(BATCH)]
    fitted = detector.fit(signals, held_out=signals)
    scored(fitted, encoder, images[:BATCH])
    give_back()
    with peak() as highest:
        start = time.perf_counter()
        scored(fitted, encoder, images)
        ms = 1000 * (time.perf_counter() - start) / len(images)
    state = sum(t.numel() * t.element_size() for t in fitted.state.values()) / 1e3
    return {"model": name, "pixels": trainer.input.size, "method": method, "passes": detector.passes} | {
        "ms": f"{ms:.2f}",
        "MB": f"{highest():.0f}",
        "state kB": f"{state:.0f}",
    }


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="", help="trainers, separated by commas; default all that are fitted without labels")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    made, rows = Made.now(), list[dict[str, object]]()
    for name, cls in registry.load_all(STAGE, Trainer).items():
        if cls.labelled or (args.models and name not in args.models.split(",")):
            continue
        trainer = trainer_of(cls)
        encoder = trainer.open(0, None, device=torch.device("cpu"))
        size, channels = encoder.input.size, encoder.input.channels
        images = torch.rand(64, channels, size, size, generator=torch.Generator().manual_seed(0))
        for method, detector in detectors(encoder).items():
            try:
                rows.append(row(name, trainer, encoder, method, detector, images))
            except OODError as error:
                print(f"{name} {method}: {error}")
                continue
            print(" ".join(str(value) for value in rows[-1].values()), flush=True)
    write_csv(args.out / "generative_costs.csv", rows)
    write_markdown(args.out / "generative_costs.md", "What each detector of a trained model costs", markdown(rows), made)


if __name__ == "__main__":
    main()
