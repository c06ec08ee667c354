"""Nearest images against brute force; thumbnails that are nothing but thumbnails."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from scipy.spatial.distance import cdist

from offmap.core import bundle
from offmap.core.errors import BundleError, ConfigError, SignalError
from offmap.explain.neighbours import Neighbours, decode, name_of, thumbnail

FEATURES = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 100, 0.01, 1, 1, 0.0]) + 5
PICTURES = [np.random.default_rng(i).integers(0, 256, (150 + i, 100), dtype=np.uint8) for i in range(40)]


def test_distances_are_cosine_of_standardised_features() -> None:
    new = FEATURES[:7] * 1.1 + 0.3
    index, distance = Neighbours.fit(FEATURES).nearest(new, k=4)
    law = FEATURES.double().numpy()
    spread = np.where(law.std(axis=0) > 0, law.std(axis=0), 1)
    brute = cdist((new.double().numpy() - law.mean(axis=0)) / spread, (law - law.mean(axis=0)) / spread, "cosine")
    assert index.tolist() == np.argsort(brute, axis=1)[:, :4].tolist()
    np.testing.assert_allclose(distance, np.sort(brute, axis=1)[:, :4], atol=1e-4)


def test_an_image_is_its_own_nearest() -> None:
    index, distance = Neighbours.fit(FEATURES).nearest(FEATURES, k=1)
    assert index.flatten().tolist() == list(range(40))
    assert float(distance.abs().max()) < 1e-4


def test_more_than_wanted_are_chosen_at_random_with_their_pictures() -> None:
    kept = Neighbours.fit(FEATURES, PICTURES, most=10, generator=torch.Generator().manual_seed(1))
    rows = kept.rows.tolist()
    assert len(rows) == len(kept.pictures) == 10
    assert rows == sorted(set(rows))
    assert rows != list(range(10))
    for position, row in enumerate(rows):
        assert kept.pictures[position] == thumbnail(PICTURES[row])
    index, _ = kept.nearest(FEATURES[rows[3]][None], k=20)
    assert index.shape == (1, 10)
    assert index[0, 0] == 3


def test_round_trip_through_a_gate(tmp_path: Path) -> None:
    kept = Neighbours.fit(FEATURES, PICTURES)
    manifest = {"stages": {"neighbours": {"method": "neighbours", "params": {}}}}
    bundle.write(tmp_path / "g", manifest, {"neighbours": kept.state()}, extra=kept.files())
    assert (tmp_path / "g" / "neighbours" / "0000039.png").is_file()
    again = Neighbours.read(bundle.read(tmp_path / "g"))
    assert again.pictures == kept.pictures
    assert torch.equal(again.nearest(FEATURES[:3])[0], kept.nearest(FEATURES[:3])[0])
    bundle.write(tmp_path / "h", manifest, {"neighbours": kept.state()})
    assert Neighbours.read(bundle.read(tmp_path / "h")).picture(0) is None


@pytest.mark.parametrize("name", ["neighbours/0000002.png", "neighbours/index.html"])
def test_a_folder_with_anything_else_is_refused(tmp_path: Path, name: str) -> None:
    kept = Neighbours.fit(FEATURES[:2], PICTURES[:2])
    manifest = {"stages": {"neighbours": {"method": "neighbours", "params": {}}}}
    bundle.write(tmp_path / "g", manifest, {"neighbours": kept.state()}, extra=kept.files() | {name: b"<script>"})
    with pytest.raises(BundleError, match="thumbnails"):
        Neighbours.read(bundle.read(tmp_path / "g"))


@pytest.mark.parametrize("shape", [(300, 200), (20, 30), (500, 30, 3), (1, 1)])
def test_thumbnails_are_small_and_bare(shape: tuple[int, ...]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    content = thumbnail(picture)
    image = Image.open(io.BytesIO(content))
    assert image.format == "PNG"
    assert max(image.size) == min(96, max(shape[:2]))
    assert image.info == {}
    pixels = decode(content, "x.png")
    assert pixels.ndim == len(shape)
    if max(shape) <= 96:
        np.testing.assert_array_equal(pixels, picture)


def png(size: tuple[int, int] = (80, 80), mode: str = "L", **kwargs: object) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, "PNG", **kwargs)
    return stream.getvalue()


def jpeg() -> bytes:
    stream = io.BytesIO()
    Image.new("L", (50, 50)).save(stream, "JPEG")
    return stream.getvalue()


def with_long_text() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("x", "y" * 2_000_000, zip=True)
    return png(pnginfo=info)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04pickle",
        jpeg(),
        png((97, 50)),
        png((20_000, 20_000), "1"),
        png(mode="P"),
        png()[:30],
        b"\x89PNG\r\n\x1a\n" * 3,
        with_long_text(),
    ],
)
def test_what_is_no_thumbnail_is_refused(content: bytes) -> None:
    with pytest.raises(BundleError, match=r"neighbours/0000000\.png"):
        Neighbours.from_state(Neighbours.fit(FEATURES[:1]).state(), [content])


def test_damaged_pixels_are_refused() -> None:
    good = thumbnail(PICTURES[0])
    with pytest.raises(BundleError, match="damaged"):
        decode(good[: len(good) // 2], name_of(0))


def test_a_damaged_state_is_refused() -> None:
    state = Neighbours.fit(FEATURES).state()
    for change in ({"mean": torch.zeros(3)}, {"spread": torch.zeros(6)}, {"rows": torch.zeros(3)}, {"bank": torch.zeros(0, 6)}):
        with pytest.raises(BundleError, match="do not fit together"):
            Neighbours.from_state(state | change)
    with pytest.raises(BundleError, match="bank"):
        Neighbours.from_state({name: state[name] for name in ("mean", "spread", "rows")})
    with pytest.raises(BundleError, match="2 thumbnails for 40"):
        Neighbours.from_state(state, [b"", b""])


def test_nonsense_is_refused() -> None:
    with pytest.raises(SignalError, match="no in-distribution"):
        Neighbours.fit(torch.empty(0, 3))
    with pytest.raises(SignalError, match=r"rows \[1\]"):
        Neighbours.fit(torch.tensor([[1.0], [float("nan")]]))
    with pytest.raises(SignalError, match="6 columns"):
        Neighbours.fit(FEATURES).nearest(torch.ones(1, 5))
    with pytest.raises(ConfigError, match="3 pictures for 40"):
        Neighbours.fit(FEATURES, PICTURES[:3])
    with pytest.raises(ConfigError, match="side = 512"):
        Neighbours.fit(FEATURES, PICTURES, side=512)
    with pytest.raises(ConfigError, match="uint8"):
        thumbnail(np.zeros((4, 4)))
