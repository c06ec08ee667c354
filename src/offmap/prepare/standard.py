"""The default preparation."""

from offmap.prepare.crop import Crop
from offmap.prepare.preparation import Preparation
from offmap.prepare.resize import Resize
from offmap.prepare.window import Window


def standard(size: int, *, via: int | None = None) -> Preparation:
    """Window by modality, centre square, antialiased resize.

    Args:
        size: side of the encoder's input in pixels.
        via: reduce larger images to this side first (see ``Resize``).
    """
    return Preparation((Window(), Crop(), Resize(size=size, via=via)))
