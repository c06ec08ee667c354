"""The classifier's answers, from the signals of the same pass that scored the images."""

import torch

from offmap.core.encoder import Encoder
from offmap.core.types import Signals
from offmap.report.answer import Answer

ENSEMBLE, SINGLE = "ensemble.logits", "logits"


def signal_of(encoder: Encoder) -> str:
    """The signal that holds the answer of the classifier inside an encoder; empty where there is none, or only one logit."""
    if encoder.classes < 2 or SINGLE not in encoder.provides:
        return ""
    return ENSEMBLE if ENSEMBLE in encoder.provides else SINGLE


def free_with(encoder: Encoder, needs: frozenset[str]) -> str:
    """The same, where it costs no pass beyond those that the needs take anyway; else empty."""
    signal = signal_of(encoder)
    passed = signal in needs if signal == ENSEMBLE else bool(needs - {"image"})
    return signal if passed else ""


def answers(encoder: Encoder, signals: Signals, n: int) -> list[Answer | None]:
    """One for each of n images; None where the signals hold none."""
    logits = signals.get(signal_of(encoder))
    if logits is None:
        return [None] * n
    chances = logits.detach().double().cpu().softmax(dim=-1)
    finite = torch.isfinite(logits.detach().cpu()).flatten(1).all(dim=1).tolist()
    if chances.ndim == 3:
        chances = chances.mean(dim=1)
    rows = chances.tolist()
    return [Answer(tuple(row) if good else (), encoder.class_names) for row, good in zip(rows, finite, strict=True)]
