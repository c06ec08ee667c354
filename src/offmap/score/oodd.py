"""Nearest in-distribution images against a queue of the oddest images of the stream so far."""

from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from offmap.core.detector import Fitted, State, check
from offmap.core.errors import ConfigError, SignalError
from offmap.core.linalg import unit_norm
from offmap.core.neighbours import k_nearest
from offmap.core.types import Signals
from offmap.score._bank import sampled
from offmap.score._layer import LayerDetector
from offmap.score.knn import default_k

Queue = tuple[Float32[Tensor, "q d"], Float32[Tensor, " q"]]
"""Rows, and the oddness with which each came in."""


@dataclass(frozen=True, kw_only=True)
class OODD(LayerDetector):
    """OODD: ``d_k(h, in-distribution) - d_q(h, queue)``, distances of ``h / |h|`` to its k-th and q-th neighbour, in [-2, 2].

    The queue holds the ``queue`` oddest images seen so far, by their distance to the in-distribution bank: an image like earlier odd
    ones scores higher than the first of its kind did. Images of a batch are taken in order, each scored before it may enter.

    **The score depends on which images came before. Do not use it where one image must always get one score** (a reading room, an
    audit, a comparison of methods image by image). A ``Fitted`` never changes: every call of ``score`` starts from its own
    queue, and ``OODD.advanced(fitted, signals)`` gives the ``Fitted`` that has seen those images; its tensors ``queue`` and
    ``oddness`` are the record of the stream.

    The dictionary, its priority and its start with in-distribution images are the paper's ideas; ours are the details: the start
    are the images of the bank farthest from the rest of it, an image enters if it is farther from the bank than the least odd one of
    the queue, which then leaves, and the two distances count alike.

    Fitting compares a bank of M rows with itself, ``M^2 D``; scoring costs ``(M + queue) D`` an image, in order; the state is
    ``(M + queue) D`` numbers in float32.

    Fails when the stream holds no or few odd images: the queue then holds unusual in-distribution ones, and their like look odd.
    An attacker who sends many odd images of one kind fills the queue.

    Args:
        layer: name of the layer; ``last`` is the encoder's deepest.
        k: which neighbour in the bank; not given: 5 % of the bank, at least 1 and at most 50.
        queue: images in the queue; never more than a tenth of the bank to begin with, at least one.
        queue_k: which neighbour in the queue; the farthest where it holds fewer.
        max_bank: rows kept; a uniform sample of more.
    """

    k: int | None = None
    queue: int = 64
    queue_k: int = 5
    max_bank: int = 10_000

    stream: ClassVar[bool] = True
    reference: ClassVar[str] = (
        "Yang et al., OODD: Test-time Out-of-Distribution Detection with Dynamic Dictionary, CVPR 2025, arXiv 2503.10468"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("k", self.k if self.k is not None else 1), ("queue", self.queue), ("queue_k", self.queue_k)):
            if value < 1:
                raise ConfigError(f"oodd: {name} = {value} must be at least 1")
        if self.max_bank < 1 + (self.k or 1):
            raise ConfigError(f"oodd: max_bank = {self.max_bank} must be more than k = {self.k or 1}")

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        bank = sampled(batches, lambda batch: unit_norm(self.rows(batch)), self.max_bank, generator).float()
        if (self.k or 1) >= len(bank):
            raise SignalError(f"oodd: k = {self.k or 1} must be less than the {len(bank)} images to fit on")
        oddness = k_nearest(bank, bank, min(self._k(bank), len(bank) - 1), leave_one_out=True)[0][:, -1]
        first = oddness.topk(min(self.queue, max(1, len(bank) // 10))).indices
        return {"bank": bank, "queue": bank[first], "oddness": oddness[first]}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        return self._walk(state, signals)[0]

    @staticmethod
    def advanced(fitted: Fitted, signals: Signals) -> Fitted:
        """The detector whose queue has seen these images too, in their order; ``fitted`` stays as it is.

        Raises:
            ConfigError: another detector's state.
            SignalError: as ``Fitted.score``.
        """
        detector = fitted.detector
        if not isinstance(detector, OODD):
            raise ConfigError(f"oodd: {detector.method()} has no queue to advance")
        check(signals, detector.needs, "oodd")
        rows, oddness = detector._walk(fitted.state, signals)[1]
        return Fitted(detector, MappingProxyType({**fitted.state, "queue": rows, "oddness": oddness}))

    def _k(self, bank: Float32[Tensor, "m d"]) -> int:
        return self.k or default_k(len(bank))

    def _walk(self, state: State, signals: Signals) -> tuple[Float32[Tensor, " n"], Queue]:
        """Scores in order, and the queue afterwards."""
        bank, queue, priority = state["bank"], state["queue"].clone(), state["oddness"].clone()
        rows = unit_norm(self.rows(signals, bank.shape[1])).float().to(bank.device)
        oddness = k_nearest(rows, bank, self._k(bank))[0][:, -1]
        familiar = torch.zeros_like(oddness)
        for i, row in enumerate(rows):
            distances = torch.linalg.vector_norm(queue - row, dim=1)
            familiar[i] = distances.kthvalue(min(self.queue_k, len(queue))).values
            least = int(priority.argmin())
            if len(queue) < self.queue:
                queue, priority = torch.cat([queue, row[None]]), torch.cat([priority, oddness[i : i + 1]])
            elif oddness[i] > priority[least]:
                queue[least], priority[least] = row, oddness[i]
        return oddness - familiar, (queue, priority)
