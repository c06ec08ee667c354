"""Puts the DICOM files of a folder together by series, from the first bytes of each file."""

import os
from collections.abc import Sequence
from pathlib import Path

from offmap.core.errors import ReadError
from offmap.core.types import Source
from offmap.read import tags

_FIRST_BYTES = (1 << 14, 1 << 20)
"""Bytes that are looked at; the larger number where the smaller one does not reach the series."""


def into_series(sources: Sequence[Source]) -> list[Source]:
    """Sources of single files -> one source a series, at the place of its first file.

    A series is named after its folder, ``folder#0``, ``folder#1`` where a folder has several; a file that is alone in
    its series, or no DICOM file, stays as it is.
    """
    series: dict[tuple[str, str], list[Source]] = {}
    for index, source in enumerate(sources):
        uid = _uid(source.path)
        series.setdefault((os.path.dirname(source.item), uid) if uid else ("", f"#{index}"), []).append(source)
    count: dict[str, int] = {}
    for (folder, _), members in series.items():
        count[folder] = count.get(folder, 0) + (len(members) > 1)
    numbered: dict[str, int] = {}
    found = []
    for (folder, _), members in series.items():
        if len(members) == 1:
            found.append(members[0])
            continue
        number = numbered.get(folder, 0)
        numbered[folder] = number + 1
        found.append(_series(folder, f"#{number}" if count[folder] > 1 else "", members))
    return found


def _series(folder: str, suffix: str, members: Sequence[Source]) -> Source:
    first = members[0]
    paths = tuple(member.path for member in members)
    return Source(first.path.parent, f"{folder or '.'}{suffix}", members=paths, meta=dict(first.meta), volume=True)


def _uid(path: Path) -> str:
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            head = file.read(132)
            if head[128:] != b"DICM":
                return ""
            for size in _FIRST_BYTES:
                head += file.read(size - len(head))
                if uid := tags.series_uid(head):
                    return uid
            return ""
    except (OSError, ReadError):
        return ""
