"""Signals of a network whose feature map was changed on the way: RankFeat."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offmap.core.errors import ConfigError
from offmap.core.linalg import unit_norm
from offmap.core.signals import Scalar, base_of, settings_of
from offmap.represent.headed import Family, Headed, Run

DEFAULTS: Mapping[str, Scalar] = {"steps": 20}
PREFIX = "rankfeat.logits."
ALIASES = ("last", "last_but_one")
"""The deepest layer with a map, and the one before it."""


def rankfeat_signals(run: Run, names: Sequence[str]) -> dict[str, Tensor]:
    """``rankfeat.logits.<layer> (N, K)``: logits when the map of the layer has lost its leading singular triplet; one pass a layer.

    Raises:
        ConfigError: unknown settings, or less than one step.
    """
    made: dict[tuple[str, int], Tensor] = {}
    out = {}
    for name in names:
        layer, steps = layer_of(run.net, name), int(settings_of(name, DEFAULTS)["steps"])
        if steps < 1:
            raise ConfigError(f"signal {name!r}: steps must be at least 1")
        if (layer, steps) not in made:
            with replaced(run.net.module.get_submodule(layer), lambda maps, steps=steps: without_leading(maps, steps)):  # type: ignore[misc]
                made[layer, steps] = run.again(run.pixels).gave.float()
        out[name] = made[layer, steps]
    return out


def layer_of(net: Headed, name: str) -> str:
    """The layer that a signal names, aliases resolved."""
    layer = base_of(name).removeprefix(PREFIX)
    return net.maps[-1 - ALIASES.index(layer)] if layer in ALIASES and layer not in net.maps else layer


@contextmanager
def replaced(part: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While inside, the part gives ``change`` of what it would give."""

    def hook(_: nn.Module, given: object, gave: Tensor) -> Tensor:
        return change(gave)

    handle = part.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def without_leading(maps: Float[Tensor, "n c *s"], steps: int) -> Float[Tensor, "n c *s"]:
    """Each image's map as a matrix (C, positions) less its best approximation of rank one.

    Power iteration from the channel of largest norm, which is not at right angles to the leading direction but in contrived maps.
    """
    matrix = maps.flatten(2)
    strongest = matrix.norm(dim=2).argmax(dim=1)
    right = unit_norm(matrix[torch.arange(len(matrix), device=matrix.device), strongest])
    for _ in range(steps):
        left = unit_norm((matrix @ right[:, :, None]).squeeze(2))
        right = unit_norm((left[:, None] @ matrix).squeeze(1))
    return (matrix - (matrix @ right[:, :, None]) * right[:, None]).view_as(maps)


def _provided(net: Headed) -> frozenset[str]:
    return frozenset(f"{PREFIX}{layer}" for layer in (*net.maps, *ALIASES[: len(net.maps)]))


RANKFEAT = Family(_provided, rankfeat_signals)
