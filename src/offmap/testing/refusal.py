"""Checks of what a detector refuses, and how it says so."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from offmap.core.errors import OODError
from offmap.core.types import Signals
from offmap.testing.subject import Check, Subject, demand, reads


def refuses_values_that_are_not_finite(subject: Subject) -> None:
    """NaN or infinity in any signal that is read is refused, in fitting and in scoring, and the rows are named."""
    fitted, signals, batches = subject.fitted(), subject.unseen(6), subject.batches()
    for name in reads(signals, subject.detector.needs):
        for value in (math.nan, math.inf):
            _refused(fitted.score, _poisoned(signals, name, 4, value), f"score with {value} in {name}", "[4]")
        broken = [batches[0], _poisoned(batches[1], name, 4, math.nan), *batches[2:]]
        row = len(batches[0][name]) + 4
        _refused(subject.fit, broken, f"fit with nan in {name}", f"[{row}]")


def refuses_missing_signals(subject: Subject) -> None:
    """A batch without a signal that is needed is refused, and the signal is named."""
    fitted = subject.fitted()
    for pattern in sorted(subject.detector.needs):
        gone = pattern.rstrip("*")
        signals = {name: value for name, value in subject.unseen(6).items() if not name.startswith(gone)}
        _refused(fitted.score, signals or {"other": subject.unseen(6)["logits"]}, f"score without {pattern}", gone)
    for pattern in sorted(subject.detector.fit_needs):
        gone = pattern.rstrip("*")
        batches = [{k: v for k, v in batch.items() if not k.startswith(gone)} for batch in subject.batches()]
        _refused(subject.fit, batches, f"fit without {pattern}", gone)


def refuses_to_fit_on_nothing(subject: Subject) -> None:
    """No batch at all is refused."""
    _refused(subject.fit, [], "fit on no batches", "")


def _poisoned(signals: Signals, name: str, row: int, value: float) -> dict[str, Tensor]:
    spoiled = signals[name].clone()
    spoiled[row].view(-1)[0] = value
    return {**signals, name: spoiled}


def _refused(call: Callable[[Any], object], given: object, what: str, word: str) -> None:
    """The call must raise one of offmap's errors that holds the word."""
    try:
        call(given)
    except OODError as error:
        demand(word in str(error), f"{what}: the message does not say {word!r}: {error}")
    else:
        demand(False, f"{what} was accepted; an error is expected")


CHECKS: tuple[Check, ...] = (refuses_values_that_are_not_finite, refuses_missing_signals, refuses_to_fit_on_nothing)
