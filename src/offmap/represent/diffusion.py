"""A diffusion model as an encoder: signals of how an image lies to the normal images that it was trained on."""

import json
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.encoder import Encoder, Input
from offmap.core.errors import ConfigError
from offmap.core.signals import Scalar, base_of, settings_of
from offmap.core.types import Signals
from offmap.represent import curvature, trajectories
from offmap.represent.conditional import likeliest, told
from offmap.represent.denoiser import Denoiser
from offmap.represent.digest import tensors_sha256
from offmap.represent.filled import filled, require_finite
from offmap.represent.layers import joined, normalise
from offmap.represent.nets.unet import EDMDenoiser, UNetShape
from offmap.represent.network_folder import read_network, write_network

CHUNK = 32
"""Images at a time."""

Make = Callable[[Denoiser, Float[Tensor, "n c *s"], Mapping[str, Scalar], str], Tensor]

KINDS: Mapping[str, tuple[Make, Mapping[str, Scalar]]] = {
    "msma.norms": (trajectories.msma_norms, trajectories.MSMA),
    "diffpath.moments": (trajectories.diffpath_moments, trajectories.DIFFPATH),
    "multi_noise.errors": (trajectories.multi_noise_errors, trajectories.MULTI_NOISE),
    "lmd.errors": (trajectories.lmd_errors, trajectories.LMD),
    "lmd.map": (trajectories.lmd_map, trajectories.LMD),
    "projection.regrets": (trajectories.projection_regrets, trajectories.PROJECTION),
    "scoped.ratios": (curvature.scoped_ratios, curvature.SCOPED),
    "eigenscore.values": (curvature.eigenscore_values, curvature.EIGENSCORE),
    "gepc.errors": (curvature.gepc_errors, curvature.GEPC),
    "gepc.map": (curvature.gepc_map, curvature.GEPC),
    "input_gradient.norm": (curvature.gradient_norms, curvature.GRADIENT),
}
"""Signals of a denoiser by base name: what makes them, and their settings."""


