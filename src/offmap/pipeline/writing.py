"""Scoring into files: table, maps, page; all appear whole or not at all."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from offmap.core.errors import ConfigError, DataError
from offmap.core.types import Source
from offmap.pipeline.inputs import PathLike, paths
from offmap.pipeline.run import MapFolder, Summary, follow, results
from offmap.pipeline.stream import Progress
from offmap.report.writer import TableWriter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from offmap.pipeline.gate import Gate

IDENTIFIERS = ()
