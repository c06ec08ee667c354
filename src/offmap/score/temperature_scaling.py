"""Maximum softmax probability after calibration."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from offmap.core.detector import Detector, State
from offmap.core.errors import SignalError
from offmap.core.types import Signals
from offmap.score._head import two_or_more
from offmap.score._layer import rows_as_given, rows_of
from offmap.score._targets import Targets
from offmap.score.msp import MSP

LEAST, MOST = 0.25, 100.0
"""Bounds of the temperature."""


@dataclass(frozen=True, kw_only=True)
class TemperatureScaling(Detector):
    """One minus the largest probability of ``softmax(z / T)``, with T of least cross-entropy on labelled images, in [0, 1 - 1/K].

    Where the classifier is calibrated by T, the number is the chance that its prediction is wrong. T is taken from the
    held-out images where there are some (on images trained on it comes out too small), else from the fit part.

    Needs labels to fit. They need not be the indices of the logits: each gets the logit under which its images are likeliest,
    one to one (the project's own rule). The cross-entropy is convex in ``1 / T``, so its minimum is found by bisection to
    the last digit, where the paper takes steps of a quasi-Newton method. Where every image is classified rightly,
    the best T would be 0, and T = 0.25 is taken.

    Fitting holds ``N K`` logits for a moment; scoring costs K an image; the state is two numbers.

    Fails as ``msp`` does: for two classes the order of images is that of ``msp``, whatever T. Labels that say nothing of
    the predictions (T > 100), and a network with one logit, are refused.
    """

    reference: ClassVar[str] = "Guo et al., On Calibration of Modern Neural Networks, ICML 2017, arXiv 1706.04599, eq. 9"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"logits"})

    @property
    def fit_needs(self) -> frozenset[str]:
        return frozenset({"logits", "label"})

    def learn(self, batches: Iterable[Signals], held_out: Iterable[Signals] | None, generator: torch.Generator) -> State:
        classes = rows_of(next(iter(batches)), "logits", "temperature_scaling").shape[1]
        two_or_more(classes, "temperature_scaling")
        labelled = batches if held_out is None else held_out
        targets = Targets.learn(labelled, "temperature_scaling")
        logits, right = [], []
        for batch in labelled:
            logits.append(rows_of(batch, "logits", "temperature_scaling", classes))
            right.append(targets(batch, "temperature_scaling"))
        return {"temperature": best_temperature(torch.cat(logits), torch.cat(right)), "classes": torch.tensor(classes)}

    def raw_score(self, state: State, signals: Signals) -> Float[Tensor, " n"]:
        logits = rows_as_given(signals, "logits", "temperature_scaling", int(state["classes"]))
        return MSP().of_logits(logits / state["temperature"].to(logits))


def best_temperature(logits: Float64[Tensor, "n k"], right: Int64[Tensor, " n"]) -> Float64[Tensor, ""]:
    """Temperature of least mean cross-entropy in [0.25, 100].

    Args:
        right: index of the right logit of each image.

    Raises:
        SignalError: the cross-entropy still falls at 100.
    """
    given = logits.gather(1, right[:, None])[:, 0]

    def slope(sharpness: float) -> float:
        """Of the cross-entropy in ``1 / T``; rises with it."""
        return float((((logits * sharpness).softmax(dim=1) * logits).sum(dim=1) - given).mean())

    low, high = 1 / MOST, 1 / LEAST
    if slope(low) >= 0:
        raise SignalError("temperature_scaling: the labels say nothing of the predictions: are they the classes of this classifier?")
    if slope(high) <= 0:
        return logits.new_tensor(LEAST)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return logits.new_tensor(2 / (low + high))
