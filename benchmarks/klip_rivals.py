"""What KLIP is held against: two ways to reconstruct from the same sinograms, and scores and maps of other methods."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from offmap.core import registry
from offmap.core.detector import Detector, Localiser
from offmap.core.encoder import Encoder
from offmap.represent.denoiser import Denoiser
from offmap.represent.diffusion import DiffusionEncoder
from offmap.represent.operators.ct import CT
from offmap.represent.posterior.contract import geometric
from offmap.represent.stochastic import seed_of
from offmap.score.patchcore import PatchCore

FILTERS = ("ramp", "cosine", "hamming", "hann")
WEIGHTS = (5e-5, 1e-4, 2e-4, 3e-4, 5e-4)
"""Of total variation."""

DIFFUSION = ("msma", "diffpath", "ddpm_ood", "lmd", "gepc", "eigenscore")
LEVELS = (20, 10.0, 0.02)
"""Of the bound on the log-likelihood: number, highest and lowest."""

CHUNK = 32

Way = Callable[[Mapping[str, Tensor]], dict[str, "Found"]]
"""Gives scores and maps of sets of images."""


@dataclass(frozen=True)
class Found:
    """Higher = more odd.

    Args:
        scores: of each image.
        maps: of each pixel; None where the method has none.
    """

    scores: Float[np.ndarray, " n"]
    maps: Float[np.ndarray, "n h w"] | None


def filtered_back_projection(y: Float[Tensor, "n 1 v b"], operator: CT, size: int, window: str) -> Float[Tensor, "n 1 h w"]:
    """``pi / V sum_v (p_v * ramp)`` back-projected with the pixels' footprints; y is of images in [0, 1].

    The ramp is that of Ramachandran and Lakshminarayanan (PNAS 1971) at bins of one pixel, times a window that falls from 1 at no frequency
    to 0 at the highest (``hann``), less (``hamming``, ``cosine``), or not at all.
    """
    bins = y.shape[-1]
    length = 2 ** (2 * bins - 1).bit_length()
    at = torch.fft.fftfreq(length, 1 / length, dtype=torch.float64)
    odd = at.abs() % 2 == 1
    kernel = torch.where(odd, -1 / (np.pi * at.where(odd, torch.ones_like(at))).square(), torch.zeros_like(at))
    kernel[0] = 0.25
    turn = np.pi * torch.fft.fftfreq(length, dtype=torch.float64)
    shape = {"ramp": torch.ones_like(turn), "cosine": turn.cos(), "hamming": 0.54 + 0.46 * (2 * turn).cos(), "hann": turn.cos().square()}
    spectrum = torch.fft.fft(kernel).real * shape[window]
    filtered = torch.fft.ifft(torch.fft.fft(y.double() * size, n=length) * spectrum).real[..., :bins]
    return (np.pi / operator.views * size * operator.adjoint(filtered, (size, size))).clamp(0, 1).float()


def total_variation(
    y: Float[Tensor, "n 1 v b"], operator: CT, size: int, weight: float, *, steps: int = 200, ratio: float = 10.0
) -> Float[Tensor, "n 1 h w"]:
    """``min 1/2 |A x - y|^2 + weight TV(x)`` over x in [0, 1], isotropic.

    Primal-dual steps of Chambolle and Pock (J. Math. Imaging Vis. 2011, algorithm 1), as written out for tomography by Sidky et al. (Phys.
    Med. Biol. 2012).

    The gradient is scaled to the norm of A. ``ratio`` is that of the primal to the dual step's length, which changes the speed alone.
    """
    shape = (size, size)
    scale = operator.lipschitz(shape) / 8**0.5
    norm = 2**0.5 * operator.lipschitz(shape)
    tau, rise = ratio / norm, 1 / (ratio * norm)
    x = torch.zeros(len(y), 1, *shape)
    seen, p, q = x, torch.zeros_like(y), torch.zeros(len(y), 2, *shape)
    for _ in range(steps):
        p = (p + rise * (operator.forward(seen) - y)) / (1 + rise)
        q = q + rise * scale * _gradient(seen)
        q = q / (q.norm(dim=1, keepdim=True) * scale / weight).clamp_min(1)
        after = (x - tau * (operator.adjoint(p, shape) - scale * _divergence(q))).clamp(0, 1)
        x, seen = after, 2 * after - x
    return x


def _gradient(x: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 2 h w"]:
    """Differences to the next row and column; 0 at the end."""
    down = functional.pad(x[:, 0, 1:] - x[:, 0, :-1], (0, 0, 0, 1))
    right = functional.pad(x[:, 0, :, 1:] - x[:, 0, :, :-1], (0, 1))
    return torch.stack([down, right], dim=1)


def _divergence(q: Float[Tensor, "n 2 h w"]) -> Float[Tensor, "n 1 h w"]:
    """Minus the adjoint of ``_gradient``."""
    down, right = functional.pad(q[:, 0, :-1], (0, 0, 1, 1)), functional.pad(q[:, 1, :, :-1], (1, 1))
    return (down[:, 1:] - down[:, :-1] + right[:, :, 1:] - right[:, :, :-1])[:, None]


def likelihood(denoiser: Denoiser, images: Float[Tensor, "n 1 h w"]) -> Found:
    """``1/2 int sigma^-3 |D(x + sigma n, sigma) - x|^2 d sigma``, the part of a diffusion model's bound on ``-log p(x)`` that depends on x,
    pixel by pixel, with one draw of noise a level from the image's content."""
    sigmas = torch.tensor(geometric(*LEVELS)[:-1])
    step = float((sigmas[0] / sigmas[1]).log())
    parts = []
    with torch.no_grad():
        for chunk in (2 * images - 1).split(CHUNK):
            rngs = [torch.Generator().manual_seed(seed_of(one)) for one in chunk]
            total = torch.zeros_like(chunk)
            for sigma in sigmas:
                noise = torch.stack([torch.randn(chunk.shape[1:], generator=rng) for rng in rngs])
                error = denoiser(chunk + sigma * noise, sigma.expand(len(chunk))) - chunk
                total += 0.5 * step * error.square() / sigma**2
            parts.append(total[:, 0])
    maps = torch.cat(parts).double().numpy()
    return Found(maps.sum(axis=(1, 2)), maps)


