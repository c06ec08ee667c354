"""A small autoencoder between principal components, trained in seconds on a CPU; its weights are plain tensors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

BATCH, CHECK, PATIENCE = 128, 50, 8
RATE = 2e-3
"""Of Adam, falling to 0 along a cosine."""

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Plan:
    """What is trained, and for how long.

    Args:
        code: numbers between encoder and decoder.
        hidden: width of the hidden layers.
        steps: gradient steps at most; training ends where the error on unseen rows has not fallen for 8 checks, 50 steps apart.
    """

    code: int
    hidden: int
    steps: int


def reconstructed(weights: Weights, rows: Float64[Tensor, "n p"]) -> Float64[Tensor, "n p"]:
    """``decode(encode(z))``: the first components as they are, plus what one hidden layer adds on either side."""
    width = weights["code.weight"].shape[0]
    inner = torch.tanh(rows @ weights["enter.weight"].T + weights["enter.bias"])
    code = rows[:, :width] + inner @ weights["code.weight"].T
    outer = torch.tanh(code @ weights["leave.weight"].T + weights["leave.bias"])
    straight: Tensor = torch.nn.functional.pad(code, (0, rows.shape[1] - width))
    return straight + outer @ weights["out.weight"].T + weights["out.bias"]


def trained(
    rows: Float64[Tensor, "n p"], unseen: Float64[Tensor, "m p"], plan: Plan, generator: torch.Generator
) -> dict[str, Float64[Tensor, "..."]]:
    """The weights of the least squared error on unseen rows.

    Training starts at the linear autoencoder of least error, which is the truncation of principal components, and that is kept where
    nothing beats it on the unseen rows.

    Args:
        rows: principal components, the largest first, on a common scale.
        generator: on the CPU; decides the start and the batches.
    """
    weights = _start(rows.shape[1], plan, generator)
    best = {name: value.detach().clone() for name, value in weights.items()}
    least, waited = _error(best, unseen), 0
    with torch.enable_grad():
        optimiser = torch.optim.Adam(list(weights.values()), lr=RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, plan.steps))
        for step in range(1, plan.steps + 1):
            some = rows[torch.randint(len(rows), (min(BATCH, len(rows)),), generator=generator)]
            loss = (reconstructed(weights, some) - some).square().sum(dim=1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            if step % CHECK == 0 or step == plan.steps:
                error = _error(weights, unseen)
                waited = 0 if error < least else waited + 1
                if error < least:
                    least, best = error, {name: value.detach().clone() for name, value in weights.items()}
                if waited >= PATIENCE:
                    break
    return best


def _start(width: int, plan: Plan, generator: torch.Generator) -> dict[str, Tensor]:
    """Random hidden layers whose output counts nothing yet."""
    code, hidden = min(plan.code, width), plan.hidden

    def drawn(out: int, into: int) -> Tensor:
        return torch.randn(out, into, dtype=torch.float64, generator=generator) / math.sqrt(into)

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.float64)

    weights = {
        "enter.weight": drawn(hidden, width),
        "enter.bias": zeros(hidden),
        "code.weight": zeros(code, hidden),
        "leave.weight": drawn(hidden, code),
        "leave.bias": zeros(hidden),
        "out.weight": zeros(width, hidden),
        "out.bias": zeros(width),
    }
    return {name: value.requires_grad_() for name, value in weights.items()}


def _error(weights: Weights, rows: Float64[Tensor, "m p"]) -> float:
    with torch.no_grad():
        return float((reconstructed(weights, rows) - rows).square().sum(dim=1).mean())
