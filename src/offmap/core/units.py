"""Units of the degree: p-values and surprise in bits."""

import math

from offmap.core.errors import ConfigError


def bits(p_value: float) -> float:
    """Surprise ``-log2(p)`` of a p-value in (0, 1]; 0 = as typical as can be, 4.32 = 5 %, 6.64 = 1 %."""
    if not 0 < p_value <= 1:
        raise ConfigError(f"p_value = {p_value} must lie in (0, 1]")
    return -math.log2(p_value) if p_value < 1 else 0.0


def cap(n: int) -> float:
    """Largest surprise in bits that ``n`` calibration images can show: ``log2(n + 1)``."""
    return math.log2(n + 1)
