"""A classifier made of a frozen backbone and a linear head: what logit methods need where the user has no classifier."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offmap.core.encoder import Encoder
from offmap.core.errors import ConfigError
from offmap.represent.classifier import ClassifierEncoder


@runtime_checkable
class Backboned(Protocol):
    """An encoder that hands out its network."""

    def backbone(self) -> nn.Module:
        """From normalised pixels to the deepest map ``(N, C, h, w)`` or tokens ``(N, T, C)``; shares its weights with the encoder."""
        ...


class Probe(nn.Module):
    """``W dropout(mean over space of the deepest map) + b``, from normalised pixels to logits ``(N, K)``.

    In eval mode dropout does nothing; it is there for MC-dropout.

    Args:
        backbone: from pixels to ``(N, C, h, w)`` or tokens ``(N, T, C)``.
        weight, bias: of the head, ``(K, C)`` and ``(K,)``.
        dropout: share of the pooled features that MC-dropout leaves out.
    """

    def __init__(self, backbone: nn.Module, weight: Float[Tensor, "k c"], bias: Float[Tensor, " k"], *, dropout: float = 0.2) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(weight.shape[1], weight.shape[0])
        self.head.weight = nn.Parameter(weight.detach().float(), requires_grad=False)
        self.head.bias = nn.Parameter(bias.detach().float(), requires_grad=False)

    def forward(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits."""
        logits: Tensor = self.head(self.dropout(pooled(self.backbone(pixels))))
        return logits


def pooled(values: Float[Tensor, "n *s"]) -> Float[Tensor, "n c"]:
    """Mean over space of maps ``(N, C, h, w)``, or over tokens ``(N, T, C)``."""
    return values.flatten(2).mean(dim=2) if values.ndim == 4 else values.mean(dim=1)


def width(encoder: Encoder) -> int:
    """Number of pooled features of an encoder's backbone.

    Raises:
        ConfigError: the encoder has none.
    """
    backbone, first = _backbone(encoder), torch.zeros(1, encoder.input.channels, encoder.input.size, encoder.input.size)
    with torch.no_grad():
        return int(pooled(backbone(first.to(next(backbone.parameters()).device))).shape[1])


def probed(
    encoder: Encoder,
    weight: Float[Tensor, "k c"],
    bias: Float[Tensor, " k"],
    *,
    class_names: Sequence[str] = (),
    device: torch.device | str = "cpu",
) -> ClassifierEncoder:
    """The encoder as a classifier; its own weights stay as they are.

    Args:
        class_names: of the rows of ``weight``, where they are known.

    Raises:
        ConfigError: the encoder has no backbone to hand out, or the head does not fit it.
    """
    backbone = _backbone(encoder)
    if weight.shape[1] != width(encoder):
        raise ConfigError(f"a head of {weight.shape[1]} features does not fit {encoder.name}, which has {width(encoder)}")
    module = Probe(backbone, weight, bias).eval()
    return ClassifierEncoder(module, f"{encoder.name}+head", spec=encoder.input, device=device, class_names=class_names)


def _backbone(encoder: Encoder) -> nn.Module:
    if not isinstance(encoder, Backboned):
        raise ConfigError(
            f"{encoder.name} has no backbone for a head: use builtin or hub:NAME_OR_DIR, or a classifier with a head of its own"
        )
    return encoder.backbone()
