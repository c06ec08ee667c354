"""The signals of KLIP: images are measured, reconstructed by posterior sampling, and what the data changed is kept by block and time."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from offmap.core.encoder import Encoder, Input
from offmap.core.errors import ConfigError, SignalError
from offmap.core.types import Signals
from offmap.core.updates import block_sums
from offmap.represent.denoiser import Denoiser
from offmap.represent.digest import tensors_sha256
from offmap.represent.layers import joined, normalise
from offmap.represent.operators.contract import Operator
from offmap.represent.operators.parse import parse
from offmap.represent.posterior.contract import Sampler
from offmap.represent.posterior.edm import EDM
from offmap.represent.posterior.patches import PatchPrior
from offmap.represent.posterior.sampling import Posterior, Precision, sample
from offmap.represent.stochastic import seed_of

MAP, RELATIVE, FOREGROUND = "klip.map", "klip.relative.map", "klip.foreground"
RESIDUAL, RECONSTRUCTION = "klip.residual", "klip.reconstruction.map"
OWN = frozenset({MAP, RELATIVE, FOREGROUND, RESIDUAL, RECONSTRUCTION})

TOGETHER = 16
"""Images that are sampled at once."""

AIR = 0.1
"""Brightness in [0, 1], averaged over 5 pixels a side of the reconstruction, up to which there is no body."""


class KlipEncoder(Encoder):
    """A diffusion prior, a measurement operator and a sampler, as one encoder; wholly seeded by the content of each image.

    ``klip.map (N, K, h, w)``: ``1/2 |dx|^2 / (g^2 dt)`` summed over cells of ``cell`` pixels and over each of K equal parts of the steps,
    mean over samples. ``klip.relative.map``: mean over the part's steps of ``|dx|^2 / g^2``. ``klip.foreground (N, h, w)``: share of a
    cell's pixels where the reconstruction shows more than air. ``klip.residual (N,)``: root mean square of ``y - A x`` over the samples
    in deviations of the noise, about 1 where prior, operator and noise level are right. ``klip.reconstruction.map (N, C, H, W)``: mean
    of the samples, in [0, 1].

    ``encode`` makes the measurement itself, ``A x`` plus noise from the image's content: an inverse crime, as the same A reconstructs.
    ``measured`` takes the measurement of a scanner. A detector then chooses its window and its blocks without sampling again.

    Args:
        denoiser: ``D(x, sigma)`` of images in [-1, 1], or a prior of patches; a gate does not keep it.
        operator: with its noise level, or its text: ``ct:views=24,noise=0.01``.
        sampler: the reverse process.
        size: height and width of the images.
        channels: 1 or 3.
        cell: side of a cell in pixels.
        windows: K; the sampler's steps are a multiple of it.
        modality: DICOM modality of the images that the prior was trained on; an operator of another one is refused.
        identity: what tells this denoiser from others; the digest of its weights where it is a module.
        precision: of the passes through the network, as of ``posterior.sampling.sample``.

    Raises:
        ConfigError: the parts do not fit each other.
    """

    def __init__(
        self,
        denoiser: Denoiser | PatchPrior,
        operator: Operator | str,
        sampler: Sampler | None = None,
        *,
        size: int = 64,
        channels: int = 1,
        cell: int = 4,
        windows: int = 20,
        modality: str = "",
        identity: str = "",
        precision: Precision = "float32",
        device: torch.device | str = "cpu",
    ) -> None:
        self.operator = parse(operator) if isinstance(operator, str) else operator
        self.sampler = sampler if sampler is not None else EDM()
        self._denoiser, self._cell, self._windows, self._modality = denoiser, cell, windows, modality
        self._identity, self._device = identity or _identity(denoiser), torch.device(device)
        self._precision = precision
        self.layers = ()
        self.input = Input(size, channels, (0.5,) * channels, (0.5,) * channels)
        self.provides = OWN | {"image"}
        self._check()
        self.name = f"klip:{self.operator.text()}"
        self.sha256 = tensors_sha256({}, note=json.dumps(self._settings(), sort_keys=True))

    def _check(self) -> None:
        size = (self.input.size,) * 2
        self.operator.measured(size)
        refuse_modality(self.operator, (self._modality,) if self._modality else ())
        if self._precision not in ("float32", "bfloat16"):
            raise ConfigError(f"klip: precision = {self._precision!r} must be 'float32' or 'bfloat16'")
        if self._cell < 1 or self.input.size % self._cell:
            fit = [c for c in range(1, self.input.size + 1) if self.input.size % c == 0]
            raise ConfigError(
                f"klip: cell = {self._cell} does not divide the image's side of {self.input.size}; {', '.join(map(str, fit))} do"
            )
        if self._windows < 1 or self.sampler.steps % self._windows:
            raise ConfigError(f"klip: the sampler's {self.sampler.steps} steps are no multiple of windows = {self._windows}")

    def encode(self, images: Float[Tensor, "n c h w"], needs: frozenset[str]) -> Signals:
        """As ``Encoder.encode``; images are measured first.

        Raises:
            SignalError: another size than the prior's.
        """
        signals = {"image": images} if "image" in needs else {}
        if not needs & OWN:
            return signals
        if tuple(images.shape[2:]) != (self.input.size,) * 2:
            raise SignalError(f"images of shape {tuple(images.shape)} must be {self.input.size} x {self.input.size} for this prior")
        clean, seeds = normalise(images.float(), self.input), [seed_of(image) for image in images]
        y = self.operator.forward(clean)
        noise = [torch.randn(y.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        y = y + self.operator.noise * torch.stack(noise).to(y)
        return signals | self._signals(y, [seed ^ 1 for seed in seeds], needs)

    def measured(self, y: Float[Tensor, "n c *m"], needs: frozenset[str] = OWN) -> Signals:
        """The same signals from measurements, without clean images.

        Args:
            y: in the units of the operator for images in [-1, 1].

        Raises:
            SignalError: they do not fit the operator, or are not finite (rows named).
        """
        self.operator.check(y, (self.input.size,) * 2)
        if y.shape[1] != self.input.channels:
            raise SignalError(f"a measurement of shape {tuple(y.shape)} must have {self.input.channels} channels on axis 1")
        y = y.to(device=self._device, dtype=torch.float32)
        return self._signals(y, [seed_of(one) for one in y], needs)

    def _signals(self, y: Float[Tensor, "n c *m"], seeds: Sequence[int], needs: frozenset[str]) -> dict[str, Tensor]:
        parts = []
        for i in range(0, len(y), TOGETHER):
            found = self.posterior(y[i : i + TOGETHER], seeds[i : i + TOGETHER])
            parts.append({name: value for name, value in self._made(found).items() if name in needs})
        return joined(parts)

    def posterior(self, y: Float[Tensor, "n c *m"], seeds: Sequence[int]) -> Posterior:
        """All that sampling gives."""
        size, own = (self.input.size, self.input.size), self._precision
        return sample(
            self._denoiser, y, self.operator, self.sampler, size=size, seeds=seeds, windows=self._windows, block=self._cell, precision=own
        )

    def _made(self, found: Posterior) -> dict[str, Tensor]:
        mean = ((found.mean + 1) / 2).clamp(0, 1)
        smooth = functional.avg_pool2d(mean.mean(dim=1, keepdim=True), 5, stride=1, padding=2, count_include_pad=False)
        body = block_sums((smooth[:, 0] > AIR).float(), self._cell) / self._cell**2
        maps = {MAP: found.sums.maps().float(), RELATIVE: found.sums.maps(relative=True).float()}
        return {**maps, FOREGROUND: body, RESIDUAL: found.residual, RECONSTRUCTION: mean.float()}

    def refused(self, signals: Signals) -> Mapping[int, str]:
        """Images whose reconstruction shows nothing but air: they have no block to score."""
        if FOREGROUND not in signals:
            return {}
        empty = ~(signals[FOREGROUND] > 0).flatten(1).any(dim=1)
        return dict.fromkeys(empty.nonzero().flatten().tolist(), "no_foreground")

    def rehearsal(self) -> "KlipEncoder":
        """The same signals from one sample and as few steps as there are windows."""
        return self._again(self._denoiser, replace(self.sampler, steps=2 if self._windows == 1 else self._windows, samples=1), self._device)

    def blank(self, count: int = 2) -> dict[str, Tensor]:
        """Signals of the right shapes that no image gave, to try out what reads them."""
        side = self.input.size // self._cell
        maps = torch.ones(count, self._windows, side, side, device=self._device)
        picture = torch.ones(count, self.input.channels, self.input.size, self.input.size, device=self._device)
        cells, one = maps[:, 0], maps[:, 0, 0, 0]
        return {MAP: maps, RELATIVE: maps.clone(), FOREGROUND: cells, RESIDUAL: one, RECONSTRUCTION: picture}

    def to(self, device: torch.device | str) -> "KlipEncoder":
        """The same encoder on another device; the user's module stays where it is, a copy is moved."""
        if torch.device(device) == self._device:
            return self
        moved = copy.deepcopy(self._denoiser).to(device) if isinstance(self._denoiser, nn.Module) else self._denoiser
        return self._again(moved, self.sampler, device)

    def _again(self, denoiser: Denoiser | PatchPrior, sampler: Sampler, device: torch.device | str) -> "KlipEncoder":
        return KlipEncoder(
            denoiser,
            self.operator,
            sampler,
            size=self.input.size,
            channels=self.input.channels,
            cell=self._cell,
            windows=self._windows,
            modality=self._modality,
            identity=self._identity,
            precision=self._precision,
            device=device,
        )

    def state(self) -> dict[str, Tensor] | None:
        """None: the denoiser is given again when a gate is loaded."""
        return None

    def config(self) -> dict[str, Any]:
        """Operator, sampler and sizes; noise level and scale belong to the meaning of a score."""
        return {"kind": "klip", "name": self.name, "sha256": self.sha256, **self._settings()}

    def _settings(self) -> dict[str, Any]:
        return {
            "operator": self.operator.text(),
            "sampler": {"method": self.sampler.method(), **self.sampler.params()},
            "size": self.input.size,
            "channels": self.input.channels,
            "cell": self._cell,
            "windows": self._windows,
            "modality": self._modality,
            "denoiser": self._identity,
            **({"precision": self._precision} if self._precision != "float32" else {}),
        }


def refuse_modality(operator: Operator, modalities: Sequence[str]) -> None:
    """Refuse an operator of another modality than images are of.

    Raises:
        ConfigError: naming both.
    """
    if operator.modality and modalities and operator.modality not in modalities:
        raise ConfigError(
            f"the operator {operator.text()} measures {operator.modality} images, the prior or gate was made with {', '.join(modalities)}: "
            "its scores would mean nothing"
        )


def _identity(denoiser: Denoiser | PatchPrior) -> str:
    net = denoiser.net if isinstance(denoiser, PatchPrior) else denoiser
    if not isinstance(net, nn.Module):
        raise ConfigError(
            "klip: a denoiser that is no module has no weights to tell it by: give it an identity, such as 'gaussian, s = 0.5'"
        )
    note = f"patches of {denoiser.patch}" if isinstance(denoiser, PatchPrior) else ""
    return tensors_sha256(net.state_dict(), note=note)
