"""The public data sets that ``offmap data`` knows: what they are, under which licence, where they lie, and their checksums.

All are two-dimensional MedMNIST sets (Yang et al., Scientific Data 10:41, 2023), published at Zenodo as one ``.npz`` a set and
size, with the arrays ``train_images``, ``train_labels``, ``val_images`` ... The MD5 sums are those that its authors
publish; they find broken downloads, while HTTPS vouches for the source.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType

from offmap.core.component import nearest
from offmap.core.errors import ConfigError

SIDES = (28, 64, 128, 224)
"""Published image sizes, pixels; the first has no suffix in the set's name."""


@dataclass(frozen=True, slots=True)
class DataSet:
    """One file that can be fetched.

    Args:
        name: as in ``offmap data get NAME``; ``pneumoniamnist``, ``pneumoniamnist_64``.
        what: what the images show and where they come from.
        licence: as its publisher states it.
        n_train, n_val, n_test: number of images.
        side: images are ``side x side`` pixels.
        channels: 1 or 3.
        labels: names of the classes, by their number.
        page: web page of the record.
        url: address of the file.
        md5: checksum of the file.
        bytes_about: size of the file where it is known (three figures), else None.
        credit: how to cite it.
    """

    name: str
    what: str
    licence: str
    n_train: int
    n_val: int
    n_test: int
    side: int
    channels: int
    labels: tuple[str, ...]
    page: str
    url: str
    md5: str
    bytes_about: int | None
    credit: str

    @property
    def n(self) -> int:
        """Number of images."""
        return self.n_train + self.n_val + self.n_test

    @property
    def file(self) -> str:
        """Name of the file."""
        return f"{self.name}.npz"

    @property
    def bytes_at_most(self) -> int:
        """The arrays without compression, and one MB for labels and headers: the file is never larger."""
        return self.n * self.side**2 * self.channels + self.n * max(1, len(self.labels)) * 8 + 1_000_000

    @property
    def size(self) -> str:
        """Size of the file in words: ``4.2 MB``, or ``< 24 MB`` where only the bound is known."""
        known = self.bytes_about is not None
        size = (self.bytes_about if self.bytes_about is not None else self.bytes_at_most) / 1e6
        words = f"{size / 1000:.1f} GB" if size >= 1000 else f"{size:.0f} MB" if size >= 100 else f"{size:.1f} MB"
        return words if known else f"< {words}"


@cache
def catalogue() -> Mapping[str, DataSet]:
    """All known sets by name, in the order of their size in pixels, then by name."""
    facts = json.loads((resources.files("offmap.datasets") / "medmnist.json").read_text(encoding="utf-8"))
    found = {}
    for side in SIDES:
        for base, given in sorted(facts["sets"].items()):
            name = base if side == SIDES[0] else f"{base}_{side}"
            found[name] = DataSet(
                name=name,
                what=given["what"],
                licence=given["licence"],
                n_train=given["n"]["train"],
                n_val=given["n"]["val"],
                n_test=given["n"]["test"],
                side=side,
                channels=given["channels"],
                labels=tuple(given["labels"]),
                page=facts["record"],
                url=f"{facts['files']}{name}.npz",
                md5=given["md5"][str(side)],
                bytes_about=round(given["megabytes_28"] * 1e6) if side == SIDES[0] else None,
                credit=facts["credit"],
            )
    return MappingProxyType(found)


def entry(name: str) -> DataSet:
    """A set by name.

    Raises:
        ConfigError: no such set, with the nearest name.
    """
    known = catalogue()
    if name not in known:
        raise ConfigError(f"there is no data set {name!r}{nearest(name, list(known))}. `offmap data list` lists all")
    return known[name]
