"""An autoencoder as an encoder: signals of how an image differs from what the network makes of it, of its code, and of its likelihood."""

import json
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from offmap.core.encoder import Encoder, Input
from offmap.core.errors import ConfigError
from offmap.core.signals import Scalar, base_of, settings_of
from offmap.core.types import Signals
from offmap.represent.digest import tensors_sha256
from offmap.represent.elbo_slopes import GRADIENT, GRADIENT_MAP, REGRET, elbo_gradient_map, elbo_regret, input_gradient_norm
from offmap.represent.encoder import BuiltinEncoder
from offmap.represent.filled import filled, require_finite
from offmap.represent.layers import joined, normalise
from offmap.represent.likelihood import ELBO, compressed_bits, elbo_parts
from offmap.represent.nets.autoencoder import VAE, Autoencoder, AutoencoderShape, Restored, autoencoder
from offmap.represent.network_folder import read_network, write_network
from offmap.represent.restoration import DIFFERENCES, perceptual_errors, perceptual_maps

CHUNK = 64
"""Images at a time."""

WHAT = "autoencoder"


class Pass:
    """One batch and what a network makes of it, each part once.

    Args:
        model: in eval mode.
        images: in [0, 1], with the model's channels.
    """

    def __init__(self, model: Autoencoder, images: Float[Tensor, "n c *s"]) -> None:
        self.model, self.images = model, images

    @cached_property
    def restored(self) -> Restored:
        """The network's output."""
        found: Restored = self.model(self.images)
        return found

    @cached_property
    def perceptual(self) -> BuiltinEncoder:
        """Whose features are compared."""
        return BuiltinEncoder.shipped(device=self.images.device)


Make = Callable[[Pass, Mapping[str, Scalar], str], Tensor]


def _mean(measure: str) -> Make:
    return lambda now, settings, name: DIFFERENCES[measure](now.images, now.restored).double().flatten(1).mean(dim=1).float()


def _map(measure: str) -> Make:
    return lambda now, settings, name: DIFFERENCES[measure](now.images, now.restored)


def _perceptual(now: Pass, settings: Mapping[str, Scalar], name: str) -> Tensor:
    return perceptual_errors(now.perceptual, now.images, now.restored.images)


def _perceptual_map(now: Pass, settings: Mapping[str, Scalar], name: str) -> Tensor:
    return perceptual_maps(now.perceptual, now.images, now.restored.images)


def _code(now: Pass, settings: Mapping[str, Scalar], name: str) -> Tensor:
    found = now.model.code(now.images)
    if found is None:
        raise ConfigError(f"a network of kind {now.model.shape.kind} has no code")
    return found


def _of_vae(make: Callable[[VAE, Tensor, Mapping[str, Scalar], str], Tensor]) -> Make:
    def made(now: Pass, settings: Mapping[str, Scalar], name: str) -> Tensor:
        if not isinstance(now.model, VAE):
            raise ConfigError(f"a network of kind {now.model.shape.kind} gives no likelihood; vae expected")
        return make(now.model, now.images, settings, name)

    return made


OF_VAE: Mapping[str, tuple[Make, Mapping[str, Scalar]]] = {
    "elbo.parts": (_of_vae(elbo_parts), ELBO),
    "elbo.regret": (_of_vae(elbo_regret), REGRET),
    "elbo_gradient.map": (_of_vae(elbo_gradient_map), GRADIENT_MAP),
    "input_gradient.norm": (_of_vae(input_gradient_norm), GRADIENT),
}
"""Signals that only a VAE has."""


KINDS: Mapping[str, tuple[Make, Mapping[str, Scalar]]] = {
    **{f"reconstruction.{measure}": (_mean(measure), {}) for measure in DIFFERENCES},
    **{f"reconstruction.{measure}.map": (_map(measure), {}) for measure in DIFFERENCES},
    "reconstruction.perceptual": (_perceptual, {}),
    "reconstruction.perceptual.map": (_perceptual_map, {}),
    "latent.code": (_code, {}),
    **OF_VAE,
    "complexity.bits": (lambda now, settings, name: compressed_bits(now.images), {}),
}
"""Signals by base name: what makes them, and their settings."""


