"""Signals of passes with dropout on: Monte-Carlo dropout, with noise that depends on nothing but the image."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offmap.core.errors import ConfigError
from offmap.core.signals import Scalar, settings_of
from offmap.represent.headed import Family, Headed, Run
from offmap.represent.trace import watched

DEFAULTS: Mapping[str, Scalar] = {"passes": 30}
SIGNAL = "mc_dropout.logits"

Dropout = nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d | nn.AlphaDropout | nn.FeatureAlphaDropout
WHOLE_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout)
SELU_FLOOR = -1.7580993408473766
"""Value that alpha dropout sets: minus scale times alpha of the SELU activation (Klambauer et al. 2017)."""


def dropouts(module: nn.Module) -> list[tuple[str, Dropout]]:
    """Parts that drop something, by dotted name."""
    return [(name, part) for name, part in module.named_modules() if isinstance(part, Dropout) and part.p > 0]


def mc_dropout_signals(run: Run, names: Sequence[str]) -> dict[str, Tensor]:
    """``mc_dropout.logits (N, S, K)``: of S passes with dropout on and everything else in eval mode.

    The masks of an image are drawn on the CPU from a generator seeded with its pixels, so they are the same in any batch, on
    any device and in any run; the first S of more passes are the same too. Where the one dropout part lies just before the
    head, the network runs once and only the head S times.

    Raises:
        ConfigError: unknown settings, no pass, or no dropout part that runs.
    """
    asked = {name: int(settings_of(name, DEFAULTS)["passes"]) for name in names}
    if min(asked.values()) < 1:
        raise ConfigError(f"signal {min(asked, key=lambda name: asked[name])!r}: passes must be at least 1")
    generators = [torch.Generator().manual_seed(seed_of(image)) for image in run.images]
    most, before = max(asked.values()), before_head(run)
    if before is not None:
        part, values = before
        head = run.net.module.get_submodule(run.net.head)
        with torch.no_grad():
            logits = torch.stack([head(dropped(part, values, generators)).float() for _ in range(most)], dim=1)
        return {name: logits[:, :passes] for name, passes in asked.items()}
    with dropping(run.net, generators) as count:
        logits = torch.stack([run.again(run.pixels).gave.float() for _ in range(most)], dim=1)
    if not count:
        raise ConfigError(f"none of the dropout parts of {run.net.name} runs in a forward pass: {_way_out()}")
    return {name: logits[:, :passes] for name, passes in asked.items()}


def before_head(run: Run) -> tuple[Dropout, Float[Tensor, "n d"]] | None:
    """The only dropout part and what goes into it, where the head takes just what it gives; None otherwise."""
    parts = dropouts(run.net.module)
    if len(parts) != 1:
        return None
    name, part = parts[0]
    with torch.no_grad():
        calls = watched(run.net.module, frozenset({name, run.net.head}), run.pixels.detach().clone()).calls
    if name not in calls or calls[name].gave is not calls[run.net.head].given or calls[name].given.ndim != 2:
        return None
    return part, calls[name].given


def seed_of(image: Float[Tensor, "c *s"]) -> int:
    """A number below 2^63 from the pixels; grey and grey repeated on three channels give the same."""
    grey = len(image) == 3 and bool((image == image[:1]).all())
    content = image[:1] if grey else image
    digest = hashlib.sha256(content.detach().float().cpu().contiguous().numpy().tobytes()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def dropping(net: Headed, generators: Sequence[torch.Generator]) -> Iterator[list[str]]:
    """While inside, dropout parts drop although in eval mode; yields the names of those that ran, as they run."""
    ran: list[str] = []
    handles = []
    for name, part in dropouts(net.module):

        def hook(part: nn.Module, given: object, gave: Tensor, name: str = name) -> Tensor:
            if not isinstance(gave, Tensor) or gave.ndim == 0 or len(gave) != len(generators) or not isinstance(part, Dropout):
                raise ConfigError(
                    f"the dropout part {name!r} of {net.name} gives {tuple(getattr(gave, 'shape', ()))} for {len(generators)} images: "
                    f"its first axis must be the batch. {_way_out()}"
                )
            ran.append(name)
            return dropped(part, gave, generators)

        handles.append(part.register_forward_hook(hook))
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def dropped(part: Dropout, values: Float[Tensor, "n *s"], generators: Sequence[torch.Generator]) -> Float[Tensor, "n *s"]:
    """What the part gives in training mode, with a mask for each image from its own generator."""
    shape = values.shape[1:]
    if isinstance(part, WHOLE_CHANNELS):
        shape = torch.Size((*shape[:1], *(1 for _ in shape[1:])))
    keep = torch.stack([torch.rand(shape, generator=generator) >= part.p for generator in generators]).to(values.device)
    if isinstance(part, nn.AlphaDropout | nn.FeatureAlphaDropout):
        if part.p == 1:
            return torch.zeros_like(values)
        scale = 1 / math.sqrt((1 - part.p) * (1 + part.p * SELU_FLOOR**2))
        return scale * (torch.where(keep, values, SELU_FLOOR) - SELU_FLOOR * part.p)
    return values * keep / (1 - part.p) if part.p < 1 else torch.zeros_like(values)


def _way_out() -> str:
    return "use nn.Dropout parts on batch-first tensors, or test_time_augmentation, which needs no dropout"


def _provided(net: Headed) -> frozenset[str]:
    return frozenset({SIGNAL} if dropouts(net.module) else ())


MC_DROPOUT = Family(_provided, mc_dropout_signals)
