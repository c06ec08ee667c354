"""Which images of a table of predictions choose thresholds, which are measured, and which try the thresholds."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from offmap.core.component import nearest
from offmap.core.errors import ConfigError
from offmap.core.resampling import units_of
from offmap.pipeline.predictions import Predictions

CALIBRATION = ("calibration", "calibrate", "validation", "valid", "val")
"""Names by which the calibration split is known unless it is named."""

OTHER_HALF = "the other half"
"""What tries thresholds where a random half chose them."""

Rows = Int[np.ndarray, " _"]


@dataclass(frozen=True, eq=False)
class Parts:
    """Rows by what they are for.

    Args:
        split: name of the calibration split; "" where a random half calibrates.
        calibrate: choose thresholds.
        measured: metrics are computed on.
        trial: thresholds are tried on; disjoint from ``calibrate``.
    """

    split: str
    calibrate: Rows
    measured: Rows
    trial: Rows


def divide(table: Predictions, calibration: str, seed: int) -> Parts:
    """By the calibration split, or, without one, by a random half of the images or patients.

    Raises:
        ConfigError: the calibration split is not there or has no labels.
    """
    splits = np.array(table.splits)
    known = np.isfinite(table.loss)
    names = [name for name in dict.fromkeys(table.splits) if name]
    if calibration and calibration not in names:
        has = f"it has {', '.join(names)}" if names else "there is no column 'split'"
        raise ConfigError(f"calibration = {calibration!r} is no split of the predictions{nearest(calibration, names)}; {has}")
    chosen = calibration or next((name for name in CALIBRATION if name in names), "")
    if chosen:
        own = known & (splits == chosen)
        if not own.any():
            raise ConfigError(f"the calibration split {chosen!r} has no labels; name another with calibration, or label it")
        other = known & ~own
        measured = other if other.any() else own
        return Parts(chosen, np.flatnonzero(own), np.flatnonzero(measured), np.flatnonzero(other))
    rows = np.flatnonzero(known)
    units = units_of(table.groups)
    first = np.random.default_rng([seed, 1]).permutation(int(units.max()) + 1) % 2 == 0
    return Parts("", rows[first[units[rows]]], rows, rows[~first[units[rows]]])
