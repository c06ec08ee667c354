"""What a classifier answered for one image, how sure it was, and whether that answer would be believed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offmap.core.errors import SignalError

TOP = 3
"""Classes that are named."""

COLUMNS = ("predicted", "max_probability", "entropy")
"""Columns of a score table that hold an answer."""


@dataclass(frozen=True, slots=True)
class Believed:
    """A rule of abstention on one image; never about whether the image is in scope.

    Args:
        abstain: the answer would not be believed.
        column: the number that the rule reads, as in a score table.
        value: that number; None where there is none (no finite answer), and then the rule abstains.
        rule: which images are accepted, in words.
        never: the rule accepts none: no limit was shown to keep the bound.
        promise: what holds for images drawn like those that chose the limit.
        risk, probability: of the promise.
        coverage: share of the calibration images that was accepted.
    """

    abstain: bool
    column: str
    value: float | None
    rule: str
    promise: str
    risk: float
    probability: float
    coverage: float
    never: bool = False

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Answer:
    """Of the same forward pass as the score.

    Args:
        probabilities: of all K classes after softmax; of an ensemble the mean of its members. Empty where the logits are not finite.
        classes: names in the order of the probabilities; empty where they are not known.
        believed: a rule of abstention on this image; None where none was given.

    Raises:
        SignalError: probabilities that do not sum to 1, or names that are not as many.
    """

    probabilities: tuple[float, ...]
    classes: tuple[str, ...] = ()
    believed: Believed | None = None

    def __post_init__(self) -> None:
        known = self.probabilities
        if known and not (min(known) >= 0 and abs(sum(known) - 1) < 1e-3):
            raise SignalError(f"an answer's probabilities {known[:5]} must not be negative, and sum to 1")
        if known and self.classes and len(self.classes) != len(known):
            raise SignalError(f"{len(self.classes)} class names for {len(known)} probabilities")

    @property
    def finite(self) -> bool:
        """Whether there is an answer."""
        return bool(self.probabilities)

    def name(self, k: int) -> str:
        """Of class k, or ``class 3``, counted from 0 as the logits are."""
        return self.classes[k] if self.classes else f"class {k}"

    @property
    def top(self) -> tuple[tuple[str, float], ...]:
        """The likeliest classes, the likeliest first."""
        order = sorted(range(len(self.probabilities)), key=lambda k: -self.probabilities[k])
        return tuple((self.name(k), self.probabilities[k]) for k in order[:TOP])

    @property
    def predicted(self) -> str | None:
        """The likeliest class."""
        return self.top[0][0] if self.finite else None

    @property
    def max_probability(self) -> float | None:
        """Of the likeliest class."""
        return self.top[0][1] if self.finite else None

    @property
    def entropy(self) -> float | None:
        """``-sum p log p`` in nats."""
        return sum(-p * math.log(p) for p in self.probabilities if p > 0) if self.finite else None

    @property
    def entropy_share(self) -> float | None:
        """Entropy as share of ``log K``, the largest there is."""
        return None if self.entropy is None else min(1.0, self.entropy / math.log(len(self.probabilities)))

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {
            **{name: getattr(self, name) for name in COLUMNS},
            "entropy_share": self.entropy_share,
            "probabilities": [{"class": self.name(k), "probability": p} for k, p in enumerate(self.probabilities)],
            "classes_named": bool(self.classes),
            "abstention": None if self.believed is None else self.believed.facts(),
        }


@dataclass(frozen=True, slots=True)
class Told:
    """An answer in words, for the page.

    Args:
        headline: the answer, or that there is none.
        others: further classes with their probabilities.
        doubt: how unsure it is.
        decision: ``yes``, ``no`` or ``not known``: whether it would abstain.
        because: why, or how to get to know.
        caution: what the decision does not say; may be empty.
    """

    headline: str
    others: str
    doubt: str
    decision: str
    because: str
    caution: str


ADVICE = (
    "give the evaluation of your classifier: offmap evaluate --predictions CSV --scores TABLE --gate GATE --out DIR, then "
    "offmap explain ... --abstain DIR"
)
NO_PROMISE = "The limit was chosen on images in scope. This one is flagged as unusual, so the promise may not hold for it."
UNNAMED = "Classes are counted from 0: their names are not known."


def told(answer: Answer, *, flagged: bool) -> Told:
    """Words for an answer.

    Args:
        flagged: the image is not simply in scope (verdict review or reject).
    """
    if answer.max_probability is None or answer.entropy is None or answer.entropy_share is None:
        headline, others, doubt = "no answer: the classifier's numbers are not finite", "", ""
    else:
        headline = f"{answer.predicted} {_percent(answer.max_probability)}"
        others = " · ".join(f"{name} {_percent(p)}" for name, p in answer.top[1:])
        share = f"{_percent(answer.entropy_share)} of log {len(answer.probabilities)}"
        doubt = f"largest probability {_short(answer.max_probability)} · entropy {_short(answer.entropy)} nats, {share}"
    rule = answer.believed
    if rule is None:
        return Told(headline, others, doubt, "not known", ADVICE, "")
    return Told(headline, others, doubt, "yes" if rule.abstain else "no", _because(rule), NO_PROMISE * flagged)


def _because(rule: Believed) -> str:
    if rule.never:
        bound = f"{100 * rule.risk:g} %"
        return f"No limit of {rule.column} was shown to keep the share of failures at or below {bound}: every answer is reviewed."
    value = f"{rule.column} is no finite number" if rule.value is None else f"{rule.column} = {rule.value:.6g}"
    return f"{value}; accepted: {rule.rule}; {rule.promise}"


def _percent(p: float) -> str:
    """No probability after softmax is 0 or 1."""
    return "> 99.9 %" if p >= 0.9995 else "< 0.1 %" if p < 0.0005 else f"{100 * p:.1f} %"


def _short(value: float) -> str:
    """Three digits; what would round to 1 or 0 is told as a bound."""
    return "> 0.999" if 0.9995 <= value <= 1 else "< 0.001" if value < 0.0005 else f"{value:.3f}"


def columns(answers: Sequence[Answer | None]) -> Mapping[str, list[Any]]:
    """Cells of the columns of a score table."""
    return {name: [None if a is None else getattr(a, name) for a in answers] for name in COLUMNS}
