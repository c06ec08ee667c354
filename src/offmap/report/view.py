"""What the page says of one image and of the whole run: rows and cards turned into words and positions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offmap.core.types import REASONS
from offmap.report import answer as answers
from offmap.report.card import cap_bits, thresholds
from offmap.report.row import Row
from offmap.report.words import VERDICTS, count, middle, number, one_in, percent, printable

NAME_WIDTH = 60
"""Characters of an item's name that are shown; the full name is in its title."""
CAP_SLACK = 0.05
"""Bits. The step below the cap is one bit, so a cap that was rounded is still recognised."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The scale of surprise of one gate, in bits.

    Args:
        cap: largest surprise that the calibration images can show; None where the card does not say.
        review, reject: where the bands begin; None where unknown, ``reject`` also where it lies above the cap.
        end: right end of the drawn bar.
    """

    cap: float | None
    review: float | None
    reject: float | None
    end: float

    @classmethod
    def of(cls, card: Mapping[str, Any]) -> "Scale":
        """The scale that a gate's card describes."""
        given = card.get("calibration")
        calibration = given if isinstance(given, Mapping) else {}
        cap = cap_bits(calibration)
        review, reject = (None if p is None else -math.log2(p) for p in thresholds(calibration))
        if reject is not None and cap is not None and reject > cap + CAP_SLACK:
            reject = None
        return cls(cap, review, reject, max(cap or 0.0, reject or 0.0, review or 0.0) or 12.0)

    def at_cap(self, bits: float) -> bool:
        """Whether this is the largest degree that the gate can give."""
        return self.cap is not None and bits >= self.cap - CAP_SLACK

    def bands(self) -> list[tuple[str, float, float]]:
        """Name, left edge and width of each band, as shares of the bar."""
        edges = [("accept", 0.0), ("review", self.review), ("reject", self.reject)]
        known = [(name, low / self.end) for name, low in edges if low is not None and low < self.end]
        rights = [low for _, low in known[1:]] + [1.0]
        return [(name, low, right - low) for (name, low), right in zip(known, rights, strict=True)]


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a case.

    Args:
        source: a ``data:`` address or a path below the page's folder.
        width, height: pixels of the file.
        caption: under the picture.
        alt: for those who do not see it.
        pixelated: shown with visible pixels.
        lazy: fetched when it comes into sight.
    """

    source: str
    width: int
    height: int
    caption: str
    alt: str
    pixelated: bool
    lazy: bool


@dataclass(frozen=True, slots=True)
class Case:
    """One image of the worklist, in words."""

    place: int
    order: int
    row: Row
    name: str
    short: str
    verdict: str
    bits: str
    rate: str
    extrapolated: str
    mark: float | None
    reason: str
    facts: tuple[tuple[str, str], ...]
    answer: answers.Told | None = None
    pictures: tuple[Picture, ...] = ()
    neighbours: tuple[Picture, ...] = ()


def case(row: Row, scale: Scale, *, place: int, order: int, pictures: Sequence[Picture], neighbours: Sequence[Picture]) -> Case:
    """Words for one assessed row.

    Args:
        row: of the score table.
        scale: of the gate.
        place: 1 = most surprising.
        order: position in the input.
        pictures: image and map.
        neighbours: nearest in-distribution images.
    """
    bits = row.surprise_bits
    return Case(
        place=place,
        order=order,
        row=row,
        name=printable(row.item),
        short=middle(printable(row.item), NAME_WIDTH),
        verdict=VERDICTS[row.verdict],
        bits=_bits(bits, scale),
        rate=_rate(row, scale),
        extrapolated=f"about {number(round(row.bits_extrapolated, 1))} bits by extrapolation" if row.bits_extrapolated is not None else "",
        mark=None if bits is None else min(bits / scale.end, 1.0),
        reason=explain(row.reason),
        facts=_facts(row),
        answer=None if row.answer is None else answers.told(row.answer, flagged=row.verdict != "accept"),
        pictures=tuple(pictures),
        neighbours=tuple(neighbours),
    )


def explain(reason: str) -> str:
    """A reason code as a sentence; the code itself where it is not known here."""
    return REASONS.get(reason, reason)


def refusal(row: Row) -> str:
    """Why an item was not assessed, with what is known of its measurement."""
    if row.residual is None or row.reason != "noise_level":
        return explain(row.reason)
    return f"{explain(row.reason)} ({row.residual:.3g} times the stated noise is left)"


def _bits(bits: float | None, scale: Scale) -> str:
    if bits is None:
        return ""
    return f"≥ {bits:.1f} bits (cap)" if scale.at_cap(bits) else f"{bits:.1f} bits"


def _rate(row: Row, scale: Scale) -> str:
    if row.p_value is None or row.surprise_bits is None:
        return ""
    if scale.at_cap(row.surprise_bits):
        return f"beyond every calibration image: {one_in(row.p_value)} or rarer"
    if row.p_value > 0.2:
        return f"{100 * row.p_value:.0f} % of in-distribution images look at least as unusual"
    return f"{one_in(row.p_value)} in-distribution images looks as unusual"


def _facts(row: Row) -> tuple[tuple[str, str], ...]:
    facts = [("score", number(row.score))] if row.score is not None else []
    facts += [("p-value", f"{row.p_value:.3g}")] if row.p_value is not None else []
    facts += [("left over", f"{row.residual:.2f} × noise")] if row.residual is not None else []
    facts += [("PSNR", f"{row.psnr:.1f} dB")] if row.psnr is not None else []
    if row.cause:
        sure = "" if row.cause_confidence is None else f" ({percent(row.cause_confidence)} sure)"
        facts.append(("cause", row.cause + sure))
    if len(row.parts) > 1:
        facts += [(name, number(value)) for name, value in row.parts.items() if value is not None]
    return tuple(facts + [(name, value) for given in (row.identifiers, row.meta) for name, value in given.items() if value])


def false_alarms(scale: Scale, assessed: int) -> list[str]:
    """The gate's false-alarm setting, and what it means for this number of images."""
    out = []
    for name, bits in (("review or further", scale.review), ("reject", scale.reject)):
        if bits is not None:
            share = 2.0**-bits
            out.append(f"{name}: {percent(share)} of in-distribution images, by design (from {bits:.1f} bits)")
    if scale.review is not None and assessed:
        expected = 2.0**-scale.review * assessed
        flagged = f"about {count(round(expected), 'image')}" if expected >= 1 else "fewer than one image"
        out.append(f"if all {assessed:,} images were in-distribution, {flagged} would be flagged")
    return out
