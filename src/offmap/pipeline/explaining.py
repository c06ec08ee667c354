"""One image explained: verdict, map, nearest in-distribution images, and what the classifier answered."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from offmap.core.errors import ConfigError, DataError
from offmap.core.types import REASONS
from offmap.pipeline import abstention
from offmap.pipeline.inputs import PathLike, images, is_array, paths
from offmap.pipeline.run import MapFolder, Result, results
from offmap.report.page import Page
from offmap.report.row import Row
from offmap.report.table import Table

if TYPE_CHECKING:
    from offmap.pipeline.gate import Gate


@dataclass(frozen=True, eq=False)
class Explanation:
    """What there is to say of one image.

    Args:
        row: as in the score table; ``row.answer`` is the classifier's answer, None without one.
        map: oddness ``(H, W)`` or ``(D, H, W)`` of the image as read, NaN outside the scored field; None without a localiser.
        neighbours: thumbnails of the nearest in-distribution images, the nearest first; empty when they were not kept.
        causes: empty until causes are fitted.
        withheld: there is no map, since the whole image is unlike what the model of usual images knows, and the map would point nowhere.
    """

    row: Row
    map: np.ndarray | None
    neighbours: tuple[np.ndarray, ...]
    causes: tuple[str, ...] = ()
    withheld: bool = False
    _gate: "Gate" = field(repr=False, kw_only=True)
    _result: Result = field(repr=False, kw_only=True)

    def save(self, folder: str | Path) -> Path:
        """Write ``index.html``, ``row.jsonl`` (a table of one row), the map as ``0000000.npy`` and ``.png``, the answer as ``answer.json``.

        Raises:
            ConfigError: the folder cannot be written, or holds a page that offmap did not write.
        """
        place = Path(folder)
        title = "Is this image on the map?" if self.row.answer is None else "Is this image on the map, and is the answer believable?"
        with Page(place, self._gate.card, histogram=self._gate.histogram(), title=title, single=True) as page:
            page.add(self.row, self._result.picture, self._result.overlay, neighbours=self.neighbours)
        MapFolder(place).write(0, self._result)
        Table.from_rows([self.row]).save(place / "row.jsonl")
        if self.row.answer is not None:
            facts = {"item": self.row.item, **self.row.answer.facts()}
            (place / "answer.json").write_text(json.dumps(facts, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        return place / "index.html"


def explain(
    gate: "Gate", image: Any, *, axes: str, spacing: Sequence[float] | None, abstain: PathLike | None, abstain_by: str
) -> Explanation:
    """See ``Gate.explain``."""
    if abstain_by and abstain is None:
        raise ConfigError(f"abstain_by = {abstain_by!r} goes with abstain, the folder of an evaluation")
    limit = None if abstain is None else abstention.read(gate, abstain, abstain_by)
    stream = gate.stream(0 if is_array(image) else 1, maps=True, picture=True, answer=True)
    if is_array(image):
        batches = stream.over_images(images(image, axes=axes, spacing=spacing))
    else:
        batches = stream.over(paths(image, volumes=gate.volumes).sources)
    found = list(results(gate, batches, maps=True))
    if len(found) != 1:
        names = f", the first is {found[0].row.item!r}" if found else ""
        raise ConfigError(f"explain takes one image; this names {len(found)}{names}")
    result = found[0] if limit is None else replace(found[0], row=limit.on(found[0].row))
    if result.row.status != "ok":
        raise DataError(f"{result.row.item} is not assessed: {result.row.reason} ({REASONS.get(result.row.reason, '')})")
    near = tuple(gate.near(result.features)) if result.features is not None else ()
    return Explanation(result.row, result.map, near, withheld=result.withheld, _gate=gate, _result=result)
