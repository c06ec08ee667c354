"""The network in training: `SmallNet` with batch normalisation, and back again with it folded into the convolutions."""

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from offmap.represent.nets.small import SmallNet


class ConvNorm(nn.Module):
    """A convolution without bias, then batch normalisation (Ioffe and Szegedy, ICML 2015)."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = copy.deepcopy(conv)
        self.conv.bias = None
        self.norm = nn.BatchNorm2d(conv.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return y


def with_norms(net: SmallNet, generator: torch.Generator) -> SmallNet:
    """A copy whose convolutions are followed by batch normalisation, He-initialised from ``generator``."""
    student = copy.deepcopy(net)
    for name, conv in [(n, m) for n, m in student.named_modules() if isinstance(m, nn.Conv2d)]:
        owner, _, attribute = name.rpartition(".")
        unit = ConvNorm(conv)
        nn.init.kaiming_normal_(unit.conv.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        setattr(student.get_submodule(owner), attribute, unit)
    return student


def fold(student: SmallNet) -> dict[str, Tensor]:
    """Weights of the plain `SmallNet` that gives the same maps as the student in eval mode.

    ``w' = w g / sqrt(v + eps)``, ``b' = b - m g / sqrt(v + eps)``, in float64.
    """
    weights = {}
    for name, unit in student.named_modules():
        if isinstance(unit, ConvNorm):
            norm = unit.norm
            mean, variance = norm.running_mean, norm.running_var
            if mean is None or variance is None:
                continue
            gain = norm.weight.detach().double() / (variance.double() + norm.eps).sqrt()
            weights[f"{name}.weight"] = (unit.conv.weight.detach().double() * gain[:, None, None, None]).float().contiguous()
            weights[f"{name}.bias"] = (norm.bias.detach().double() - mean.double() * gain).float().contiguous()
    return weights


def export(student: SmallNet, config: Mapping[str, Any], folder: Path) -> None:
    """Write ``model.safetensors`` (float16, folded) and ``config.json`` in the form of the shipped encoder."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.cpu().half() for name, value in fold(student).items()}
    taps = list(student.taps)
    channels = [student.widths[t] for t in taps]
    sizes = [math.ceil(config["input"]["size"] / student.strides[t]) for t in taps]
    features = dict(config["features"]) | {"taps": taps, "channels": channels, "sizes": sizes, "pooled_dims": [2 * c for c in channels]}
    save_file(weights, folder / "model.safetensors")
    count = sum(v.numel() for v in weights.values())
    described = {k: v for k, v in config.items() if k != "macs"} | {"features": features, "parameters": count}
    (folder / "config.json").write_text(json.dumps(described, indent=1))
