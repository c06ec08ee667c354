"""A small network on frozen features, one for each task: one hidden layer, dropout, and a linear head."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from offmap.core.errors import ConfigError
from offmap.represent.stochastic import dropped

LOOK = 30
"""Steps between two looks at the held-out rows."""


@dataclass(frozen=True)
class HeadPlan:
    """How the networks are built and trained.

    Args:
        hidden: units of the hidden layer, 2 or more.
        dropout: share of the hidden units that is left out while training and in passes with dropout, in [0, 1).
        steps: of training, the same for all tasks; the network with the least loss on held-out rows, looked at every 30 steps, is kept.
        batch: rows a step.
        rate, decay: step and weight decay of AdamW.
    """

    hidden: int = 64
    dropout: float = 0.2
    steps: int = 300
    batch: int = 64
    rate: float = 1e-3
    decay: float = 1e-2

    def __post_init__(self) -> None:
        if self.hidden < 2 or self.steps < 1 or self.batch < 1 or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"hidden = {self.hidden} (2 or more), steps = {self.steps} and batch = {self.batch} (1 or more), "
                f"dropout = {self.dropout} (in [0, 1)) expected"
            )


class TaskHead(nn.Module):
    """``W dropout(relu(V x + c)) + b`` of standardised features x.

    Args:
        mean, spread: of the features, ``(D,)``.
        plan: hidden units and dropout.
        classes: K.
        generator: of the first weights.
    """

    mean: Tensor
    spread: Tensor

    def __init__(
        self, mean: Float[Tensor, " d"], spread: Float[Tensor, " d"], plan: HeadPlan, classes: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("spread", spread)
        self.first = nn.Linear(len(mean), plan.hidden)
        self.dropout = nn.Dropout(plan.dropout)
        self.head = nn.Linear(plan.hidden, classes)
        with torch.no_grad():
            for layer in (self.first, self.head):
                layer.weight.normal_(0, math.sqrt(2 / layer.in_features), generator=generator)
                layer.bias.zero_()

    def hidden(self, features: Float[Tensor, "*n d"]) -> Float[Tensor, "*n h"]:
        """Activations of the hidden layer: the penultimate features of the task's network."""
        found: Tensor = self.first((features - self.mean) / self.spread).relu()
        return found

    def logits(self, hidden: Float[Tensor, "*n h"]) -> Float[Tensor, "*n k"]:
        """Of the head, without dropout."""
        found: Tensor = self.head(hidden)
        return found

    def passes(self, hidden: Float[Tensor, "n h"], seeds: Sequence[int], count: int) -> Float[Tensor, "n s k"]:
        """Logits of ``count`` passes with dropout; the masks of a row come from its seed alone.

        Raises:
            ConfigError: the network has no dropout.
        """
        if self.dropout.p == 0:
            raise ConfigError("dropout = 0: passes with dropout would all be the same; set dropout above 0 or leave the method out")
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return torch.stack([self.logits(dropped(self.dropout, hidden, generators)) for _ in range(count)], dim=1)


def train_task(
    features: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    held_features: Float[Tensor, "m d"],
    held_labels: Int64[Tensor, " m"],
    *,
    classes: int,
    plan: HeadPlan,
    generator: torch.Generator,
) -> TaskHead:
    """Cross-entropy with equal weight for each class; the network of the step with the least loss on the held-out rows.

    Args:
        features, labels: to train on, every class among them.
        held_features, held_labels: that choose the step.
        classes: K.
        generator: of the first weights, the choice of rows, and dropout.
    """
    spread = features.std(dim=0)
    model = TaskHead(features.mean(dim=0), spread.clamp_min(1e-2 * float(spread.mean()) + 1e-12), plan, classes, generator)
    weights = len(labels) / (classes * torch.bincount(labels, minlength=classes).clamp_min(1).float())
    optimiser = torch.optim.AdamW(model.parameters(), lr=plan.rate, weight_decay=plan.decay)
    best, kept = math.inf, copy.deepcopy(model.state_dict())
    for step in range(1, plan.steps + 1):
        rows = torch.randint(len(labels), (plan.batch,), generator=generator)
        hidden = model.hidden(features[rows])
        mask = torch.rand(hidden.shape, generator=generator) >= plan.dropout
        loss = functional.cross_entropy(model.logits(hidden * mask / (1 - plan.dropout)), labels[rows], weights)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if step % LOOK and step < plan.steps:
            continue
        with torch.no_grad():
            found = float(functional.cross_entropy(model.logits(model.hidden(held_features)), held_labels, weights))
        if found < best:
            best, kept = found, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    return model.eval().requires_grad_(False)
