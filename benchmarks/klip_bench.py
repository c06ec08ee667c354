"""Priors, samplers and samples of ``klip.py``: trained and drawn once, kept in a folder."""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import klip_areas as areas
import klip_images as slices
import numpy as np
import torch
from klip_areas import Reading, Truth
from klip_images import Collection, Spoiled
from safetensors.torch import load_file, save_file
from torch import Tensor

from offmap.represent.diffusion import DiffusionEncoder
from offmap.represent.klip import FOREGROUND, MAP, RECONSTRUCTION, RESIDUAL, KlipEncoder
from offmap.represent.operators.ct import CT
from offmap.represent.posterior.edm import EDM
from offmap.represent.stochastic import seed_of
from offmap.represent.train.diffusion import DiffusionPlan, train_diffusion

SIZE, COPIES = 64, 16
PLAN = DiffusionPlan(
    size=SIZE,
    widths=(32, 64, 96),
    fold=2,
    steps=None,
    minutes=32,
    batch=16,
    average=0.998,
    noise_mean=-0.8,
    noise_spread=1.4,
    precision="bfloat16",
    check_every=400,
    patience=1000,
    margin=0.2,
)
OPERATOR = CT(views=24, noise=0.01)
NOISE = EDM(steps=100, samples=8, sigma_max=10.0, sigma_min=0.02, deviation=0.3)
INVERSE = replace(NOISE, steps=20, samples=4, sigma_max=3.0, start="inverse")
SETTINGS: Mapping[str, EDM] = {
    "100 steps x 8 samples, from noise": NOISE,
    "20 x 4, from noise": replace(NOISE, steps=20, samples=4),
    "20 x 4, from the pseudo-inverse": INVERSE,
    "20 x 4, from the pseudo-inverse, all steps between 1.2 and 0.1": replace(INVERSE, sigma_max=1.2, sigma_min=0.1),
    "20 x 4, from the pseudo-inverse, through the network": replace(INVERSE, backward=True),
    "20 x 1, from the pseudo-inverse": replace(INVERSE, samples=1),
    "10 x 8, from the pseudo-inverse": replace(INVERSE, steps=10, samples=8),
    "10 x 2, from the pseudo-inverse": replace(INVERSE, steps=10, samples=2),
}
MAIN, WHOLE = "20 x 4, from the pseudo-inverse", "100 steps x 8 samples, from noise"
NEEDS = frozenset({MAP, FOREGROUND, RESIDUAL, RECONSTRUCTION})
DEFAULT_WINDOW, DEFAULT_BLOCK = (0.65, 0.85), 4


