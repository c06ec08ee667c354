"""What a training tells on its way, and what of it the gate's card keeps."""

import math
from dataclasses import dataclass, field
from typing import Any

from offmap.core.trainer import Event
from offmap.represent.train.judged import Judged


@dataclass
class Followed:
    """Collects the curve of a run, and hands its checkpoints to the person who waits.

    Args:
        every: steps between checkpoints.
        total: steps of the whole training, if known.
        before: steps of earlier parts of the training.
        judged: whether the area is that of drawn anomalies.
    """

    every: int
    total: int | None
    progress: Event | None
    before: int = 0
    judged: bool = True
    losses: list[float] = field(default_factory=list)
    curve: dict[str, list[float]] = field(default_factory=lambda: {"loss": [], "held_out_loss": [], "drawn_anomalies_auroc": []})

    def __call__(self, now: Judged) -> None:
        """One step."""
        self.losses.append(now.loss)
        if now.step % self.every and now.done < 1:
            return
        values = {"loss": sum(self.losses) / len(self.losses), "held_out_loss": now.held_out}
        values |= {"drawn_anomalies_auroc": now.area} if self.judged else {}
        self.losses.clear()
        told = {name: round(value, 4) for name, value in values.items() if math.isfinite(value)}
        for name, value in told.items():
            self.curve[name].append(value)
        if self.progress is not None:
            event: dict[str, Any] = {"event": "train", "done": self.before + now.step, "total": self.total, **told}
            self.progress(event)
