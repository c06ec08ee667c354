"""What tuning KLIP gave: a choice, what it was chosen from, and the gate that has it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from offmap.pipeline.gate import Gate
from offmap.pipeline.inputs import PathLike
from offmap.report.surface import SurfaceReport
from offmap.score._klip_surface import By, Surface
from offmap.score.klip import KLIP


@dataclass(frozen=True, eq=False)
class Tuned:
    """A choice, what it was chosen from, and the gate that has it.

    Args:
        gate: fitted and calibrated on the images that the choice was not made with.
        part: name of the detector in the recipe.
        before, after: the detector as it was and as it is.
        surface: of all images of the choice.
        at: places of block and window of the choice in the surface.
        by: what was to be large.
        unseen: AUROC of images and of blocks, and an interval of what was to be large, on images apart from those that chose.
        unseen_before: AUROC of images and of blocks of the detector as it was, on the same; None where it is not in the surface.
        cell: side of a cell in pixels.
        facts: in words.
    """

    gate: Gate
    part: str
    before: KLIP
    after: KLIP
    surface: Surface
    at: tuple[int, int]
    by: By
    unseen: tuple[float, float, float, float]
    unseen_before: tuple[float, float] | None
    cell: int
    facts: Mapping[str, str]

    @property
    def block(self) -> int:
        """Side of a block in pixels."""
        return self.after.cells * self.cell

    def report(self) -> SurfaceReport:
        """What there is to look at."""
        s, before = self.surface, place_of(self.surface, self.before)
        return SurfaceReport(
            blocks=[c * self.cell for c in s.cells],
            windows=[s.shares(w) for w in range(len(s.windows))],
            images=s.images.numpy(),
            parts=s.blocks.numpy(),
            wanted=s.values(self.by).numpy(),
            at=self.at,
            before=before,
            sentences=self._sentences(),
            facts=self.facts,
            warnings=self._warnings(),
        )

    def save(self, folder: PathLike) -> str:
        """Write the gate, the page, the drawing and the table of the surface; gives the gate's id.

        Raises:
            ConfigError: the folder cannot be written, or holds what offmap did not write.
        """
        place, report = Path(folder), self.report()
        identity = self.gate.save(place / "gate")
        report.to_html(place / "index.html")
        report.to_svg(place / "surface.svg")
        report.to_csv(place / "surface.csv")
        return identity

    def _sentences(self) -> list[str]:
        (low, high), (images, blocks, least, most) = self.after.window, self.unseen
        words = {"both": "their mean", "images": "that of images", "blocks": "that of blocks"}[self.by]
        out = [
            f"Blocks of {self.block} pixels, steps {low:g} to {high:g}.",
            f"On images apart from those that chose: AUROC {images:.3f} of images, {blocks:.3f} of blocks inside them; {words} lies "
            f"between {least:.3f} and {most:.3f} (95 %).",
        ]
        if self.unseen_before is not None:
            side, (start, stop) = self.before.cells * self.cell, self.before.window
            out.append(
                f"Before, blocks of {side} pixels and steps {start:g} to {stop:g}: {self.unseen_before[0]:.3f} and "
                f"{self.unseen_before[1]:.3f} on the same images."
            )
        return out

    def _warnings(self) -> list[str]:
        values = self.surface.values(self.by)
        top = float((values >= float(values[self.at]) - 0.005).double().mean())
        out = []
        if float(values[self.at]) > 0.995 and top > 0.2:
            out.append(
                f"{top:.0%} of all settings find every artefact: they are too easy to choose by; draw fainter ones (--contrast 0.1,0.3)"
            )
        if float(values[self.at]) < 0.6:
            out.append("No setting finds these artefacts much better than chance: the prior, or the measurement, does not tell them")
        return out


def place_of(surface: Surface, detector: KLIP) -> tuple[int, int] | None:
    """Block and window of a detector in a surface; None where they are not in it."""
    start, stop = (round(share * surface.count) for share in detector.window)
    if detector.cells not in surface.cells or (start, stop) not in surface.windows:
        return None
    return surface.cells.index(detector.cells), surface.windows.index((start, stop))
