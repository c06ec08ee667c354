"""Features of images that are half something else: a stand-in for a shift, for methods that fit on one."""

import hashlib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional

from offmap.core.component import nearest
from offmap.core.encoder import Encoder
from offmap.core.errors import ConfigError
from offmap.core.types import Signals
from offmap.represent.layers import LUMA
from offmap.simulate.corruptions import CORRUPTIONS, corrupt
from offmap.simulate.phantom_families import FOREIGN
from offmap.simulate.phantoms import FAMILIES, draw

PREFIX = "proxy_"
SHARES = (0.25, 0.5, 0.75)
"""Of the image itself; one is drawn for each image."""

DRAWN, POOL = 128, 16
"""Side of a phantom as drawn, and phantoms of each family."""

SEVERITIES = (3, 4, 5)
"""Of a corruption."""


class WithProxies(Encoder):
    """Any encoder that gives ``proxy_features.<layer>`` beside ``features.<layer>``: those of ``a x + (1 - a) proxy``.

    a is 0.25, 0.5 or 0.75; the proxy is a phantom, or the image itself with a corruption of severity 3 to 5. All of it follows from
    the image's own pixels, so an image has one proxy wherever it stands. In a volume, one phantom lies under all slices. Costs a
    second pass, and only where such a signal is asked for; a gate never asks, since scoring reads none.

    Args:
        base: the encoder.
        sources: names of phantom families or corruptions, drawn from with equal chance; the families that are no medical images
            when empty.

    Raises:
        ConfigError: an unknown name.
    """

    def __init__(self, base: Encoder, sources: Sequence[str] = ()) -> None:
        check_sources(sources)
        self.base = base
        self.sources = tuple(sources) or tuple(FOREIGN)
        self.name, self.layers, self.input, self.sha256 = base.name, base.layers, base.input, base.sha256
        self.provides = base.provides | {PREFIX + name for name in base.provides if name.startswith("features.")}

    def encode(self, images: Float[Tensor, "n c *s"], needs: frozenset[str]) -> Signals:
        """As ``Encoder.encode``."""
        own = frozenset(need for need in needs if not need.startswith(PREFIX))
        moved = {name for name in self.provides if name.startswith(PREFIX) and any(fnmatchcase(name, need) for need in needs)}
        signals = dict(self.base.encode(images, own))
        if moved:
            proxies = self.base.encode(self.mixed(images), frozenset(name.removeprefix(PREFIX) for name in moved))
            signals |= {PREFIX + name: value for name, value in proxies.items() if PREFIX + name in moved}
        return signals

    def mixed(self, images: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c *s"]:
        """Each image mixed with its proxy, in [0, 1]."""
        return torch.stack([self._mixed(image) for image in images.float()]).to(images) if len(images) else images

    def _mixed(self, image: Float32[Tensor, "c *s"]) -> Float32[Tensor, "c *s"]:
        pixels = np.ascontiguousarray(image.cpu().clamp(0, 1).numpy())
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(pixels.tobytes()).digest()[:8], "little"))
        share, source = SHARES[rng.integers(len(SHARES))], self.sources[rng.integers(len(self.sources))]
        if source in CORRUPTIONS:
            proxy = torch.from_numpy(_corrupted(pixels, source, rng))
        else:
            proxy = _channels(phantom(source, int(rng.integers(POOL)), *pixels.shape[-2:]), len(pixels))
            proxy = proxy[:, None] if pixels.ndim == 4 else proxy
        return share * image.cpu() + (1 - share) * proxy

    def to(self, device: torch.device | str) -> "WithProxies":
        """The same encoder on another device."""
        return WithProxies(self.base.to(device), self.sources)

    def state(self) -> dict[str, Tensor] | None:
        """Weights of the base encoder."""
        return self.base.state()

    def config(self) -> dict[str, Any]:
        """Sources and the base encoder."""
        return {"kind": "proxies", "name": self.name, "sha256": self.sha256, "sources": list(self.sources), "base": self.base.config()}


def with_proxies(encoder: Encoder, needs: Iterable[str], sources: Sequence[str] = ()) -> Encoder:
    """The encoder itself, or with proxy features where one of ``needs`` asks for them.

    Raises:
        ConfigError: ``sources`` holds an unknown name.
    """
    check_sources(sources)
    return WithProxies(encoder, sources) if any(need.startswith(PREFIX) for need in needs) else encoder


def without_proxies(encoder: Encoder) -> Encoder:
    """What scores."""
    return encoder.base if isinstance(encoder, WithProxies) else encoder


def check_sources(sources: Sequence[str]) -> None:
    """Raises:
    ConfigError: a name is neither a phantom family nor a corruption.
    """
    known = [*FAMILIES, *CORRUPTIONS]
    for name in sources:
        if name not in known:
            raise ConfigError(
                f"proxies: {name!r} is neither a phantom family ({', '.join(FAMILIES)}) nor a corruption ({', '.join(CORRUPTIONS)})"
                f"{nearest(name, known)}"
            )


@lru_cache(maxsize=64)
def phantom(family: str, index: int, height: int, width: int) -> Float32[Tensor, "c h w"]:
    """A drawn picture in [0, 1], resized."""
    picture = draw(family, index, seed=0, size=DRAWN).astype(np.float32) / 255
    planes = torch.from_numpy(picture[None] if picture.ndim == 2 else np.ascontiguousarray(picture.transpose(2, 0, 1)))
    resized: Tensor = functional.interpolate(planes[None], size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    return resized[0].clamp(0, 1)


def _channels(planes: Float32[Tensor, "c h w"], wanted: int) -> Float32[Tensor, "d h w"]:
    """Grey repeated, or colour as luma."""
    if len(planes) == 3 and wanted == 1:
        grey: Tensor = torch.tensordot(torch.tensor(LUMA), planes, dims=1)
        return grey[None]
    return planes.expand(wanted, -1, -1)


def _corrupted(pixels: Float32[np.ndarray, "c *s"], name: str, rng: np.random.Generator) -> Float32[np.ndarray, "c *s"]:
    """Damaged, slice by slice alike."""
    severity, seed = int(rng.choice(SEVERITIES)), int(rng.integers(2**31))
    if pixels.ndim == 3:
        return corrupt(pixels, name, severity=severity, seed=seed)
    return np.stack([corrupt(pixels[:, d], name, severity=severity, seed=seed) for d in range(pixels.shape[1])], axis=1)
