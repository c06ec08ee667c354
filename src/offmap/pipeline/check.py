"""A dry run: what would be read, how, and why not."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from offmap.core.types import REASONS, Image
from offmap.pipeline.inputs import PathLike, paths
from offmap.pipeline.worker import Work
from offmap.read.limits import DEFAULT, Limits
from offmap.read.messages import unpack
from offmap.read.workers import Workers

if TYPE_CHECKING:
    from offmap.pipeline.gate import Gate


def check(
    inputs: PathLike | Sequence[PathLike], gate: "Gate | None" = None, *, volumes: bool = False, jobs: int = 1, limits: Limits = DEFAULT
) -> Iterator[dict[str, Any]]:
    """Read every item and tell what was found; nothing is scored or written.

    Args:
        gate: also prepare each image as this gate would, and check its modality.

    Yields:
        One row an item: ``item, status, reason, detail, format, size, bits, modality, spacing, scored_share``.

    Raises:
        ConfigError: a path does not exist, or a manifest is malformed.
    """
    found = paths(inputs, volumes=gate.volumes if gate else volumes)
    work = Work(limits=limits)
    if gate is not None:
        work = Work(steps=gate.preparation.to_json(), modalities=gate.modalities, limits=limits)
    with Workers(work, jobs=jobs, limits=limits) as workers:
        for _, message in workers.run(found.sources):
            outcome = unpack(message)
            yield _row(outcome) if isinstance(outcome, Image) else _refused(outcome)


def _row(image: Image) -> dict[str, Any]:
    return {
        "item": image.item,
        "status": "ok",
        "reason": "",
        "detail": "",
        "format": image.file_format,
        "size": "x".join(map(str, image.frame.shape)),
        "bits": image.bits,
        "modality": image.modality,
        "spacing": "x".join(f"{s:g}" for s in image.spacing or ()),
        "scored_share": round(image.frame.share, 3),
    }


def _refused(outcome: Any) -> dict[str, Any]:
    blank = dict.fromkeys(("format", "size", "bits", "modality", "spacing", "scored_share"), "")
    detail = outcome.detail or REASONS.get(outcome.reason, "")
    return {"item": outcome.item, "status": "not_assessed", "reason": outcome.reason, "detail": detail, **blank}