class AutoencoderEncoder(Encoder):
    """A trained network of the autoencoder family.

    ``reconstruction.<measure> (N,)`` and ``reconstruction.<measure>.map (N, 1, *S)`` for the measures ``l1``, ``l2``, ``ssim``,
    ``ssim_contrast``, and ``normalised`` where the network knows its uncertainty; ``reconstruction.perceptual (N, L)`` and its map
    ``(N, L, H, W)`` of the L layers of the built-in encoder, of images with two axes; ``latent.code (N, K)`` where there is a code;
    ``elbo.parts:samples=1 (N, 3)`` of a VAE (log p(x|z) and KL in nats, number of pixel values; see ``likelihood``), and its
    ``elbo.regret (N,)``, ``input_gradient.norm (N,)`` and ``elbo_gradient.map (N, 1, *S)`` (see ``elbo_slopes``);
    ``complexity.bits (N,)``, the size of the image as PNG. Computed in float32.

    Grey images are repeated for a colour model, colour ones become luma for a grey one. The gate's preparation brings images to the
    model's size; given directly, networks without a dense code take any size from their stride on, others only their own.

    Args:
        model: trained.
        name: ``autoencoder`` or ``autoencoder:DIR``.

    Raises:
        BundleError: weights that are not finite.
    """

    reentrant: ClassVar[bool] = True

    def __init__(self, model: Autoencoder, *, name: str = WHAT, device: torch.device | str = "cpu") -> None:
        self._model = model.to(device).eval().requires_grad_(False)
        shape = model.shape
        self.name, self.layers = name, ()
        self.provides = frozenset({"image", *KINDS}) - _beyond(shape)
        self.input = Input(shape.sides[-1], shape.channels, (0.0,) * shape.channels, (1.0,) * shape.channels, shape.axes)
        weights = self.state()
        require_finite(weights, WHAT)
        self.sha256 = tensors_sha256(weights, note=json.dumps(shape.to_json(), sort_keys=True))

    @property
    def model(self) -> Autoencoder:
        """The network, in eval mode, pixels in [0, 1]; a ``VAE`` has ``encode``, ``decode`` and ``deviation``."""
        return self._model

    def ready(self, needs: frozenset[str]) -> None:
        """As ``Encoder.ready``.

        Raises:
            ConfigError: unknown settings, or signals that a network of this kind does not have.
        """
        for name in needs:
            base = base_of(name)
            if base in KINDS and base not in self.provides:
                raise ConfigError(f"{self.name} is a network of kind {self._model.shape.kind} and has no signal {base}")
            if base in KINDS:
                settings_of(name, KINDS[base][1])

    def encode(self, images: Float[Tensor, "n c *s"], needs: frozenset[str]) -> Signals:
        """As ``Encoder.encode``.

        Raises:
            SignalError: images of a size that the network does not take, with other axes, or neither 1 nor 3 channels.
            ConfigError: settings out of range.
        """
        wanted = {need for need in needs if base_of(need) in self.provides - {"image"}}
        wanted |= {base for base in self.provides - {"image"} for need in needs if "*" in need and fnmatchcase(base, need)}
        signals: dict[str, Tensor] = {"image": images} if "image" in needs else {}
        if not wanted:
            return signals
        with torch.no_grad():
            return signals | joined([self._part(part, sorted(wanted)) for part in normalise(images, self.input).split(CHUNK)])

    def _part(self, images: Float[Tensor, "n c *s"], names: list[str]) -> dict[str, Tensor]:
        now = Pass(self._model, images)
        out = {}
        for name in names:
            make, defaults = KINDS[base_of(name)]
            out[name] = make(now, settings_of(name, defaults), name)
        return out

    def to(self, device: torch.device | str) -> "AutoencoderEncoder":
        """The same encoder on another device."""
        return self.rebuilt(self.config(), self.state(), name=self.name, device=device)

    def state(self) -> dict[str, Tensor]:
        """Weights in float32."""
        return {name: value.detach() for name, value in self._model.state_dict().items()}

    def config(self) -> dict[str, Any]:
        """Architecture."""
        return {"kind": WHAT, "name": self.name, "sha256": self.sha256, "net": self._model.shape.to_json()}

    @classmethod
    def rebuilt(
        cls, config: Mapping[str, Any], state: Mapping[str, Tensor], *, name: str = WHAT, device: torch.device | str = "cpu"
    ) -> "AutoencoderEncoder":
        """From what ``config`` and ``state`` gave.

        Raises:
            ConfigError: the configuration makes no sense.
            BundleError: weights that do not fit it or are not finite.
            NotAvailableError: MONAI is missing.
        """
        try:
            model = autoencoder(AutoencoderShape.from_json(config["net"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"the description of the {WHAT} makes no sense: {type(error).__name__} {error}") from error
        return cls(filled(model, state, WHAT), name=name, device=device)

    @classmethod
    def from_folder(cls, folder: Path, *, device: torch.device | str = "cpu") -> "AutoencoderEncoder":
        """One that ``save`` wrote.

        Raises:
            NotAvailableError: a file is missing.
            ConfigError: they cannot be read.
        """
        config, state = read_network(folder, WHAT)
        return cls.rebuilt(config, state, name=f"{WHAT}:{folder}", device=device)

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors`` and ``config.json``; ``--encoder autoencoder:FOLDER`` uses them.

        Raises:
            ConfigError: they cannot be written.
        """
        write_network(folder, self.config(), self.state(), WHAT)


def _beyond(shape: AutoencoderShape) -> frozenset[str]:
    """Signals that a network of this shape does not have."""
    without = {"latent.code"} if shape.kind == "dae" else set()
    without |= set() if shape.kind == "vae" else set(OF_VAE)
    without |= set() if shape.uncertainty else {"reconstruction.normalised", "reconstruction.normalised.map"}
    without |= {"reconstruction.perceptual", "reconstruction.perceptual.map"} if shape.axes != 2 else set()
    return frozenset(without)
