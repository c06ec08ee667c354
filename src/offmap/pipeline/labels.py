"""Labels as a user hands them in: a table of files, or one for each image of an array."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offmap.core.errors import ConfigError
from offmap.pipeline.collect import read_labels
from offmap.pipeline.inputs import PathLike, is_array

Labels = PathLike | Sequence[str | int] | Any | None
"""A CSV with the columns path and label; or a sequence, numpy array or tensor of names or whole numbers."""


def table_of(labels: Labels, train: Any, axes: str = "", *, needed: bool = False) -> dict[str, str]:
    """Labels by item; empty without any.

    Args:
        train: the images that they belong to.
        axes: of an array.
        needed: an array must have labels.

    Raises:
        ConfigError: a table for an array or a sequence for files, another number of labels than images, or labels that are neither
            names nor whole numbers.
    """
    if not is_array(train):
        if not (labels is None or isinstance(labels, str | Path)):
            raise ConfigError("labels of files must be a CSV with the columns path and label, or a manifest must have a column label")
        return read_labels(labels) if labels is not None else {}
    if isinstance(labels, str | Path) or (labels is None and needed):
        raise ConfigError("labels of an array must be a sequence with one name for each image")
    if labels is None:
        return {}
    found = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    wrong = next((label for label in found if isinstance(label, bool | float) or not isinstance(label, str | int)), None)
    if wrong is not None:
        raise ConfigError(f"labels hold {wrong!r}, a {type(wrong).__name__}; names or whole numbers expected")
    letters = axes.upper()
    count = np.shape(train)[letters.index("N")] if "N" in letters and len(letters) == np.ndim(train) else 1
    if len(found) != count:
        raise ConfigError(f"there are {count} images, {len(found)} labels")
    return {f"array[{i}]": str(label) for i, label in enumerate(found)}
