"""How much one file may cost: bytes, pixels, expansion, time, memory."""

from dataclasses import dataclass

from offmap.core.errors import ConfigError, ReadError

SMALLEST = 8
"""Smallest height and width in pixels that an image may have."""

FREE_EXPANSION = 64 << 20
"""Bytes to which any file may expand: below it a high ratio harms nobody (an empty slice packs 1,000 to 1)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What reading one file may cost.

    Args:
        max_file_bytes: largest file that is opened.
        max_pixels: largest number of values (pixels times channels) of one image or volume.
        max_expansion: largest ratio of expanded to stored bytes, once more than 64 MiB come out.
        seconds: longest time for one image, in a worker process.
        memory_bytes: address space of a worker process.

    Raises:
        ConfigError: a limit is not positive.
    """

    max_file_bytes: int = 8 << 30
    max_pixels: int = 250_000_000
    max_expansion: float = 500.0
    seconds: float = 60.0
    memory_bytes: int = 3 << 30

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ConfigError(f"limit {name} = {getattr(self, name)} must be positive")

    def expansion(self, stored: int) -> int:
        """Largest number of bytes that ``stored`` bytes may expand to."""
        return int(max(FREE_EXPANSION, stored * self.max_expansion))

    def check(self, values: int, *, expanded: int = 0, stored: int = 0) -> None:
        """Refuse what is too large, before anything is decoded.

        Args:
            values: pixels times channels of one image or volume.
            expanded: bytes that would come out of ``stored`` bytes; 0 where nothing is compressed.
            stored: bytes in the file.

        Raises:
            ReadError: reason ``bomb``.
        """
        if values > self.max_pixels:
            raise ReadError("bomb", f"the image has {values:,} values, the limit is {self.max_pixels:,}")
        if expanded > self.expansion(stored):
            raise ReadError("bomb", f"{stored:,} bytes would expand to {expanded:,}, the limit is {self.expansion(stored):,}")


def check_size(height: int, width: int) -> None:
    """Refuse an impossible or too small image, before anything is decoded.

    Raises:
        ReadError: reason ``bad_geometry`` below one pixel, ``small`` below 8.
    """
    if height < 1 or width < 1:
        raise ReadError("bad_geometry", f"the image is {height} x {width} pixels")
    if height < SMALLEST or width < SMALLEST:
        raise ReadError("small", f"the image is {height} x {width} pixels, at least {SMALLEST} x {SMALLEST} are needed")


DEFAULT = Limits()
"""The limits that hold when nothing else is said."""
