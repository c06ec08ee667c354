"""What a training tells on its way, and what of it the gate's card keeps."""

import math
from dataclasses import dataclass, field
from typing import Any

from offmap.core.trainer import Event
from offmap.represent.train.judged import Judged

PLANTED = "drawn_anomalies_auroc"
"""The criterion of a checkpoint where nothing else is said."""


@dataclass
class Followed:
    """Collects the curve of a run, and hands its checkpoints to the person who waits.

    Args:
        every: steps between checkpoints.
        total: steps of the whole training, if known.
        before: steps of earlier parts of the training.
        criterion: what the area of a checkpoint is; None where there is none to speak of.
        what: which network is trained, where a training has several; before its facts' names.
        figures: decimals that are told.
    """

    every: int
    total: int | None
    progress: Event | None
    before: int = 0
    criterion: str | None = PLANTED
    what: str = ""
    figures: int = 4
    losses: list[float] = field(default_factory=list)
    curve: dict[str, list[float]] = field(default_factory=dict)
    checked: list[int] = field(default_factory=list)

    def __call__(self, now: Judged) -> None:
        """One step."""
        self.losses.append(now.loss)
        if now.step % self.every and now.done < 1:
            return
        values = {"loss": sum(self.losses) / len(self.losses), "held_out_loss": now.held_out}
        values |= {self.criterion: now.area} if self.criterion else {}
        self.losses.clear()
        told = {name: round(value, self.figures) for name, value in values.items() if math.isfinite(value)}
        for name, value in told.items():
            self.curve.setdefault(name, []).append(value)
        self.checked.append(now.step)
        if self.progress is not None:
            event: dict[str, Any] = {"event": "train", **({"what": self.what} if self.what else {})}
            self.progress({**event, "done": self.before + now.step, "total": self.total, **told})

    def facts(self) -> dict[str, Any]:
        """For the card: the values at each checkpoint, and its step."""
        before = f"{self.what}_" if self.what else ""
        return {before + name: values for name, values in {**self.curve, "checked_steps": self.checked}.items() if values}
