"""A diffusion model of small codes of images, trained from scratch on normal images: for larger images at the price of small ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.encoder import Encoder, Input
from offmap.core.errors import BundleError, ConfigError
from offmap.core.trainer import Event, Examples, Sheet, Trained
from offmap.represent.latent_diffusion import CODEC, NET, LatentDiffusionEncoder
from offmap.represent.layers import normalise
from offmap.represent.nets.latent import Codec, CodecShape, coded
from offmap.represent.nets.unet import EDMDenoiser, UNetShape
from offmap.represent.train.codec import CodecPlan, train_codec
from offmap.represent.train.diffusion import DiffusionPlan, train_diffusion
from offmap.represent.train.followed import Followed
from offmap.represent.train.normal_images import LEAST
from offmap.represent.train.samples import COLUMNS, ROWS, compared, draw, made_up
from offmap.represent.trainers._spatial import Spatial
from offmap.represent.trainers.diffusion import SIGMA, taken, weak


@dataclass(frozen=True)
class LatentDiffusion(DiffusionPlan, Spatial):
    """A codec (``AutoencoderKL``), and a small U-Net that denoises its codes; no labels.

    Args:
        channels: 1 or 3; colour becomes grey for one, grey is repeated for three.
        code_widths: channels of each level of the codec; each level but the last halves the grid, so that three make codes of a quarter of
            the side.
        latent: channels of a code.
        code_steps: optimiser steps of the codec, before those of the diffusion model.
        kl: weight of the codes' divergence from a standard normal law.

    The others are those of ``DiffusionPlan`` and of ``Spatial``; ``size`` is that of the images.
    """

    size: int = 64
    channels: int = 1
    code_widths: tuple[int, ...] = (16, 32, 32)
    latent: int = 4
    code_steps: int = 2000
    kl: float = 1e-4

    fewest: ClassVar[int] = LEAST
    in_step: ClassVar[bool] = True
    reference: ClassVar[str] = (
        "Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, CVPR 2022, arXiv 2112.10752; for anomalies: "
        "Graham et al., 2023, arXiv 2307.03777"
    )

    def __post_init__(self) -> None:
        DiffusionPlan.__post_init__(self)
        Spatial.__post_init__(self)
        if not 8 <= self.size <= 512 or self.code_steps < 1:
            raise ConfigError(f"[train] size = {self.size} must lie in 8..512, code_steps = {self.code_steps} be 1 or more")
        side = -(-self.size // self._codec.stride)
        if side < self._denoiser.stride:
            raise ConfigError(
                f"[train] codes of size = {self.size} are {side} pixels wide, less than the stride of the widths {list(self.widths)}, "
                f"{self._denoiser.stride}: take fewer widths or code_widths"
            )

    @property
    def input(self) -> Input:
        return Input(self.size, self.channels, (0.5,) * self.channels, (0.5,) * self.channels, self.axes)

    @property
    def _codec(self) -> CodecShape:
        return CodecShape(self.channels, self.axes, self.code_widths, self.latent)

    @property
    def _denoiser(self) -> UNetShape:
        return UNetShape(self.latent, self.axes, self.widths, self.blocks)

    def open(self, classes: int, state: Mapping[str, Tensor] | None, *, device: torch.device) -> Encoder:
        if state is None:
            return LatentDiffusionEncoder(Codec(self._codec), EDMDenoiser(self._denoiser, 0.5), self.size, device=device)
        weights = dict(state)
        config = {"net": self._denoiser.to_json(), "codec": self._codec.to_json(), SIGMA: taken(weights, SIGMA), "size": self.size}
        try:
            return LatentDiffusionEncoder.rebuilt(config, weights, device=device)
        except BundleError as error:
            raise ConfigError(str(error)) from error

    def train(
        self, data: Examples, *, seed: int, device: torch.device, folder: Path | None = None, progress: Event | None = None
    ) -> Trained:
        grey = normalise(data.images, Input(self.size, self.channels, (0.0,) * self.channels, (1.0,) * self.channels)).float()
        total = None if self.steps is None else self.code_steps + self.steps
        own = torch.ones(len(grey), dtype=torch.bool)
        own[data.check] = False
        first, follow = (
            Followed(self.check_every, total, progress, criterion=None, what="codec"),
            Followed(self.check_every, total, progress, self.code_steps),
        )
        plan = self._code_plan()
        places = (None, None) if folder is None else (folder / "codec", folder / "denoiser")
        codec = train_codec(
            2 * grey[own] - 1,
            2 * grey[data.check] - 1,
            self._codec,
            plan,
            out=places[0],
            seed=seed,
            device=device,
            resume=True,
            progress=first,
        )
        found = train_diffusion(
            grey,
            self,
            out=places[1],
            seed=seed,
            device=str(device),
            resume=True,
            held_out=data.check,
            codec=codec.net,
            progress=follow,
        )
        net = codec.net.cpu()
        facts = {"steps": found.steps, "kept_step": found.kept, **follow.facts(), **first.facts()}
        facts |= {"codec_error": round(codec.error, 4), "code_shape": list(coded(net, 2 * grey[:1] - 1, torch.device("cpu")).shape[1:])}
        state = {CODEC + k: v.detach().cpu() for k, v in net.state_dict().items()}
        state |= {NET + k: v.detach().cpu() for k, v in found.net.state_dict().items()}
        state[SIGMA] = torch.tensor(found.net.sigma_data, dtype=torch.float64)
        sheets = _sheets(net, found.net, grey[data.check][:COLUMNS], seed)
        return Trained(state, facts, [*codec.notes, *found.notes, *weak(found.area)], sheets)

    def _code_plan(self) -> CodecPlan:
        """The codec is trained as the diffusion model is, in steps of its own."""
        shared = ("batch", "rate", "warmup", "clip", "average", "precision", "check_every", "patience")
        return CodecPlan(steps=self.code_steps, kl=self.kl, **{name: getattr(self, name) for name in shared})


def _sheets(codec: Codec, net: EDMDenoiser, held_out: Float[Tensor, "n c *s"], seed: int) -> list[Sheet]:
    """What the model draws, and what the codec makes of images that trained nothing."""
    own = 2 * held_out - 1
    codes = tuple(coded(codec, own[:1], torch.device("cpu")).shape[1:])
    drawn = draw(net, codes, count=COLUMNS * ROWS, seed=seed, device=torch.device("cpu"))
    with torch.no_grad():
        shown = codec.decode(drawn, tuple(own.shape[2:]))
        back = codec.restored(codec.posterior(own)[0], tuple(own.shape[2:]))
    words = "Above, images that trained nothing; below, what is left of them in codes. What is lost there is never seen."
    return [made_up(shown, "Drawn by the model from noise, as codes, and decoded."), compared([own, back], words)]
