"""Copies are found, look-alikes of one modality are not."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from offmap.core.duplicates import SIZE, THRESHOLD, equal, find, fingerprint, join
from offmap.core.errors import ConfigError

IMAGES = Path(__file__).parents[2].parent / "shared" / "data" / "images"


def textured(seed: int, size: int = 160) -> np.ndarray:
    """A smooth field with structure on many scales, uint8."""
    rng = np.random.default_rng(seed)
    field = np.zeros((size, size))
    for cells in (4, 8, 16, 32):
        coarse = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
        field += np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)) / cells**0.5
    return np.uint8(255 * (field - field.min()) / np.ptp(field))


def prepared(image: Image.Image, size: int = 128) -> np.ndarray:
    grey = image.convert("L").resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(grey, dtype=np.float32)[None] / 255


def resaved(image: Image.Image, quality: int, scale: float = 1.0) -> Image.Image:
    buffer = io.BytesIO()
    small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    small.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def test_copies_are_found_and_strangers_are_not() -> None:
    images = [Image.fromarray(textured(seed)) for seed in range(60)]
    forms = [prepared(i) for i in images]
    forms += [
        prepared(resaved(images[3], 60)),
        prepared(resaved(images[7], 85, 0.5)),
        forms[11][:, :, ::-1].copy(),
        forms[3][:, ::-1].copy(),
    ]
    groups = find(np.stack([fingerprint(f) for f in forms]))
    assert groups == [(3, 60, 63), (7, 61), (11, 62)]


def test_equal_digests_are_copies_whatever_they_show() -> None:
    prints = np.stack([fingerprint(prepared(Image.fromarray(textured(seed)))) for seed in range(4)])
    assert find(prints, ["a", "", "a", ""]) == [(0, 2)]


def test_brightness_and_contrast_do_not_matter() -> None:
    image = prepared(Image.fromarray(textured(1)))
    np.testing.assert_allclose(fingerprint(0.3 * image + 0.5), fingerprint(image), atol=1e-4)


def test_constant_images_are_copies_of_nothing() -> None:
    prints = np.stack([fingerprint(np.full((1, 50, 50), level, dtype=np.float32)) for level in (0.0, 0.5, 0.5, 1.0)])
    assert not prints.any()
    assert find(prints) == []


def test_the_thumbnail_is_an_exact_area_average() -> None:
    image = np.random.default_rng(0).random((1, 128, 96)).astype(np.float32)
    block = image[0].astype(np.float64).reshape(32, 4, 32, 3).mean(axis=(1, 3))
    padded = np.pad(block, 3, mode="edge")
    mean = np.lib.stride_tricks.sliding_window_view(padded, (7, 7)).mean(axis=(2, 3))
    high = (block - mean) - (block - mean).mean()
    np.testing.assert_allclose(fingerprint(image), (high / np.linalg.norm(high)).ravel(), atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 33, 31), (1, 4, 40, 40), (1, 1, 300)])
def test_any_size_gives_one_length(shape: tuple[int, ...]) -> None:
    print_ = fingerprint(np.random.default_rng(0).random(shape).astype(np.float32))
    assert print_.shape == (SIZE * SIZE,)
    assert np.linalg.norm(print_) == pytest.approx(1, abs=1e-5)


def test_hashing_finds_what_brute_force_finds() -> None:
    rng = np.random.default_rng(5)
    base = rng.standard_normal((700, SIZE * SIZE))
    noise = 0.15 * rng.standard_normal((300, SIZE * SIZE))
    rows = np.concatenate([base, base[:300] + noise])
    prints = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    near = np.argwhere(np.triu(prints @ prints.T >= THRESHOLD, 1))
    assert len(near) == 300
    found = find(prints)
    assert len(found) >= 297
    assert set(found) <= {(int(a), int(b)) for a, b in near}


def test_many_equal_prints_do_not_blow_up() -> None:
    one = fingerprint(prepared(Image.fromarray(textured(0))))
    other = fingerprint(prepared(Image.fromarray(textured(1))))
    assert find(np.concatenate([np.tile(one, (6000, 1)), other[None]])) == [tuple(range(6000))]


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
@settings(deadline=None)
def test_join_labels_are_connected_components(links: list[tuple[int, int]]) -> None:
    reach = np.eye(20, dtype=bool)
    for a, b in links:
        reach[a, b] = reach[b, a] = True
    for _ in range(5):
        reach = (reach.astype(int) @ reach.astype(int)) > 0
    assert join(20, links).tolist() == [int(np.flatnonzero(row)[0]) for row in reach]


def test_empty_keys_are_no_evidence() -> None:
    assert equal(["", "a", "", "b", "a", "a"]) == [(1, 4), (1, 5)]


def test_nothing_gives_nothing() -> None:
    assert find(np.zeros((0, SIZE * SIZE), dtype=np.float32)) == []


@pytest.mark.parametrize("pixels", [np.zeros((4, 4)), np.zeros((1, 0, 4)), np.full((1, 4, 4), np.nan)])
def test_what_is_no_image_is_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="must be"):
        fingerprint(pixels)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected"):
        find(np.zeros((2, 7), dtype=np.float32))
    with pytest.raises(ConfigError, match="threshold"):
        find(np.zeros((2, SIZE * SIZE), dtype=np.float32), threshold=0.0)


def real(dataset: str) -> list[Image.Image]:
    files = sorted((IMAGES / dataset).glob("*/*.jpg"))[::3]
    if not files:
        pytest.skip(f"no images in {IMAGES / dataset}")
    return [Image.open(file).convert("L") for file in files]


@pytest.mark.parametrize("dataset", ["kermany", "nih"])
def test_real_images_of_one_modality_are_no_copies(dataset: str) -> None:
    images = real(dataset)
    copies = [prepared(resaved(image, 70, 0.5)) for image in images[:60]]
    prints = np.stack([fingerprint(p) for p in [*map(prepared, images), *copies]])
    expected = {(i, len(images) + i) for i in range(60)}
    groups = set(find(prints))
    assert groups <= expected
    assert len(groups) >= 59


def test_real_brain_slices_match_only_as_flipped_copies() -> None:
    """The set was freed of upright copies; upside-down ones of augmented sources are still in it."""
    prints = np.stack([fingerprint(prepared(image)) for image in real("brain_mr")])
    upright = np.triu(prints @ prints.T, 1)
    assert upright.max() < THRESHOLD
    for first, second, *_ in find(prints):
        flips = [prints[first].reshape(SIZE, SIZE)[::h, ::w].ravel() @ prints[second] for h, w in ((1, -1), (-1, 1), (-1, -1))]
        assert max(flips) >= THRESHOLD