@dataclass(frozen=True)
class Bench:
    """One prior with the images of both collections."""

    prior: str
    folder: Path
    collections: Mapping[str, Collection]
    images: int

    @cached_property
    def encoder(self) -> DiffusionEncoder:
        return DiffusionEncoder.from_folder(self.folder / self.prior)

    def rows(self, collection: str, part: str) -> np.ndarray:
        """Rows of a part, the first few of it."""
        found: np.ndarray = getattr(self.collections[collection], part)[: self.images]
        return found

    def clean(self, collection: str, part: str) -> Tensor:
        return self.collections[collection].images[self.rows(collection, part)]

    def odd(self, collection: str, part: str, kind: str) -> Spoiled:
        return slices.spoiled(self.clean(collection, part), kind, {"tune": 1, "test": 0}[part])

    def sets(self, collection: str, part: str, kinds: Sequence[str] = tuple(slices.PLANT)) -> dict[str, Tensor]:
        """Clean images, and the same with something planted."""
        return {"clean": self.clean(collection, part)} | {kind: self.odd(collection, part, kind).images for kind in kinds}

    def klip(self, setting: str) -> KlipEncoder:
        sampler = SETTINGS[setting]
        windows = min(20, sampler.steps)
        net = copy.deepcopy(self.encoder.denoiser).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return KlipEncoder(net, OPERATOR, sampler, size=SIZE, cell=areas.CELL, windows=windows, precision="bfloat16")

    def sampled(self, setting: str, collection: str, part: str, name: str) -> dict[str, Tensor]:
        """KLIP's signals of one set, from the folder if they are there; with the processor's seconds an image."""
        klip, images = self.klip(setting), self.sets(collection, part)[name]
        stem = self.folder / "samples" / f"{self.prior}-{klip.sha256[:12]}-{collection}-{part}-{name}"
        known = [p for p in stem.parent.glob(f"{stem.name}-*.safetensors") if int(p.stem.rsplit("-", 1)[1]) >= len(images)]
        path = known[0] if known else stem.with_name(f"{stem.name}-{len(images)}.safetensors")
        if not known:
            start = time.process_time()
            found = klip.encode(images, NEEDS)
            seconds = torch.tensor((time.process_time() - start) / len(images))
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            save_file({**{k: v.contiguous() for k, v in found.items()}, "seconds": seconds}, part)
            part.replace(path)
            print(f"  {self.prior} {setting}: {collection} {part} {name} {float(seconds):.2f} s an image", flush=True)
        return {key: value[: len(images)] if value.ndim else value for key, value in load_file(path).items()}

    def default(self, setting: str) -> Reading:
        windows = min(20, SETTINGS[setting].steps)
        return Reading(round(DEFAULT_WINDOW[0] * windows), max(1, round(DEFAULT_WINDOW[1] * windows)), DEFAULT_BLOCK)

    def tuned(self, setting: str) -> tuple[Reading, Reading]:
        """The best reading for localisation, and for whole images, on stars in the tuning part of the prior's own collection."""
        clean, odd = (self.sampled(setting, self.prior, "tune", name) for name in ("clean", "star"))
        truth = Truth.of(self.clean(self.prior, "tune"), self.odd(self.prior, "tune", "star"))
        tried = areas.readings(clean[MAP].shape[1])
        where = [np.nanmean(truth.areas(r.judged(odd[MAP]), strict=True)) for r in tried]
        which = [areas.set_area(r.score(clean[MAP], clean[FOREGROUND]), r.score(odd[MAP], odd[FOREGROUND]))[0] for r in tried]
        return tried[int(np.argmax(where))], tried[int(np.argmax(which))]


def train(folder: Path, collections: Mapping[str, Collection], minutes: float) -> None:
    """A prior of the first collection, and one of the second that starts from it, unless they are there."""
    first, second = slices.COLLECTIONS
    for name in (first, second):
        if (folder / name / "model.safetensors").exists():
            continue
        c = collections[name]
        fit, tune = slices.moved(c.images[c.fit], COPIES, 0), c.images[c.tune]
        plan = replace(PLAN, minutes=minutes)
        start = DiffusionEncoder.from_folder(folder / first).denoiser if name == second else None
        plan = replace(plan, rate=plan.rate / 2, minutes=0.7 * minutes) if start is not None else plan
        held_out = torch.arange(len(fit), len(fit) + len(tune))
        found = train_diffusion(torch.cat([fit, tune]), plan, out=folder / name, resume=True, held_out=held_out, start=start)
        DiffusionEncoder(found.net, SIZE).save(folder / name)
        print(f"{name}: {len(c.fit)} slices, {found.steps} steps", flush=True)


def done(bench: Bench, setting: str, collection: str) -> bool:
    """Whether a costly setting was sampled."""
    part = f"{bench.prior}-{bench.klip(setting).sha256[:12]}-{collection}-test-star-"
    counts = [int(path.stem.rsplit("-", 1)[1]) for path in (bench.folder / "samples").glob(f"{part}*.safetensors")]
    return max(counts, default=0) >= len(bench.rows(collection, "test"))


def sinograms(images: Tensor) -> Tensor:
    """Of images in [0, 1], with the noise that images in [-1, 1] have in the encoder, from the same seeds."""
    y = OPERATOR.forward(images)
    noise = [torch.randn(y.shape[1:], generator=torch.Generator().manual_seed(seed_of(one))) for one in images]
    return y + 0.5 * OPERATOR.noise * torch.stack(noise)