class DiffusionEncoder(Encoder):
    """A trained diffusion model.

    ``msma.norms (N, L)``, ``diffpath.moments (N, 6)``, ``scoped.ratios (N, L)``, ``multi_noise.errors (N, K)``,
    ``eigenscore.values (N, L)``, ``gepc.errors (N, L)``, ``gepc.map (N, 1, *S)``, ``lmd.errors (N,)``, ``lmd.map (N, 1, *S)``,
    ``input_gradient.norm (N,)``, ``projection.regrets (N, L)``: see ``trajectories`` and ``curvature``, and the detectors that read them.
    Settings stand in a signal's name; deviations of noise (``low``, ``high``) are in units of pixels in [-1, 1]. All noise of an image is
    drawn from its own pixels. Computed in float32.

    Grey images are repeated for a colour model, colour ones become luma for a grey one. The gate's preparation brings images to the
    model's size; given directly, any size from the network's stride on is taken, but scores of other sizes do not compare.

    Args:
        net: trained.
        size: side of the images that it was trained on.
        name: ``diffusion`` or ``diffusion:DIR``.
        told: of a network with classes, tell it of the class that each image looks most like (3K passes more); else of none.

    Raises:
        BundleError: weights that are not finite.
    """

    reentrant: ClassVar[bool] = True

    def __init__(
        self, net: EDMDenoiser, size: int, *, name: str = "diffusion", device: torch.device | str = "cpu", told: bool = False
    ) -> None:
        self._told = told and net.shape.classes > 0
        self._net = net.to(device).eval().requires_grad_(False)
        channels = net.shape.channels
        self.name, self.layers = name, ()
        self.provides = frozenset(KINDS) | {"image"}
        self.input = Input(size, channels, (0.5,) * channels, (0.5,) * channels, net.shape.axes)
        weights = self.state()
        require_finite(weights, "diffusion model")
        self.sha256 = tensors_sha256(weights, note=json.dumps(self._description(), sort_keys=True))

    @property
    def denoiser(self) -> EDMDenoiser:
        """``D(x, sigma)`` for images in [-1, 1]."""
        return self._net

    def ready(self, needs: frozenset[str]) -> None:
        """As ``Encoder.ready``.

        Raises:
            ConfigError: unknown settings.
        """
        for name in needs:
            if base_of(name) in KINDS:
                settings_of(name, KINDS[base_of(name)][1])

    def encode(self, images: Float[Tensor, "n c *s"], needs: frozenset[str]) -> Signals:
        """As ``Encoder.encode``.

        Raises:
            SignalError: images smaller than the network's stride, with other axes, or neither 1 nor 3 channels.
            ConfigError: settings out of range.
        """
        wanted = {need for need in needs if base_of(need) in KINDS}
        wanted |= {base for base in KINDS for need in needs if "*" in need and fnmatchcase(base, need)}
        signals: dict[str, Tensor] = {"image": images} if "image" in needs else {}
        if not wanted:
            return signals
        clean = normalise(images, self.input)
        with torch.no_grad():
            return signals | joined([self._part(part, sorted(wanted)) for part in clean.split(CHUNK)])

    def _part(self, clean: Float[Tensor, "n c *s"], names: list[str]) -> dict[str, Tensor]:
        clean = self._laid_out(clean)
        out, denoise = {}, told(self._net, likeliest(self._net, clean)) if self._told else self._net
        for name in names:
            make, defaults = KINDS[base_of(name)]
            out[name] = make(denoise, clean, settings_of(name, defaults), name)
        return out

    def _laid_out(self, clean: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c *s"]:
        """In the order in memory that its convolutions are fast in."""
        return clean.contiguous(memory_format=torch.channels_last) if clean.ndim == 4 else clean

    def to(self, device: torch.device | str) -> "DiffusionEncoder":
        """The same encoder on another device."""
        return self.rebuilt(self._description(), self.state(), name=self.name, device=device)

    def state(self) -> dict[str, Tensor]:
        """Weights in float32."""
        return {name: value.detach() for name, value in self._net.state_dict().items()}

    def _description(self) -> dict[str, Any]:
        own = {"net": self._net.shape.to_json(), "sigma_data": self._net.sigma_data, "size": self.input.size}
        return {**own, "told": True} if self._told else own

    def config(self) -> dict[str, Any]:
        """Architecture, size, and root mean square of the training images."""
        return {"kind": "diffusion", "name": self.name, "sha256": self.sha256, **self._description()}

    @classmethod
    def rebuilt(
        cls, config: Mapping[str, Any], state: Mapping[str, Tensor], *, name: str = "diffusion", device: torch.device | str = "cpu"
    ) -> "DiffusionEncoder":
        """From what ``config`` and ``state`` gave.

        Raises:
            ConfigError: the configuration makes no sense.
            BundleError: weights that do not fit it or are not finite.
            NotAvailableError: MONAI or einops is missing.
        """
        try:
            net = EDMDenoiser(UNetShape.from_json(config["net"]), float(config["sigma_data"]))
            size = int(config["size"])
            if net.shape.channels not in (1, 3):
                raise ConfigError(f"the description of the diffusion model makes no sense: channels = {net.shape.channels} must be 1 or 3")
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"the description of the diffusion model makes no sense: {type(error).__name__} {error}") from error
        return cls(filled(net, state, "diffusion model"), size, name=name, device=device, told=bool(config.get("told", False)))

    @classmethod
    def from_folder(cls, folder: Path, *, device: torch.device | str = "cpu") -> "DiffusionEncoder":
        """One that ``save`` wrote.

        Raises:
            NotAvailableError: a file is missing.
            ConfigError: they cannot be read.
        """
        config, state = read_network(folder, "diffusion model")
        return cls.rebuilt(config, state, name=f"diffusion:{folder}", device=device)

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors`` and ``config.json``; ``--encoder diffusion:FOLDER`` uses them.

        Raises:
            ConfigError: they cannot be written.
        """
        write_network(folder, self.config(), self.state(), "diffusion model")
