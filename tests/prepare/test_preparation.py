"""Steps in a row: recorded, replayed, and refused by name."""

import json
import subprocess
import sys

import numpy as np
import pytest

from offmap.core import registry
from offmap.core.errors import ConfigError, ReadError
from offmap.core.types import Frame, Image
from offmap.prepare.crop import Crop
from offmap.prepare.detail import Detail
from offmap.prepare.mask import Mask
from offmap.prepare.percentile import Percentile
from offmap.prepare.preparation import Preparation, Step
from offmap.prepare.resample import Resample
from offmap.prepare.resize import Resize
from offmap.prepare.window import Window

EVERY = Preparation(
    (Window(ct="lung"), Percentile(low=1.0), Mask(), Resample(mm=0.7, missing="keep"), Crop("pad"), Detail(30), Resize(size=48))
)


def standard(size: int) -> Preparation:
    return Preparation((Window(), Crop(), Resize(size=size)))


def ramp(height: int, width: int, channels: int = 1) -> Image:
    pixels = np.random.default_rng(0).integers(0, 256, (channels, height, width), dtype=np.uint8)
    return Image(pixels, "made", Frame.whole((height, width)), spacing=(0.5, 0.25), file_format="png")


def test_every_step_file_is_found_by_name() -> None:
    assert set(registry.load_all("prepare", Step)) == {"window", "percentile", "mask", "resample", "crop", "resize", "detail"}


@pytest.mark.parametrize("preparation", [standard(160), standard(96), EVERY])
def test_steps_come_back_from_json(preparation: Preparation) -> None:
    text = json.dumps(preparation.to_json())
    again = Preparation.from_json(json.loads(text))
    assert again == preparation
    assert len(again.describe()) == len(preparation.steps)
    assert np.array_equal(again.apply(ramp(50, 70)).pixels, preparation.apply(ramp(50, 70)).pixels)


def test_defaults_may_be_left_out() -> None:
    assert Preparation.from_json([{"method": "window"}, {"method": "crop"}, {"method": "resize", "size": 160}]) == standard(160)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([{"method": "windo"}], "window"),
        ([{"method": "window", "widht": 3}], "width"),
        ([{"method": "window"}, {"method": "resize", "size": "big"}], r"prepare\.1\.resize\] size = 'big'"),
        ([{"size": 3}], "has no method"),
        ([{"method": "resampler"}], "must define one public Step"),
        ([{"method": "resize", "size": 0}], "size = 0"),
        ([{"method": "crop", "mode": "stretch"}], "'stretch'"),
    ],
)
def test_unknown_steps_and_parameters_are_named(tables: list[dict[str, object]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Preparation.from_json(tables)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(224, 256), (31, 17), (400, 100)])
def test_what_comes_out_fits_the_encoder(channels: int, shape: tuple[int, int]) -> None:
    before = ramp(*shape, channels=channels)
    kept = before.pixels.copy()
    after = standard(160).apply(before)
    assert after.pixels.shape == (channels, 160, 160)
    assert after.pixels.dtype == np.float32
    assert after.pixels.flags.c_contiguous
    assert np.array_equal(before.pixels, kept)
    assert after.frame.share == pytest.approx(min(shape) / max(shape))
    assert (after.item, after.digest) == (before.item, before.digest)


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.zeros((1, 0, 5), np.uint8), "bad_geometry"),
        (np.full((1, 40, 40), 9, np.uint16), "constant"),
        (np.where(np.eye(40)[None] > 0, np.nan, 1.0).astype(np.float32), "non_finite"),
        (np.random.default_rng(0).random((1, 9, 90), dtype=np.float32), "small"),
    ],
)
def test_hopeless_images_are_refused_with_a_reason(pixels: np.ndarray, reason: str) -> None:
    with pytest.raises(ReadError) as error:
        standard(64).apply(Image(pixels, "made", Frame.whole(pixels.shape[1:])))
    assert error.value.reason == reason


def test_contrast_that_lies_outside_the_crop_is_refused() -> None:
    pixels = np.zeros((1, 40, 100), np.uint8)
    pixels[..., :10] = 200
    with pytest.raises(ReadError, match="after preparation"):
        standard(64).apply(Image(pixels, "made", Frame.whole((40, 100))))


def test_workers_import_neither_torch_nor_scipy() -> None:
    code = (
        "import sys, offmap.prepare.detail, offmap.prepare.mask, offmap.prepare.resample;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'scipy', 'monai')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
