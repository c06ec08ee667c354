"""How numbers, verdicts and names are put for people."""

import unicodedata
from collections.abc import Mapping
from types import MappingProxyType

VERDICTS: Mapping[str, str] = MappingProxyType(
    {"accept": "Accept", "review": "Review", "reject": "Reject", "not_assessed": "Not assessed"},
)
"""Verdicts in the order in which they are counted, with their name on the page."""


def middle(text: str, width: int) -> str:
    """At most ``width`` characters: the beginning, an ellipsis, and the (longer) end, where file names differ."""
    if len(text) <= width:
        return text
    tail = (width - 1) * 2 // 3
    return text[: width - 1 - tail] + "…" + text[-tail:]


def printable(text: str) -> str:
    """Control and direction characters written as escapes, so that a name cannot steer a terminal or reorder a line."""
    return "".join(f"\\x{ord(c):02x}" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in text)


def percent(share: int | float) -> str:
    """``5 %``, ``0.5 %``, ``0.032 %``."""
    return f"{100 * share:.3g} %"


def number(value: int | float) -> str:
    """Four figures, thousands apart, no exponent between 0.001 and a million."""
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return f"{value:.3g}"


def one_in(p_value: int | float) -> str:
    """A probability as a rate: ``1 in 601``."""
    return f"1 in {number(round(1 / p_value))}"


def count(n: int, one: str, many: str = "") -> str:
    """``1 image``, ``2,000 images``."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


WITHHELD = "the image as a whole is unlike what the model of usual images knows, so that a map would point nowhere"
"""Why there is no map of an image."""
