"""Copies of test images: all kinds, always the same, of the wanted images only."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from offmap.core.types import Frame, Image, NotAssessed, Source
from offmap.pipeline import recipe as recipes
from offmap.pipeline.synthetic import KINDS, CopyWork, halves
from offmap.prepare.preparation import Preparation
from offmap.read.load import load
from offmap.read.messages import unpack

STEPS = recipes.read("standard").preparation(96)


def made(folder: Path, *, colour: bool = False) -> tuple[Source, str]:
    y, x = np.mgrid[:80, :90] / 80 - 0.5
    plane = 200 * np.exp(-8 * (x**2 + y**2)) + 10 * np.random.default_rng(0).random((80, 90))
    pixels = plane.astype(np.uint8)
    path = folder / ("c.png" if colour else "g.png")
    Pillow.fromarray(np.stack([pixels, pixels // 2, pixels // 3], axis=-1) if colour else pixels).save(path)
    source = Source(path, path.name)
    image = next(iter(load(source)))
    assert isinstance(image, Image)
    return source, image.digest


def copies(source: Source, digest: str, seed: int = 0) -> dict[str, Image]:
    work = CopyWork(steps=STEPS.to_json(), wanted=frozenset({digest}), seed=seed)
    found = [unpack(message) for message in work(source)]
    assert all(isinstance(image, Image) for image in found)
    return {image.item.rpartition("/")[2]: image for image in found if isinstance(image, Image)}


def test_there_is_a_copy_of_every_kind_and_each_is_another_image(tmp_path: Path) -> None:
    source, digest = made(tmp_path, colour=True)
    found = copies(source, digest)
    assert list(found) == list(KINDS)
    plain = [kind for kind, value in KINDS.items() if value.group in ("local", "whole")]
    assert all(image.pixels.shape == (3, 96, 96) for image in found.values())
    assert all(np.abs(found[kind].pixels - found["clean"].pixels).max() > 1e-3 for kind in plain)
    assert np.array_equal(found["png"].pixels, found["clean"].pixels)


def test_grey_images_have_no_other_stain(tmp_path: Path) -> None:
    source, digest = made(tmp_path)
    assert set(KINDS) - set(copies(source, digest)) == {"stain_shift.2", "stain_shift.4"}


def test_the_clean_copy_is_the_prepared_image(tmp_path: Path) -> None:
    source, digest = made(tmp_path)
    image = next(iter(load(source)))
    assert isinstance(image, Image)
    assert np.array_equal(copies(source, digest)["clean"].pixels, STEPS.apply(image).pixels)


def test_the_seed_decides_and_severities_share_their_pattern(tmp_path: Path) -> None:
    source, digest = made(tmp_path)
    one, again, other = copies(source, digest), copies(source, digest), copies(source, digest, seed=1)
    assert all(np.array_equal(one[kind].pixels, again[kind].pixels) for kind in one)
    assert not np.array_equal(one["noise.2"].pixels, other["noise.2"].pixels)
    weak, strong = (one[f"noise.{s}"].pixels - one["clean"].pixels for s in (2, 4))
    assert np.corrcoef(weak.ravel(), strong.ravel())[0, 1] > 0.8


def test_images_that_are_not_wanted_are_not_copied(tmp_path: Path) -> None:
    source, _ = made(tmp_path)
    assert list(CopyWork(steps=STEPS.to_json(), wanted=frozenset({"another"}))(source)) == []


def test_a_copy_that_cannot_be_made_is_not_assessed() -> None:
    pixels = (np.arange(36, dtype=np.uint8) * 7).reshape(1, 6, 6)
    image = Image(pixels, "tiny", Frame.whole((6, 6)), digest="tiny")
    found = [unpack(m) for m in CopyWork(steps=STEPS.to_json(), wanted=frozenset({image.digest})).copies(image)]
    refused = {o.item: o.reason for o in found if isinstance(o, NotAssessed)}
    assert set(refused) == {f"tiny/{kind}" for kind, value in KINDS.items() if not value.colour}
    assert refused["tiny/clean"] == "small"
    assert refused["tiny/cut_paste"] == "failed"


def test_damage_comes_after_the_window_and_the_crop() -> None:
    early, late = halves(STEPS)
    assert [s.method() for s in early.steps] == ["window", "crop"]
    assert [s.method() for s in late.steps] == ["detail", "resize"]
    assert halves(Preparation(())) == (Preparation(()), Preparation(()))


@pytest.mark.parametrize("module", ["offmap.pipeline.synthetic"])
def test_decode_workers_that_copy_do_not_load_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'monai', 'sklearn'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
