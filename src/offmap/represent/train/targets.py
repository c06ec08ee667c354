"""What the student learns: the teacher's maps and pooled features, standardised.

Pooled features are partially whitened, ``V diag(l^-0.3) V^T (x - m)``: full whitening (power -0.5) would spend the student on
noise directions, none on the few that carry most variance. Eigenvalues are shrunk towards their mean by ``d / (n + d)``, so that
directions which few samples do not show are not blown up.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from offmap.core.encoder import Encoder
from offmap.represent.nets.small import SmallNet

POWER = -0.3
"""Power of the eigenvalues."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of the teacher over a few batches: tensors ``<layer>.map_mean|map_std|mean|whitener``."""

    tensors: Mapping[str, Tensor]

    def map_target(self, layer: str, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Maps with zero mean and unit deviation per channel."""
        t = self.tensors
        return (maps - t[f"{layer}.map_mean"][:, None, None]) / t[f"{layer}.map_std"][:, None, None]

    def pooled_target(self, layer: str, pooled: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Pooled features, partially whitened to a mean square of one."""
        return torch.matmul(pooled - self.tensors[f"{layer}.mean"], self.tensors[f"{layer}.whitener"])


def teach(teacher: Encoder, pixels: Float[Tensor, "n 3 s s"]) -> dict[str, tuple[Tensor, Tensor]]:
    """Maps and pooled features of the teacher by layer; views are resized to its input size."""
    size = (teacher.input.size, teacher.input.size)
    seen = functional.interpolate(pixels, size=size, mode="bilinear", antialias=True, align_corners=False)
    signals = teacher.encode(seen, frozenset({"features.*", "feature_map.*"}))
    return {layer: (signals[f"feature_map.{layer}"], signals[f"features.{layer}"]) for layer in teacher.layers}


def measure(teacher: Encoder, batches: Iterable[Float[Tensor, "n 3 s s"]]) -> Statistics:
    """Statistics over batches of views."""
    seen: dict[str, list[Tensor]] = {}
    moments: dict[str, list[Tensor]] = {}
    for pixels in batches:
        for layer, (maps, pooled) in teach(teacher, pixels).items():
            seen.setdefault(layer, []).append(pooled)
            wide = maps.double()
            moments.setdefault(layer, []).append(torch.stack([wide.mean(dim=(0, 2, 3)), wide.square().mean(dim=(0, 2, 3))]))
    tensors = {}
    for layer, vectors in seen.items():
        mean, square = torch.stack(moments[layer]).mean(dim=0)
        pooled = torch.cat(vectors)
        tensors[f"{layer}.map_mean"] = mean.float()
        tensors[f"{layer}.map_std"] = (square - mean.square()).clamp_min(1e-6).sqrt().float()
        tensors[f"{layer}.mean"] = pooled.mean(dim=0)
        tensors[f"{layer}.whitener"] = _whitener(pooled)
    return Statistics(tensors)


def _whitener(pooled: Float[Tensor, "n d"]) -> Float[Tensor, "d d"]:
    centred = (pooled - pooled.mean(dim=0)).double()
    values, vectors = torch.linalg.eigh(centred.T @ centred / max(len(pooled) - 1, 1))
    n, d = pooled.shape
    share = d / (n + d)
    shrunk = (1 - share) * values.clamp_min(0) + share * values.clamp_min(0).mean().clamp_min(1e-12)
    whitener = (vectors * shrunk.pow(POWER)) @ vectors.T
    scale = (centred @ whitener).square().mean().sqrt().clamp_min(1e-12)
    result: Tensor = (whitener / scale).float()
    return result


class Heads(nn.Module):
    """Predict the teacher from the student: 1 x 1 convolutions for maps, linear layers for pooled features; dropped afterwards.

    A teacher layer is predicted from the student's layer of the nearest reduction.
    """

    def __init__(
        self, student: SmallNet, example: Mapping[str, tuple[Tensor, Tensor]], teacher_size: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.source: dict[str, str] = {}
        self.maps, self.pooled = nn.ModuleDict(), nn.ModuleDict()
        for layer, (maps, vector) in example.items():
            reduction = teacher_size / maps.shape[2]
            tap = min(student.strides, key=lambda t: abs(math.log(student.strides[t] / reduction)))
            self.source[layer] = tap
            width = student.widths[tap]
            self.maps[_key(layer)] = _fresh(nn.Conv2d(width, maps.shape[1], 1), generator)
            self.pooled[_key(layer)] = _fresh(nn.Linear(2 * width, vector.shape[1]), generator)

    def loss(self, seen: Mapping[str, Tensor], taught: Mapping[str, tuple[Tensor, Tensor]], statistics: Statistics) -> Float[Tensor, ""]:
        """Mean over the teacher's layers of the two mean squared errors (maps, pooled).

        Args:
            seen: maps of the student by tap.
            taught: maps and pooled features of the teacher by layer.
        """
        losses = []
        for layer, (maps, pooled) in taught.items():
            own = seen[self.source[layer]]
            target = statistics.map_target(layer, functional.interpolate(maps, size=own.shape[2:], mode="bilinear", antialias=True))
            losses.append(functional.mse_loss(self.maps[_key(layer)](own).float(), target))
            guess = self.pooled[_key(layer)](smooth_stats(own.float()))
            losses.append(functional.mse_loss(guess.float(), statistics.pooled_target(layer, pooled)))
        mean: Tensor = torch.stack(losses).mean()
        return mean


def smooth_stats(maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2"]:
    """Mean and deviation over space with a finite gradient for channels that are constant."""
    variance, mean = torch.var_mean(maps, dim=(2, 3), correction=0)
    return torch.cat([mean, (variance + 1e-5).sqrt()], dim=1)


def _key(layer: str) -> str:
    return layer.replace(".", "/")


def _fresh(layer: nn.Conv2d | nn.Linear, generator: torch.Generator) -> nn.Module:
    nn.init.normal_(layer.weight, std=(1 / layer.weight[0].numel()) ** 0.5, generator=generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
