"""One level of detail: a half-size copy of an image becomes the same prepared image, whatever reduced it."""

import numpy as np
import pytest
from PIL import Image as Pillow

from offmap.core.errors import ConfigError
from offmap.core.types import Frame, Image
from offmap.prepare.detail import Detail
from offmap.prepare.resize import Resize


def picture(pixels: np.ndarray) -> Image:
    return Image(pixels=pixels.astype(np.float32), item="x", frame=Frame.whole(pixels.shape[1:]), spacing=(1.0, 1.0))


def texture(n: int) -> np.ndarray:
    """Noise with the spectrum of a photograph (1/f)."""
    rng = np.random.default_rng(3)
    f = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.fftfreq(n)[None])
    spectrum = np.fft.fft2(rng.standard_normal((n, n))) / np.maximum(f, 1 / n)
    field = np.fft.ifft2(spectrum).real
    return np.asarray((field - field.min()) / np.ptp(field), dtype=np.float32)


@pytest.mark.parametrize("kind", [Pillow.Resampling.BOX, Pillow.Resampling.BILINEAR, Pillow.Resampling.LANCZOS])
def test_half_size_files_become_nearly_the_same(kind: Pillow.Resampling) -> None:
    whole = texture(224)
    half = np.asarray(Pillow.fromarray(whole).resize((112, 112), kind))
    plain, even = Resize(160), Detail(112)
    direct = np.abs(plain(picture(whole[None])).pixels - plain(picture(half[None])).pixels).mean()
    through = np.abs(even(picture(whole[None])).pixels - even(picture(half[None])).pixels).mean()
    assert through < 0.5 * direct


def test_a_constant_stays_and_values_stay_in_range() -> None:
    flat = Detail(32)(picture(np.full((3, 50, 70), 0.3)))
    np.testing.assert_allclose(flat.pixels, 0.3, atol=1e-6)
    step = np.zeros((1, 64, 64))
    step[:, :, 32:] = 1.0
    out = Detail(32)(picture(step)).pixels
    assert out.min() >= 0
    assert out.max() <= 1


def test_the_smoothing_is_the_stated_kernel() -> None:
    point = np.zeros((1, 32, 32))
    point[0, 10, 20] = 1.0
    out = Detail(32, smooth=0.2)(picture(point)).pixels[0]
    np.testing.assert_allclose(out[9:12, 19:22], np.outer([0.2, 0.6, 0.2], [0.2, 0.6, 0.2]), atol=1e-6)


def test_the_frame_stays_and_the_spacing_follows() -> None:
    image = Detail(56)(picture(texture(112)[None]))
    assert image.frame == Frame.whole((112, 112))
    assert image.spacing == (2.0, 2.0)


def test_a_volume_keeps_its_slices() -> None:
    volume = Image(pixels=np.random.default_rng(0).random((1, 5, 40, 40), dtype=np.float32), item="v", frame=Frame.whole((5, 40, 40)))
    assert Detail(20)(volume).pixels.shape == (1, 5, 20, 20)


def test_ranges_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"smooth = 0\.4"):
        Detail(smooth=0.4)