def detected(detector: Detector, encoder: Encoder, fit: Tensor, held_out: Tensor, sets: Mapping[str, Tensor]) -> dict[str, Found]:
    """Scores and maps of sets of images in [0, 1], of a detector with statistics of a fit and a held-out part."""
    own, kept = (signals(encoder, x, detector) for x in (fit, held_out))
    fitted = detector.fit([own], held_out=[kept])
    found = {}
    for name, images in sets.items():
        given = signals(encoder, images, detector)
        maps = brought(fitted.map(given), images) if isinstance(detector, Localiser) else None
        found[name] = Found(fitted.score(given).double().numpy(), maps)
    return found


def signals(encoder: Encoder, images: Tensor, detector: Detector) -> dict[str, Tensor]:
    """What a detector reads, images at the encoder's size and with its channels."""
    needs = detector.needs | detector.fit_needs | (detector.map_needs if isinstance(detector, Localiser) else frozenset())
    size = encoder.input.size
    seen = images if images.shape[-1] == size else functional.interpolate(images, size=(size, size), mode="bicubic", antialias=True)
    seen = seen.clamp(0, 1)
    parts = [encoder.encode(chunk, needs) for chunk in seen.split(CHUNK)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def brought(maps: Tensor, images: Tensor) -> Float[np.ndarray, "n h w"]:
    """To the pixels of the images."""
    grown = functional.interpolate(maps[:, None].double(), size=tuple(images.shape[2:]), mode="bilinear")
    return grown[:, 0].numpy()


def of_the_prior(name: str, encoder: DiffusionEncoder, held_out: Tensor, sets: Mapping[str, Tensor]) -> dict[str, Found]:
    """A detector that reads the same diffusion model, with statistics of the held-out part."""
    return detected(registry.load_all("score", Detector)[name](), encoder, held_out, held_out, sets)


def patchcore(encoder: Encoder, fit: Tensor, sets: Mapping[str, Tensor]) -> dict[str, Found]:
    """On the built-in encoder; its core-set is of the part that trained the prior."""
    return detected(PatchCore(), encoder, fit, fit, sets)


def restored(folder: Path, fit: Tensor, tune: Tensor, held_out: Tensor, sets: Mapping[str, Tensor]) -> dict[str, Found]:
    """What a denoising autoencoder changes, squared; trained on the prior's images for eight minutes unless it is in the folder.

    Raises:
        ImportError: this version has no autoencoders.
    """
    from offmap.represent.autoencoder import AutoencoderEncoder
    from offmap.represent.train.objectives import DAEPlan
    from offmap.represent.train.reconstruction import train_reconstruction

    if not (folder / "model.safetensors").exists():
        plan = DAEPlan(steps=None, minutes=8, precision="bfloat16", check_every=400, patience=1000)
        rows = torch.arange(len(fit), len(fit) + len(tune))
        found = train_reconstruction(torch.cat([fit, tune]), plan, out=folder, resume=True, held_out=rows)
        AutoencoderEncoder(found.net).save(folder)
        print(f"  dae: {found.steps} steps, drawn anomalies {found.area:.3f}", flush=True)
    detector = registry.load_all("score", Detector)["reconstruction"].from_params({"measure": "l2"})
    return detected(detector, AutoencoderEncoder.from_folder(folder), held_out, held_out, sets)


def kept(folder: Path, ways: Mapping[str, Way], sets: Mapping[str, Tensor]) -> dict[str, dict[str, Found]]:
    """What each method finds, from the folder if it is there."""
    out = {}
    for name, way in ways.items():
        path = folder / f"{name.replace(' ', '_')}.npz"
        if not path.exists():
            start = time.process_time()
            try:
                found = way(sets)
            except ImportError as error:
                print(f"  {name} is left out: {error}", flush=True)
                continue
            arrays = {f"{key} {part}": value for key, f in found.items() for part, value in vars(f).items() if value is not None}
            folder.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.stem}.part.npz")
            np.savez_compressed(part, **arrays)
            part.replace(path)
            print(f"  {name} in {folder.name}: {time.process_time() - start:.0f} s", flush=True)
        with np.load(path) as arrays:
            out[name] = {key: Found(arrays[f"{key} scores"], arrays.get(f"{key} maps")) for key in sets}
    return out


def tuned(make: Callable[[object], Tensor], values: Sequence[object], images: Tensor) -> tuple[object, Tensor]:
    """The value with the highest mean PSNR, and what it gives."""
    found = [(value, make(value)) for value in values]
    return max(found, key=lambda pair: float(psnr(pair[1], images).mean()))


def psnr(found: Float[Tensor, "n 1 h w"], images: Float[Tensor, "n 1 h w"]) -> Float[Tensor, " n"]:
    """In dB, for a range of 1."""
    return -10 * (found - images).double().square().flatten(1).mean(dim=1).clamp_min(1e-12).log10()
