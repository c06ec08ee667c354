"""What every encoder does alike: choose layers, pool maps, name signals, normalise pixels."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from offmap.core.component import nearest
from offmap.core.encoder import Input
from offmap.core.errors import ConfigError, SignalError

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""

_MEAN: Mapping[int, Callable[[Tensor, int], Tensor]] = {
    3: functional.adaptive_avg_pool1d,
    4: functional.adaptive_avg_pool2d,
    5: functional.adaptive_avg_pool3d,
}


def spatial_stats(maps: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c2"]:
    """Mean and unbiased standard deviation over space, concatenated: ``c2 = 2 c``.

    Two passes in the maps' own precision; where there is one position only, the deviation is 0. Average pooling reads
    channels-last maps in their own order, which makes this eight times faster than ``Tensor.std`` on a CPU.

    Raises:
        SignalError: the maps have no spatial axis, or more than three.
    """
    average = _MEAN.get(maps.ndim)
    if average is None:
        raise SignalError(f"maps of shape {tuple(maps.shape)} must have one to three spatial axes: (N, C, *S)")
    mean = average(maps, 1)
    positions = math.prod(maps.shape[2:])
    variance = average((maps - mean).square_(), 1) * (positions / max(positions - 1, 1))
    return torch.cat([mean.flatten(1), variance.sqrt_().flatten(1)], dim=1)


def normalise(images: Float[Tensor, "n c *s"], spec: Input) -> Float[Tensor, "n d *s"]:
    """``(x - mean) / std`` with the encoder's number of channels; grey is repeated, colour becomes BT.601 luma for grey encoders.

    Grey on three channels is exactly what one channel gives, not luma rounded once more: noise may be drawn from the pixels.

    Raises:
        SignalError: neither 1 nor 3 channels.
    """
    channels = images.shape[1]
    if channels not in (1, 3):
        raise SignalError(f"images of shape {tuple(images.shape)} must have 1 or 3 channels on axis 1")
    if channels == 3 and spec.channels == 1:
        luma = torch.tensordot(images, images.new_tensor(LUMA), dims=([1], [0])).unsqueeze(1)
        grey = (images == images[:, :1]).flatten(1).all(dim=1)
        images = torch.where(grey.view(-1, *[1] * (images.ndim - 1)), images[:, :1], luma)
    shape = (1, -1) + (1,) * (images.ndim - 2)
    mean, std = images.new_tensor(spec.mean).view(shape), images.new_tensor(spec.std).view(shape)
    return (images - mean) / std


def wanted(needs: Iterable[str], provides: Iterable[str], layers: Sequence[str]) -> frozenset[str]:
    """Those of ``provides`` that ``needs`` asks for.

    An exact name is always answered. A pattern such as ``features.*`` reaches the chosen layers and their aliases, not the
    other vectors of the same image (``features.cls``, ``features.penultimate``), which would count twice in a multi-layer score.
    """
    provided = frozenset(provides)
    extra = {p for p in provided if p.startswith("features.") and p[len("features.") :] not in (*layers, "last")}
    found: set[str] = set()
    for need in needs:
        found |= {p for p in provided - extra if fnmatchcase(p, need)} if "*" in need else provided & {need}
    return frozenset(found)


def chosen(asked: Sequence[str], known: Sequence[str], who: str) -> tuple[str, ...]:
    """The layers asked for, from shallow to deep; all of ``known`` when none is asked for.

    Raises:
        ConfigError: an unknown name (with the nearest one and the list).
    """
    for name in asked:
        if name not in known:
            raise ConfigError(f"{who} has no layer {name!r}; it has: {', '.join(known)}{nearest(name, list(known))}")
    return tuple(n for n in known if n in asked) if asked else tuple(known)


def map_names(layers: Sequence[str]) -> frozenset[str]:
    """Names of the signals that maps of these layers give."""
    return frozenset(f"{kind}.{layer}" for kind in ("features", "feature_map") for layer in (*layers, "last"))


def map_signals(maps: Mapping[str, Tensor], want: frozenset[str], last: str) -> dict[str, Tensor]:
    """``features.<layer>`` (spatial mean and deviation), ``feature_map.<layer>`` and the aliases ``.last``, as far as wanted."""
    signals: dict[str, Tensor] = {}
    for layer, values in maps.items():
        aliases = (layer, "last") if layer == last else (layer,)
        if any(f"features.{a}" in want for a in aliases):
            pooled = spatial_stats(values)
            signals |= {f"features.{a}": pooled for a in aliases if f"features.{a}" in want}
        signals |= {f"feature_map.{a}": values for a in aliases if f"feature_map.{a}" in want}
    return signals


def read_layers(want: frozenset[str], layers: Sequence[str]) -> tuple[str, ...]:
    """Layers whose maps the wanted signals read."""
    alias = {"features.last", "feature_map.last"} & want
    return tuple(n for n in layers if {f"features.{n}", f"feature_map.{n}"} & want or (alias and n == layers[-1]))


def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Signals of consecutive chunks of one batch, put together along axis 0; aliases stay aliases."""
    if len(parts) == 1:
        return dict(parts[0])
    made: dict[tuple[int, ...], Tensor] = {}
    signals = {}
    for name in parts[0]:
        tensors = [p[name] for p in parts]
        key = tuple(map(id, tensors))
        if key not in made:
            made[key] = torch.cat(tensors)
        signals[name] = made[key]
    return signals
