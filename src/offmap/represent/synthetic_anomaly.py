"""A synthetic-anomaly network as an encoder: how odd each pixel is to a network that learnt it on altered images."""

import json
from collections.abc import Mapping
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
from offmap.represent.digest import tensors_sha256
from offmap.represent.filled import filled, require_finite
from offmap.represent.layers import joined, normalise
from offmap.represent.nets.synthetic_anomaly import SyntheticAnomalyNet, SyntheticAnomalyShape
from offmap.represent.network_folder import read_network, write_network

CHUNK = 32
"""Images at a time."""

WHAT = "synthetic-anomaly network"

MAP, TOP, FEATURES = "synthetic.map", "synthetic.top", "synthetic.features"

SETTINGS: Mapping[str, Scalar] = {"share": 0.01}
"""Of ``synthetic.top``, with their defaults."""


class SyntheticAnomalyEncoder(Encoder):
    """A network that was trained on tasks of altering normal images (FPI, PII, NSA, CutPaste, many tasks).

    ``synthetic.map (N, 1, *S)``: for each pixel the label that the network expects, in [0, 1], of the image's own size.
    ``synthetic.top:share=0.01 (N,)``: mean of that share of the pixels with the largest values; ``share=1`` is the mean of all,
    ``share=0`` the maximum. ``synthetic.features (N, D)``: mean of the coarsest level, which the classifier of tasks reads. A network with
    the objective ``class`` has no map. Computed in float32.

    Grey images are repeated for a colour network, colour ones become luma for a grey one. Any size from the network's stride on, odd and
    not square ones too; scores of other sizes than that of training do not compare.

    Args:
        net: trained.
        size: side of the images that it was trained on.
        name: ``synthetic_anomaly`` or ``synthetic_anomaly:DIR``.

    Raises:
        BundleError: weights that are not finite.
    """

    reentrant: ClassVar[bool] = True

    def __init__(self, net: SyntheticAnomalyNet, size: int, *, name: str = "synthetic_anomaly", device: torch.device | str = "cpu") -> None:
        self._net = net.to(device).eval().requires_grad_(False)
        channels = net.shape.channels
        self.name, self.layers = name, ()
        maps = {MAP, TOP} if net.shape.objective != "class" else set()
        self.provides = frozenset(maps | {FEATURES, "image"})
        self.input = Input(size, channels, (0.5,) * channels, (0.5,) * channels, net.shape.axes)
        weights = self.state()
        require_finite(weights, WHAT)
        self.sha256 = tensors_sha256(weights, note=json.dumps(self._description(), sort_keys=True))

    def ready(self, needs: frozenset[str]) -> None:
        """As ``Encoder.ready``.

        Raises:
            ConfigError: unknown settings, or a share outside [0, 1].
        """
        for name in needs:
            if base_of(name) == TOP:
                share_of(name)

    def encode(self, images: Float[Tensor, "n c *s"], needs: frozenset[str]) -> Signals:
        """As ``Encoder.encode``.

        Raises:
            SignalError: images smaller than the network's stride, with other axes, or neither 1 nor 3 channels.
            ConfigError: settings out of range.
        """
        known = self.provides - {"image"}
        wanted = {need for need in needs if base_of(need) in known}
        wanted |= {base for base in known for need in needs if "*" in need and fnmatchcase(base, need)}
        signals: dict[str, Tensor] = {"image": images} if "image" in needs else {}
        if not wanted:
            return signals
        with torch.no_grad():
            return signals | joined([self._part(part, wanted) for part in normalise(images, self.input).split(CHUNK)])

    def _part(self, x: Float[Tensor, "n c *s"], names: set[str]) -> dict[str, Tensor]:
        seen = self._net(laid_out(x))
        out = {FEATURES: seen.features.contiguous()} if FEATURES in names else {}
        if seen.map is not None:
            odd = seen.map.sigmoid().contiguous()
            out |= {MAP: odd} if MAP in names else {}
            out |= {name: top_share(odd, share_of(name)) for name in names if base_of(name) == TOP}
        return out

    def to(self, device: torch.device | str) -> "SyntheticAnomalyEncoder":
        """The same encoder on another device."""
        return self.rebuilt(self._description(), self.state(), name=self.name, device=device)

    def state(self) -> dict[str, Tensor]:
        """Weights in float32."""
        return {name: value.detach() for name, value in self._net.state_dict().items()}

    def _description(self) -> dict[str, Any]:
        return {"net": self._net.shape.to_json(), "size": self.input.size}

    def config(self) -> dict[str, Any]:
        """Architecture and size."""
        return {"kind": "synthetic_anomaly", "name": self.name, "sha256": self.sha256, **self._description()}

    @classmethod
    def rebuilt(
        cls, config: Mapping[str, Any], state: Mapping[str, Tensor], *, name: str = "synthetic_anomaly", device: torch.device | str = "cpu"
    ) -> "SyntheticAnomalyEncoder":
        """From what ``config`` and ``state`` gave.

        Raises:
            ConfigError: the configuration makes no sense.
            BundleError: weights that do not fit it or are not finite.
            NotAvailableError: MONAI is missing.
        """
        try:
            net, size = SyntheticAnomalyNet(SyntheticAnomalyShape.from_json(config["net"])), int(config["size"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"the description of the {WHAT} makes no sense: {type(error).__name__} {error}") from error
        return cls(filled(net, state, WHAT), size, name=name, device=device)

    @classmethod
    def from_folder(cls, folder: Path, *, device: torch.device | str = "cpu") -> "SyntheticAnomalyEncoder":
        """One that ``save`` wrote.

        Raises:
            NotAvailableError: a file is missing.
            ConfigError: they cannot be read.
        """
        return cls.rebuilt(*read_network(folder, WHAT), name=f"synthetic_anomaly:{folder}", device=device)

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors`` and ``config.json``; ``--encoder synthetic_anomaly:FOLDER`` uses them.

        Raises:
            ConfigError: they cannot be written.
        """
        write_network(folder, self.config(), self.state(), WHAT)


def laid_out(images: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c *s"]:
    """In the order in memory that the network is fast in."""
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images.contiguous()


def top_share(odd: Float[Tensor, "n 1 *s"], share: float) -> Float[Tensor, " n"]:
    """Mean of the largest values of each map: of ``share`` of its pixels, of one pixel at least."""
    flat = odd.flatten(1)
    return flat.topk(max(1, round(share * flat.shape[1])), dim=1).values.mean(dim=1)


def share_of(name: str) -> float:
    """The share in a signal's name.

    Raises:
        ConfigError: it is outside [0, 1], or the name has other settings.
    """
    share = float(settings_of(name, SETTINGS)["share"])
    if not 0 <= share <= 1:
        raise ConfigError(f"signal {name!r}: share = {share} must lie in 0..1")
    return share
