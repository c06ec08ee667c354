"""Data sets that lie on this machine, and the data of the demo."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from offmap.core.errors import ConfigError, NotAvailableError
from offmap.datasets.fetch import Progress, cache_folder, get

IMAGES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".dcm")
FIT, EACH = 600, 100
"""In-distribution images that the demo fits on, and images of each other set."""


@dataclass(frozen=True, slots=True)
class LocalSet:
    """A folder of images.

    Args:
        name: ``dataset/label``.
        folder: where they lie.
        n: number of image files in it.
    """

    name: str
    folder: Path
    n: int


@dataclass(frozen=True, slots=True)
class DemoData:
    """What the demo fits on and scores.

    Args:
        sentence: which data it is, for people.
        fit: in-distribution inputs to fit on, as ``offmap fit`` takes them.
        score: inputs to score by the name of their set; ``unseen`` are in-distribution images that fitting did not see.
        kinds: for each name of ``score`` one of ``in-distribution``, ``near``, ``far``.
    """

    sentence: str
    fit: Sequence[str]
    score: Mapping[str, Sequence[str]]
    kinds: Mapping[str, str]


def find() -> Path | None:
    """The folder of local data: ``$OFFMAP_DATA``, or ``../shared/data`` beside the checkout; None where there is none.

    Raises:
        ConfigError: ``OFFMAP_DATA`` names a folder that does not exist.
    """
    given = os.environ.get("OFFMAP_DATA")
    if given:
        if not Path(given).is_dir():
            raise ConfigError(f"OFFMAP_DATA = {given!r} is not a folder; correct it or unset it")
        return Path(given)
    checkout = Path(__file__).resolve().parents[3]
    beside = checkout.parent / "shared" / "data"
    return beside if (checkout / "pyproject.toml").is_file() and beside.is_dir() else None


def sets(root: Path) -> dict[str, LocalSet]:
    """Image sets below ``root/images/<dataset>/<label>``, by name, sorted."""
    found = {}
    for folder in sorted((root / "images").glob("*/*/")):
        name = f"{folder.parent.name}/{folder.name}"
        count = len(_images(folder))
        if count:
            found[name] = LocalSet(name, folder, count)
    return found


def demo_sets(
    *,
    phantoms: Callable[[Path], Mapping[str, Sequence[Path]]] | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
    offline: bool = False,
) -> DemoData:
    """Data for the demo: local X-rays, else MedMNIST from the network, else phantoms.

    Args:
        phantoms: writes phantom images into a folder and gives their paths by ``id``, ``near``, ``far``; the last resort.
        folder: for what is made or fetched; ``cache_folder()`` if not given.
        progress: of a download.
        offline: do not try the network.

    Raises:
        NotAvailableError: none of the three is at hand.
    """
    root = find()
    if root is not None:
        local = _local(sets(root))
        if local is not None:
            return local
    store = folder if folder is not None else cache_folder()
    failure = "the network was not tried"
    if not offline:
        try:
            return _medmnist(store, progress)
        except (NotAvailableError, ConfigError) as error:
            failure = str(error)
    if phantoms is None:
        raise NotAvailableError(f"no data for the demo: set OFFMAP_DATA to a folder with images/kermany/normal, or go online ({failure})")
    return _phantoms(phantoms(store / "phantoms"))


ID = "kermany/normal"
OTHERS = {
    "nih/no_finding": "near",
    "kermany/pneumonia": "near",
    "brain_mr/no_tumour": "far",
    "cifar10/natural": "far",
}


def _local(found: Mapping[str, LocalSet]) -> DemoData | None:
    if ID not in found or found[ID].n < FIT + EACH // 2 or not any(name in found for name in OTHERS):
        return None
    own = _images(found[ID].folder)
    score = {"unseen": own[FIT : FIT + EACH]} | {
        name.replace("/", "_"): _images(found[name].folder)[:EACH] for name in OTHERS if name in found
    }
    kinds = {"unseen": "in-distribution"} | {name.replace("/", "_"): kind for name, kind in OTHERS.items() if name in found}
    sentence = (
        f"Real images from {str(found[ID].folder.parents[2])!r}: fitted on {FIT} healthy chest X-rays of children (Kermany); "
        "near: X-rays of adults and pneumonia; far: brain MR and photographs."
    )
    return DemoData(sentence, own[:FIT], score, kinds)


def _medmnist(store: Path, progress: Progress | None) -> DemoData:
    lungs = get("pneumoniamnist_64", folder=store, progress=progress)
    breast = get("breastmnist_64", folder=store, progress=progress)
    retina = get("retinamnist_64", folder=store, progress=progress)
    made = store / "demo-medmnist_64.npz"
    with np.load(lungs, allow_pickle=False) as arrays:
        healthy = arrays["train_images"][arrays["train_labels"].ravel() == 0]
        test, label = arrays["test_images"], arrays["test_labels"].ravel()
    parts = {"fit": healthy[:FIT], "unseen": test[label == 0][:EACH], "pneumonia": test[label == 1][:EACH]}
    for name, path in (("breast", breast), ("retina", retina)):
        with np.load(path, allow_pickle=False) as arrays:
            parts[name] = arrays["test_images"][:EACH]
    _save(made, parts)
    score = {name: [f"{made}::{name}"] for name in parts if name != "fit"}
    kinds = {"unseen": "in-distribution", "pneumonia": "near", "breast": "far", "retina": "far"}
    sentence = (
        f"Real images of MedMNIST, 64 x 64 pixels, CC BY 4.0: fitted on {len(parts['fit'])} healthy chest X-rays of children; "
        "near: pneumonia; far: breast ultrasound and fundus photographs."
    )
    return DemoData(sentence, [f"{made}::fit"], score, kinds)


def _save(place: Path, arrays: Mapping[str, np.ndarray]) -> None:
    part = place.with_name(f".{place.name}.{os.getpid()}.npz")
    try:
        np.savez_compressed(part, allow_pickle=False, **arrays)
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)


def _phantoms(written: Mapping[str, Sequence[Path]]) -> DemoData:
    own, near, far = (sorted(str(path) for path in written[kind]) for kind in ("id", "near", "far"))
    cut = max(1, len(own) * 6 // 7)
    sentence = "Drawn images (phantoms), because no real ones are at hand: they show that everything runs, and say nothing about accuracy."
    score = {"unseen": own[cut:], "near": near, "far": far}
    return DemoData(sentence, own[:cut], score, {"unseen": "in-distribution", "near": "near", "far": "far"})


def _images(folder: Path) -> list[str]:
    return sorted(str(p) for p in folder.iterdir() if p.is_file() and p.suffix.lower() in IMAGES and not p.name.startswith("."))
