"""Copies and file statistics of made sets, and of the local ones."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from offmap.benchmark import guards
from offmap.benchmark.guards import FileStatistics, Prints, ToldApart, file_statistics, find_copies, told_apart
from offmap.benchmark.suite import read_suite
from offmap.core import registry
from offmap.core.detector import Detector
from offmap.core.duplicates import fingerprint
from offmap.core.errors import ConfigError
from offmap.core.types import Image
from offmap.datasets import local
from offmap.read.load import load

RNG = np.random.default_rng(0)
PICTURES = RNG.random((12, 1, 48, 48))


def prints(name: str, pictures: np.ndarray, digests: tuple[str, ...] = ()) -> Prints:
    return Prints(tuple(f"{name}/{i}.png" for i in range(len(pictures))), np.stack([fingerprint(p) for p in pictures]), digests)


def test_copies_of_other_sets_are_named() -> None:
    other = np.concatenate([PICTURES[:1, :, :, ::-1], RNG.random((3, 1, 48, 48)), PICTURES[4:6] * 0.5 + 0.2])
    copies = find_copies(
        {"own": prints("own", PICTURES), "other": prints("other", other), "far": prints("far", RNG.random((4, 1, 48, 48)))}
    )
    overlap = copies.shared("own", "other")
    assert overlap.rows.tolist() == [0, 4, 5]
    assert overlap.pairs == (("other/0.png", "own/0.png"), ("other/4.png", "own/4.png"), ("other/5.png", "own/5.png"))
    assert overlap.sentence == (
        '3 of 6 images of "other" look like copies of images of "own"; left out: '
        "other/0.png = own/0.png, other/4.png = own/4.png, other/5.png = own/5.png"
    )
    assert copies.shared("own", "other", rows=[5, 6]).rows.tolist() == [5]
    assert (copies.shared("own", "far").rows.tolist(), copies.shared("own", "far").sentence) == ([], "")
    assert copies.within("own") == []


def test_equal_files_are_copies_whatever_they_show() -> None:
    flat = np.zeros((2, 1, 48, 48))
    copies = find_copies({"own": prints("own", flat[:1], ("d1",)), "other": prints("other", flat, ("d2", "d1"))})
    assert copies.shared("own", "other").rows.tolist() == [1]
    assert copies.shared("own", "other").sentence.startswith(
        '1 of 2 images of "other" looks like a copy of images of "own"; left out: other/1.png'
    )


def test_test_images_that_were_fitted_on_are_named() -> None:
    twice = np.concatenate([PICTURES, PICTURES[:7]])
    copies = find_copies({"own": prints("own", twice)})
    assert copies.within("own") == [(i, 12 + i) for i in range(7)]
    overlap = copies.tested_twice("own", fitted=range(12), test=range(12, 19))
    assert overlap.rows.tolist() == list(range(12, 19))
    assert overlap.sentence.startswith(
        '7 of 7 test images of "own" look like copies of images that were fitted on; left out: own/12.png = own/0.png'
    )
    assert overlap.sentence.endswith("and 2 more")
    assert not len(copies.tested_twice("own", fitted=range(7, 12), test=range(12, 19)).rows)


def test_fingerprints_and_names_must_match() -> None:
    with pytest.raises(ConfigError, match="'own': 1 names, 2 fingerprints"):
        find_copies({"own": Prints(("a",), np.zeros((2, 1024), dtype=np.float32))})
    assert find_copies({}).groups == ()
    assert find_copies({"own": Prints((), np.zeros((0, 1024), dtype=np.float32))}).groups == ()


def test_the_baseline_is_a_detector() -> None:
    assert guards.BASELINE in registry.load_all("score", Detector)


def statistics(name: str, count: int, *, groups: tuple[str, ...] = (), form: str = "png", **columns: object) -> FileStatistics:
    """Statistics of a set whose columns are given; the others are unknown."""
    values = np.full((count, len(guards.NUMBERS)), np.nan)
    for key, value in columns.items():
        values[:, list(guards.NUMBERS).index(key)] = value  # type: ignore[call-overload]
    names = tuple(f"{name}/{i}" for i in range(count))
    return FileStatistics(name, names, values, {"format": (form,) * count, "coding": ("",) * count}, groups or names)


def test_image_size_alone_is_named() -> None:
    found = told_apart(statistics("kermany", 60, width=224, height=224), statistics("cifar10", 40, width=32, height=32))
    assert found.alone == {"image size": 1.0}
    assert found.auroc == 1.0
    assert found.sentence == '"cifar10" is told apart from "kermany" by image size alone (AUROC 1.00)'


def test_values_between_those_of_the_other_set_count_too() -> None:
    own = statistics("own", 60, width=np.tile([200.0, 300.0], 30))
    assert told_apart(own, statistics("other", 40, width=250)).alone["image size"] == 1.0


def test_what_files_have_in_common_is_no_warning() -> None:
    rng = np.random.default_rng(1)
    own, other = (statistics(name, 80, width=rng.integers(200, 300, 80), bytes=rng.normal(9, 1, 80)) for name in ("own", "other"))
    found = told_apart(own, other)
    assert max(found.auroc, *found.alone.values()) < 0.65
    assert (found.warns, found.sentence) == (False, "")
    same = told_apart(statistics("own", 30, width=10), statistics("other", 30, width=10))
    assert (same.auroc, same.alone, same.best, same.sentence) == (0.5, {}, "", "")


def test_a_closed_form_is_met() -> None:
    """Two normal distributions with a distance of d deviations have an AUROC of Phi(d / sqrt 2)."""
    from scipy.stats import norm

    rng = np.random.default_rng(2)
    found = told_apart(statistics("own", 3000, aspect=rng.normal(0, 1, 3000)), statistics("other", 3000, aspect=rng.normal(1.5, 1, 3000)))
    assert found.auroc == pytest.approx(norm.cdf(1.5 / np.sqrt(2)), abs=0.015)
    assert found.alone["aspect ratio"] == pytest.approx(found.auroc, abs=0.03)


def test_a_statistic_that_follows_from_content_says_so_and_comes_last() -> None:
    found = told_apart(statistics("own", 40, bytes=1.0), statistics("other", 40, bytes=2.0))
    assert found.sentence.endswith("by file size alone (AUROC 1.00), which also follows from what an image shows")
    rng = np.random.default_rng(3)
    own = statistics("own", 200, bytes=1.0, jpeg_quality=np.where(rng.random(200) < 0.1, 90, 75))
    other = statistics("other", 200, bytes=2.0, jpeg_quality=np.where(rng.random(200) < 0.1, 75, 90))
    assert told_apart(own, other).best == "JPEG quality"


def test_a_grey_jpeg_does_not_differ_in_its_chroma() -> None:
    found = told_apart(statistics("own", 40, channels=1), statistics("other", 40, channels=3, jpeg_subsampling=4))
    assert list(found.alone) == ["colour channels"]


def test_formats_differ() -> None:
    assert told_apart(statistics("own", 40), statistics("other", 40, form="jpeg")).best == "file format"


def test_several_statistics_together() -> None:
    rng = np.random.default_rng(4)
    own, other = rng.normal(0, 1, (2, 400)), rng.normal(0.9, 1, (2, 400))
    found = told_apart(statistics("own", 400, aspect=own[0], depth=own[1]), statistics("other", 400, aspect=other[0], depth=other[1]))
    assert max(found.alone.values()) < guards.THRESHOLD <= found.auroc
    assert found.sentence.startswith('"other" is told apart from "own" by file statistics together (AUROC 0.8')


def test_too_few_images_are_not_judged() -> None:
    found = told_apart(statistics("own", 60, width=224), statistics("tiny", 1, width=32))
    assert np.isnan(found.auroc)
    assert not found.warns
    assert found.sentence == '"tiny" has 1 image: too few to say whether "tiny" is told apart from "own" by its files'


def test_images_of_one_patient_do_not_vouch_for_one_another() -> None:
    """Four patients a set: what tells patients apart does not tell sets apart."""
    who = np.repeat(np.arange(8.0), 30)
    rng = np.random.default_rng(5)
    sizes = rng.permutation(8)[who.astype(int)] * 10.0
    own = statistics("own", 120, groups=tuple(f"p{int(w)}" for w in who[:120]), width=sizes[:120])
    other = statistics("other", 120, groups=tuple(f"p{int(w)}" for w in who[120:]), width=sizes[120:])
    alone = statistics("own", 120, width=sizes[:120]), statistics("other", 120, width=sizes[120:])
    assert told_apart(*alone).auroc > 0.95
    assert told_apart(own, other).auroc < 0.8
    few = statistics("own", 40, groups=("a",) * 40, width=1), statistics("other", 40, groups=("b",) * 40, width=2)
    assert np.isnan(told_apart(*few).auroc)


@pytest.fixture(scope="module")
def files() -> Mapping[str, FileStatistics]:
    """Statistics of some local sets."""
    if local.find() is None:
        pytest.skip("no local data ($OFFMAP_DATA)")
    suite = read_suite("near-far-v1")
    names = ("kermany_normal", "kermany_pneumonia", "nih_no_finding", "cifar10", "isic2017", "isic_archive", "busi_malignant")
    return {name: file_statistics(suite.items(name), name) for name in (*names, "busi_normal_benign")}


@pytest.mark.parametrize(
    ("own", "other", "best"),
    [
        ("kermany_normal", "cifar10", "image size"),
        ("kermany_normal", "nih_no_finding", "image size"),
        ("isic2017", "isic_archive", "image size"),
        ("kermany_normal", "kermany_pneumonia", "file size"),
        ("busi_normal_benign", "busi_malignant", ""),
    ],
)
def test_local_sets(files: Mapping[str, FileStatistics], own: str, other: str, best: str) -> None:
    found: ToldApart = told_apart(files[own], files[other])
    assert (found.best if found.warns else "") == best
    assert (files[own].column("jpeg_quality") == 88).all()


def test_an_image_that_lies_in_two_local_sets_is_found(tmp_path: Path) -> None:
    root = local.find()
    if root is None:
        pytest.skip("no local data ($OFFMAP_DATA)")
    from PIL import Image as Pillow

    suite = read_suite("near-far-v1")
    own = suite.items("kermany_normal")[:30]
    copy = tmp_path / "copy.jpg"
    with Pillow.open(own[7].source.path) as image:
        image.resize((160, 160)).save(copy, quality=60)
    covid = [*(item.source.path for item in suite.items("covid")[:20]), copy]
    sets = {"kermany_normal": [item.source.path for item in own], "covid": covid}
    found = {name: Prints(tuple(map(str, paths)), np.stack([_print(p) for p in paths])) for name, paths in sets.items()}
    overlap = find_copies(found).shared("kermany_normal", "covid")
    assert overlap.pairs == ((str(copy), str(own[7].source.path)),)


def _print(path: Path) -> np.ndarray:
    from offmap.core.types import Source

    image = next(iter(load(Source(path, str(path)))))
    assert isinstance(image, Image)
    return fingerprint(image.pixels)
